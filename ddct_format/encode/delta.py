"""One tensor's delta: low-rank part, then residual (spec section 7.2), at a given quantiser step."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod, sqrt

import numpy as np
import numpy.typing as npt

from ..backends.interface import Backend
from ..codec.dctq import DctqParams, DctqPayload
from .low_rank import Factors, factorise, quantise_low_rank
from .quantise import LARGEST_MAGNITUDE
from .quantiser import DEFAULT_QUANTISER, Quantiser
from .residual import encode_residual

__all__ = ["DeltaAnalysis", "analyse_delta", "encode_delta", "matrix_view", "vector_view"]

_SMALLEST_SIDE = 16
"""Smaller matrices are mostly padding once they are cut into patches, and too few to matter."""
_VECTOR_PATCH = 8
_SMALLEST_VECTOR = 64
_SMALLEST_DEVIATION = 1e-30
"""Where float32 gets coarse: such deltas, and their inverses, are carried byte for byte."""
_VECTOR_STEP = 0.25
"""Of the vector's own deviation: norms and biases are few and matter much, four to five bits each cost nothing."""
_COARSE_VECTOR_STEP = 0.5
_NARROW_SIDE = 64
_NARROW_STEP = 0.5
"""Of a narrow matrix's own deviation: with so few inputs or outputs errors do not average out, and weights are few."""


@dataclass(frozen=True, slots=True)
class DeltaAnalysis:
    """What the search passes keep of a tensor.

    Attributes:
        view: [rows, cols] that it is coded as.
        deviation: root of the mean square of the delta; 0 where nothing changed.
        factors: of the delta divided by its deviation; None for a vector.
    """

    view: tuple[int, int]
    deviation: float
    factors: Factors | None


def matrix_view(shape: tuple[int, ...]) -> tuple[int, int] | None:
    """[rows, cols] of a tensor of two dimensions or more; None if a side would be too short."""
    if len(shape) < 2:
        return None
    rows, cols = prod(shape[:-1]), shape[-1]
    if cols < _SMALLEST_SIDE:
        rows, cols = shape[0], prod(shape[1:])
    return (rows, cols) if min(rows, cols) >= _SMALLEST_SIDE else None


def vector_view(shape: tuple[int, ...]) -> tuple[int, int] | None:
    """[rows, 8] of what is no matrix; None if it is too small or does not divide."""
    elements = prod(shape)
    return (elements // _VECTOR_PATCH, _VECTOR_PATCH) if elements >= _SMALLEST_VECTOR and not elements % 8 else None


def analyse_delta(delta: npt.NDArray[np.float32], shape: tuple[int, ...]) -> DeltaAnalysis | None:
    """Measure a delta, float32 1-D; None if it must be carried byte for byte."""
    view = matrix_view(shape)
    is_matrix = view is not None
    view = view or vector_view(shape)
    if view is None or not np.isfinite(delta).all():
        return None
    deviation = sqrt(float(np.square(delta, dtype=np.float64).mean()))
    if deviation == 0:
        return DeltaAnalysis(view, 0.0, None)
    if not _SMALLEST_DEVIATION < deviation < 1 / _SMALLEST_DEVIATION:
        return None
    normal = (delta / np.float32(deviation)).reshape(view)
    return DeltaAnalysis(view, deviation, factorise(normal) if is_matrix else None)


def encode_delta(
    delta: npt.NDArray[np.float32],
    analysis: DeltaAnalysis,
    step: float,
    backend: Backend,
    *,
    coarse: bool = False,
    quantiser: Quantiser = DEFAULT_QUANTISER,
) -> tuple[DctqParams, DctqPayload]:
    """Quantise a delta.

    Args:
        delta: float32 1-D, the one that was analysed.
        step: the quantiser's, as a multiple of the delta's deviation; vectors and narrow matrices take a part of it.
        coarse: for targets at which hardly any value survives.
    """
    # With a mean square of 1, squares neither overflow nor vanish.
    matrix = (delta / np.float32(analysis.deviation or 1)).reshape(analysis.view)
    low_rank = None
    if analysis.factors is None:
        step = min(1.0, step) * (_COARSE_VECTOR_STEP if coarse else _VECTOR_STEP)
        step = max(step, float(np.abs(matrix).max()) / LARGEST_MAGNITUDE)
        coded = encode_residual(matrix, _VECTOR_PATCH, step or 1.0, backend, plain=True, quantiser=quantiser)
    else:
        if min(analysis.view) < _NARROW_SIDE:
            step = min(1.0, step) * _NARROW_STEP
        low_rank = quantise_low_rank(matrix, analysis.factors, step) if quantiser.low_rank else None
        residual = matrix if low_rank is None else matrix - low_rank.product
        coded = encode_residual(residual, quantiser.patch, step, backend, coarse=coarse, quantiser=quantiser)
    scales = [coded.scale * analysis.deviation] * len(coded.levels)
    parts: dict[str, npt.NDArray[np.int8] | npt.NDArray[np.uint16]] = {}
    if low_rank is not None:
        scales.append(low_rank.scale * analysis.deviation)
        parts = {"left": low_rank.left, "right": low_rank.right, "multipliers": low_rank.multipliers}
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
    payload = DctqPayload(
        scales=np.array(scales, dtype=np.float32),
        class_map=coded.class_map,
        codes=coded.codes,
        row_keys=coded.row_keys,
        col_keys=coded.col_keys,
        **parts,  # type: ignore[arg-type]
    )
    return params, payload
