"""The daemon's own directory: a lock, the journal, and the spool of archives that wait for the hub."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import shutil
import time
from collections.abc import Collection
from pathlib import Path
from typing import IO

from ddct_format.errors import ConfigError, StorageError

__all__ = ["StateDirectory", "is_paused", "journal_path", "lock_holder"]

_ARCHIVE = re.compile(r"[0-9a-f]{16}/archive\.ddct")
_PAUSED = "paused"
_LOCK_PATIENCE_SECONDS = 1.0
"""``lock_holder`` takes the lock for an instant; that must not turn a daemon away."""


class StateDirectory:
    """The state directory, locked by this process; a context manager.

    Every archive gets a directory of its own in the spool. Removing one also stops a worker of a
    dead daemon that still writes into it.

    Raises:
        ConfigError: another daemon works on this state.
        StorageError: the directory cannot be made or written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._spool = path / "spool"
        try:
            self._spool.mkdir(parents=True, exist_ok=True)
            self._lock = _lock_path(path).open("a+")
        except OSError as error:
            raise StorageError((error.strerror or str(error)).lower(), place=path) from error
        try:
            self._take_lock()
        except BaseException:
            self._lock.close()
            raise

    def __enter__(self) -> StateDirectory:
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.close()

    @property
    def journal(self) -> Path:
        return journal_path(self._path)

    @property
    def paused(self) -> bool:
        return is_paused(self._path)

    def set_paused(self, paused: bool) -> None:
        """Remember it, also for the next life of the daemon."""
        if paused:
            (self._path / _PAUSED).touch()
        else:
            (self._path / _PAUSED).unlink(missing_ok=True)

    def check_space(self, reserve: int) -> None:
        """StorageError if fewer than ``reserve`` bytes are free: the disk may be the training's, too."""
        free = shutil.disk_usage(self._path).free
        if free < reserve:
            raise StorageError(
                f"only {free / 1e6:.0f} MB are free, and {reserve / 1e6:.0f} MB are to stay free", place=self._path
            )

    def new_archive(self) -> str:
        """Make room for an archive; returns its future path, relative to the spool."""
        name = secrets.token_hex(8)
        try:
            (self._spool / name).mkdir()
        except OSError as error:
            raise StorageError((error.strerror or str(error)).lower(), place=self._spool) from error
        return f"{name}/archive.ddct"

    def archive(self, relative: str) -> Path:
        return self._spool / relative

    def decoded(self, relative: str) -> Path:
        """Where the decoded copy of an archive is, if there is one."""
        return (self._spool / relative).with_name("model")

    def remove_archive(self, relative: str, *, keep_decoded: bool = False) -> None:
        """Remove an archive and all that stands beside it; harmless if it is gone."""
        if keep_decoded:
            self.archive(relative).unlink(missing_ok=True)
        elif _ARCHIVE.fullmatch(relative):
            _remove_tree((self._spool / relative).parent)

    def remove_orphans(self, keep: Collection[str]) -> int:
        """Remove what previous lives left in the spool, but for ``keep``, archives or their places; how many."""
        kept = {relative.split("/")[0] for relative in keep}
        orphans = [path for path in self._spool.iterdir() if path.name not in kept]
        for path in orphans:
            _remove_tree(path)
        return len(orphans)

    def _take_lock(self) -> None:
        deadline = time.monotonic() + _LOCK_PATIENCE_SECONDS
        while not _try_lock(self._lock):
            if time.monotonic() > deadline:
                holder = lock_holder(self._path)
                who = "another daemon" if holder is None else f"another daemon (process {holder})"
                raise ConfigError(f"{who} already works on this state", place=self._path)
            time.sleep(0.05)
        self._lock.truncate(0)
        self._lock.write(str(os.getpid()))
        self._lock.flush()


def lock_holder(path: Path) -> int | None:
    """Process id of the daemon that works on the state directory ``path``, or None."""
    try:
        with _lock_path(path).open("r") as lock:
            if _try_lock(lock):
                return None
            text = lock.read(20)
    except OSError:
        return None
    return int(text) if text.isdecimal() else 0


def is_paused(path: Path) -> bool:
    """Whether the daemon of the state directory ``path`` was told to pause."""
    return (path / _PAUSED).exists()


def journal_path(path: Path) -> Path:
    """Where the journal of the state directory ``path`` is."""
    return path / "journal.sqlite3"


def _lock_path(path: Path) -> Path:
    return path / "daemon.lock"


def _try_lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise StorageError(f"cannot be locked: {error.strerror}", place=file.name) from error
    return True


def _remove_tree(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        # Twice: a dying worker may create one more file during the first pass.
        shutil.rmtree(path, ignore_errors=True)
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()
