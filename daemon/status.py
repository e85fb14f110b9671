"""What people look at: one line and one reason per checkpoint."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from .chains import natural
from .config import Config
from .state import Entry, Journal, Stage
from .state_directory import is_paused, journal_path, lock_holder

__all__ = ["describe", "read_status", "table"]


def read_status(config: Config) -> dict[str, Any]:
    """The daemon's state as JSON-ready values; reads the journal, changes nothing.

    Returns:
        ``daemon``: ``running``, ``process`` and ``paused``; ``hub``; ``checkpoints``: the journal's entries in natural
        order of their names, each with a ``line`` in words and ``retry_in``, seconds to the next attempt or None.

    Raises:
        StorageError: the journal cannot be read.
    """
    process = lock_holder(config.state_path)
    entries: Mapping[str, Entry] = {}
    if journal_path(config.state_path).exists():
        with Journal(journal_path(config.state_path), read_only=True) as journal:
            entries = journal.load()
    now = time.time()
    return {
        "daemon": {"running": process is not None, "process": process, "paused": is_paused(config.state_path)},
        "hub": config.hub,
        "checkpoints": [
            asdict(entry) | {"line": describe(entry, now), "retry_in": _retry_in(entry, now)}
            for entry in sorted(entries.values(), key=lambda entry: natural(entry.name))
        ],
    }


def describe(entry: Entry, now: float) -> str:
    """The entry's reason in words, with what was left out, or when it is tried again."""
    if entry.stage is Stage.PUBLISHED:
        return (
            f"{entry.reason}, {entry.bits_per_weight:.2f} bits per weight"
            + (f", packed against {entry.link}" if entry.link else "")
            + (f", without {entry.left_out}" if entry.left_out else "")
            + (", local original removed" if entry.removed_at else "")
        )
    retry_in = _retry_in(entry, now)
    if retry_in is not None:
        step = "publish" if entry.archive else "pack"
        return f"{entry.reason} (to {step} again in {retry_in:.0f} s)"
    return entry.reason


def table(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Aligned lines for a terminal, the first one a head: ``rows`` are ``checkpoints`` of ``read_status``."""
    cells = [("CHECKPOINT", "STATE", "BEFORE", "AFTER", "ERROR", "RETRY", "WHY")]
    for row in rows:
        sizes = [f"{row[size] / 1e6:.2f} MB" if row["size"] else "-" for size in ("original_size", "size")]
        error = "-" if row["error"] is None or not row["size"] else f"{row['error']:.4f}"
        retry = "-" if row["retry_in"] is None else f"{row['retry_in']:.0f} s"
        cells.append((row["name"], row["stage"], *sizes, error, retry, row["line"]))
    widths = [max(len(line[column]) for line in cells) for column in range(6)]
    return ["  ".join([*map(_aligned, line[:6], widths, range(6)), line[6]]) for line in cells]


def _aligned(text: str, width: int, column: int) -> str:
    return text.ljust(width) if column < 2 else text.rjust(width)


def _retry_in(entry: Entry, now: float) -> float | None:
    if entry.stage is not Stage.FAILED:
        return None
    # If the clock was set back since, no longer than the wait was meant to be.
    return max(0.0, min(entry.retry_at - now, entry.retry_at - entry.updated_at))
