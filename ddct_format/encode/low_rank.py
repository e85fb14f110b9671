"""The low-rank part of a delta: what a few products of a column and a row say more cheaply than coefficients do.

Fine-tuning leaves a few strong directions in every matrix on top of noise. A term costs about one symbol per row and
column; it pays as soon as the energy that it takes out of the residual exceeds the noise that the quantiser would leave
there anyway (spec/adr/0101-low-rank-part.md).
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from math import log

import numpy as np
import numpy.typing as npt

from ..codec.dctq import MAX_MULTIPLIER_SUM
from .factors import Factors

__all__ = ["LowRankPart", "quantise_low_rank", "residual_squares"]

_DEAD_ZONE = 0.1
_FINEST_MULTIPLIER = 64
"""Of the smallest term: its scale is then met within 1 %."""
_LARGEST = 127
_SINGULAR = 1e-4
"""Of what is left of a column beside those before it, the share below which it counts as one of their combinations."""


@dataclass(frozen=True, slots=True)
class LowRankPart:
    """Quantised terms, as section 7.2.2 stores them: left int8 [rows, k], right int8 [cols, k]."""

    left: npt.NDArray[np.int8]
    right: npt.NDArray[np.int8]
    multipliers: npt.NDArray[np.uint16]
    scale: float

    @property
    def rank(self) -> int:
        return int(self.multipliers.size)

    def weighted(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Left, times multipliers and scale, [rows, k], and right, [k, cols]: their product is what is decoded."""
        left = self.left.astype(np.float32) * (self.multipliers * self.scale).astype(np.float32)
        return left, np.ascontiguousarray(self.right.T.astype(np.float32))


def quantise_low_rank(factors: Factors, rows: int, step: float) -> LowRankPart | None:
    """The terms worth their bits at this quantiser step, each quantised so that its error equals the residual's.

    Args:
        factors: of a matrix with a mean square of 1, or what is known of some of its rows.
        rows: of the whole matrix.
        step: of the quantiser that codes the residual.
    """
    count = _worthwhile(factors.values, (rows, factors.vectors.shape[0]), step)
    vectors, values = factors.vectors[:, :count], factors.values[:count]
    right_steps = np.maximum(step / values, np.abs(vectors).max(axis=0, initial=0) / _LARGEST)
    right = _round(vectors, right_steps)
    used = np.flatnonzero(np.any(right, axis=0))
    right, right_steps = right[:, used], right_steps[used]
    if not used.size:
        return None
    decoded_right = right * right_steps.astype(np.float32)
    projected = factors.project(decoded_right)
    # Refitting one side after the other was rounded takes back most of that side's error.
    gram = (decoded_right.T @ decoded_right).astype(np.float64)
    fitted = projected @ _inverse(gram).astype(np.float32)
    left_steps = np.maximum(step, np.abs(fitted).max(axis=0, initial=0) / _LARGEST)
    left = _round(fitted, left_steps)
    products = right_steps * left_steps
    # One least-squares factor per term; it lies near 1 and goes into the multiplier.
    decoded_left = left * left_steps.astype(np.float32)
    normal = (decoded_left.T @ decoded_left) * gram
    aligned = np.einsum("ij,ij->j", decoded_left, projected, dtype=np.float64)
    products = products * np.clip(_inverse(normal) @ aligned, 0.5, 2.0)

    # Multipliers of 64 and more, unless that would break the limit on their sum.
    scale = max(products.min() / _FINEST_MULTIPLIER, products.sum() / (MAX_MULTIPLIER_SUM - products.size))
    scale = max(scale, products.max() / (2**16 - 1))
    multipliers = np.maximum(np.rint(products / scale), 1).astype(np.uint16)
    return LowRankPart(left.astype(np.int8), right.astype(np.int8), multipliers, float(scale))


def residual_squares(
    factors: Factors, part: LowRankPart | None
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Sums of squares of the rows and the columns of what the low-rank part leaves: |m − p|² = |m|² − 2·m·p + |p|²."""
    if part is None:
        return factors.row_squares, factors.col_squares
    left, right = part.weighted()
    of_rows = left @ (right @ right.T) - 2 * factors.project(right.T)
    of_cols = (left.T @ left) @ right - 2 * factors.project_back(left).T
    rows = factors.row_squares + np.einsum("ik,ik->i", of_rows, left)
    cols = factors.col_squares + np.einsum("ki,ki->i", of_cols, right)
    return np.maximum(rows, 0), np.maximum(cols, 0)


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


def _inverse(gram: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Of a positive semidefinite matrix; the pseudoinverse where it is nearly singular."""
    scale = 1 / np.sqrt(np.maximum(np.diagonal(gram), np.finfo(np.float64).tiny))
    with suppress(np.linalg.LinAlgError):
        root = np.linalg.cholesky(gram * scale * scale[:, None])
        if np.diagonal(root).min() > _SINGULAR:
            half = np.linalg.inv(root) * scale
            result: npt.NDArray[np.float64] = half.T @ half
            return result
    return np.linalg.pinv(gram, hermitian=True).astype(np.float64, copy=False)


def _round(values: npt.NDArray[np.float32], steps: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """Whole numbers of at most 127, small values pulled towards zero, which is the cheapest symbol."""
    ratio = values * (1 / steps).astype(np.float32)
    sizes = np.abs(ratio)
    sizes += 0.5 - _DEAD_ZONE
    np.minimum(np.floor(sizes, out=sizes), _LARGEST, out=sizes)
    return np.copysign(sizes, ratio, out=sizes)
