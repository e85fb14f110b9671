"""Element types and tensor sizes (spec section 1)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Final

from ddct_format.errors import UnsupportedError

__all__ = ["DTYPE_BITS", "element_count", "tensor_nbytes"]

DTYPE_BITS: Final[Mapping[str, int]] = MappingProxyType(
    {
        "BOOL": 8,
        "U8": 8,
        "I8": 8,
        "F8_E5M2": 8,
        "F8_E4M3": 8,
        "F8_E8M0": 8,
        "I16": 16,
        "U16": 16,
        "F16": 16,
        "BF16": 16,
        "I32": 32,
        "U32": 32,
        "F32": 32,
        "I64": 64,
        "U64": 64,
        "F64": 64,
        "C64": 64,
    }
)
"""Bits of one element, by the type's name in safetensors."""


def element_count(shape: Iterable[int]) -> int:
    """Number of elements: 1 for a scalar (shape ``()``), 0 where a dimension is 0."""
    return math.prod(shape)


def tensor_nbytes(dtype: str, shape: Iterable[int]) -> int:
    """Bytes of a tensor without gaps.

    Raises:
        UnsupportedError: ``dtype`` is not an element type of format version 1.
    """
    bits = DTYPE_BITS.get(dtype)
    if bits is None:
        raise UnsupportedError(f"element type {dtype!r} is not known")
    return element_count(shape) * bits // 8
