"""Policy: what the daemon does next, as a pure function of journal, listing and clock."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from ddct_daemon.completeness import Verdict
from ddct_daemon.listing import Kind
from ddct_daemon.planner import Inspect, Note, Observation, Pack, Policy, Publish, plan, retry_delay
from ddct_daemon.state import Entry, Stage, recover

POLICY = Policy(settle_seconds=10, plain_settle_seconds=60, rescan_seconds=30)
NOW = 1_000_000.0
WHOLE = Verdict(weights=True, resumable=True, reason="")
HALF = Verdict(weights=False, resumable=False, reason="trainer_state.json is not there")


def entry(name: str = "checkpoint-1", stage: Stage = Stage.SEEN, **changes: Any) -> Entry:
    return replace(Entry(name, stage, "a reason", "fingerprint"), **changes)


def seen(name: str = "checkpoint-1", **changes: Any) -> Observation:
    return replace(Observation(name, Kind.TRAINER, "fingerprint", stable_seconds=10), **changes)


def decide(
    entries: Iterable[Entry] = (), observations: Sequence[Observation] = (), now: float = NOW, **free: bool
) -> tuple[list[Any], float]:
    journal = {e.name: e for e in entries}
    waits = {name: e.retry_at - now for name, e in journal.items() if e.retry_at > now}
    steps = plan(journal, observations, policy=POLICY, waits=waits, **free)
    return list(steps.actions), steps.wake_in


def test_nothing_there_means_to_look_again_after_the_rescan_time() -> None:
    assert decide() == ([], 30)


def test_a_new_checkpoint_is_noted() -> None:
    assert decide([], [seen()])[0] == [Note("checkpoint-1", Stage.SEEN, "new", "fingerprint")]


def test_a_checkpoint_that_is_still_settling_waits_exactly_as_long_as_needed() -> None:
    actions, wake_in = decide([entry()], [seen(stable_seconds=4)])
    assert [type(action) for action in actions] == [Note]
    assert "10 s" in actions[0].reason
    assert wake_in == 6


def test_the_same_reason_is_noted_once() -> None:
    waiting = entry(reason="waits until it has not changed for 10 s")
    assert decide([waiting], [seen(stable_seconds=4)]) == ([], 6)


def test_a_plain_directory_must_be_quiet_for_longer() -> None:
    actions, wake_in = decide([entry()], [seen(kind=Kind.PLAIN, stable_seconds=10, verdict=WHOLE)])
    assert [type(action) for action in actions] == [Note]
    assert wake_in == 30
    assert decide([entry()], [seen(kind=Kind.PLAIN, stable_seconds=60, verdict=WHOLE)])[0] == [
        Pack("checkpoint-1", "fingerprint", True)
    ]


def test_a_settled_checkpoint_is_inspected_and_only_then_packed() -> None:
    assert decide([entry()], [seen()])[0] == [Inspect("checkpoint-1")]
    assert decide([entry()], [seen(verdict=WHOLE)])[0] == [Pack("checkpoint-1", "fingerprint", True)]


def test_an_unfinished_checkpoint_is_never_packed_however_long_it_is_quiet() -> None:
    actions, _ = decide([entry()], [seen(stable_seconds=1e9, verdict=HALF)])
    assert actions == [Note("checkpoint-1", Stage.SEEN, "not finished: trainer_state.json is not there", "fingerprint")]


def test_weights_alone_are_enough_to_pack() -> None:
    verdict = Verdict(weights=True, resumable=False, reason="optimizer.pt is missing")
    assert decide([entry()], [seen(verdict=verdict)])[0] == [Pack("checkpoint-1", "fingerprint", False)]


@pytest.mark.parametrize("stage", [Stage.SEEN, Stage.PUBLISHED, Stage.SKIPPED, Stage.FAILED])
def test_a_changed_checkpoint_starts_again(stage: Stage) -> None:
    changed = seen(fingerprint="another", verdict=WHOLE)
    assert decide([entry(stage=stage, retry_at=NOW + 99)], [changed])[0] == [
        Note("checkpoint-1", Stage.SEEN, "it changed", "another")
    ]


@pytest.mark.parametrize("stage", [Stage.PUBLISHED, Stage.SKIPPED])
def test_what_is_done_stays_done(stage: Stage) -> None:
    assert decide([entry(stage=stage)], [seen(verdict=WHOLE)]) == ([], 30)
    assert decide([entry(stage=stage)], []) == ([], 30)


@pytest.mark.parametrize("stage", [Stage.PACKING, Stage.PUBLISHING])
@pytest.mark.parametrize("there", [seen(verdict=WHOLE), seen(fingerprint="another"), None])
def test_what_a_worker_has_in_hand_is_left_alone(stage: Stage, there: Observation | None) -> None:
    assert decide([entry(stage=stage, archive="a/b")], [there] if there else [])[0] == []


def test_only_one_pack_and_one_publish_run_at_a_time() -> None:
    entries = [
        entry("checkpoint-1"),
        entry("checkpoint-2"),
        entry("checkpoint-3", Stage.PACKED, archive="a/b"),
        entry("checkpoint-4", Stage.PACKED, archive="c/d"),
    ]
    observations = [seen("checkpoint-1", verdict=WHOLE), seen("checkpoint-2", verdict=WHOLE)]
    assert decide(entries, observations)[0] == [
        Pack("checkpoint-1", "fingerprint", True),
        Publish("checkpoint-3"),
    ]
    assert decide(entries, observations, may_pack=False)[0] == [Publish("checkpoint-3")]
    assert decide(entries, observations, may_pack=False, may_publish=False)[0] == []


def test_the_oldest_step_goes_first_because_rotation_takes_it_first() -> None:
    names = ["checkpoint-100", "checkpoint-20", "checkpoint-3"]
    actions, _ = decide([entry(name) for name in names], [seen(name, verdict=WHOLE) for name in names])
    assert actions == [Pack("checkpoint-3", "fingerprint", True)]


@pytest.mark.parametrize("stage", [Stage.SEEN, Stage.FAILED])
def test_a_checkpoint_that_vanishes_before_it_is_packed_is_skipped(stage: Stage) -> None:
    (action,) = decide([entry(stage=stage)], [])[0]
    assert (action.stage, action.reason) == (Stage.SKIPPED, "it was removed before it was packed")


def test_one_that_comes_back_is_looked_at_again() -> None:
    """The whole share may have been away for a moment."""
    (action,) = decide([entry()], [])[0]
    gone = entry(stage=action.stage, fingerprint=action.fingerprint)
    assert decide([gone], [seen(verdict=WHOLE)])[0] == [Note("checkpoint-1", Stage.SEEN, "it changed", "fingerprint")]


@pytest.mark.parametrize("there", [seen(fingerprint="another"), None])
def test_a_packed_archive_is_published_even_if_its_checkpoint_is_gone_or_rewritten(there: Observation | None) -> None:
    packed = entry(stage=Stage.PACKED, archive="a/b")
    assert decide([packed], [there] if there else [])[0] == [Publish("checkpoint-1")]


def test_a_failed_pack_is_tried_again_when_its_time_has_come() -> None:
    failed = entry(stage=Stage.FAILED, attempts=1, retry_at=NOW + 20)
    assert decide([failed], [seen(verdict=WHOLE)]) == ([], 20)
    assert decide([failed], [seen(verdict=WHOLE)], now=NOW + 20)[0] == [Pack("checkpoint-1", "fingerprint", True)]


def test_a_failed_publish_is_tried_again_without_packing_again() -> None:
    failed = entry(stage=Stage.FAILED, attempts=1, retry_at=NOW + 20, archive="a/b")
    assert decide([failed], [seen(verdict=WHOLE)]) == ([], 20)
    assert decide([failed], [], now=NOW + 21)[0] == [Publish("checkpoint-1")]


def test_the_reason_of_a_failure_stays_until_the_next_attempt_begins() -> None:
    failed = entry(stage=Stage.FAILED, attempts=1, retry_at=NOW)
    assert decide([failed], [seen(stable_seconds=1)])[0] == []


def test_retries_double_from_half_a_minute_to_an_hour() -> None:
    assert [retry_delay(attempts) for attempts in (1, 2, 3, 7, 8, 1000)] == [30, 60, 120, 1920, 3600, 3600]


def test_one_failing_checkpoint_does_not_hold_up_the_others() -> None:
    entries = [entry("checkpoint-1", Stage.FAILED, retry_at=NOW + 30, attempts=1), entry("checkpoint-2")]
    observations = [seen("checkpoint-1", verdict=WHOLE), seen("checkpoint-2", verdict=WHOLE)]
    assert decide(entries, observations)[0] == [Pack("checkpoint-2", "fingerprint", True)]


@pytest.mark.parametrize(
    ("before", "archive_there", "after"),
    [
        (entry(stage=Stage.PACKING, archive="a/b"), True, (Stage.SEEN, "")),
        (entry(stage=Stage.PACKING, archive="a/b"), False, (Stage.SEEN, "")),
        (entry(stage=Stage.PUBLISHING, archive="a/b"), True, (Stage.PACKED, "a/b")),
        (entry(stage=Stage.PUBLISHING, archive="a/b"), False, (Stage.SEEN, "")),
        (entry(stage=Stage.PACKED, archive="a/b"), True, (Stage.PACKED, "a/b")),
        (entry(stage=Stage.PACKED, archive="a/b"), False, (Stage.SEEN, "")),
        (entry(stage=Stage.FAILED, archive="a/b", retry_at=NOW), True, (Stage.FAILED, "a/b")),
        (entry(stage=Stage.FAILED, archive="a/b", retry_at=NOW), False, (Stage.FAILED, "")),
        (entry(stage=Stage.PUBLISHED), False, (Stage.PUBLISHED, "")),
        (entry(stage=Stage.SKIPPED), False, (Stage.SKIPPED, "")),
        (entry(stage=Stage.SEEN), False, (Stage.SEEN, "")),
    ],
)
def test_a_new_life_takes_up_every_stage_where_it_can_go_on(
    before: Entry, archive_there: bool, after: tuple[Stage, str]
) -> None:
    recovered = recover(before, archive_there=archive_there)
    assert (recovered.stage, recovered.archive, recovered.retry_at) == (*after, 0.0)


def test_every_way_through_the_stages_ends_published_whatever_is_interrupted() -> None:
    """Drive the planner with a perfect worker and a crash after every single step."""
    for crash_after in range(8):
        journal: dict[str, Entry] = {}
        for step in range(20):
            stable = seen(verdict=WHOLE)
            for action in plan(journal, [stable], policy=POLICY).actions:
                match action:
                    case Note():
                        journal[action.name] = entry(stage=action.stage, fingerprint=action.fingerprint)
                    case Pack():
                        done = Stage.PACKED if step != crash_after else Stage.PACKING
                        journal[action.name] = entry(stage=done, archive="a/b")
                    case Publish():
                        done = Stage.PUBLISHED if step != crash_after else Stage.PUBLISHING
                        journal[action.name] = entry(stage=done, archive="" if done is Stage.PUBLISHED else "a/b")
            if step == crash_after:
                journal = {name: recover(e, archive_there=True) for name, e in journal.items()}
        assert journal["checkpoint-1"].stage is Stage.PUBLISHED
