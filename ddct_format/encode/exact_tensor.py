"""One tensor, bit for bit: on top of a lossy layer, or by whatever takes the fewest bytes."""

from __future__ import annotations

from math import prod

import numpy as np
import numpy.typing as npt

from ..backends.interface import Backend
from ..codec import ulp
from ..codec.floats import float32_from_bytes
from ..container.dtypes import DTYPE_BITS
from ..container.zstd_frame import compress
from .blocks import share_blocks
from .delta import EncodedDelta
from .exact import ExactPlan, Kinds, encode_exact, plan_exact, price_kinds
from .exact_low_rank import CHEAP_RANKS, MOST_RANKS, UnitCounts, encode_low_rank, take_rows
from .factors import factorise
from .pair import Pair, TensorData
from .sampling import spread_rows
from .sums import sum_delta
from .tensor import EncodedLayer, EncodedTensor, apply_delta, carry, decoded, float_pair
from .workspace import Workspace

__all__ = ["encode_exactly"]

_SMALLEST_SIDE = 16
"""A narrower matrix has no low-rank part to speak of."""
_FRACTION_BITS = {"BF16": 7, "F16": 10, "F32": 23}

_WHOLE = 1 << 19
"""Weights, up to which both ways are tried on the whole tensor; beyond it a sample of rows decides."""
_DECOMPOSED = 1 << 20
"""Weights of a matrix that is decomposed as a whole."""
_SAMPLE_ROWS = 64
_SAMPLE_WEIGHTS = 1 << 18
_SURELY_SMALLER = 0.6
"""Of the tensor's own bytes: no floating-point tensor is compressed so far without its base."""
_CARRIED_PIECES, _CARRIED_PIECE = 8, 1 << 16
"""So many pieces of so many weights tell how far a tensor is compressed without its base."""
_LARGEST_POWER = 120

Bytes = npt.NDArray[np.uint8]


def encode_exactly(
    base: TensorData | None,
    target: TensorData,
    target_digest: str,
    lossy: EncodedTensor | None,
    backend: Backend,
    workspace: Workspace,
) -> EncodedTensor:
    """Encode a tensor that is not the base's own so that its last layer yields the target's bytes.

    Args:
        lossy: what a lossy preset wrote, which stays the first layer where it is a delta; None to choose freely.
    """
    cols = _columns(target.shape)
    if lossy is not None and lossy.op == "add":
        result = lossy.layers[-1].result
        assert result is not None
        if lossy.layers[-1].digest == target_digest:
            return lossy
        exact = _exact_layer(decoded(result, target, workspace), target, target_digest, None, backend, workspace)
        return EncodedTensor("add", (*lossy.layers, exact), energy=lossy.energy)
    if base is None or not float_pair(base, target) or not target.data.size:
        return carry(target, target_digest, workspace)
    pair = Pair(base, target, (target.data.size * 8 // DTYPE_BITS[target.dtype] // cols, cols))
    rows = spread_rows(pair.rows, max(_SAMPLE_ROWS, _SAMPLE_WEIGHTS // cols), 1)
    sample = pair.take(rows)
    predicted, energy = None, None
    if lossy is None and min(pair.cols, pair.rows) >= _SMALLEST_SIDE:
        predicted, energy = _low_rank(pair, sample, backend, workspace)
    if energy is None:
        sums = sum_delta(pair, backend, workspace)
        energy = sums.energy if sums.finite else 0.0
    kinds = None
    if pair.elements > _WHOLE:
        plain, kinds = _decide(sample, pair.rows / rows.size, predicted, rows, backend, workspace)
        predicted = None if plain else predicted
    del sample
    first = _first_layer(pair, predicted, backend, workspace)
    before, plan = base, None
    if first is not None:
        before = _after(first, target, workspace)
        plan = plan_exact(before, target, cols, backend, workspace, kinds=kinds)
        # That a sample has told the better way makes this a bound: these few bytes need not be compressed for it.
        size = plan.size + (
            _stored_size(first.sections) if kinds is None else sum(part.size for part in first.sections)
        )
    if first is None or kinds is None:
        alone = plan_exact(base, target, cols, backend, workspace, kinds=kinds)
        if plan is None or alone.size <= size:
            first, before, plan, size = None, base, alone, alone.size
    if size >= _SURELY_SMALLER * target.data.size and size >= _carried_size(target):
        return carry(target, target_digest, workspace)
    exact = _exact_layer(before, target, target_digest, plan, backend, workspace)
    return EncodedTensor("add", (exact,) if first is None else (first, exact), energy=energy)


def _decide(
    sample: Pair,
    weight: float,
    predicted: EncodedDelta | None,
    rows: npt.NDArray[np.int64],
    backend: Backend,
    workspace: Workspace,
) -> tuple[bool, Kinds]:
    """From a sample: whether the exact layer does better without the prediction, and which keys it should have."""
    kinds, size = price_kinds(sample.base, sample.target, sample.cols, backend, workspace, weight)
    part = None if predicted is None else take_rows(predicted, rows)
    first = _first_layer(sample, part, backend, workspace)
    if predicted is not None and first is not None:
        before = _after(first, sample.target, workspace)
        after, size_after = price_kinds(before, sample.target, sample.cols, backend, workspace, weight)
        if size_after + _stored_size(share_blocks(predicted.sections)) < size:
            return False, after
    return True, kinds


def _first_layer(
    pair: Pair, predicted: EncodedDelta | None, backend: Backend, workspace: Workspace
) -> EncodedLayer | None:
    """The low-rank layer with its result; None if there is none, or a scale is beyond its type's range."""
    applied = None if predicted is None else apply_delta(pair, predicted, backend, workspace, measured=False)
    return None if applied is None else applied[0]


def _after(layer: EncodedLayer, target: TensorData, workspace: Workspace) -> TensorData:
    assert layer.result is not None
    return decoded(layer.result, target, workspace)


def _exact_layer(
    before: TensorData,
    target: TensorData,
    digest: str,
    plan: ExactPlan | None,
    backend: Backend,
    workspace: Workspace,
) -> EncodedLayer:
    params, sections = encode_exact(before, target, _columns(target.shape), backend, workspace, plan=plan)
    return EncodedLayer(ulp.NAME, params.as_json(), sections, digest, effort="entropy")


def _low_rank(
    pair: Pair, sample: Pair, backend: Backend, workspace: Workspace
) -> tuple[EncodedDelta | None, float | None]:
    """The low-rank layer that pays, if any does, and the delta's energy, if it was found on the way.

    Args:
        sample: some rows.
    """
    sums = sum_delta(sample, backend, workspace)
    # It only keeps squares within their type's range: any row will do, but for one without changes.
    power = int(np.frexp(sums.largest)[1]) if sums.finite else 0
    if not 0 < sums.largest < np.inf or not -_LARGEST_POWER < power < _LARGEST_POWER:
        return None, None
    try:
        factors = factorise(pair, 2.0**-power, backend, workspace, MOST_RANKS, CHEAP_RANKS, whole=_DECOMPOSED)
    except FloatingPointError:
        return None, None
    energy = float(np.ldexp(factors.row_squares.sum(), 2 * power))
    return encode_low_rank(factors, power, _count_units(sample, pair.elements)), energy


def _count_units(sample: Pair, elements: int) -> UnitCounts:
    """Sizes of a unit in the last place, from some rows of a tensor of so many elements."""
    dtype = sample.target.dtype
    values = np.abs(float32_from_bytes(sample.target.data, dtype))
    least = 2.0**-14 if dtype == "F16" else 2.0**-126
    exponents = np.frexp(np.maximum(values, np.float32(least)))[1]
    found, counts = np.unique(exponents, return_counts=True)
    units: npt.NDArray[np.float64] = np.ldexp(np.float64(1), found - 1 - _FRACTION_BITS[dtype])
    return units, counts.astype(np.float64) * (elements / values.size)


def _columns(shape: tuple[int, ...]) -> int:
    """As few trailing dimensions as reach the smallest side; all of them if none do."""
    for split in range(len(shape) - 1, 0, -1):
        cols = prod(shape[split:])
        if cols >= _SMALLEST_SIDE:
            return cols
    return prod(shape)


def _carried_size(target: TensorData) -> float:
    """About what the tensor's own bytes take, in byte planes: from some pieces of them."""
    width = DTYPE_BITS[target.dtype] // 8
    elements = target.data.reshape(-1, width)
    starts = np.unique(np.linspace(0, max(len(elements) - _CARRIED_PIECE, 0), _CARRIED_PIECES).astype(np.int64))
    pieces = [elements[start : start + _CARRIED_PIECE] for start in starts]
    size = sum(len(compress(np.ascontiguousarray(plane))) for piece in pieces for plane in piece.T)
    target.release(0, target.data.size)
    return size * target.data.size / sum(piece.size for piece in pieces)


def _stored_size(sections: list[npt.NDArray[np.uint8]]) -> int:
    return sum(len(compress(section, effort="entropy")) for section in sections)
