"""One tensor's delta: low-rank part, then residual (spec section 7.2), at a given quantiser step."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod, sqrt

import numpy as np
import numpy.typing as npt

from ..backends.encoder import LARGEST_MAGNITUDE, Encoder
from ..codec.dctq import DctqParams
from .blocks import terms_of
from .factors import RANK_LIMIT, WHOLE, Factors, factorise
from .low_rank import quantise_low_rank, residual_squares
from .pair import Pair
from .quantiser import DEFAULT_QUANTISER, Quantiser
from .residual import CodedResidual, encode_residual
from .sampling import spread_rows
from .sums import sum_delta
from .workspace import Workspace

__all__ = ["DeltaAnalysis", "EncodedDelta", "analyse_delta", "encode_delta", "matrix_view", "vector_view"]

_SMALLEST_SIDE = 16
"""Smaller matrices are mostly padding once they are cut into patches, and too few to matter."""
_WIDEST = 1 << 17
"""Wider views are folded: a row of patches and the factors of the columns must fit in memory."""
_VECTOR_PATCH = 8
_SMALLEST_VECTOR = 64
_SMALLEST_DEVIATION = 1e-30
"""Where float32 gets coarse: such deltas, and their inverses, are carried byte for byte."""
_SCALE_ROWS = 64
_VECTOR_STEP = 0.25
"""Of the vector's own deviation: norms and biases are few and matter much, four to five bits each cost nothing."""
_COARSE_VECTOR_STEP = 0.5
_NARROW_SIDE = 64
_NARROW_STEP = 0.5
"""Of a narrow matrix's own deviation: with so few inputs or outputs errors do not average out, and weights are few."""

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class DeltaAnalysis:
    """What the search passes keep of a tensor.

    Attributes:
        view: [rows, cols] that it is coded as.
        deviation: root of the mean square of the delta; 0 where nothing changed.
        largest: absolute value of it, of a vector.
        factors: of the delta divided by its deviation; None for a vector.
        rows: of the whole view, where this is about a sample of them.
    """

    view: tuple[int, int]
    deviation: float
    largest: float
    factors: Factors | None
    rows: int

    def take(self, rows: npt.NDArray[np.int64]) -> DeltaAnalysis:
        """What is known of some rows."""
        factors = None if self.factors is None else self.factors.take(rows)
        return replace(self, view=(rows.size, self.view[1]), factors=factors)


@dataclass(frozen=True, slots=True)
class EncodedDelta:
    """A layer's parameters and its payload, in sections, the scales first.

    Attributes:
        fixed: bytes of the sections whose size does not depend on the number of rows, before packing.
    """

    params: DctqParams
    sections: list[Bytes]
    fixed: list[Bytes]


def matrix_view(shape: tuple[int, ...]) -> tuple[int, int] | None:
    """[rows, cols] of a tensor of two dimensions or more; None if a side would be too short."""
    if len(shape) < 2:
        return None
    rows, cols = prod(shape[:-1]), shape[-1]
    if cols < _SMALLEST_SIDE:
        rows, cols = shape[0], prod(shape[1:])
    while cols > _WIDEST and cols % 2 == 0:
        rows, cols = 2 * rows, cols // 2
    return (rows, cols) if min(rows, cols) >= _SMALLEST_SIDE else None


def vector_view(shape: tuple[int, ...]) -> tuple[int, int] | None:
    """[rows, 8] of what is no matrix; None if it is too small or does not divide."""
    elements = prod(shape)
    return (elements // _VECTOR_PATCH, _VECTOR_PATCH) if elements >= _SMALLEST_VECTOR and not elements % 8 else None


def analyse_delta(
    pair: Pair, encoder: Encoder, workspace: Workspace, *, is_matrix: bool, limit: int = RANK_LIMIT
) -> DeltaAnalysis | None:
    """Measure a delta; None if it must be carried byte for byte.

    Args:
        limit: of the terms of a low-rank part.
    """
    view = (pair.rows, pair.cols)
    if is_matrix and pair.elements > WHOLE:
        found = _analyse_large(pair, encoder, workspace, limit)
        if found is not None:
            return found
    sums = sum_delta(pair, encoder, workspace)
    if not sums.finite:
        return None
    deviation = sqrt(sums.energy / pair.elements)
    if deviation == 0:
        return DeltaAnalysis(view, 0.0, 0.0, None, pair.rows)
    if not _SMALLEST_DEVIATION < deviation < 1 / _SMALLEST_DEVIATION:
        return None
    factors = factorise(pair, 1 / deviation, encoder, workspace, limit) if is_matrix else None
    return DeltaAnalysis(view, deviation, sums.largest, factors, pair.rows)


def _analyse_large(pair: Pair, encoder: Encoder, workspace: Workspace, limit: int) -> DeltaAnalysis | None:
    """The same without a pass for the sums: the factors tell them, too.

    A few rows tell the scale in which squares stay in range; None if they do not.
    """
    few = pair.take(spread_rows(pair.rows, _SCALE_ROWS, 1))
    sums = sum_delta(few, encoder, workspace)
    deviation = sqrt(sums.energy / few.elements) if sums.finite else 0.0
    if not _SMALLEST_DEVIATION < deviation < 1 / _SMALLEST_DEVIATION:
        return None
    try:
        factors = factorise(pair, 1 / deviation, encoder, workspace, limit)
    except FloatingPointError:
        return None
    ratio = sqrt(float(factors.row_squares.sum()) / pair.elements)
    return DeltaAnalysis((pair.rows, pair.cols), deviation * ratio, 0.0, factors.scaled(1 / ratio), pair.rows)


def encode_delta(
    pair: Pair,
    analysis: DeltaAnalysis,
    step: float,
    encoder: Encoder,
    workspace: Workspace,
    *,
    coarse: bool = False,
    quantiser: Quantiser = DEFAULT_QUANTISER,
) -> EncodedDelta:
    """Quantise a delta.

    Args:
        pair: the one that was analysed.
        step: the quantiser's, as a multiple of the delta's deviation; vectors and narrow matrices take a part of it.
        coarse: for targets at which hardly any value survives.
    """
    # With a mean square of 1, squares neither overflow nor vanish.
    scale = 1 / (analysis.deviation or 1)
    low_rank = None
    if analysis.factors is None:
        step = min(1.0, step) * (_COARSE_VECTOR_STEP if coarse else _VECTOR_STEP)
        step = max(step, analysis.largest * scale / LARGEST_MAGNITUDE) or 1.0
        coded = encode_residual(
            pair, scale, None, None, step, encoder, workspace, patch=_VECTOR_PATCH, quantiser=quantiser
        )
    else:
        if min(analysis.rows, analysis.view[1]) < _NARROW_SIDE:
            step = min(1.0, step) * _NARROW_STEP
        if quantiser.low_rank:
            low_rank = quantise_low_rank(analysis.factors, analysis.rows, step)
        coded = encode_residual(
            pair,
            scale,
            low_rank,
            residual_squares(analysis.factors, low_rank),
            step,
            encoder,
            workspace,
            patch=quantiser.patch,
            weight=analysis.rows / pair.rows,
            coarse=coarse,
            quantiser=quantiser,
        )
    scales = [coded.scale * analysis.deviation] * len(coded.levels)
    multipliers, left, right = (np.empty(0, dtype=kind) for kind in ("<u2", np.int8, np.int8))
    if low_rank is not None:
        scales.append(low_rank.scale * analysis.deviation)
        multipliers, left, right = low_rank.multipliers.astype("<u2"), low_rank.left, low_rank.right
    params = DctqParams(
        grid=coded.grid,
        transform=coded.transform,
        quantiser="levels",
        levels=coded.levels,
        sparse=coded.sparse,
        rank=0 if low_rank is None else low_rank.rank,
        row_keys=coded.row_keys.size > 0,
        col_keys=coded.col_keys.size > 0,
    )
    with np.errstate(over="ignore"):  # whoever writes it looks at the result
        numbers = np.array(scales, dtype="<f4")
    right_terms = terms_of(right)
    fixed = [_bytes(numbers), _bytes(multipliers), coded.col_keys]
    by_rows = _sections(coded, left)
    sections = [fixed[0], fixed[1], coded.row_keys, fixed[2], *terms_of(left), *right_terms, *by_rows]
    return EncodedDelta(params, sections, [*fixed, *right_terms])


def _sections(coded: CodedResidual, left: npt.NDArray[np.int8]) -> list[Bytes]:
    """Class map, run counts and codes."""
    parts = [coded.class_map] if len(coded.levels) > 1 else []
    counts = [coded.codes[number][0].size for number in coded.sparse]
    return [*parts, _bytes(np.array(counts, dtype="<u4")), *(part for codes in coded.codes for part in codes)]


def _bytes(values: npt.NDArray[np.generic]) -> Bytes:
    return np.ascontiguousarray(values).view(np.uint8).reshape(-1)
