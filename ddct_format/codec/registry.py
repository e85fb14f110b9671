"""Which codecs exist, what each demands of a layer, and how a layer is applied (spec sections 5.2 and 7)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..container.records import Layer, TensorRecord
from ..errors import InvalidError, UnsupportedError
from . import dctq, raw, ulp
from .floats import FLOAT_DTYPES

if TYPE_CHECKING:
    from ..backends.interface import Backend

__all__ = [
    "CODECS",
    "apply_layer",
    "apply_layer_bands",
    "brought_in",
    "check_layer",
    "layer_params",
    "raw_planes",
    "usable_layers",
]

CODECS = (dctq.NAME, raw.NAME, ulp.NAME)

_known_bounds: dict[tuple[str, int], tuple[int, int]] = {}
_MOST_KNOWN = 4096
_LONGEST_KNOWN = 2048
"""Characters: no file may make others pay for its own long parameters."""


def check_layer(tensor: TensorRecord, index: int) -> bool:
    """Check one layer without its payload: codec known, parameters valid, size possible (order of refusal, step 8).

    Returns:
        Whether the codec is known; if not, this layer and those after it are skipped.

    Raises:
        UnsupportedError: the codec is unknown and the layer may not be skipped.
        InvalidError: the codec cannot stand here, or its parameters or size break the specification.
    """
    layer = tensor.layers[index]
    if layer.codec not in CODECS:
        if layer.must_understand or index == 0:
            raise UnsupportedError(f"layer {index} uses the unknown codec {layer.codec!r}", tensor=tensor.name)
        return False
    try:
        if layer.codec == raw.NAME:
            if index > 0 or tensor.op != "replace":
                raise InvalidError("raw.v1 starts from nothing: it is the first layer of a tensor that is replaced")
            raw.parse_params(_defined(layer), tensor.nbytes)
            smallest = largest = tensor.nbytes
        elif layer.codec == ulp.NAME:
            if index == 0 and tensor.op != "add":
                raise InvalidError("ulp.v1 needs a prediction: a base, or the layer before it")
            if _dtype_before(tensor, index) not in FLOAT_DTYPES:
                raise InvalidError(f"ulp.v1 works on {', '.join(FLOAT_DTYPES)} only")
            smallest, largest = ulp.UlpParams.parse(_defined(layer), tensor.elements, tensor.dtype).size_bounds()
        else:
            if index > 0 or tensor.op != "add":
                raise InvalidError("dctq.v1 starts from a base: it is the first layer of a tensor that is added")
            if tensor.dtype not in FLOAT_DTYPES or (tensor.base_dtype or tensor.dtype) not in FLOAT_DTYPES:
                raise InvalidError(f"dctq.v1 works on {', '.join(FLOAT_DTYPES)} only")
            smallest, largest = _dctq_size_bounds(layer, tensor.elements)
        if not smallest <= layer.size <= largest:
            raise InvalidError(f"{layer.codec} cannot have a payload of {layer.size} bytes here")
    except InvalidError as error:
        raise error.at(tensor=tensor.name) from None
    return True


def _dctq_size_bounds(layer: Layer, elements: int) -> tuple[int, int]:
    """Bounds of the payload's size, once for all layers of the same parameters: a large model repeats few of them."""
    # Values of JSON: what is written the same is the same.
    key = (repr(layer.params), elements)
    bounds = _known_bounds.get(key)
    if bounds is None:
        bounds = dctq.DctqParams.parse(_defined(layer), elements).size_bounds()
        if len(_known_bounds) >= _MOST_KNOWN:
            _known_bounds.clear()
        if len(key[0]) <= _LONGEST_KNOWN:
            _known_bounds[key] = bounds
    return bounds


def _defined(layer: Layer) -> dict[str, object]:
    """The parameters without private ones (section 5)."""
    return {name: value for name, value in layer.params.items() if not name.startswith("x-")}


def usable_layers(tensor: TensorRecord) -> int:
    """How many layers of the tensor this version decodes: all up to the first that it may and must skip."""
    for index, layer in enumerate(tensor.layers):
        if layer.codec not in CODECS:
            return index
    return len(tensor.layers)


def raw_planes(tensor: TensorRecord, index: int) -> int | None:
    """The byte planes of a layer that :func:`check_layer` has accepted, if it is ``raw.v1``: any piece of its payload
    can be placed by itself, with :func:`raw.place_piece`.
    """
    layer = tensor.layers[index]
    return raw.parse_params(_defined(layer), tensor.nbytes) if layer.codec == raw.NAME else None


def apply_layer(
    tensor: TensorRecord,
    index: int,
    payload: npt.NDArray[np.uint8],
    before: npt.NDArray[np.uint8] | None,
    backend: Backend,
) -> npt.NDArray[np.uint8]:
    """The tensor's bytes after a layer that :func:`check_layer` has accepted.

    Args:
        before: the bytes before the layer: the base tensor's for the first layer of ``add``, nothing for that of
            ``replace``, the result of the layer before for any other.

    Raises:
        InvalidError: the payload breaks the specification.
    """
    out = np.empty(tensor.nbytes, dtype=np.uint8)
    for _ in apply_layer_bands(tensor, index, payload, before, backend, out):
        pass
    return out


def apply_layer_bands(
    tensor: TensorRecord,
    index: int,
    payload: npt.NDArray[np.uint8],
    before: npt.NDArray[np.uint8] | None,
    backend: Backend,
    out: npt.NDArray[np.uint8],
) -> Iterator[int]:
    """As :func:`apply_layer`, into memory of the caller's, with a pause after each band of the tensor.

    Args:
        out: writable, 1-D and contiguous, of ``tensor.nbytes`` bytes and any alignment. It overlaps neither the payload
            nor ``before``; but for ``ulp.v1`` it may *be* ``before`` where that has the target's type, as it always has
            from the second layer on.

    Yields:
        how many bytes of ``out`` are finished, as :meth:`Backend.apply_bands` tells.

    Raises:
        InvalidError: the payload breaks the specification. ``out`` is undefined then.
    """
    layer = tensor.layers[index]
    try:
        if layer.codec == raw.NAME:
            raw.join_planes_into(payload, raw.parse_params(_defined(layer), tensor.nbytes), out)
            yield out.size
            return
        assert before is not None
        params = layer_params(tensor, index)
        if isinstance(params, ulp.UlpParams):
            yield from backend.apply_ulp_bands(params, payload, before, _dtype_before(tensor, index), out)
            return
        stored = dctq.split_payload(params, payload)
        yield from backend.apply_bands(params, stored, before, tensor.base_dtype or tensor.dtype, tensor.dtype, out)
    except InvalidError as error:
        raise error.at(tensor=tensor.name) from None


def layer_params(tensor: TensorRecord, index: int) -> dctq.DctqParams | ulp.UlpParams:
    """The parameters of a layer of dctq.v1 or ulp.v1 that :func:`check_layer` has accepted."""
    layer = tensor.layers[index]
    if layer.codec == ulp.NAME:
        return ulp.UlpParams.parse(_defined(layer), tensor.elements, tensor.dtype)
    return dctq.DctqParams.parse(_defined(layer), tensor.elements)


def brought_in(tensor: TensorRecord, index: int, payload: npt.NDArray[np.uint8]) -> Callable[[int], int]:
    """How many bytes of a mapped result, or of what it is made from, have been touched once so many are finished."""
    layer = tensor.layers[index]
    if layer.codec != dctq.NAME:
        return lambda done: done
    return dctq.DctqParams.parse(_defined(layer), tensor.elements).brought_in(payload, tensor.nbytes)


def _dtype_before(tensor: TensorRecord, index: int) -> str:
    """The element type of what a layer is applied to."""
    return tensor.dtype if index else tensor.base_dtype or tensor.dtype
