"""Giving a finished file its final name, without ever replacing what has it."""

from __future__ import annotations

import errno
import os
import secrets
from pathlib import Path
from typing import Final

from ddct_format.errors import OutputExistsError

__all__ = ["publish_file", "sync_directory", "temporary_path", "write_all"]

_NO_HARD_LINKS: Final = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK}


def temporary_path(directory: Path) -> Path:
    """A name that no other process uses; it holds the process id, so that a stale file is recognisable."""
    return directory / f".ddct-{os.getpid()}-{secrets.token_hex(8)}.tmp"


def write_all(descriptor: int, data: bytes | memoryview) -> None:
    """Write all of ``data`` where a single call may write a part. Raises OSError."""
    view = memoryview(data).cast("B")
    while view:
        view = view[os.write(descriptor, view) :]


def publish_file(temporary: Path, final: Path) -> None:
    """Rename a file that is already on disk, and put the change of names on disk as well.

    Raises:
        OutputExistsError: ``final`` exists; ``temporary`` is still there.
        OSError: the operating system refuses.
    """
    try:
        # A rename would replace an existing file; a link does not.
        os.link(temporary, final)
        temporary.unlink()
    except FileExistsError:
        raise OutputExistsError("already exists and is never overwritten", place=final) from None
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        _claim_and_rename(temporary, final)
    sync_directory(final.parent)


def sync_directory(directory: Path) -> None:
    """Put a directory's entries on disk. Raises OSError."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _claim_and_rename(temporary: Path, final: Path) -> None:
    """For file systems without hard links: create the name exclusively, then replace what was created."""
    try:
        os.close(os.open(final, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC))
    except FileExistsError:
        raise OutputExistsError("already exists and is never overwritten", place=final) from None
    try:
        temporary.rename(final)
    except OSError:
        final.unlink()
        raise
