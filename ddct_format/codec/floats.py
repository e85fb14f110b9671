"""Element types and binary32, as numpy (spec section 7.2.4).

numpy has no bfloat16, and its float16 rounding is IEEE round-to-nearest-even; bfloat16 is done on bit patterns.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["FLOAT_DTYPES", "FLOAT_WIDTHS", "add_delta", "float32_from_bytes", "float32_to_bytes"]

FLOAT_DTYPES = ("BF16", "F16", "F32")
"""The element types that a delta can be taken of."""

FLOAT_WIDTHS = {"BF16": 2, "F16": 2, "F32": 4}
"""Their sizes in bytes."""

_STORAGE: dict[str, np.dtype[Any]] = {"BF16": np.dtype("<u2"), "F16": np.dtype("<f2"), "F32": np.dtype("<f4")}
_QUIET_NAN = {"BF16": 0x7FC0, "F16": 0x7E00, "F32": 0x7FC00000}


def float32_from_bytes(data: npt.NDArray[np.uint8], dtype: str) -> npt.NDArray[np.float32]:
    """Bytes of ``dtype`` elements -> float32 values, exactly; 1-D."""
    stored = np.frombuffer(data, dtype=_STORAGE[dtype])
    if dtype == "BF16":
        values: npt.NDArray[np.float32] = (stored.astype(np.uint32) << 16).view(np.float32)
        return values
    with np.errstate(invalid="ignore"):  # a signalling NaN is no reason to warn
        return stored.astype(np.float32)


def float32_to_bytes(values: npt.NDArray[np.float32], dtype: str) -> npt.NDArray[np.uint8]:
    """float32 values -> bytes of ``dtype``, rounded to nearest, ties to even; every NaN becomes the quiet NaN."""
    values = np.ascontiguousarray(values, dtype=np.float32).reshape(-1)
    if dtype == "BF16":
        bits = values.view(np.uint32)
        stored = ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype("<u2")
    else:
        with np.errstate(over="ignore", invalid="ignore"):
            stored = values.astype(_STORAGE[dtype])
    patterns = stored.view(f"<u{stored.itemsize}")
    patterns[np.isnan(values)] = _QUIET_NAN[dtype]
    return patterns.view(np.uint8)


def add_delta(
    base: npt.NDArray[np.uint8], base_dtype: str, delta: npt.NDArray[np.float32], dtype: str
) -> npt.NDArray[np.uint8]:
    """``base + delta``, rounded once to ``dtype``; where the delta is zero, the base's element converted alone.

    The zero rule keeps an untouched weight's bits (a −0, a NaN's payload) when the types are equal.

    Args:
        base: bytes of the base elements.
        delta: 1-D, one value per element, no NaN.
    """
    values = float32_from_bytes(base, base_dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        result = float32_to_bytes(values + delta, dtype)
    unchanged = delta == 0
    if unchanged.any():
        kept = base if base_dtype == dtype else float32_to_bytes(values, dtype)
        width = _STORAGE[dtype].itemsize
        np.copyto(result.reshape(-1, width), kept.reshape(-1, width), where=unchanged[:, None])
    return result
