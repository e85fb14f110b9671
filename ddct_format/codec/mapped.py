"""What rows of a mapped file bring into memory when they are taken in an order of their own."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

__all__ = ["LARGEST_PAGE", "brought_in", "brought_in_by_keys"]

LARGEST_PAGE = 2 << 20
"""Bytes that Linux maps of a file, at most, around one that is touched."""
_MOST_COUNTED = 1 << 22
"""Rows; of more the pages that they touch are estimated, for counting takes memory for each."""


def brought_in(order: npt.NDArray[np.int64], row_bytes: int) -> npt.NDArray[np.int64]:
    """Bytes of a file's map that are in memory at most after each row of an order, if nothing is let go meanwhile.

    Rows that follow one another in the same large page count once.

    Args:
        order: int64 [n], which row comes when.
        row_bytes: of a row, at least 1; row r begins at byte r · row_bytes, or thereabouts.

    Returns:
        int64 [n], ascending.
    """
    first = order * row_bytes // LARGEST_PAGE
    last = (order * row_bytes + (row_bytes - 1)) // LARGEST_PAGE
    pages = last - first + 1
    pages[1:] -= first[1:] == last[:-1]
    return np.cumsum(pages, out=pages) * LARGEST_PAGE


def brought_in_by_keys(keys: npt.NDArray[np.uint8], rows: int, nbytes: int) -> Callable[[int], int]:
    """The same once so many bytes of a tensor of ``nbytes`` are finished, whose rows come in the order of their keys.

    Args:
        keys: uint8 [rows], or fewer in a payload that nobody has checked yet.
    """
    row_bytes = max(nbytes // max(rows, 1), 1)
    if row_bytes >= LARGEST_PAGE:
        return int
    if keys.size < rows or rows > _MOST_COUNTED:
        return lambda done: done * (LARGEST_PAGE // row_bytes)
    after = brought_in(np.argsort(keys, kind="stable"), row_bytes)
    return lambda done: int(after[min(done // row_bytes, rows) - 1]) if done >= row_bytes else 0
