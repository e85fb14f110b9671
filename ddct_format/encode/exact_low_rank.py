"""The shared directions of a change as a low-rank product: a ``dctq.v1`` layer without coefficients (spec section 7.2).

Fine-tuning moves a matrix mostly along few directions. Sending them costs a fraction of a bit per weight and takes
more than that from every residual.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

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
_PRICED_ROWS = 512
"""Tell what all factors of a term cost."""
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

    sides = (_Side.of(left * strengths), _Side.of(right * strengths))
    best_bits, best, steps = exact_bits(energy), 0, np.empty(0, dtype=np.float32)
    worse = 0
    for rank in _RANKS:
        if rank >= strengths.size:
            break
        squares = np.square(strengths[:rank], dtype=np.float64)
        remaining = energy - float(squares.sum())
        found = _steps(sides, rank, np.sqrt(12 * max(remaining, energy * 1e-9) / (rows * cols)))
        # Both sides are rounded; a term is never worse than none.
        remaining += float(np.minimum(np.square(found, dtype=np.float64) * ((rows + cols) / 12), squares).sum())
        bits = exact_bits(remaining) + sum(side.bits(found) for side in sides)
        if bits < best_bits:
            best_bits, best, steps, worse = bits, rank, found, 0
        else:
            worse += 1
            if worse == 3:
                break
    if not best:
        return None
    left_q, right_q, weights = _quantise(left[:, :best], strengths[:best], right[:, :best], steps)
    # As fine as the largest multiplier and their sum allow; each may be rounded up by a half.
    scale = max(float(weights.max()) / (2**16 - 1), float(weights.sum()) / (MAX_MULTIPLIER_SUM - best))
    if scale == 0:
        return None
    multipliers = np.rint(weights / scale).astype("<u2")
    params = DctqParams(PatchGrid(rows, cols, _PATCH), "none", "levels", ((0,),), rank=best)
    scales = np.array([0.0, np.ldexp(scale, power)], dtype="<f4")
    terms = [*terms_of(left_q.astype(np.int8)), *terms_of(right_q.astype(np.int8))]
    return EncodedDelta(params, [scales.view(np.uint8), multipliers.view(np.uint8), *terms], [])


def take_rows(encoded: EncodedDelta, rows: npt.NDArray[np.int64]) -> EncodedDelta:
    """The low-rank product of some rows alone."""
    params = encoded.params
    scales, multipliers, *factors = encoded.sections
    left, right = factors[: params.rank], factors[params.rank :]
    grid = PatchGrid(rows.size, params.grid.cols, _PATCH)
    return EncodedDelta(replace(params, grid=grid), [scales, multipliers, *(term[rows] for term in left), *right], [])


@dataclass(frozen=True, slots=True)
class _Side:
    """The factors of one side, times their strengths.

    Attributes:
        largest: float32 [k], magnitudes.
        sample: float32 [some, k], of the rows.
        rows: how many there are.
    """

    largest: npt.NDArray[np.float32]
    sample: npt.NDArray[np.float32]
    rows: int

    @classmethod
    def of(cls, scaled: npt.NDArray[np.float32]) -> _Side:
        return cls(np.abs(scaled).max(axis=0), scaled[:: max(1, len(scaled) // _PRICED_ROWS)], len(scaled))

    def bits(self, steps: npt.NDArray[np.float32]) -> float:
        """What the factors of so many terms take, rounded to these steps."""
        symbols = np.rint(self.sample[:, : steps.size] / steps).astype(np.int64) + _LARGEST_FACTOR
        symbols += np.arange(steps.size) * (2 * _LARGEST_FACTOR + 1)
        counts = np.bincount(symbols.reshape(-1))
        used = counts[counts > 0]
        bits = len(symbols) * steps.size * np.log2(len(symbols)) - float(np.sum(used * np.log2(used)))
        return float(_SIDE_BITS * steps.size + bits * self.rows / len(symbols))


def _steps(sides: tuple[_Side, _Side], rank: int, step: float) -> npt.NDArray[np.float32]:
    """Of each term: where its step, times the strength, is √12 of the residual's deviation, bits are in balance."""
    least = np.maximum(*(side.largest[:rank] for side in sides)) / _LARGEST_FACTOR
    steps: npt.NDArray[np.float32] = np.maximum(least, np.float32(step))
    return steps


def _quantise(
    left: npt.NDArray[np.float32],
    strengths: npt.NDArray[np.float32],
    right: npt.NDArray[np.float32],
    steps: npt.NDArray[np.float32],
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.float64]]:
    """Integer factors and the weight of each term."""
    left_q, right_q = np.rint(left * (strengths / steps)), np.rint(right * (strengths / steps))
    along = (left_q * left).sum(axis=0) * (right_q * right).sum(axis=0)
    norms = np.square(left_q).sum(axis=0) * np.square(right_q).sum(axis=0)
    weights = strengths * np.divide(along, norms, out=np.zeros_like(along), where=norms > 0)
    return left_q, right_q, np.maximum(weights, 0).astype(np.float64)
