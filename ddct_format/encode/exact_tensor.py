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
from .exact import Kinds, encode_exact
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

_WHOLE = 1 << 22
"""Weights, up to which both ways are tried on the whole tensor; beyond it a sample of rows decides."""
_SAMPLE_ROWS = 64
_SAMPLE_WEIGHTS = 1 << 18
_SURELY_SMALLER = 0.6
"""Of the tensor's own bytes: no floating-point tensor is compressed so far without its base."""
_LARGEST_POWER = 120

Layers = tuple[EncodedLayer, ...]
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
        exact, _ = _exact_layer(decoded(result, target, workspace), target, cols, target_digest, backend, workspace)
        return EncodedTensor("add", (*lossy.layers, exact), energy=lossy.energy)
    if base is None or not float_pair(base, target) or not target.data.size:
        return carry(target, target_digest, workspace)
    pair = Pair(base, target, (target.data.size * 8 // DTYPE_BITS[target.dtype] // cols, cols))
    sums = sum_delta(pair, backend, workspace)
    energy = sums.energy if sums.finite else 0.0
    predicted = None
    if lossy is None and energy > 0 and min(pair.cols, pair.rows) >= _SMALLEST_SIDE:
        predicted = _low_rank(pair, sums.largest, backend, workspace)
    kinds = None
    if pair.elements > _WHOLE:
        sample = spread_rows(pair.rows, max(_SAMPLE_ROWS, _SAMPLE_WEIGHTS // cols), 1)
        plain, kinds = _decide(pair.take(sample), pair.rows / sample.size, predicted, sample, backend, workspace)
        predicted = None if plain else predicted
    layers, size = _predicted_layers(pair, predicted, kinds, target_digest, backend, workspace)
    if not layers or kinds is None:
        alone, alone_size = _exact_layer(base, target, cols, target_digest, backend, workspace, kinds)
        if not layers or alone_size <= size:
            layers, size = (alone,), alone_size
    if pair.elements > _WHOLE:
        worth = size < _SURELY_SMALLER * target.data.size
    else:
        worth = size < _stored_size(carry(target, target_digest, workspace).layers[0].sections)
    return EncodedTensor("add", layers, energy=energy) if worth else carry(target, target_digest, workspace)


def _decide(
    sample: Pair,
    weight: float,
    predicted: EncodedDelta | None,
    rows: npt.NDArray[np.int64],
    backend: Backend,
    workspace: Workspace,
) -> tuple[bool, Kinds]:
    """From a sample: whether the exact layer does better without the prediction, and which keys it should have."""
    target, cols = sample.target, sample.cols
    params, _, size = encode_exact(sample.base.data, sample.base.dtype, target.data, target.dtype, cols, backend)
    best = (size * weight, True, (params.row_keys, params.col_keys))
    if predicted is not None:
        applied = apply_delta(sample, take_rows(predicted, rows), backend, workspace)
        if applied is not None and applied[0].result is not None:
            before = applied[0].result
            params, _, size = encode_exact(before, target.dtype, target.data, target.dtype, cols, backend)
            together = size * weight + _stored_size(share_blocks(predicted.sections))
            best = min(best, (together, False, (params.row_keys, params.col_keys)))
    return best[1], best[2]


def _predicted_layers(
    pair: Pair,
    predicted: EncodedDelta | None,
    kinds: Kinds | None,
    digest: str,
    backend: Backend,
    workspace: Workspace,
) -> tuple[Layers, float]:
    """The low-rank layer and an exact one on top, and about how many bytes they take; none if there is none."""
    if predicted is None:
        return (), 0.0
    applied = apply_delta(pair, predicted, backend, workspace)
    if applied is None or applied[0].result is None:
        return (), 0.0
    lossy, target = applied[0], pair.target
    assert lossy.result is not None
    before = decoded(lossy.result, target, workspace)
    exact, size = _exact_layer(before, target, pair.cols, digest, backend, workspace, kinds)
    return (lossy, exact), size + _stored_size(lossy.sections)


def _exact_layer(
    before: TensorData,
    target: TensorData,
    cols: int,
    digest: str,
    backend: Backend,
    workspace: Workspace,
    kinds: Kinds | None = None,
) -> tuple[EncodedLayer, float]:
    """The exact layer and about how many bytes it takes."""
    params, sections, size = encode_exact(
        before.data,
        before.dtype,
        target.data,
        target.dtype,
        cols,
        backend,
        release=target.release,
        release_before=before.release,
        workspace=workspace,
        kinds=kinds,
    )
    return EncodedLayer(ulp.NAME, params.as_json(), sections, digest), size


def _low_rank(pair: Pair, largest: float, backend: Backend, workspace: Workspace) -> EncodedDelta | None:
    power = int(np.frexp(largest)[1])
    if not -_LARGEST_POWER < power < _LARGEST_POWER:
        return None
    factors = factorise(pair, 2.0**-power, backend, workspace, MOST_RANKS, CHEAP_RANKS)
    return encode_low_rank(factors, power, _count_units(pair))


def _count_units(pair: Pair) -> UnitCounts:
    """Sizes of a unit in the last place, from some rows."""
    dtype = pair.target.dtype
    sample = pair.take(spread_rows(pair.rows, max(_SAMPLE_ROWS, _SAMPLE_WEIGHTS // pair.cols), 1))
    values = np.abs(float32_from_bytes(sample.target.data, dtype))
    least = 2.0**-14 if dtype == "F16" else 2.0**-126
    exponents = np.frexp(np.maximum(values, np.float32(least)))[1]
    found, counts = np.unique(exponents, return_counts=True)
    units: npt.NDArray[np.float64] = np.ldexp(np.float64(1), found - 1 - _FRACTION_BITS[dtype])
    return units, counts.astype(np.float64) * (pair.elements / values.size)


def _columns(shape: tuple[int, ...]) -> int:
    """As few trailing dimensions as reach the smallest side; all of them if none do."""
    for split in range(len(shape) - 1, 0, -1):
        cols = prod(shape[split:])
        if cols >= _SMALLEST_SIDE:
            return cols
    return prod(shape)


def _stored_size(sections: list[npt.NDArray[np.uint8]]) -> int:
    return sum(len(compress(section)) for section in sections)
