"""The journal: one row per checkpoint, with what was intended last and what came of it.

A row is written before a step begins and after it ended, each time in one transaction. After a
crash ``recover`` turns "was doing" into "to be done": every step may be repeated.
"""

from __future__ import annotations

import contextlib
import enum
import sqlite3
from collections.abc import Iterator
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path

from ddct_format.errors import StorageError

__all__ = ["Entry", "Journal", "Stage", "recover"]

_VERSION = 3


class Stage(enum.StrEnum):
    """Where a checkpoint stands."""

    SEEN = "seen"
    PACKING = "packing"
    PACKED = "packed"
    PUBLISHING = "publishing"
    PUBLISHED = "published"
    SKIPPED = "skipped"
    """Not packed, and not tried again unless the checkpoint changes."""
    FAILED = "failed"
    """Tried again at ``retry_at``: publishing if there is an archive, else packing."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What the journal knows of a checkpoint.

    Attributes:
        name: path relative to the watched directory.
        stage, reason: where it stands, and why, in words.
        fingerprint: of the listing that ``stage`` is about.
        resumable: whether training could go on from the checkpoint.
        attempts: failures in a row; 0 after a success.
        retry_at: seconds since the epoch, for people to read; 0 for at once.
        updated_at: seconds since the epoch.
        archive: path of the packed archive, relative to the spool; empty if there is none.
        sha256, size, content_id, base_id, target_id: of the archive, as published.
        original_size: bytes of the checkpoint's weights and of the files that are carried with them.
        bits_per_weight: of the whole archive, or without its files if those are training state.
        error: relative squared error of the decoded model, or None.
        published_sha256: what this daemon published last under the checkpoint's name.
        submitted: somebody said that it is finished.
        base: directory of the base that it was packed against; empty if that was another checkpoint.
        verified_at: when the hub's copy was last compared, seconds since the epoch; 0 for never.
        removed_at: when retention removed the local original; 0 if it did not.
        left_out: the checkpoint's files that its archive does not carry, in words.
        link: name of the checkpoint that it was packed against; empty if that was a base.
        links: checkpoints between it and its base.
        decoded: of a chain, the archive in whose place in the spool a decoded copy is kept; empty if none is.
    """

    name: str
    stage: Stage
    reason: str
    fingerprint: str
    resumable: bool = False
    attempts: int = 0
    retry_at: float = 0.0
    updated_at: float = 0.0
    archive: str = ""
    sha256: str = ""
    size: int = 0
    content_id: str = ""
    base_id: str = ""
    target_id: str = ""
    original_size: int = 0
    bits_per_weight: float = 0.0
    error: float | None = None
    published_sha256: str = ""
    submitted: bool = False
    base: str = ""
    verified_at: float = 0.0
    removed_at: float = 0.0
    left_out: str = ""
    link: str = ""
    links: int = 0
    decoded: str = ""


_COLUMNS = tuple(field.name for field in fields(Entry))
_SCHEMA = """
CREATE TABLE checkpoints (
    name TEXT PRIMARY KEY,
    stage TEXT NOT NULL,
    reason TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    resumable INTEGER NOT NULL,
    attempts INTEGER NOT NULL,
    retry_at REAL NOT NULL,
    updated_at REAL NOT NULL,
    archive TEXT NOT NULL,
    sha256 TEXT NOT NULL,
    size INTEGER NOT NULL,
    content_id TEXT NOT NULL,
    base_id TEXT NOT NULL,
    target_id TEXT NOT NULL,
    original_size INTEGER NOT NULL,
    bits_per_weight REAL NOT NULL,
    error REAL,
    published_sha256 TEXT NOT NULL
) STRICT
"""
_MIGRATIONS = {
    0: (_SCHEMA,),
    1: (
        "ALTER TABLE checkpoints ADD COLUMN submitted INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE checkpoints ADD COLUMN base TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE checkpoints ADD COLUMN verified_at REAL NOT NULL DEFAULT 0",
        "ALTER TABLE checkpoints ADD COLUMN removed_at REAL NOT NULL DEFAULT 0",
    ),
    2: (
        "ALTER TABLE checkpoints ADD COLUMN left_out TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE checkpoints ADD COLUMN link TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE checkpoints ADD COLUMN links INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE checkpoints ADD COLUMN decoded TEXT NOT NULL DEFAULT ''",
    ),
}
"""What makes a journal of each version one of the next."""


class Journal:
    """The journal file; a context manager. StorageError if SQLite cannot work with it.

    Args:
        path: the database, made if it is not there.
        read_only: for looking on while a daemon writes; the file must exist.
    """

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self._path = path
        with self._storage_errors():
            mode = "ro" if read_only else "rwc"
            self._database = sqlite3.connect(f"{path.absolute().as_uri()}?mode={mode}", uri=True, timeout=10)
            try:
                self._prepare(read_only)
            except BaseException:
                self._database.close()
                raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()

    def load(self) -> dict[str, Entry]:
        """All entries, by name."""
        if self._blank:
            return {}
        with self._storage_errors():
            rows = self._database.execute(f"SELECT {', '.join(_COLUMNS)} FROM checkpoints ORDER BY name").fetchall()
        entries = (Entry(*row) for row in rows)
        return {
            entry.name: replace(
                entry, stage=Stage(entry.stage), resumable=bool(entry.resumable), submitted=bool(entry.submitted)
            )
            for entry in entries
        }

    def save(self, entry: Entry) -> None:
        """Write one entry; durable on return."""
        marks = ", ".join("?" * len(_COLUMNS))
        # Reasons name files, whose names may be anything; SQLite takes UTF-8.
        values = [
            value.encode(errors="backslashreplace").decode() if isinstance(value, str) else value
            for value in astuple(entry)
        ]
        with self._storage_errors(), self._database:
            self._database.execute(
                f"INSERT OR REPLACE INTO checkpoints ({', '.join(_COLUMNS)}) VALUES ({marks})", values
            )

    def _prepare(self, read_only: bool) -> None:
        (version,) = self._database.execute("PRAGMA user_version").fetchone()
        # A reader does not migrate, and waits for the daemon to do it.
        if version not in ((0, _VERSION) if read_only else range(_VERSION + 1)):
            raise StorageError("was written by another version of the daemon", place=self._path)
        # Only a reader can see this: the daemon has made the file, but not the table yet.
        self._blank = read_only and version == 0
        if read_only:
            return
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = FULL")
        if version < _VERSION:
            # All in one transaction: a reader never meets a version in between.
            with self._database:
                self._database.execute("BEGIN IMMEDIATE")
                for old in range(version, _VERSION):
                    for statement in _MIGRATIONS[old]:
                        self._database.execute(statement)
                self._database.execute(f"PRAGMA user_version = {_VERSION}")

    @contextlib.contextmanager
    def _storage_errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise StorageError(f"the journal failed: {error}", place=self._path) from error


def recover(entry: Entry, *, archive_there: bool, copy_there: bool = False) -> Entry:
    """What a new life of the daemon makes of an entry of the last one.

    Failures are tried again at once: who restarts a daemon has often just mended something.
    """
    entry = replace(entry, retry_at=0.0, decoded=entry.decoded if copy_there else "")
    if entry.stage is Stage.PACKING:
        return replace(entry, stage=Stage.SEEN, reason="packing was interrupted", archive="", link="", links=0)
    if entry.stage is Stage.PUBLISHING:
        entry = replace(entry, stage=Stage.PACKED, reason="publishing was interrupted")
    if entry.archive and not archive_there:
        entry = replace(entry, archive="", decoded="")
        if entry.stage is Stage.PACKED:
            return replace(entry, stage=Stage.SEEN, reason="its archive is gone; it is packed again")
    return entry
