"""Pages of files: letting go of them, in this process and in the operating system's cache."""

from __future__ import annotations

import mmap
import os
from contextlib import suppress

__all__ = ["drop_cached", "release_pages"]


def release_pages(mapped: mmap.mmap, start: int, stop: int) -> None:
    """Unmap the whole pages that bytes ``start`` to ``stop`` of a file's map touch; the next access maps them again.

    Nothing is lost: a shared map's changes are in the page cache already.
    """
    first = start - start % mmap.PAGESIZE
    if stop > first and hasattr(mmap, "MADV_DONTNEED"):
        # Advice that the system does not take, or a map that was closed, is no failure.
        with suppress(OSError, ValueError):
            mapped.madvise(mmap.MADV_DONTNEED, first, stop - first)


def drop_cached(descriptor: int, start: int, stop: int) -> None:
    """Ask the operating system to forget its copy of these bytes of a file; unwritten ones it keeps."""
    if stop > start and hasattr(os, "posix_fadvise"):
        with suppress(OSError):
            os.posix_fadvise(descriptor, start, stop - start, os.POSIX_FADV_DONTNEED)
