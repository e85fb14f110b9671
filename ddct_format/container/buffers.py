"""Bytes in whatever object holds them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias, cast

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer
    from numpy.typing import NDArray

    # NumPy declares its arrays as buffers from Python 3.12 on.
    Buffer: TypeAlias = ReadableBuffer | NDArray[Any]

__all__ = ["byte_view"]


def byte_view(data: Buffer) -> memoryview:
    """The bytes of a C-contiguous buffer (bytes, memoryview, numpy array, ...), without a copy."""
    view = memoryview(cast("ReadableBuffer", data))
    # A view with a zero in its shape cannot be cast.
    return view.cast("B") if view.nbytes else memoryview(b"")
