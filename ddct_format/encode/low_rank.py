"""The low-rank part of a delta: what a few products of a column and a row say more cheaply than coefficients do.

Fine-tuning leaves a few strong directions in every matrix on top of noise. A term costs about one symbol per row and
column; it pays as soon as the energy that it takes out of the residual exceeds the noise that the quantiser would leave
there anyway (spec/adr/0101-low-rank-part.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log

import numpy as np
import numpy.typing as npt

from ..codec.dctq import MAX_MULTIPLIER_SUM

__all__ = ["RANK_LIMIT", "Factors", "LowRankPart", "factorise", "quantise_low_rank"]

RANK_LIMIT = 64
"""Every term costs the decoder a multiplication per weight."""
_OVERSAMPLING = 8
_POWER_ITERATIONS = 2
_DEAD_ZONE = 0.1
_FINEST_MULTIPLIER = 64
"""Of the smallest term: its scale is then met within 1 %."""
_LARGEST = 127


@dataclass(frozen=True, slots=True)
class Factors:
    """The strongest singular vectors of a matrix, on its shorter side; the other side follows from the matrix.

    Attributes:
        values: float64 [k], singular values, descending.
        vectors: float32 [shorter side, k], orthonormal.
    """

    values: npt.NDArray[np.float64]
    vectors: npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class LowRankPart:
    """Quantised terms, as section 7.2.2 stores them, and their sum."""

    left: npt.NDArray[np.int8]
    right: npt.NDArray[np.int8]
    multipliers: npt.NDArray[np.uint16]
    scale: float
    product: npt.NDArray[np.float32]

    @property
    def rank(self) -> int:
        return int(self.multipliers.size)


def factorise(matrix: npt.NDArray[np.float32], limit: int = RANK_LIMIT) -> Factors:
    """Randomised singular value decomposition with a fixed seed (Halko, Martinsson, Tropp 2011, algorithm 4.4).

    Args:
        matrix: float32 [rows, cols], finite, of values that can be squared.
        limit: at most so many vectors.
    """
    tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
    width = min(limit + _OVERSAMPLING, tall.shape[1])
    random = np.random.default_rng(0)
    basis, _ = np.linalg.qr(tall @ random.standard_normal((tall.shape[1], width), dtype=np.float32))
    for _ in range(_POWER_ITERATIONS):
        other, _ = np.linalg.qr(tall.T @ basis)
        basis, _ = np.linalg.qr(tall @ other)
    projected = (tall.T @ basis).astype(np.float64)
    energies, rotation = np.linalg.eigh(projected.T @ projected)
    strongest = np.argsort(-energies, kind="stable")[: min(limit, width)]
    strongest = strongest[energies[strongest] > 0]
    values = np.sqrt(energies[strongest])
    return Factors(values, (projected @ rotation[:, strongest] / values).astype(np.float32))


def quantise_low_rank(matrix: npt.NDArray[np.float32], factors: Factors, step: float) -> LowRankPart | None:
    """The terms worth their bits at this quantiser step, each quantised so that its error equals the residual's.

    Args:
        matrix: float32 [rows, cols], the one that ``factors`` belong to, with a mean square of 1.
        step: of the quantiser that codes the residual.
    """
    transposed = matrix.shape[0] < matrix.shape[1]
    tall = matrix.T if transposed else matrix
    count = _worthwhile(factors.values, tall.shape, step)
    vectors, values = factors.vectors[:, :count], factors.values[:count]
    short_steps = np.maximum(step / values, np.abs(vectors).max(axis=0, initial=0) / _LARGEST)
    short = _round(vectors, short_steps)
    used = np.flatnonzero(np.any(short, axis=0))
    short, short_steps = short[:, used], short_steps[used]
    if not used.size:
        return None
    decoded_short = (short * short_steps).astype(np.float32)
    projected = tall @ decoded_short
    # Refitting one side after the other was rounded takes back most of that side's error.
    gram = decoded_short.T.astype(np.float64) @ decoded_short
    fitted = projected @ np.linalg.pinv(gram, hermitian=True).astype(np.float32)
    long_steps = np.maximum(step, np.abs(fitted).max(axis=0, initial=0) / _LARGEST)
    long = _round(fitted, long_steps)
    products = short_steps * long_steps
    # One least-squares factor per term; it lies near 1 and goes into the multiplier.
    decoded_long = long * long_steps
    normal = (decoded_long.T @ decoded_long) * gram
    aligned = np.einsum("ij,ij->j", decoded_long, projected, dtype=np.float64)
    products = products * np.clip(np.linalg.pinv(normal, hermitian=True) @ aligned, 0.5, 2.0)

    # Multipliers of 64 and more, unless that would break the limit on their sum.
    scale = max(products.min() / _FINEST_MULTIPLIER, products.sum() / (MAX_MULTIPLIER_SUM - products.size))
    scale = max(scale, products.max() / (2**16 - 1))
    multipliers = np.maximum(np.rint(products / scale), 1).astype(np.uint16)
    weighted = (long * (multipliers * scale)).astype(np.float32)
    product = weighted @ short.astype(np.float32).T
    left, right = (short, long) if transposed else (long, short)
    product = product.T if transposed else product
    return LowRankPart(left.astype(np.int8), right.astype(np.int8), multipliers, float(scale), product)


def _worthwhile(values: npt.NDArray[np.float64], shape: tuple[int, ...], step: float) -> int:
    """How many of the strongest terms pay.

    While most residual symbols are zero, a term must hold more energy than the quantiser would leave of it anyway. At
    finer steps it must also save more bits of the residual, n/2 · log2 of its variance, than its own symbols take.
    """
    weights, length = shape[0] * shape[1], sum(shape)
    energies = np.square(values)
    variance = 1 - (np.cumsum(energies) - energies) / weights
    own_bits = length / 2 * np.log2(np.maximum(12 * energies / (length * step * step), 2))
    saved_bits = energies / (2 * log(2) * np.maximum(variance, 1e-9))
    pays = (energies > length * step * step) & (saved_bits > own_bits)
    return int(np.argmin(pays)) if not pays.all() else pays.size


def _round(values: npt.NDArray[np.float32], steps: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Whole numbers of at most 127, small values pulled towards zero, which is the cheapest symbol."""
    ratio = values / steps
    return np.copysign(np.minimum(np.floor(np.abs(ratio) + (0.5 - _DEAD_ZONE)), _LARGEST), ratio)
