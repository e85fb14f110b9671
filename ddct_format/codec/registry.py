"""Which codecs exist, what each demands of a layer, and how a layer is applied (spec sections 5.2 and 7)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..container.records import TensorRecord
from ..errors import InvalidError, UnsupportedError
from . import dctq, raw
from .floats import FLOAT_DTYPES

if TYPE_CHECKING:
    from ..backends.interface import Backend

__all__ = ["CODECS", "apply_layer", "check_layer", "usable_layers"]

CODECS = (dctq.NAME, raw.NAME)


def check_layer(tensor: TensorRecord, index: int) -> None:
    """Check one layer without its payload: codec known, parameters valid, size possible (order of refusal, step 8).

    Raises:
        UnsupportedError: the codec is unknown and the layer may not be skipped.
        InvalidError: the codec cannot stand here, or its parameters or size break the specification.
    """
    layer = tensor.layers[index]
    if layer.codec not in CODECS:
        if layer.must_understand or index == 0:
            raise UnsupportedError(f"layer {index} uses the unknown codec {layer.codec!r}", tensor=tensor.name)
        return
    try:
        if layer.codec == raw.NAME:
            if index > 0 or tensor.op != "replace":
                raise InvalidError("raw.v1 starts from nothing: it is the first layer of a tensor that is replaced")
            raw.parse_params(layer.params, tensor.nbytes)
            smallest = largest = tensor.nbytes
        else:
            if index > 0 or tensor.op != "add":
                raise InvalidError("dctq.v1 starts from a base: it is the first layer of a tensor that is added")
            if tensor.dtype not in FLOAT_DTYPES or (tensor.base_dtype or tensor.dtype) not in FLOAT_DTYPES:
                raise InvalidError(f"dctq.v1 works on {', '.join(FLOAT_DTYPES)} only")
            params = dctq.DctqParams.parse(layer.params, tensor.elements)
            smallest, largest = params.size_bounds()
        if not smallest <= layer.size <= largest:
            raise InvalidError(f"{layer.codec} cannot have a payload of {layer.size} bytes here")
    except InvalidError as error:
        raise error.at(tensor=tensor.name) from None


def usable_layers(tensor: TensorRecord) -> int:
    """How many layers of the tensor this version decodes: all up to the first that it may and must skip."""
    for index, layer in enumerate(tensor.layers):
        if layer.codec not in CODECS:
            return index
    return len(tensor.layers)


def apply_layer(
    tensor: TensorRecord,
    index: int,
    payload: npt.NDArray[np.uint8],
    before: npt.NDArray[np.uint8] | None,
    backend: Backend,
) -> npt.NDArray[np.uint8]:
    """The tensor's bytes after a layer that :func:`check_layer` has accepted.

    Args:
        before: the bytes before the layer: the base tensor's for the first layer of ``add``, nothing for ``replace``.

    Raises:
        InvalidError: the payload breaks the specification.
    """
    layer = tensor.layers[index]
    try:
        if layer.codec == raw.NAME:
            return raw.join_planes(payload, raw.parse_params(layer.params, tensor.nbytes))
        assert before is not None
        params = dctq.DctqParams.parse(layer.params, tensor.elements)
        stored = dctq.split_payload(params, payload)
        return backend.apply_stored(params, stored, before, tensor.base_dtype or tensor.dtype, tensor.dtype)
    except InvalidError as error:
        raise error.at(tensor=tensor.name) from None
