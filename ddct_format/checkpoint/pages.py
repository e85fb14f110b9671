"""Pages of files: mapping them, and letting go of them in this process and in the operating system's cache."""

from __future__ import annotations

import errno
import mmap
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ddct_format.checkpoint.storage import storage_errors

__all__ = ["Region", "drop_cached", "release_pages", "releasing", "temporary_region"]

_RELEASE_EVERY = 0.01
"""Seconds, in which a core reads some megabytes."""
_CANNOT_RESERVE = frozenset({errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL})


class Region:
    """Part of a file, mapped for writing: memory that the operating system may put back on disk.

    Space is reserved first, so that a full disk is an error here and not a signal later. The memory map goes when the
    last reference to ``array`` goes.

    Attributes:
        array: uint8, 1-D, writable.

    Raises:
        OSError: there is not enough space, or the file cannot be mapped.
    """

    def __init__(self, descriptor: int, start: int, nbytes: int) -> None:
        if hasattr(os, "posix_fallocate"):
            try:
                os.posix_fallocate(descriptor, start, nbytes)
            except OSError as error:
                if error.errno not in _CANNOT_RESERVE:
                    raise
        inside = start % mmap.ALLOCATIONGRANULARITY
        self._map = mmap.mmap(descriptor, inside + nbytes, offset=start - inside)
        self._inside = inside
        self.array: npt.NDArray[np.uint8] = np.frombuffer(self._map, dtype=np.uint8, count=nbytes, offset=inside)

    def release(self, start: int = 0, stop: int | None = None) -> None:
        """Let go of the memory that bytes ``start`` to ``stop`` occupy: they are the file's, and read when needed."""
        release_pages(self._map, self._inside + start, self._inside + (self.array.size if stop is None else stop))


def temporary_region(directory: Path | None, nbytes: int) -> Region:
    """A region of a file without a name, which vanishes with it; at least one byte long.

    Args:
        directory: where the file is; None for the usual place of temporary files.

    Raises:
        StorageError: the operating system refuses, or there is not enough space.
    """
    with (
        storage_errors(directory or tempfile.gettempdir()),
        tempfile.TemporaryFile(dir=directory, prefix=".ddct-", buffering=0) as file,
    ):
        os.ftruncate(file.fileno(), nbytes)
        return Region(file.fileno(), 0, nbytes)


@contextmanager
def releasing(release: Callable[[], None]) -> Iterator[None]:
    """Call ``release`` every few milliseconds, and at the end, of a block that reads mapped files without a pause."""
    done = threading.Event()

    def run() -> None:
        while not done.wait(_RELEASE_EVERY):
            release()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        release()


def release_pages(mapped: mmap.mmap, start: int, stop: int) -> None:
    """Unmap the whole pages that bytes ``start`` to ``stop`` of a file's map touch; the next access maps them again.

    Nothing is lost: a shared map's changes are in the page cache already.
    """
    first = start - start % mmap.PAGESIZE
    if stop > first and hasattr(mmap, "MADV_DONTNEED"):
        # Advice that the system does not take, or a map that was closed, is no failure.
        with suppress(OSError, ValueError):
            mapped.madvise(mmap.MADV_DONTNEED, first, stop - first)


def drop_cached(descriptor: int, start: int = 0, stop: int = 0) -> None:
    """Ask the operating system to forget its copy of bytes of a file, or all (0); unwritten ones it keeps."""
    if hasattr(os, "posix_fadvise"):
        with suppress(OSError):
            os.posix_fadvise(descriptor, start, stop - start if stop else 0, os.POSIX_FADV_DONTNEED)
