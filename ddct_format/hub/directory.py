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

from ddct_format.errors import HubError
from ddct_format.hub.notes import Notes
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

    def has_archive(self, name: str, pointer: Pointer) -> bool:
        check_name(name)
        path = self._object_path(pointer.sha256)
        with _hub_errors(path):
            try:
                status = path.stat()
            except FileNotFoundError:
                return False
            return stat.S_ISREG(status.st_mode) and status.st_size == pointer.size

    def put_archive(self, name: str, pointer: Pointer, path: Path, notes: Notes | None = None) -> None:
        raw = serialise_pointer(pointer)
        parse_pointer(raw)
        # What others left, or a disk has spoilt since, is not believed for its size.
        if not (self.has_archive(name, pointer) and self._is_intact(pointer)):
            self._put_object(pointer, path)
        with self._incoming(self._pointer_path(name)) as sink:
            sink.write(raw)

    def _put_object(self, pointer: Pointer, path: Path) -> None:
        with self._incoming(self._object_path(pointer.sha256)) as sink, _open_regular(path) as source:
            shutil.copyfileobj(source, sink, _PIECE)
            # What is hashed is what was stored, not what was read: that is the promise to check.
            sink.seek(0)
            digest = hashlib.file_digest(sink, "sha256").hexdigest()
            if sink.tell() != pointer.size or digest != pointer.sha256:
                raise HubError("the file to publish does not have the expected size and sha256", place=path)

    def _is_intact(self, pointer: Pointer) -> bool:
        path = self._object_path(pointer.sha256)
        with _hub_errors(path), _open_regular(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == pointer.sha256

    def read_archive(self, name: str, pointer: Pointer, begin: int, end: int | None = None) -> Iterator[bytes]:
        check_name(name)
        path = self._object_path(pointer.sha256)
        with _hub_errors(path):
            try:
                source = _open_regular(path)
            except FileNotFoundError as error:
                raise HubError("the hub does not hold this archive", place=path) from error
            with source:
                source.seek(begin)
                left = (pointer.size + 1 if end is None else end) - begin
                while left > 0 and (piece := source.read(min(_PIECE, left))):
                    left -= len(piece)
                    yield piece

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

    def remove(self, name: str) -> None:
        pointer = self.get_pointer(name)
        if pointer is None:
            return
        path = self._pointer_path(name)
        others = (self.get_pointer(other) for other in self.list_names() if other != name)
        shared = any(other is not None and other.sha256 == pointer.sha256 for other in others)
        with _hub_errors(path):
            path.unlink(missing_ok=True)
            _sync_directory(path.parent)
            if not shared:
                self._object_path(pointer.sha256).unlink(missing_ok=True)

    def look_closer(self, name: str, pointer: Pointer) -> tuple[str, ...]:
        free = shutil.disk_usage(self._root).free
        return (f"{free / 1e9:.1f} GB are free",)

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
    except OSError:  # of a writer that lives, of somebody else, or no file at all: it stands in nobody's way
        return False
    return True
