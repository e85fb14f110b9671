"""Bringing an archive's bytes here: bounded, checked, and continued where an earlier attempt ended."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

from ddct_format.errors import HubError, StorageError
from ddct_format.hub.interface import Hub
from ddct_format.hub.pointer import Pointer

__all__ = ["Progress", "fetch_archive"]

_PIECE = 1 << 20
_ATTEMPTS = 3
"""Connections in a row that may break before a single new byte came."""
_PAUSE_SECONDS = 0.5

Progress = Callable[[int, int, str], None]
"""Called with bytes done, bytes in all and what is being done."""


def fetch_archive(hub: Hub, name: str, pointer: Pointer, partial: Path, *, progress: Progress | None = None) -> int:
    """Complete the file ``partial``, which may hold the archive's first bytes already.

    A connection that breaks is opened again from where it ended. Whatever error comes, ``partial`` holds
    only bytes that a later call can go on from, or is gone.

    Returns:
        Bytes that came from the hub now.

    Raises:
        HubError: the hub failed for good, or its bytes have not the pointer's size and digest.
        StorageError: the disk is full, or another process fetches into this file.
    """
    with _storage_errors(partial), partial.open("a+b") as file:
        # The lock ends with the process: a kill leaves bytes, but no lock.
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StorageError("another process is fetching into it", place=partial) from None
        try:
            fetched = 0
            for start_afresh in (False, True):
                if start_afresh or file.seek(0, os.SEEK_END) > pointer.size:
                    file.truncate(0)
                resumed = file.seek(0, os.SEEK_END)
                fetched += _append(hub, name, pointer, file.fileno(), progress)
                if _digest(file.fileno()) == pointer.sha256:
                    return fetched
                if not resumed:
                    break
            raise _DamagedError(
                "the archive's bytes do not have the size and sha256 of its pointer", place=hub.location
            )
        except (_DamagedError, OSError):
            partial.unlink(missing_ok=True)
            raise


class _DamagedError(HubError):
    """Nothing that was fetched can be used."""


def _append(hub: Hub, name: str, pointer: Pointer, descriptor: int, progress: Progress | None) -> int:
    """Write what is missing; the bytes written."""
    begun = have = os.fstat(descriptor).st_size
    failures = 0
    while have < pointer.size:
        before, reason = have, HubError("the archive ends early", place=hub.location)
        try:
            # Closed at once: it holds a connection.
            with contextlib.closing(_iterate(hub, name, pointer, have)) as pieces:
                for piece in pieces:
                    if have + len(piece) > pointer.size:
                        raise _DamagedError("the archive is longer than its pointer says", place=hub.location)
                    _write(descriptor, piece)
                    have += len(piece)
                    if progress is not None:
                        progress(have, pointer.size, "fetch")
        except _DamagedError:
            raise
        except HubError as error:
            reason = error
        failures = 1 if have > before else failures + 1
        if have < pointer.size:
            if failures >= _ATTEMPTS or reason.retry_after:
                raise reason
            time.sleep(_PAUSE_SECONDS * failures)
    return have - begun


def _iterate(hub: Hub, name: str, pointer: Pointer, offset: int) -> Generator[bytes, None, None]:
    yield from hub.read_archive(name, pointer, offset)


def _write(descriptor: int, piece: bytes) -> None:
    view = memoryview(piece)
    while view:
        view = view[os.write(descriptor, view) :]


def _digest(descriptor: int) -> str:
    hasher, offset = hashlib.sha256(), 0
    while piece := os.pread(descriptor, _PIECE, offset):
        hasher.update(piece)
        offset += len(piece)
    return hasher.hexdigest()


@contextlib.contextmanager
def _storage_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError((error.strerror or str(error)).lower(), place=path) from error
