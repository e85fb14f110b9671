"""One tensor: which operation, which codec, which view (the decisions of spec section 5.1 that an encoder makes)."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np
import numpy.typing as npt

from ..backends.interface import Backend
from ..codec import dctq, raw
from ..codec.floats import FLOAT_DTYPES
from ..container.dtypes import DTYPE_BITS
from .paper import encode_paper
from .presets import Preset

__all__ = ["EncodedLayer", "EncodedTensor", "TensorData", "encode_tensor"]

_SMALLEST_SIDE = 16
"""Smaller matrices are mostly padding once they are cut into patches, and too few to matter."""


@dataclass(frozen=True, slots=True)
class TensorData:
    """A tensor as it lies in a checkpoint; ``data`` is its bytes, uint8, 1-D."""

    dtype: str
    shape: tuple[int, ...]
    data: npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class EncodedLayer:
    codec: str
    params: dict[str, object]
    sections: list[npt.NDArray[np.uint8]]
    result: npt.NDArray[np.uint8]
    """The tensor's bytes after this layer."""


@dataclass(frozen=True, slots=True)
class EncodedTensor:
    """What to write for a tensor.

    Attributes:
        op: ``add`` or ``replace``.
        noise, energy: Σ(t−d)² and Σ(t−b)² of an ``add`` tensor, float64 (spec section 5.5).
    """

    op: str
    layers: tuple[EncodedLayer, ...]
    noise: float = 0.0
    energy: float = 0.0


def encode_tensor(base: TensorData | None, target: TensorData, preset: Preset, backend: Backend) -> EncodedTensor:
    """Encode a tensor that is not the base's own.

    A delta is stored where both sides are finite floating-point matrices of the same shape; anything else is carried
    byte for byte, NaN and Inf included.
    """
    view = _matrix_view(target.shape)
    if base is None or base.shape != target.shape or view is None or {base.dtype, target.dtype} - set(FLOAT_DTYPES):
        return _carry(target)
    delta = backend.delta(base.data, base.dtype, target.data, target.dtype)
    if not np.isfinite(delta).all():
        return _carry(target)
    params, payload = encode_paper(delta.reshape(view), preset.shares, backend)
    result = backend.apply(params, payload, base.data, base.dtype, target.dtype)
    remaining = backend.delta(result, target.dtype, target.data, target.dtype)
    if not np.isfinite(remaining).all():  # a sum beyond the type's range became Inf
        return _carry(target)
    layer = EncodedLayer(dctq.NAME, params.as_json(), dctq.build_sections(params, payload), result)
    return EncodedTensor("add", (layer,), noise=_energy(remaining), energy=_energy(delta))


def _carry(target: TensorData) -> EncodedTensor:
    width = DTYPE_BITS[target.dtype] // 8
    layer = EncodedLayer(raw.NAME, {"planes": width}, [raw.split_planes(target.data, width)], target.data)
    return EncodedTensor("replace", (layer,))


def _matrix_view(shape: tuple[int, ...]) -> tuple[int, int] | None:
    """[rows, cols] with as few trailing dimensions as reach the smallest side as columns; None for no matrix."""
    for split in range(len(shape) - 1, 0, -1):
        cols = prod(shape[split:])
        if cols >= _SMALLEST_SIDE:
            rows = prod(shape[:split])
            return (rows, cols) if rows >= _SMALLEST_SIDE else None
    return None


def _energy(values: npt.NDArray[np.float32]) -> float:
    return float(np.square(values, dtype=np.float64).sum())
