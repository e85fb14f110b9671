"""What the daemon knows of every checkpoint: in memory, in the journal, and in the log as it changes."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from .planner import Note, retry_delay
from .state import Entry, Journal, Stage, recover
from .state_directory import StateDirectory

__all__ = ["Ledger"]

_log = logging.getLogger(__name__)


class Ledger:
    """The journal's entries and the only way to change them.

    Args:
        journal: open for writing.
        changed: called after every change.

    Attributes:
        entries: by name; not to be changed by others.
    """

    def __init__(self, journal: Journal, changed: Callable[[], None]) -> None:
        self._journal = journal
        self._changed = changed
        self._entries: dict[str, Entry] = {}
        # By the clock that never jumps; what the journal has of times is for people.
        self._hub_opens_at = time.monotonic()
        self._retry_at: dict[str, float] = {}
        self.entries: Mapping[str, Entry] = self._entries

    @property
    def hub_closed_for(self) -> float:
        """Seconds for which the hub wants to be left alone."""
        return max(0.0, self._hub_opens_at - time.monotonic())

    @property
    def waits(self) -> Mapping[str, float]:
        """Seconds until each failed checkpoint is to be tried again; those whose time has come are not there."""
        now = time.monotonic()
        self._retry_at = {name: then for name, then in self._retry_at.items() if then > now}
        return {name: then - now for name, then in self._retry_at.items()}

    def recover(self, state: StateDirectory) -> None:
        """Take over from the last life of the daemon, and remove from the spool what nobody needs."""
        for entry in self._journal.load().values():
            self._entries[entry.name] = entry
            there = bool(entry.archive) and state.archive(entry.archive).is_file()
            copied = bool(entry.decoded) and state.decoded(entry.decoded).is_dir()
            recovered = recover(entry, archive_there=there, copy_there=copied)
            if recovered != entry:
                self.save(recovered)
        kept = [place for entry in self._entries.values() for place in (entry.archive, entry.decoded)]
        state.remove_orphans([place for place in kept if place])

    def save(self, entry: Entry) -> None:
        """Durable on return. StorageError if the journal cannot be written."""
        before = self._entries.get(entry.name)
        news = before is None or _what_people_see(before) != _what_people_see(entry)
        if news:
            entry = replace(entry, updated_at=time.time())
        self._journal.save(entry)
        self._entries[entry.name] = entry
        self._changed()
        if news:
            _log.info("%s: %s: %s", entry.name, entry.stage, entry.reason)

    def note(self, note: Note) -> None:
        """What the planner wants to be noted."""
        entry = self._entries.get(note.name) or Entry(note.name, note.stage, note.reason, "")
        if entry.fingerprint != note.fingerprint:
            entry = replace(entry, attempts=0, submitted=False)
        self.save(replace(entry, stage=note.stage, reason=note.reason, fingerprint=note.fingerprint))

    def fail(self, entry: Entry, reason: str, *, at_least: float = 0.0) -> None:
        """Note a failure; ``at_least``: seconds for which the hub wants to be left alone, by all checkpoints."""
        attempts = entry.attempts + 1
        self._hub_opens_at = max(self._hub_opens_at, time.monotonic() + at_least)
        wait = max(retry_delay(attempts), at_least)
        self._retry_at[entry.name] = time.monotonic() + wait
        retry_at = time.time() + wait
        self.save(replace(entry, stage=Stage.FAILED, reason=reason, attempts=attempts, retry_at=retry_at))

    def retry_now(self) -> None:
        """Let all failures be tried again at once."""
        self._retry_at.clear()
        for entry in list(self._entries.values()):
            if entry.stage is Stage.FAILED:
                self.save(replace(entry, retry_at=0.0))


def _what_people_see(entry: Entry) -> tuple[object, ...]:
    return entry.stage, entry.reason, entry.attempts
