"""Policy: what to do next. Pure: the journal, a listing and elapsed time in, actions out.

All time here is elapsed seconds, by a clock that never jumps: the date is for people.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from .chains import natural
from .completeness import Verdict
from .listing import Kind
from .state import Entry, Stage

__all__ = [
    "Action",
    "Inspect",
    "Note",
    "Observation",
    "Pack",
    "Plan",
    "Policy",
    "Publish",
    "plan",
    "retry_delay",
]

_FIRST_RETRY_SECONDS = 30.0
_LAST_RETRY_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class Policy:
    """The configuration that decisions depend on; seconds."""

    settle_seconds: float
    plain_settle_seconds: float
    rescan_seconds: float


@dataclass(frozen=True, slots=True)
class Observation:
    """A candidate as the last listing saw it.

    Attributes:
        stable_seconds: for how long all listings have had this fingerprint.
        verdict: of this fingerprint, if it was inspected.
    """

    name: str
    kind: Kind
    fingerprint: str
    stable_seconds: float
    verdict: Verdict | None = None


@dataclass(frozen=True, slots=True)
class Note:
    """Write to the journal that the checkpoint is ``stage`` because of ``reason``."""

    name: str
    stage: Stage
    reason: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Inspect:
    """Read what the checkpoint's files say, for a verdict."""

    name: str


@dataclass(frozen=True, slots=True)
class Pack:
    """Start to pack; only one at a time."""

    name: str
    fingerprint: str
    resumable: bool


@dataclass(frozen=True, slots=True)
class Publish:
    """Start to publish the archive in the spool; only one at a time."""

    name: str


Action = Note | Inspect | Pack | Publish


@dataclass(frozen=True, slots=True)
class Plan:
    """Actions in order, and the seconds after which to plan again even if nothing happens."""

    actions: tuple[Action, ...]
    wake_in: float


def retry_delay(attempts: int) -> float:
    """Seconds to wait after the given number of failures in a row: 30 s, doubled up to an hour."""
    return min(_LAST_RETRY_SECONDS, _FIRST_RETRY_SECONDS * 2.0 ** min(attempts - 1, 20))


def plan(
    entries: Mapping[str, Entry],
    observations: Sequence[Observation],
    *,
    policy: Policy,
    waits: Mapping[str, float] | None = None,
    may_pack: bool = True,
    may_publish: bool = True,
    hub_closed_for: float = 0.0,
) -> Plan:
    """Decide.

    Args:
        entries: the journal, by name.
        observations: every candidate that is there now.
        waits: seconds for which a failed checkpoint is still to be left alone, by name; none if it is not there.
        may_pack, may_publish: whether a worker is free for it.
        hub_closed_for: seconds for which the hub asked to be left alone.
    """
    there = {observation.name: observation for observation in observations}
    actions: list[Action] = []
    retry_waits = waits or {}
    wakes = [policy.rescan_seconds]
    # The oldest first: with rotation, it is removed first.
    for name in sorted({*entries, *there}, key=natural):
        entry, seen = entries.get(name), there.get(name)
        if entry is not None and entry.stage in (Stage.PACKING, Stage.PUBLISHING):
            continue
        if entry is not None and entry.archive and entry.stage in (Stage.PACKED, Stage.FAILED):
            # A verified archive is published even if its checkpoint was rotated away or rewritten since.
            wait = max(_until_retry(entry, retry_waits), hub_closed_for)
            wakes.append(wait)
            if wait == 0 and may_publish:
                actions.append(Publish(name))
                may_publish = False
        elif seen is None:
            actions += _gone(entry)
        else:
            action, wait = _advance(entry, seen, retry_waits, policy)
            wakes.append(wait)
            if isinstance(action, Pack):
                if may_pack:
                    actions.append(action)
                may_pack = False
            elif action is not None:
                actions.append(action)
    return Plan(tuple(actions), min(wait for wait in wakes if wait > 0))


def _gone(entry: Entry | None) -> Iterable[Action]:
    if entry is not None and entry.stage in (Stage.SEEN, Stage.FAILED):
        # Without a fingerprint: should it come back (a share was away), it is looked at again.
        yield Note(entry.name, Stage.SKIPPED, "it was removed before it was packed", "")


def _advance(
    entry: Entry | None, seen: Observation, waits: Mapping[str, float], policy: Policy
) -> tuple[Action | None, float]:
    """The next step of a checkpoint that is there, and the seconds until that may change."""
    if entry is None or entry.fingerprint != seen.fingerprint:
        reason = "new" if entry is None else "it changed"
        return Note(seen.name, Stage.SEEN, reason, seen.fingerprint), 0
    if entry.stage in (Stage.PUBLISHED, Stage.SKIPPED):
        return None, 0
    if (wait := _until_retry(entry, waits)) > 0:
        return None, wait
    settle = policy.plain_settle_seconds if seen.kind in (Kind.PLAIN, Kind.LIGHTNING) else policy.settle_seconds
    if entry.submitted:
        settle = 0
    if seen.stable_seconds < settle:
        return _note_once(entry, f"waits until it has not changed for {settle:g} s"), (settle - seen.stable_seconds)
    if seen.verdict is None:
        return Inspect(seen.name), 0
    if seen.verdict.unsupported:
        return Note(seen.name, Stage.SKIPPED, f"cannot be packed: {seen.verdict.reason}", seen.fingerprint), 0
    if not seen.verdict.weights:
        return _note_once(entry, f"not finished: {seen.verdict.reason}"), 0
    return Pack(seen.name, seen.fingerprint, seen.verdict.resumable), 0


def _note_once(entry: Entry, reason: str) -> Note | None:
    if entry.stage is Stage.SEEN and entry.reason == reason:
        return None
    if entry.stage is Stage.FAILED:
        # The failure stays visible until the next attempt really begins.
        return None
    return Note(entry.name, Stage.SEEN, reason, entry.fingerprint)


def _until_retry(entry: Entry, waits: Mapping[str, float]) -> float:
    return waits.get(entry.name, 0.0) if entry.stage is Stage.FAILED else 0.0
