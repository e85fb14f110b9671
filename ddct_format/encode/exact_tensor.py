"""One tensor, bit for bit: on top of a lossy layer, or by whatever takes the fewest bytes."""

from __future__ import annotations

from math import prod

import numpy as np
import numpy.typing as npt

from ..backends.interface import Backend
from ..codec import dctq, ulp
from ..codec.floats import float32_from_bytes
from ..container.dtypes import DTYPE_BITS
from ..container.zstd_frame import compress
from .delta import EncodedDelta
from .exact import encode_exact
from .exact_low_rank import encode_low_rank
from .pair import Pair, TensorData
from .sums import sum_delta
from .tensor import EncodedLayer, EncodedTensor, apply_delta, carry, float_pair
from .workspace import Workspace

__all__ = ["encode_exactly"]

_SMALLEST_SIDE = 16
"""A narrower matrix has no low-rank part to speak of."""
_FRACTION_BITS = {"BF16": 7, "F16": 10, "F32": 23}
_FACTOR_PIECE = 4096
"""Factors of strong terms use more of their range than those of weak ones: entropy tables for each few of them."""

Layers = tuple[EncodedLayer, ...]


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
    if lossy is not None and lossy.op == "add":
        before = lossy.layers[-1].result
        assert before is not None
        if lossy.layers[-1].digest == target_digest:
            return lossy
        exact, _ = _exact_layer(before, target.dtype, target, target_digest)
        return EncodedTensor("add", (*lossy.layers, exact), energy=lossy.energy)
    if base is None or not float_pair(base, target) or not target.data.size:
        return carry(target, target_digest, workspace)
    cols = _columns(target.shape)
    pair = Pair(base, target, (target.data.size * 8 // DTYPE_BITS[target.dtype] // cols, cols))
    sums = sum_delta(pair, backend, workspace)
    energy = sums.energy if sums.finite else 0.0
    alone, size = _exact_layer(base.data, base.dtype, target, target_digest)
    layers: Layers = (alone,)
    if lossy is None and energy > 0:
        predicted = _low_rank_layer(pair, backend, workspace)
        if predicted is not None and predicted.result is not None:
            above, rest = _exact_layer(predicted.result, target.dtype, target, target_digest)
            together = rest + _stored_size(predicted.sections)
            if together < size:
                layers, size = (predicted, above), together
    carried = carry(target, target_digest, workspace)
    if size >= _stored_size(carried.layers[0].sections):
        return carried
    return EncodedTensor("add", layers, energy=energy)


def _exact_layer(
    before: npt.NDArray[np.uint8], dtype: str, target: TensorData, digest: str
) -> tuple[EncodedLayer, float]:
    """The exact layer and about how many bytes it takes."""
    params, sections, size = encode_exact(before, dtype, target.data, target.dtype, _columns(target.shape))
    return EncodedLayer(ulp.NAME, params.as_json(), sections, digest), size


def _low_rank_layer(pair: Pair, backend: Backend, workspace: Workspace) -> EncodedLayer | None:
    if min(pair.cols, pair.rows) < _SMALLEST_SIDE:
        return None
    target = pair.target
    values = float32_from_bytes(target.data, target.dtype).reshape(-1, pair.cols)
    least = 2.0**-14 if target.dtype == "F16" else 2.0**-126
    exponents = np.frexp(np.maximum(np.abs(values), np.float32(least)))[1] - 1 - _FRACTION_BITS[target.dtype]
    delta = backend.difference(pair.band((0, pair.rows)))
    encoded = encode_low_rank(delta, np.ldexp(np.float32(1), exponents))
    if encoded is None:
        return None
    params, payload = encoded
    sections = [
        section[start : start + _FACTOR_PIECE]
        for section in dctq.build_sections(params, payload)
        for start in range(0, section.size, _FACTOR_PIECE)
    ]
    applied = apply_delta(pair, EncodedDelta(params, sections, []), backend, workspace)
    return None if applied is None else applied[0]


def _columns(shape: tuple[int, ...]) -> int:
    """As few trailing dimensions as reach the smallest side; all of them if none do."""
    for split in range(len(shape) - 1, 0, -1):
        cols = prod(shape[split:])
        if cols >= _SMALLEST_SIDE:
            return cols
    return prod(shape)


def _stored_size(sections: list[npt.NDArray[np.uint8]]) -> int:
    return sum(len(compress(section)) for section in sections)
