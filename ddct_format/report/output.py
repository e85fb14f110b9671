"""Files for people, written as carefully as archives: whole, under a name that was free, or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from ..container.publish import publish_file, temporary_path
from ..errors import OutputExistsError, StorageError

__all__ = ["check_new", "new_file"]


def check_new(path: Path) -> None:
    """Refuse early what :func:`new_file` would refuse.

    Raises:
        OutputExistsError: the path exists, be it a dangling link.
        StorageError: its directory does not.
    """
    if os.path.lexists(path):
        raise OutputExistsError("already exists and is never overwritten", place=path)
    if not path.parent.is_dir():
        raise StorageError("the directory does not exist", place=path.parent)


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """A stream whose contents get the name ``path`` when the block ends without an exception.

    Raises:
        OutputExistsError: the path exists.
        StorageError: the operating system refuses.
    """
    check_new(path)
    temporary = temporary_path(path.parent)
    try:
        with temporary.open("xb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        publish_file(temporary, path)
    except OSError as error:
        raise StorageError(f"cannot be written: {error.strerror}", place=path) from error
    finally:
        temporary.unlink(missing_ok=True)
