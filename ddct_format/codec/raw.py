"""``raw.v1``: the tensor's bytes, split into byte planes (spec section 7.1)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from ..errors import InvalidError

__all__ = ["NAME", "join_planes", "join_planes_into", "parse_params", "place_piece", "split_planes"]

NAME = "raw.v1"
_PLANES = (1, 2, 4, 8)


def parse_params(params: Mapping[str, object], nbytes: int) -> int:
    """The number of byte planes.

    Raises:
        InvalidError: ``params`` is not as section 7.1 demands.
    """
    planes = params.get("planes")
    if set(params) != {"planes"} or type(planes) is not int or planes not in _PLANES or nbytes % planes:
        raise InvalidError("raw.v1 needs exactly the parameter 'planes': 1, 2, 4 or 8, a divisor of the tensor's bytes")
    return planes


def split_planes(data: npt.NDArray[np.uint8], planes: int) -> npt.NDArray[np.uint8]:
    """Tensor bytes -> payload bytes, 1-D: exponents end up beside exponents, where an entropy coder sees them."""
    return np.ascontiguousarray(data.reshape(-1, planes).T).reshape(-1)


def join_planes(payload: npt.NDArray[np.uint8], planes: int) -> npt.NDArray[np.uint8]:
    """Payload bytes -> tensor bytes, 1-D."""
    out = np.empty(payload.size, dtype=np.uint8)
    join_planes_into(payload, planes, out)
    return out


def join_planes_into(payload: npt.NDArray[np.uint8], planes: int, out: npt.NDArray[np.uint8]) -> None:
    """As :func:`join_planes`, into ``out``, 1-D and contiguous."""
    out.reshape(-1, planes)[:] = payload.reshape(planes, -1).T


def place_piece(piece: npt.NDArray[np.uint8], start: int, planes: int, out: npt.NDArray[np.uint8]) -> None:
    """Put payload bytes from ``start`` on where they belong in the tensor: a payload need not be held whole."""
    length = out.size // planes
    position = 0
    while position < piece.size:
        plane, offset = divmod(start + position, length)
        count = min(piece.size - position, length - offset)
        out[plane::planes][offset : offset + count] = piece[position : position + count]
        position += count
