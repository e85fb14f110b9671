"""Memory that goes back to the operating system as soon as it is freed."""

from __future__ import annotations

import ctypes
import sys
from typing import Final

__all__ = ["return_freed_memory"]

_MMAP_THRESHOLD: Final = -3
"""M_MMAP_THRESHOLD of glibc's malloc.h."""
_LEAST: Final = 1 << 20
"""Bytes of an array that gets pages of its own."""


def return_freed_memory() -> None:
    """Have glibc give large arrays pages of their own, for all of the process and for good.

    By itself it comes to put arrays of up to 32 MiB into the heap of each thread, where what is freed mostly stays:
    half as much again as packing needs in a small working set. A hint, which other systems' libraries lack.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _LEAST)
