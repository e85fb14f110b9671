"""A hub that is a directory: on this disk, on a mounted share, on a USB stick.

Layout::

    objects/<first two digits of the sha256>/<sha256>.ddct
    refs/<name>.json       a name may contain "/", and so become sub-directories
    incoming/              what is being written, each file locked by its writer
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from ddct_format.errors import HubError, OutputExistsError, StorageError
from ddct_format.hub.pointer import (
    MAX_POINTER_BYTES,
    Pointer,
    check_name,
    check_sha256,
    parse_pointer,
    serialise_pointer,
)

__all__ = ["DirectoryHub"]

_PIECE = 1 << 20


class DirectoryHub:
    """The Hub protocol on a directory that exists already; its sub-directories are made on demand.

    Args:
        root: the directory. That it must exist keeps archives off the root disk when a share is
            not mounted. HubError if it is not there.
    """

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()
        if not self._root.is_dir():
            raise HubError("the hub's directory does not exist", place=root)

    @property
    def location(self) -> str:
        return str(self._root)

    def has_object(self, sha256: str, size: int) -> bool:
        path = self._object_path(sha256)
        with _hub_errors(path):
            try:
                status = path.stat()
            except FileNotFoundError:
                return False
            return stat.S_ISREG(status.st_mode) and status.st_size == size

    def put_object(self, sha256: str, size: int, path: Path) -> None:
        if self.has_object(sha256, size):
            return
        target = self._object_path(sha256)
        with self._incoming(target) as sink, _open_regular(path) as source:
            shutil.copyfileobj(source, sink, _PIECE)
            # What is hashed is what was stored, not what was read: that is the promise to check.
            sink.seek(0)
            digest = hashlib.file_digest(sink, "sha256").hexdigest()
            if sink.tell() != size or digest != sha256:
                raise HubError("the file to publish does not have the expected size and sha256", place=path)

    def fetch_object(self, sha256: str, size: int, to_path: Path) -> None:
        source_path = self._object_path(sha256)
        with _hub_errors(source_path):
            try:
                source = _open_regular(source_path)
            except FileNotFoundError as error:
                raise HubError("the hub does not hold this object", place=source_path) from error
        with source:
            try:
                sink = to_path.open("xb")
            except FileExistsError as error:
                raise OutputExistsError("exists already", place=to_path) from error
            except OSError as error:
                raise StorageError(_reason(error), place=to_path) from error
            try:
                with sink, _hub_errors(source_path):
                    whole = _copy(source, sink, sha256, size, to_path)
                if not whole:
                    raise HubError("the object's bytes do not have its size and sha256", place=source_path)
            except BaseException:
                to_path.unlink(missing_ok=True)
                raise

    def get_pointer(self, name: str) -> Pointer | None:
        path = self._pointer_path(name)
        with _hub_errors(path):
            try:
                with _open_regular(path) as file:
                    raw = file.read(MAX_POINTER_BYTES + 1)
            except (FileNotFoundError, NotADirectoryError):
                return None
        try:
            return parse_pointer(raw)
        except HubError as error:
            raise error.at(place=path) from None

    def put_pointer(self, name: str, pointer: Pointer) -> None:
        raw = serialise_pointer(pointer)
        parse_pointer(raw)
        with self._incoming(self._pointer_path(name)) as sink:
            sink.write(raw)

    def list_names(self) -> tuple[str, ...]:
        refs = self._root / "refs"
        names = []
        with _hub_errors(refs):
            for directory, _, files in os.walk(refs):
                for file in files:
                    path = Path(directory, file)
                    name = path.relative_to(refs).with_suffix("").as_posix()
                    with contextlib.suppress(HubError):
                        if path.suffix == ".json" and path.is_file():
                            names.append(check_name(name))
        return tuple(sorted(names))

    def remove_leftovers(self) -> int:
        incoming = self._root / "incoming"
        removed = 0
        with _hub_errors(incoming):
            try:
                paths = sorted(incoming.iterdir())
            except FileNotFoundError:
                return 0
            for path in paths:
                removed += _remove_if_unlocked(path)
        return removed

    def _object_path(self, sha256: str) -> Path:
        check_sha256(sha256)
        return self._root / "objects" / sha256[:2] / f"{sha256}.ddct"

    def _pointer_path(self, name: str) -> Path:
        return self._root.joinpath("refs", f"{check_name(name)}.json")

    @contextlib.contextmanager
    def _incoming(self, target: Path) -> Iterator[io.BufferedRandom]:
        """A file to write, which takes the name ``target`` when the block ends without an exception."""
        with _hub_errors(target):
            incoming = self._root / "incoming"
            _make_directory(incoming)
            _make_directory(target.parent)
            temporary = incoming / f"{target.name}.{secrets.token_hex(8)}"
            # The lock tells remove_leftovers that the writer lives, on any host of a shared directory.
            with temporary.open("x+b") as sink:
                try:
                    fcntl.flock(sink, fcntl.LOCK_EX)
                    yield sink
                    sink.flush()
                    os.fsync(sink.fileno())
                    temporary.rename(target)
                except BaseException:
                    temporary.unlink(missing_ok=True)
                    raise
            _sync_directory(target.parent)
            _sync_directory(incoming)


@contextlib.contextmanager
def _hub_errors(place: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise HubError(_reason(error), place=error.filename or place) from error


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


def _copy(source: BinaryIO, sink: BinaryIO, sha256: str, size: int, to_path: Path) -> bool:
    """Copy at most ``size`` bytes; whether they are all of the source and have the digest."""
    hasher = hashlib.sha256()
    remaining = size
    while remaining and (piece := source.read(min(_PIECE, remaining))):
        hasher.update(piece)
        remaining -= len(piece)
        try:
            sink.write(piece)
            sink.flush()
        except OSError as error:
            raise StorageError(_reason(error), place=to_path) from error
    return not remaining and not source.read(1) and hasher.hexdigest() == sha256


def _open_regular(path: Path) -> io.BufferedReader:
    """Open for reading; OSError for anything but a regular file (a FIFO would block for ever)."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(None, "not a regular file", str(path))
    return os.fdopen(descriptor, "rb")


def _make_directory(path: Path) -> None:
    if path.is_dir():
        return
    _make_directory(path.parent)
    path.mkdir(exist_ok=True)
    _sync_directory(path.parent)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_if_unlocked(path: Path) -> bool:
    try:
        with _open_regular(path) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
    except (FileNotFoundError, BlockingIOError):
        return False
    return True
