"""The shared directions of a change as a low-rank product: a ``dctq.v1`` layer without coefficients (spec section 7.2).

Fine-tuning moves a matrix mostly along few directions. Sending them costs a fraction of a bit per weight and takes
more than that from every residual.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from ..codec.dctq import MAX_MULTIPLIER_SUM, DctqParams
from ..codec.patches import PatchGrid
from .blocks import terms_of
from .delta import EncodedDelta
from .factors import Factors

__all__ = ["CHEAP_RANKS", "MOST_RANKS", "UnitCounts", "encode_low_rank", "take_rows"]

MOST_RANKS = 136
CHEAP_RANKS = 64
"""What is looked for in a matrix that is decomposed as a whole, and in a larger one."""
_PATCH = 32
_RANKS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
_LARGEST_FACTOR = 127
_SIDE_BITS = 120
"""What a term costs beside the entropy of its factors."""


UnitCounts = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]
"""Sizes of one unit in the last place, and for how many elements."""


def encode_low_rank(factors: Factors, power: int, unit_counts: UnitCounts) -> EncodedDelta | None:
    """The rank that saves the most bits of an exact layer on top; None if none does.

    Args:
        factors: of the delta times 2 to the power −``power``: the squares stay in range, and the decoder's arithmetic
            sees the same integers.
        unit_counts: of the delta's elements: what is far below a unit is free anyway.
    """
    rows, cols = factors.row_squares.size, factors.col_squares.size
    left, strengths, right = factors.left, factors.values.astype(np.float32), factors.vectors
    energy = float(factors.row_squares.sum())
    if energy == 0:
        return None
    with np.errstate(over="ignore"):  # beyond a change that is far below all units
        units, counts = np.ldexp(unit_counts[0], -power), unit_counts[1]

    def exact_bits(remaining: float) -> float:
        """Bits of Gaussian residuals of this energy, counted in units in the last place."""
        variance = max(remaining, 0.0) / (rows * cols)
        ratios = 2 * np.pi * np.e * variance / np.square(np.maximum(units, 1e-18), dtype=np.float64)
        return float(np.sum(counts * 0.5 * np.log2(1 + ratios)))

    best_bits, best = exact_bits(energy), 0
    terms: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.float64]] | None = None
    worse = 0
    for rank in _RANKS:
        if rank >= strengths.size:
            break
        remaining = energy - float(np.square(strengths[:rank], dtype=np.float64).sum())
        quantised = _quantise(left[:, :rank], strengths[:rank], right[:, :rank], max(remaining, energy * 1e-9))
        remaining += _noise(strengths[:rank], left[:, :rank], right[:, :rank], quantised)
        bits = exact_bits(remaining) + _factor_bits(quantised[0]) + _factor_bits(quantised[1])
        if bits < best_bits:
            best_bits, best, terms, worse = bits, rank, quantised, 0
        else:
            worse += 1
            if worse == 3:
                break
    if terms is None:
        return None
    left_q, right_q, weights = terms
    # As fine as the largest multiplier and their sum allow; each may be rounded up by a half.
    scale = max(float(weights.max()) / (2**16 - 1), float(weights.sum()) / (MAX_MULTIPLIER_SUM - best))
    if scale == 0:
        return None
    multipliers = np.rint(weights / scale).astype("<u2")
    params = DctqParams(PatchGrid(rows, cols, _PATCH), "none", "levels", ((0,),), rank=best)
    scales = np.array([0.0, np.ldexp(scale, power)], dtype="<f4")
    sides = [*terms_of(left_q.astype(np.int8)), *terms_of(right_q.astype(np.int8))]
    return EncodedDelta(params, [scales.view(np.uint8), multipliers.view(np.uint8), *sides], [])


def take_rows(encoded: EncodedDelta, rows: npt.NDArray[np.int64]) -> EncodedDelta:
    """The low-rank product of some rows alone."""
    params = encoded.params
    scales, multipliers, *factors = encoded.sections
    left, right = factors[: params.rank], factors[params.rank :]
    grid = PatchGrid(rows.size, params.grid.cols, _PATCH)
    return EncodedDelta(replace(params, grid=grid), [scales, multipliers, *(term[rows] for term in left), *right], [])


def _quantise(
    left: npt.NDArray[np.float32], strengths: npt.NDArray[np.float32], right: npt.NDArray[np.float32], remaining: float
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.float64]]:
    """Integer factors and the weight of each term.

    A factor's bits balance the residual's where its step, times the strength, is √12 of the residual's deviation.
    """
    step = np.sqrt(12 * remaining / (left.shape[0] * right.shape[0]))
    left_scaled, right_scaled = left * strengths, right * strengths
    least = np.maximum(np.abs(left_scaled).max(axis=0), np.abs(right_scaled).max(axis=0)) / _LARGEST_FACTOR
    steps = np.maximum(least, np.float32(step))
    left_q, right_q = np.rint(left_scaled / steps), np.rint(right_scaled / steps)
    along = (left_q * left).sum(axis=0) * (right_q * right).sum(axis=0)
    norms = np.square(left_q).sum(axis=0) * np.square(right_q).sum(axis=0)
    weights = strengths * np.divide(along, norms, out=np.zeros_like(along), where=norms > 0)
    return left_q, right_q, np.maximum(weights, 0).astype(np.float64)


def _noise(
    strengths: npt.NDArray[np.float32],
    left: npt.NDArray[np.float32],
    right: npt.NDArray[np.float32],
    quantised: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.float64]],
) -> float:
    """Energy of (product of these terms − its quantised form), by way of the small Gram matrices."""
    left_q, right_q, weights = quantised
    scaled = left_q * weights.astype(np.float32)
    own = float(np.square(strengths, dtype=np.float64).sum())
    cross = float((((left * strengths).T @ scaled) * (right.T @ right_q)).sum(dtype=np.float64))
    coded = float(((scaled.T @ scaled) * (right_q.T @ right_q)).sum(dtype=np.float64))
    return max(own - 2 * cross + coded, 0.0)


def _factor_bits(factors: npt.NDArray[np.float32]) -> float:
    total = float(_SIDE_BITS * factors.shape[1])
    for column in factors.T:
        counts = np.bincount((column + _LARGEST_FACTOR).astype(np.int64))
        used = counts[counts > 0]
        total -= float(np.sum(used * np.log2(used / column.size)))
    return total
