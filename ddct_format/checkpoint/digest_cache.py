"""Digests of tensors by the state of their file, so that a base is not read through for every fine-tune.

What is found here is a guess: a file may have been changed and its time set back. Whoever uses a digest from here
compares it with the bytes before anything depends on it (``spec/adr/0601-digest-cache.md``). The database may be
deleted at any time; one that is damaged is.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
import zlib
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

if TYPE_CHECKING:
    from ddct_format.checkpoint.model_directory import Checkpoint
    from ddct_format.checkpoint.safetensors_file import SafetensorsFile

__all__ = ["CACHE_VARIABLE", "DigestCache", "default_cache"]

CACHE_VARIABLE: Final = "DDCT_CACHE"
"""Environment variable: the directory of the cache, or ``off``."""

_NAME: Final = "digests-1.sqlite"
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS files (
    path BLOB PRIMARY KEY, device INTEGER, inode INTEGER, size INTEGER, mtime_ns INTEGER, digests BLOB, used REAL
) WITHOUT ROWID
"""
_MOST_FILES: Final = 4096
"""The least recently used are forgotten beyond that."""
_MOST_BYTES: Final = 64 << 20
"""Of the digests of one file, uncompressed: more is not believed."""
_BUSY_SECONDS: Final = 2.0
_SETTLED_NS: Final = 2_000_000_000
"""A file that was written less than this ago could change again within one tick of its file system's clock."""
_HEX: Final = frozenset("0123456789abcdef")
_PASSING: Final = frozenset(
    {
        *(sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM),
        *(sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_NOMEM),
    }
)
"""Errors that do not mean that the database is damaged: there is no cache this time."""

Result = TypeVar("Result")


def default_cache() -> DigestCache | None:
    """The cache of the current user: below ``DDCT_CACHE``, or the usual directory; None if that says ``off``."""
    place = os.environ.get(CACHE_VARIABLE)
    if place == "off":
        return None
    if place:
        return DigestCache(Path(place))
    try:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # a user without a home
        return None
    return DigestCache(home / "ddct")


class DigestCache:
    """A small SQLite database in a directory, shared by any number of processes. Never raises: it finds, or not.

    Args:
        directory: made when something is stored.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / _NAME

    def lookup(self, model: Checkpoint) -> dict[str, str]:
        """Digests by tensor, of those files of the model that are in the state in which they were stored."""
        if not self._is_there():
            return {}

        def find(database: sqlite3.Connection) -> dict[str, str]:
            found: dict[str, str] = {}
            for file in model.files:
                row = database.execute(
                    "SELECT digests FROM files WHERE path=? AND device=? AND inode=? AND size=? AND mtime_ns=?",
                    _key(file),
                ).fetchone()
                if row is not None:
                    found.update(_unpack(row[0], file))
                    with suppress(sqlite3.OperationalError):  # a read-only cache is still one
                        database.execute("UPDATE files SET used=? WHERE path=?", (time.time(), _key(file)[0]))
            return found

        return self._try(find) or {}

    def store(self, model: Checkpoint, digests: Mapping[str, str]) -> None:
        """Remember the digests of the files that have not changed since they were opened, nor just before."""

        def insert(database: sqlite3.Connection) -> None:
            for file in model.files:
                if not file.is_unchanged() or time.time_ns() - file.state.mtime_ns < _SETTLED_NS:
                    continue
                packed = zlib.compress(json.dumps({name: digests[name] for name in file.tensors}).encode(), 1)
                database.execute(
                    "INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?, ?)", (*_key(file), packed, time.time())
                )
            database.execute(
                "DELETE FROM files WHERE path NOT IN (SELECT path FROM files ORDER BY used DESC LIMIT ?)",
                (_MOST_FILES,),
            )

        with suppress(OSError):
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._try(insert)

    def forget(self, model: Checkpoint) -> None:
        """Drop what is stored for the model's files: it turned out to be wrong."""

        def delete(database: sqlite3.Connection) -> None:
            database.executemany("DELETE FROM files WHERE path=?", [_key(file)[:1] for file in model.files])

        if self._is_there():
            self._try(delete)

    def _is_there(self) -> bool:
        with suppress(OSError):  # a home of somebody else, say
            return self.path.is_file()
        return False

    def _try(self, work: Callable[[sqlite3.Connection], Result]) -> Result | None:
        for _ in range(2):
            try:
                with closing(sqlite3.connect(self.path, timeout=_BUSY_SECONDS)) as database, database:
                    database.execute("PRAGMA journal_mode=WAL")
                    database.execute("PRAGMA synchronous=NORMAL")
                    database.execute(_SCHEMA)
                    return work(database)
            except sqlite3.Error as error:
                if getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF in _PASSING:
                    return None
                self._delete()
            except (ValueError, RecursionError, zlib.error):
                self._delete()
        return None

    def _delete(self) -> None:
        for suffix in ("", "-wal", "-shm"):
            with suppress(OSError):
                Path(f"{self.path}{suffix}").unlink()


def _key(file: SafetensorsFile) -> tuple[bytes, int, int, int, int]:
    state = file.state
    return os.fsencode(file.path.resolve()), _signed(state.device), _signed(state.inode), state.size, state.mtime_ns


def _signed(number: int) -> int:
    """SQLite's integers are signed; device and inode numbers are not."""
    return number - (1 << 64) if number >> 63 else number


def _unpack(packed: bytes, file: SafetensorsFile) -> dict[str, str]:
    """The digests, if they are of the very tensors that the file has; ValueError or zlib.error if they are nonsense."""
    stream = zlib.decompressobj()
    digests = json.loads(stream.decompress(packed, _MOST_BYTES))
    if not isinstance(digests, dict) or digests.keys() != file.tensors.keys():
        raise ValueError("not the digests of this file")
    for digest in digests.values():
        if not isinstance(digest, str) or len(digest) != 64 or not _HEX.issuperset(digest):
            raise ValueError("not a digest")
    return digests
