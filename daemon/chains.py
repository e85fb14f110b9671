"""Packing a checkpoint against the one published before it: which, how far, and whose copy is still needed.

An archive decodes only against exactly what it was packed against, which is what the earlier archive decodes to, not
the earlier checkpoint itself. So the daemon keeps a decoded copy of the newest published checkpoint of each run.
All of this is off unless configured. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePosixPath

from .state import Entry, Stage

__all__ = ["dependents", "link_for", "links_of", "natural", "outdated_copies"]


def natural(name: str) -> tuple[tuple[int, str], ...]:
    """A key to sort by: checkpoint-9 before checkpoint-10."""
    return tuple((int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name))


def link_for(entries: Mapping[str, Entry], name: str, limit: int) -> Entry | None:
    """The checkpoint to pack ``name`` against; None for its base.

    Args:
        limit: links between a checkpoint and its base at most; 0 for no chains.
    """
    candidates = [entry for entry in _copies(entries) if _run(entry.name) == _run(name) and entry.links < limit]
    earlier = [entry for entry in candidates if natural(entry.name) < natural(name)]
    return max(earlier, key=lambda entry: natural(entry.name), default=None)


def links_of(entries: Mapping[str, Entry], name: str) -> list[Entry]:
    """The checkpoints without whose archives that of ``name`` cannot be decoded, its own link first.

    Raises:
        KeyError: one of them is not in the journal.
    """
    found: list[Entry] = []
    entry = entries[name]
    while entry.link and len(found) < entries[name].links:
        entry = entries[entry.link]
        found.append(entry)
    return found


def dependents(entries: Mapping[str, Entry], name: str) -> list[str]:
    """Checkpoints whose archives decode only as long as the archive of ``name`` is what it is now."""
    return sorted(entry.name for entry in entries.values() if entry.link == name)


def outdated_copies(entries: Mapping[str, Entry], limit: int) -> list[Entry]:
    """Entries whose decoded copy nobody will be packed against any more: all but the newest published of each run.

    Nor against that one if its chain is as long as chains may be. The copies of archives that wait are not theirs yet,
    and what a worker reads just now stays.
    """
    newest: dict[PurePosixPath, Entry] = {}
    for entry in sorted(_copies(entries), key=lambda entry: natural(entry.name)):
        newest[_run(entry.name)] = entry
    needed = {entry.name for entry in newest.values() if entry.links < limit}
    needed |= {entry.link for entry in entries.values() if entry.stage is Stage.PACKING}
    held = [entry for entry in entries.values() if entry.decoded and entry.decoded != entry.archive]
    return [entry for entry in held if entry.name not in needed]


def _copies(entries: Mapping[str, Entry]) -> list[Entry]:
    """The entries that something can be packed against."""
    return [entry for entry in entries.values() if entry.decoded and entry.stage is Stage.PUBLISHED]


def _run(name: str) -> PurePosixPath:
    return PurePosixPath(name).parent
