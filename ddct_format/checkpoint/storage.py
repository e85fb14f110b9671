"""What the operating system does for this package, with its refusals as StorageError."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ddct_format.errors import CheckpointError, OutputExistsError, StorageError

__all__ = [
    "FileState",
    "open_regular_file",
    "rename_without_replacing",
    "start_writing_back",
    "storage_errors",
    "write_at",
]

_AT_FDCWD = -100
_RENAME_NOREPLACE = 1
_RENAME_EXCL = 4
_SYNC_FILE_RANGE_WRITE = 2
_NOT_SUPPORTED = frozenset({errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP})
_TARGET_EXISTS = frozenset({errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR, errno.EISDIR})


@dataclass(frozen=True, slots=True)
class FileState:
    """What must stay the same for a file to count as unchanged; sizes in bytes."""

    device: int
    inode: int
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> FileState:
        """Take the state out of the result of stat or fstat."""
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


@contextmanager
def storage_errors(place: object) -> Iterator[None]:
    """Turn an OSError of the block into a StorageError about `place`."""
    try:
        yield
    except OSError as error:
        raise StorageError(error.strerror or str(error), place=place) from error


def open_regular_file(path: Path) -> tuple[int, FileState]:
    """Open a regular file for reading; links are followed.

    Returns:
        The file descriptor, which the caller closes, and the file's state.

    Raises:
        CheckpointError: there is no such file, or it is a directory, a pipe or a device.
        StorageError: the operating system refuses to open it.
    """
    try:
        # A named pipe in the place of a file would block the open for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CheckpointError("no such file", place=path) from error
    except OSError as error:
        raise StorageError(error.strerror or str(error), place=path) from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise CheckpointError("not a regular file", place=path)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor, FileState.of(status)


def write_at(descriptor: int, data: memoryview, offset: int) -> None:
    """Write all bytes of a one-dimensional byte view at `offset` of a file; OSError as it comes.

    One call of pwrite writes 2 GiB at most, and less when the disk is nearly full.
    """
    while data.nbytes:
        written = os.pwrite(descriptor, data, offset)
        data = data[written:]
        offset += written


def start_writing_back(descriptor: int, start: int, size: int) -> None:
    """Let the disk begin with bytes of a file: a later fsync waits for less. A hint, which some systems lack."""
    begin = getattr(ctypes.CDLL(None), "sync_file_range", None)
    if begin is not None:
        begin(descriptor, ctypes.c_int64(start), ctypes.c_int64(size), ctypes.c_uint(_SYNC_FILE_RANGE_WRITE))


def rename_without_replacing(source: Path, target: Path) -> None:
    """Give `source` the name `target` in one step, and never in the place of something else.

    rename(2) lets a directory replace an empty directory, so the exclusive variant of the operating
    system is used. Where a file system lacks it, a check comes first: what could then be replaced is
    an empty directory that was made in the instant between the two calls.

    Raises:
        OutputExistsError: `target` exists.
        OSError: as it comes.
    """
    if _rename_exclusively(os.fsencode(source), os.fsencode(target)):
        return
    if os.path.lexists(target):
        raise OutputExistsError("already exists and is not overwritten", place=target)
    try:
        source.rename(target)
    except OSError as error:
        if error.errno in _TARGET_EXISTS:
            raise OutputExistsError("already exists and is not overwritten", place=target) from error
        raise


def _rename_exclusively(source: bytes, target: bytes) -> bool:
    """False where neither the C library nor the file system knows how."""
    library = ctypes.CDLL(None, use_errno=True)
    try:
        if sys.platform == "darwin":
            status = library.renamex_np(source, target, ctypes.c_uint(_RENAME_EXCL))
        else:
            flags = ctypes.c_uint(_RENAME_NOREPLACE)
            status = library.renameat2(_AT_FDCWD, source, _AT_FDCWD, target, flags)
    except AttributeError:
        return False
    if status == 0:
        return True
    number = ctypes.get_errno()
    if number in _NOT_SUPPORTED:
        return False
    if number in _TARGET_EXISTS:
        raise OutputExistsError("already exists and is not overwritten", place=os.fsdecode(target))
    raise OSError(number, os.strerror(number), os.fsdecode(source))
