"""What people look at: one line and one reason per checkpoint."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict

from .config import Config
from .state import Entry, Journal, Stage
from .state_directory import is_paused, journal_path, lock_holder

__all__ = ["describe", "read_status"]


def read_status(config: Config) -> dict[str, object]:
    """The daemon's state as JSON-ready values; reads the journal, changes nothing.

    Returns:
        ``daemon``: ``running``, ``process`` and ``paused``; ``hub``; ``checkpoints``: the journal's entries, by name.

    Raises:
        StorageError: the journal cannot be read.
    """
    process = lock_holder(config.state_path)
    entries: Mapping[str, Entry] = {}
    if journal_path(config.state_path).exists():
        with Journal(journal_path(config.state_path), read_only=True) as journal:
            entries = journal.load()
    return {
        "daemon": {"running": process is not None, "process": process, "paused": is_paused(config.state_path)},
        "hub": config.hub,
        "checkpoints": [asdict(entry) | {"line": describe(entry, time.time())} for entry in entries.values()],
    }


def describe(entry: Entry, now: float) -> str:
    """The entry's reason in words, with sizes once there are any and the time of the next attempt."""
    if entry.stage is Stage.PUBLISHED:
        error = "" if entry.error is None else f", error {entry.error:.4f}"
        return (
            f"{entry.reason}, {_megabytes(entry.original_size)} -> {_megabytes(entry.size)}, "
            f"{entry.bits_per_weight:.2f} bits per weight{error}"
            + (", with training state left out" if entry.resumable else "")
            + (", local original removed" if entry.removed_at else "")
        )
    if entry.stage is Stage.FAILED:
        step = "publish" if entry.archive else "pack"
        return f"{entry.reason} (to {step} again in {max(0.0, entry.retry_at - now):.0f} s)"
    return entry.reason


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.2f} MB"
