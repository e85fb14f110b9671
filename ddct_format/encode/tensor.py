"""One tensor: which operation, which codec, which view (the decisions of spec section 5.1 that an encoder makes)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..backends.interface import Backend
from ..codec import dctq, raw
from ..codec.floats import FLOAT_DTYPES
from ..container.dtypes import DTYPE_BITS
from .delta import DeltaAnalysis, analyse_delta, encode_delta, matrix_view
from .paper import encode_paper
from .presets import Preset

__all__ = ["EncodedLayer", "EncodedTensor", "TensorData", "analyse_tensor", "encode_tensor"]


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
    result: npt.NDArray[np.uint8] | None
    """The tensor's bytes after this layer; None in a draft."""


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


def analyse_tensor(base: TensorData | None, target: TensorData, backend: Backend) -> DeltaAnalysis | None:
    """What a search for quantiser steps needs to know of a tensor; None if it is carried byte for byte."""
    if base is None or not _has_delta(base, target):
        return None
    return analyse_delta(backend.delta(base.data, base.dtype, target.data, target.dtype), target.shape)


def encode_tensor(
    base: TensorData | None,
    target: TensorData,
    preset: Preset,
    backend: Backend,
    *,
    analysis: DeltaAnalysis | None = None,
    step: float = 1.0,
    draft: bool = False,
) -> EncodedTensor:
    """Encode a tensor that is not the base's own.

    A delta is stored where both sides are finite floating-point tensors of the same shape; anything else is carried
    byte for byte, NaN and Inf included.

    Args:
        analysis, step: what :func:`analyse_tensor` found, and the step that was chosen, for a preset with a target.
        draft: only what the bytes depend on; neither results nor errors.
    """
    if base is None or not _has_delta(base, target):
        return _carry(target)
    delta = backend.delta(base.data, base.dtype, target.data, target.dtype)
    if preset.searched:
        if analysis is None:
            return _carry(target)
        params, payload = encode_delta(delta, analysis, step, backend, coarse=preset.coarse, quantiser=preset.quantiser)
    else:
        view = matrix_view(target.shape)
        if not preset.shares or view is None or not np.isfinite(delta).all():
            return _carry(target)
        params, payload = encode_paper(delta.reshape(view), preset.shares, preset.quantiser, backend)
    sections = dctq.build_sections(params, payload)
    if draft:
        return EncodedTensor("add", (EncodedLayer(dctq.NAME, params.as_json(), sections, None),))
    if not np.isfinite(payload.scales).all():
        return _carry(target)
    result = backend.apply(params, payload, base.data, base.dtype, target.dtype)
    remaining = backend.delta(result, target.dtype, target.data, target.dtype)
    if not np.isfinite(remaining).all():  # a sum beyond the type's range became Inf
        return _carry(target)
    layer = EncodedLayer(dctq.NAME, params.as_json(), sections, result)
    return EncodedTensor("add", (layer,), noise=_energy(remaining), energy=_energy(delta))


def _has_delta(base: TensorData, target: TensorData) -> bool:
    return base.shape == target.shape and {base.dtype, target.dtype} <= set(FLOAT_DTYPES)


def _carry(target: TensorData) -> EncodedTensor:
    width = DTYPE_BITS[target.dtype] // 8
    layer = EncodedLayer(raw.NAME, {"planes": width}, [raw.split_planes(target.data, width)], target.data)
    return EncodedTensor("replace", (layer,))


def _energy(values: npt.NDArray[np.float32]) -> float:
    return float(np.square(values, dtype=np.float64).sum())
