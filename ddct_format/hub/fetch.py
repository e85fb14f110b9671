"""Bringing an archive's bytes here: bounded, checked, and continued where an earlier attempt ended."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

from ddct_format.container.preamble import PREAMBLE_SIZE, parse_preamble
from ddct_format.container.reader import ArchiveReader
from ddct_format.container.source import FileSource
from ddct_format.errors import ArchiveError, HubError, StorageError
from ddct_format.hub.interface import Hub
from ddct_format.hub.pointer import Pointer

__all__ = ["PartialArchive", "Progress", "fetch_archive"]

_PIECE = 1 << 20
_FIRST_READ = 256 << 10
"""Bytes of a first request that most likely bring preamble, metadata and chunk table."""
_ATTEMPTS = 3
"""Connections in a row that may break before a single new byte came."""
_PAUSE_SECONDS = 0.5
_OPEN_FLAGS = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW

Progress = Callable[[int, int, str], None]
"""Called with bytes done, bytes in all and what is being done."""


def fetch_archive(hub: Hub, name: str, pointer: Pointer, path: Path, *, progress: Progress | None = None) -> int:
    """Complete the file ``path``, which may hold the archive's first bytes already; the bytes that came now.

    Errors of ``PartialArchive``.
    """
    with PartialArchive(hub, name, pointer, path, progress) as partial:
        partial.complete()
        return partial.fetched


class PartialArchive:
    """A file that holds an archive from its first byte on, perhaps not to its last; a context manager.

    In the block it is this process's alone. A connection that breaks is opened again from where it ended. Whatever
    error comes, the file holds only bytes that a later attempt can go on from, or is gone.

    Attributes:
        path: the file.
        fetched: bytes that came from the hub, in this block.

    Raises:
        StorageError: the disk is full, or another process fetches into this file.
    """

    def __init__(self, hub: Hub, name: str, pointer: Pointer, path: Path, progress: Progress | None = None) -> None:
        self.path = path
        self.fetched = 0
        self._hub, self._name, self._pointer, self._progress = hub, name, pointer, progress
        self._descriptor = -1

    def __enter__(self) -> PartialArchive:
        with _storage_errors(self.path):
            while True:
                self._descriptor = os.open(self.path, _OPEN_FLAGS, 0o600)
                try:
                    # The lock ends with the process: a kill leaves bytes, but no lock.
                    fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    if self._is_still_there():
                        return self
                except BlockingIOError:
                    self._close()
                    raise StorageError("another process is fetching into it", place=self.path) from None
                self._close()

    def __exit__(self, *_: object) -> None:
        self._close()

    @property
    def size(self) -> int:
        """Bytes that are here."""
        return os.fstat(self._descriptor).st_size

    def complete(self) -> None:
        """Fetch what is missing, and compare the whole with the pointer's size and digest.

        Raises:
            HubError: the hub failed for good, or its bytes are not what the pointer says.
        """
        for _ in range(2):
            resumed = self.size > 0
            self._grow(self._pointer.size)
            if self.size == self._pointer.size and self._digest() == self._pointer.sha256:
                return
            self._clear()
            if not resumed:
                break
        self.remove()
        raise HubError("the archive's bytes do not have the size and sha256 of its pointer", place=self._hub.location)

    def complete_layers(self, layers: int) -> None:
        """Fetch no more than the first ``layers`` layers of every tensor, and check them.

        That they are the published archive's follows from the content id: it covers the digest of every tensor.

        Raises:
            HubError: as ``complete``, or the pointer does not describe this archive.
            ArchiveError: it is not sound.
        """
        for _ in range(2):
            resumed = self.size > 0
            try:
                self._try_layers(layers)
                return
            except (ArchiveError, _OtherArchiveError):
                self._clear()
                if not resumed:
                    self.remove()
                    raise

    def remove(self) -> None:
        """Delete the file."""
        self.path.unlink(missing_ok=True)

    def _try_layers(self, layers: int) -> None:
        self._grow(min(_FIRST_READ, self._pointer.size))
        preamble = parse_preamble(os.pread(self._descriptor, PREAMBLE_SIZE, 0), self.size, allow_truncated=True)
        if preamble.file_size != self._pointer.size:
            raise _OtherArchiveError(self._name, self._hub)
        self._grow(preamble.chunks_offset)
        with ArchiveReader.open(FileSource(self.path), allow_truncated=True) as reader:
            ids = (reader.content_id, reader.metadata.base_id, reader.metadata.target_ids[-1])
            if ids != (self._pointer.content_id, self._pointer.base_id, self._pointer.target_id):
                raise _OtherArchiveError(self._name, self._hub)
            end = reader.prefix_size(layers)
        self._grow(end)
        with ArchiveReader.open(FileSource(self.path), allow_truncated=True) as reader:
            reader.verify_chunks(layers=layers)

    def _grow(self, end: int) -> None:
        """Append until the file has ``end`` bytes, if it has fewer."""
        failures = 0
        while (have := self.size) < end:
            reason = HubError("the archive ends early", place=self._hub.location)
            try:
                self._append(have, end)
            except HubError as error:
                reason = error
            failures = 1 if self.size > have else failures + 1
            if self.size < end:
                if failures >= _ATTEMPTS or reason.retry_after:
                    raise reason
                time.sleep(_PAUSE_SECONDS * failures)

    def _append(self, have: int, end: int) -> None:
        # Closed at once: it holds a connection.
        with contextlib.closing(self._pieces(have, end)) as pieces:
            for piece in pieces:
                try:
                    _write(self._descriptor, piece)
                except OSError as error:
                    self.remove()
                    raise _storage_error(error, self.path) from error
                have += len(piece)
                self.fetched += len(piece)
                if self._progress is not None:
                    self._progress(min(have, end), end, "fetch")

    def _pieces(self, begin: int, end: int) -> Generator[bytes, None, None]:
        whole = end == self._pointer.size
        yield from self._hub.read_archive(self._name, self._pointer, begin, None if whole else end)

    def _digest(self) -> str:
        hasher, offset = hashlib.sha256(), 0
        with _storage_errors(self.path):
            while piece := os.pread(self._descriptor, _PIECE, offset):
                hasher.update(piece)
                offset += len(piece)
        return hasher.hexdigest()

    def _clear(self) -> None:
        with _storage_errors(self.path):
            os.truncate(self._descriptor, 0)

    def _is_still_there(self) -> bool:
        """Whether the locked file still has the name: the one who had the lock before may have removed it."""
        try:
            named = self.path.stat()
        except FileNotFoundError:
            return False
        return os.path.samestat(named, os.fstat(self._descriptor))

    def _close(self) -> None:
        os.close(self._descriptor)
        self._descriptor = -1


class _OtherArchiveError(HubError):
    def __init__(self, name: str, hub: Hub) -> None:
        super().__init__(f"the pointer {name!r} does not describe its own archive", place=hub.location)


def _write(descriptor: int, piece: bytes) -> None:
    view = memoryview(piece)
    while view:
        view = view[os.write(descriptor, view) :]


@contextlib.contextmanager
def _storage_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _storage_error(error, path) from error


def _storage_error(error: OSError, path: Path) -> StorageError:
    return StorageError((error.strerror or str(error)).lower(), place=path)
