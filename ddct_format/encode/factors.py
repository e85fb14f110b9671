"""The strongest directions of a delta, found in one pass over it."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..backends.encoder import Encoder, PowerStep
from .pair import Pair
from .sampling import spread_rows
from .workspace import Workspace

__all__ = ["RANK_LIMIT", "WHOLE", "Factors", "factorise"]

RANK_LIMIT = 64
"""Every term costs the decoder a multiplication per weight."""
_OVERSAMPLING = 8
_POWER_ITERATIONS, _SAMPLE_ITERATIONS = 1, 2
"""Before the one that decomposes, of a whole matrix and of a sample, which shows weak directions less well."""
WHOLE = 1 << 22
"""Up to so many weights a matrix is decomposed as a whole. Of a larger one a sample of rows tells the directions, which
one power iteration over all rows then makes precise (spec/adr/0501-one-pass-analysis.md)."""
_SAMPLE_ROWS, _SAMPLE_WEIGHTS = 1024, 1 << 22
"""Of a sample at most."""
_LARGE_LIMIT = 32
_NOISE_EDGE = 1.1
"""Singular values of a sample that are not above those of noise by so much stand for nothing that could be sent."""
_SPARE = 4
_SMALL = 1 << 18
"""So few weights show weak directions no better than a sample does."""
_BAND_WEIGHTS = 1 << 22
"""Of a band: each has sums of its own, as large as the vectors."""

Matrix = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Factors:
    """The strongest terms of a singular value decomposition, and the energy of all rows and columns.

    Attributes:
        values: float64 [k], singular values, descending.
        left: float32 [rows, k], orthonormal, but for a sample of the rows.
        vectors: float32 [cols, k], orthonormal.
        row_squares, col_squares: float64 [rows] and [cols], sums of squares.
    """

    values: npt.NDArray[np.float64]
    left: Matrix
    vectors: Matrix
    row_squares: npt.NDArray[np.float64]
    col_squares: npt.NDArray[np.float64]

    def project(self, right: Matrix) -> Matrix:
        """M · right, as far as these terms know M; right is float32 [cols, n]."""
        inner = self.values[:, None] * (self.vectors.T @ right)
        result: Matrix = self.left @ inner.astype(np.float32)
        return result

    def project_back(self, left: Matrix) -> Matrix:
        """Mᵀ · left, likewise; left is float32 [rows, n]."""
        inner = self.values[:, None] * (self.left.T @ left)
        result: Matrix = self.vectors @ inner.astype(np.float32)
        return result

    def scaled(self, factor: float) -> Factors:
        """Of the matrix times a factor."""
        square = factor * factor
        return Factors(
            self.values * factor, self.left, self.vectors, self.row_squares * square, self.col_squares * square
        )

    def take(self, rows: npt.NDArray[np.int64]) -> Factors:
        """What is known of some rows."""
        share = rows.size / self.row_squares.size
        return Factors(self.values, self.left[rows], self.vectors, self.row_squares[rows], self.col_squares * share)


def factorise(
    pair: Pair,
    scale: float,
    encoder: Encoder,
    workspace: Workspace,
    limit: int = RANK_LIMIT,
    large_limit: int = _LARGE_LIMIT,
    whole: int = WHOLE,
) -> Factors:
    """Randomised singular value decomposition with a fixed seed (Halko, Martinsson, Tropp 2011).

    Args:
        scale: what the delta is multiplied with first, so that its values can be squared.
        limit, large_limit: at most so many terms, of a matrix that is decomposed as a whole and of a larger one.
        whole: weights of the former at most, and of a sample of the latter, where that has rows enough for the terms.
    """
    if pair.elements <= whole:
        iterations = _SAMPLE_ITERATIONS if pair.elements <= _SMALL else _POWER_ITERATIONS
        vectors, _ = _directions(pair, scale, encoder, workspace, limit + _OVERSAMPLING, iterations)
    else:
        wanted = min(_SAMPLE_WEIGHTS, max(whole, 4 * large_limit * pair.cols))
        rows = min(_SAMPLE_ROWS, max(wanted // pair.cols, 1))
        sample = pair.take(spread_rows(pair.rows, rows, 1))
        vectors, found = _directions(sample, scale, encoder, workspace, large_limit + _OVERSAMPLING, _SAMPLE_ITERATIONS)
        vectors = np.ascontiguousarray(vectors[:, : found + _SPARE])
    step = _power(pair, scale, encoder, workspace, vectors)
    return Factors(*_decompose(step.projected, step.returned, limit), step.row_squares, step.col_squares)


def _power(pair: Pair, scale: float, encoder: Encoder, workspace: Workspace, vectors: Matrix) -> PowerStep:
    """One power iteration with all rows."""

    def step(span: tuple[int, int]) -> PowerStep:
        result = encoder.power_step(pair.band(span), scale, vectors)
        pair.release(span)
        return result

    projected = np.empty((pair.rows, vectors.shape[1]), dtype=np.float32)
    row_squares = np.empty(pair.rows)
    returned, col_squares = np.zeros(vectors.shape, dtype=np.float32), np.zeros(pair.cols)
    spans = pair.spans(max(encoder.band_weights, _BAND_WEIGHTS))
    for span, part in zip(spans, workspace.spread(step, spans), strict=True):
        projected[slice(*span)], row_squares[slice(*span)] = part.projected, part.row_squares
        returned += part.returned
        col_squares += part.col_squares
    if not np.isfinite(row_squares.sum()):
        raise FloatingPointError("squares of a delta are not finite")
    return PowerStep(projected, returned, row_squares, col_squares)


def _directions(
    pair: Pair, scale: float, encoder: Encoder, workspace: Workspace, width: int, iterations: int = _POWER_ITERATIONS
) -> tuple[Matrix, int]:
    """Orthonormal right vectors, the strongest first, and how many of them rise above the noise."""
    vectors = _signs(pair.cols, min(width, pair.rows, pair.cols))
    for _ in range(iterations):
        vectors = _orthonormal(_power(pair, scale, encoder, workspace, vectors).returned)
    step = _power(pair, scale, encoder, workspace, vectors)
    values, _, vectors = _decompose(step.projected, step.returned, width)
    # Singular values of noise with the energy that these leave are below that.
    rest = max(float(step.row_squares.sum() - np.square(values).sum()), 0.0)
    edge = rest / pair.elements * (pair.rows**0.5 + pair.cols**0.5) ** 2
    return vectors, int(np.count_nonzero(np.square(values) > _NOISE_EDGE * edge))


def _signs(rows: int, cols: int) -> Matrix:
    """1 and -1 at random, always the same: as good a beginning as normal numbers, and cheaper."""
    bits = np.random.default_rng(3).integers(0, 256, -(-rows * cols // 8), dtype=np.uint8)
    signs = np.unpackbits(bits, count=rows * cols).astype(np.float32)
    signs *= 2
    signs -= 1
    return signs.reshape(rows, cols)


def _orthonormal(columns: Matrix) -> Matrix:
    """An orthonormal basis of what these columns span, but for what single precision does not see of it."""
    result: Matrix = columns @ _whitening(_gram(columns), 1e-12).astype(np.float32)
    return result


def _decompose(projected: Matrix, returned: Matrix, limit: int) -> tuple[npt.NDArray[np.float64], Matrix, Matrix]:
    """Singular values and vectors of Q·Qᵀ·M, Q spanning the columns of M·V, given M·V and Mᵀ·M·V."""
    to_basis = _whitening(_gram(projected), 1e-10)
    energies, turn = np.linalg.eigh(to_basis.T @ _gram(returned) @ to_basis)
    strongest = np.argsort(-energies, kind="stable")[:limit]
    strongest = strongest[energies[strongest] > 0]
    values = np.sqrt(energies[strongest])
    turn = to_basis @ turn[:, strongest]
    return values, projected @ turn.astype(np.float32), returned @ (turn / values).astype(np.float32)


def _gram(columns: Matrix) -> npt.NDArray[np.float64]:
    exact = columns.astype(np.float64)
    result: npt.NDArray[np.float64] = exact.T @ exact
    return result


def _whitening(gram: npt.NDArray[np.float64], smallest: float) -> npt.NDArray[np.float64]:
    """W with WᵀGW = 1, of as many columns as there are directions with this share of the largest one's energy."""
    with suppress(np.linalg.LinAlgError):
        root = np.linalg.cholesky(gram)
        sides = np.diagonal(root)
        if sides.size and sides.min() ** 2 > smallest * sides.max() ** 2:
            return np.linalg.inv(root).T
    energies, turn = np.linalg.eigh(gram)
    used = energies > max(float(energies.max(initial=0.0)) * smallest, np.finfo(np.float64).tiny)
    result: npt.NDArray[np.float64] = turn[:, used] / np.sqrt(energies[used])
    return result
