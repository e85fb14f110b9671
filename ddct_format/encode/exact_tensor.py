"""One tensor, bit for bit: on top of a lossy layer, or by whatever takes the fewest bytes."""

from __future__ import annotations

from math import prod

import numpy as np
import numpy.typing as npt

from ..backends.interface import Backend
from ..codec import dctq, raw, ulp
from ..codec.floats import FLOAT_DTYPES, float32_from_bytes
from ..container.dtypes import DTYPE_BITS
from ..container.zstd_frame import compress
from .exact import encode_exact
from .exact_low_rank import encode_low_rank
from .tensor import EncodedLayer, EncodedTensor, TensorData

__all__ = ["encode_exactly"]

_SMALLEST_SIDE = 16
"""A narrower matrix has no low-rank part to speak of."""
_FRACTION_BITS = {"BF16": 7, "F16": 10, "F32": 23}
_FACTOR_PIECE = 4096
"""Factors of strong terms use more of their range than those of weak ones: entropy tables for each few of them."""

Layers = tuple[EncodedLayer, ...]


def encode_exactly(
    base: TensorData | None, target: TensorData, lossy: EncodedTensor | None, backend: Backend
) -> EncodedTensor:
    """Encode a tensor that is not the base's own so that its last layer yields the target's bytes.

    Args:
        lossy: what a lossy preset wrote, which stays the first layer where it is a delta; None to choose freely.
    """
    if lossy is not None and lossy.op == "add":
        before = lossy.layers[-1].result
        assert before is not None
        if np.array_equal(before, target.data):
            return lossy
        exact, _ = _exact_layer(before, target.dtype, target)
        return EncodedTensor("add", (*lossy.layers, exact), energy=lossy.energy)
    width = DTYPE_BITS[target.dtype] // 8
    planes = raw.split_planes(target.data, width)
    carried = EncodedTensor("replace", (EncodedLayer(raw.NAME, {"planes": width}, [planes], target.data),))
    if base is None or base.shape != target.shape or not target.data.size:
        return carried
    if {base.dtype, target.dtype} - set(FLOAT_DTYPES):
        return carried
    with np.errstate(over="ignore"):
        delta = backend.delta(base.data, base.dtype, target.data, target.dtype)
        energy = float(np.square(delta, dtype=np.float64).sum()) if np.isfinite(delta).all() else 0.0
    alone, size = _exact_layer(base.data, base.dtype, target)
    layers: Layers = (alone,)
    if lossy is None and energy > 0:
        predicted = _low_rank_layer(base, target, delta, backend)
        if predicted is not None and predicted.result is not None:
            above, rest = _exact_layer(predicted.result, target.dtype, target)
            together = rest + _stored_size(predicted.sections)
            if together < size:
                layers, size = (predicted, above), together
    if size >= _stored_size([planes]):
        return carried
    return EncodedTensor("add", layers, energy=energy)


def _exact_layer(before: npt.NDArray[np.uint8], dtype: str, target: TensorData) -> tuple[EncodedLayer, float]:
    """The exact layer and about how many bytes it takes."""
    params, sections, size = encode_exact(before, dtype, target.data, target.dtype, _columns(target.shape))
    return EncodedLayer(ulp.NAME, params.as_json(), sections, target.data), size


def _low_rank_layer(
    base: TensorData, target: TensorData, delta: npt.NDArray[np.float32], backend: Backend
) -> EncodedLayer | None:
    cols = _columns(target.shape)
    if min(cols, delta.size // cols) < _SMALLEST_SIDE:
        return None
    values = float32_from_bytes(target.data, target.dtype).reshape(-1, cols)
    least = 2.0**-14 if target.dtype == "F16" else 2.0**-126
    exponents = np.frexp(np.maximum(np.abs(values), np.float32(least)))[1] - 1 - _FRACTION_BITS[target.dtype]
    encoded = encode_low_rank(delta.reshape(-1, cols), np.ldexp(np.float32(1), exponents))
    if encoded is None:
        return None
    params, payload = encoded
    result = backend.apply(params, payload, base.data, base.dtype, target.dtype)
    sections = [
        section[start : start + _FACTOR_PIECE]
        for section in dctq.build_sections(params, payload)
        for start in range(0, section.size, _FACTOR_PIECE)
    ]
    return EncodedLayer(dctq.NAME, params.as_json(), sections, result)


def _columns(shape: tuple[int, ...]) -> int:
    """As few trailing dimensions as reach the smallest side; all of them if none do."""
    for split in range(len(shape) - 1, 0, -1):
        cols = prod(shape[split:])
        if cols >= _SMALLEST_SIDE:
            return cols
    return prod(shape)


def _stored_size(sections: list[npt.NDArray[np.uint8]]) -> int:
    return sum(len(compress(section)) for section in sections)
