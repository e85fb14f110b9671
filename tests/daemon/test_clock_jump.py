"""The wall clock jumps, forwards and back, under a running daemon: nothing is lost, repeated, or put off for years."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from daemon_world import DigestTree, World

from ddct_daemon.ledger import Ledger
from ddct_daemon.state import Entry, Journal, Stage
from ddct_daemon.status import describe
from ddct_format import verify

YEAR = 365 * 86400


@pytest.fixture
def set_clock(world: World, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], object]:
    """`set_clock(seconds)`: what the daemon's and its workers' wall clock is ahead, from now on."""
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if compiler is None:
        pytest.skip("no C compiler on this machine")
    library, clock = world.root / "shifted_clock.so", world.root / "clock"
    source = Path(__file__).with_name("shifted_clock.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-O2", "-o", library, source, "-ldl"], check=True)
    clock.write_text("0")
    monkeypatch.setenv("LD_PRELOAD", str(library))
    monkeypatch.setenv("DDCT_TEST_CLOCK", str(clock))

    def set_clock(seconds: int) -> None:
        (world.root / "clock.new").write_text(str(seconds))
        (world.root / "clock.new").rename(clock)

    return set_clock


def ahead(world: World, name: str) -> float:
    """How far the clock was ahead when the daemon wrote this row."""
    return float(world.rows()[name]["updated_at"]) - time.time()


@pytest.mark.parametrize("seconds", [10 * YEAR, -10 * YEAR], ids=["forwards", "back"])
def test_a_jump_between_sighting_and_publication_changes_nothing(
    world: World, digest_tree: DigestTree, set_clock: Callable[[int], object], seconds: int
) -> None:
    world.start()
    world.write("checkpoint-1", 1)
    world.wait_for_stage("checkpoint-1", "seen", "packing", "packed", "publishing", "published")
    set_clock(seconds)
    world.write("checkpoint-2", 2)
    for name in ("checkpoint-1", "checkpoint-2"):
        world.wait_for_stage(name, "published")
    assert ahead(world, "checkpoint-2") == pytest.approx(seconds, abs=3600)
    set_clock(0)
    before = digest_tree(world.hub)
    world.write("checkpoint-3", 3)
    world.wait_for_stage("checkpoint-3", "published")
    world.stop()
    assert before.items() <= digest_tree(world.hub).items()
    assert len(world.objects()) == len(world.pointers()) == 3
    assert all(verify(path, world.base).decoded for path in world.objects())
    assert world.leftovers() == []


def test_waits_are_elapsed_time_whatever_the_date(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Journal(tmp_path / "journal") as journal:
        ledger = Ledger(journal, lambda: None)
        date = time.time()
        monkeypatch.setattr(time, "time", lambda: date + 10 * YEAR)
        ledger.fail(Entry("checkpoint-1", Stage.PACKED, "", "f", archive="a/b"), "the hub is away", at_least=40)
        monkeypatch.undo()
        assert 35 < ledger.waits["checkpoint-1"] <= 40
        assert 35 < ledger.hub_closed_for <= 40
        entry = ledger.entries["checkpoint-1"]
        assert entry.retry_at > date + 9 * YEAR
        assert "to publish again in 40 s" in describe(entry, date)
        ledger.retry_now()
        assert not ledger.waits


@pytest.mark.slow
def test_a_wait_that_began_in_the_far_future_does_not_last_until_then(
    world: World, set_clock: Callable[[int], object]
) -> None:
    """The clock was ten years ahead when the hub failed, and is set right: the retry comes after half a minute."""
    world.hub.rename(world.root / "unplugged")
    set_clock(10 * YEAR)
    world.start()
    world.write("checkpoint-1", 1)
    world.wait_for_stage("checkpoint-1", "failed")
    assert ahead(world, "checkpoint-1") > 9 * YEAR
    set_clock(0)
    (world.root / "unplugged").rename(world.hub)
    world.wait_for_stage("checkpoint-1", "published")
    world.stop()


def test_a_checkpoint_settles_by_the_clock_that_never_jumps(world: World, set_clock: Callable[[int], object]) -> None:
    text = world.config.read_text()
    world.config.write_text(text.replace("settle_seconds = 0.3", "settle_seconds = 3", 1))
    world.start()
    world.write("checkpoint-1", 1)
    world.wait_for_stage("checkpoint-1", "seen")
    begun = time.monotonic()
    set_clock(10 * YEAR)
    # A jump must not make it look quiet for ten years: it was listed again at most a moment ago.
    world.wait_for(lambda: ahead(world, "checkpoint-1") > YEAR, "a note by the new clock")
    world.wait_for_stage("checkpoint-1", "packing", "packed", "publishing", "published")
    assert time.monotonic() - begun > 2
    world.wait_for_stage("checkpoint-1", "published")
    world.stop()
