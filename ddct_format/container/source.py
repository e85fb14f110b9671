"""Where an archive's bytes come from."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final, Protocol

from ddct_format.errors import StorageError, TruncatedError

__all__ = ["BytesSource", "FileSource", "Source"]


class Source(Protocol):
    """Random access to the bytes of one file. ``read_at`` may be called from several threads at once.

    Attributes:
        read_size: bytes up to which one large read is better than several small ones.
    """

    read_size: int

    @property
    def name(self) -> str:
        """The file, as error messages call it."""

    @property
    def size(self) -> int:
        """Bytes of the file."""

    def read_at(self, offset: int, length: int) -> bytes:
        """Exactly ``length`` bytes from ``offset``.

        Raises:
            TruncatedError: fewer bytes exist.
            StorageError: they cannot be read.
        """

    def close(self) -> None:
        """Release what the source holds; a second call does nothing."""


_READ_SIZE: Final = 4 << 20


class BytesSource:
    """An archive in memory."""

    read_size = _READ_SIZE

    def __init__(self, data: bytes, name: str = "<bytes>") -> None:
        self.name = name
        self.size = len(data)
        self._data = data

    def read_at(self, offset: int, length: int) -> bytes:
        data = self._data[offset : offset + length]
        if len(data) < length:
            raise _truncated(self.name, offset, length, len(data))
        return data

    def close(self) -> None:
        """Nothing is held."""


class FileSource:
    """An archive in a regular file, which stays open: what is read is always the same file.

    Attributes:
        descriptor: of the open file; negative once it is closed.

    Raises:
        StorageError: it cannot be opened, or is no regular file.
    """

    read_size = _READ_SIZE

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.name = str(Path(path))
        try:
            # Without O_NONBLOCK, opening a named pipe would wait for a writer.
            self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise _refused(error, self.name) from error
        status = os.fstat(self.descriptor)
        self.size = status.st_size
        if not stat.S_ISREG(status.st_mode):
            self.close()
            raise StorageError("is not a regular file", place=self.name)

    def read_at(self, offset: int, length: int) -> bytes:
        pieces: list[bytes] = []
        missing = length
        while missing:
            try:
                # One call returns at most 2 GiB.
                piece = os.pread(self.descriptor, missing, offset + length - missing)
            except OSError as error:
                raise _refused(error, self.name) from error
            if not piece:
                raise _truncated(self.name, offset, length, length - missing)
            pieces.append(piece)
            missing -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def close(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


def _refused(error: OSError, name: str) -> StorageError:
    return StorageError(f"cannot be read: {error.strerror}", place=name)


def _truncated(name: str, offset: int, length: int, found: int) -> TruncatedError:
    return TruncatedError(f"only {found} of {length} bytes exist at offset {offset}", place=name)
