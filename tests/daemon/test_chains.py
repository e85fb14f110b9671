"""Chains: off unless configured, never longer than allowed, never cut under a checkpoint that hangs on them."""

from __future__ import annotations

import random
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from daemon_models import base_tensors, nearest_seed
from daemon_world import DigestTree, World

from ddct_daemon.chains import dependents, link_for, natural, outdated_copies
from ddct_daemon.state import Entry, Journal, Stage
from ddct_format import open_archive, pull
from ddct_format.hub import open_hub


def published(name: str, links: int = 0, **changes: Any) -> Entry:
    entry = Entry(name, Stage.PUBLISHED, "", "f", links=links, decoded=f"{name}/archive.ddct")
    return replace(entry, **changes)


def by_name(*entries: Entry) -> dict[str, Entry]:
    return {entry.name: entry for entry in entries}


def test_the_link_is_the_newest_earlier_checkpoint_of_the_same_run() -> None:
    entries = by_name(
        published("a/checkpoint-9"),
        published("a/checkpoint-10", links=1),
        published("a/checkpoint-30"),
        published("b/checkpoint-15"),
        published("a/checkpoint-11", stage=Stage.PACKED, archive="a/checkpoint-11/archive.ddct"),
        published("a/checkpoint-12", decoded=""),
    )
    link = link_for(entries, "a/checkpoint-20", 3)
    assert link is not None
    assert link.name == "a/checkpoint-10"
    assert link_for(entries, "a/checkpoint-8", 3) is None
    assert link_for(entries, "c/checkpoint-8", 3) is None


@pytest.mark.parametrize(("limit", "found"), [(0, None), (1, None), (2, "checkpoint-1")])
def test_a_chain_ends_at_its_limit(limit: int, found: str | None) -> None:
    link = link_for(by_name(published("checkpoint-1", links=1)), "checkpoint-2", limit)
    assert (link and link.name) == found


def test_only_the_newest_copy_of_each_run_is_kept_and_none_at_the_end_of_a_chain() -> None:
    entries = by_name(
        published("a/checkpoint-1"),
        published("a/checkpoint-2", links=1),
        published("b/checkpoint-1", links=2),
        published("c/checkpoint-1", stage=Stage.SEEN),
        published("d/checkpoint-1", stage=Stage.PACKED, archive="d/checkpoint-1/archive.ddct"),
    )
    assert sorted(e.name for e in outdated_copies(entries, 2)) == ["a/checkpoint-1", "b/checkpoint-1", "c/checkpoint-1"]
    assert len(outdated_copies(entries, 0)) == 4
    packing = published("a/checkpoint-3", link="a/checkpoint-1", stage=Stage.PACKING, decoded="")
    assert "a/checkpoint-1" not in [e.name for e in outdated_copies(entries | by_name(packing), 2)]


def test_dependents_and_order() -> None:
    entries = by_name(published("checkpoint-1"), published("checkpoint-2", link="checkpoint-1"))
    assert dependents(entries, "checkpoint-1") == ["checkpoint-2"]
    assert dependents(entries, "checkpoint-2") == []
    assert sorted(["c-10", "c-9", "b"], key=natural) == ["b", "c-9", "c-10"]


def publish(world: World, *steps: int) -> None:
    for step in steps:
        world.write(f"checkpoint-{step}", step)
        world.wait_for_stage(f"checkpoint-{step}", "published")


def assert_comes_back(world: World, step: int) -> None:
    out = world.root / "back" / str(step)
    out.parent.mkdir(exist_ok=True)
    report = pull(open_hub(str(world.hub)), f"my-run/checkpoint-{step}", world.base, out)
    assert report.applied == len(base_tensors())
    assert nearest_seed(out) == step


def copies(world: World) -> list[Path]:
    return list((world.state / "spool").glob("*/model"))


def test_checkpoints_are_packed_against_earlier_ones_up_to_the_limit_and_come_back(
    world: World, digest_tree: DigestTree
) -> None:
    world.configure(chain=2)
    world.start()
    publish(world, 1, 2, 3)
    world.stop()
    assert len(copies(world)) == 0, "checkpoint-3 is as far from the base as allowed"
    world.start()
    publish(world, 4)
    world.stop()
    assert len(copies(world)) == 1
    before = digest_tree(world.runs)
    world.start()
    publish(world, 5)
    rows = world.rows()
    assert [rows[f"checkpoint-{step}"]["links"] for step in (1, 2, 3, 4, 5)] == [0, 1, 2, 0, 1]
    assert rows["checkpoint-5"]["link"] == "checkpoint-4"
    assert "against checkpoint-4" in rows["checkpoint-5"]["line"]
    pointers = world.pointers()
    for step, link in ((2, 1), (3, 2), (5, 4)):
        assert pointers[f"my-run/checkpoint-{step}"]["base_id"] == pointers[f"my-run/checkpoint-{link}"]["target_id"]
    assert pointers["my-run/checkpoint-4"]["base_id"] == pointers["my-run/checkpoint-1"]["base_id"]
    for step in (1, 2, 3, 4, 5):
        assert_comes_back(world, step)
    assert before.items() <= digest_tree(world.runs).items()
    assert len(world.leftovers()) == len(copies(world)) == 1
    world.stop()


def test_no_chain_unless_configured(world: World) -> None:
    world.start()
    publish(world, 1, 2)
    pointers = world.pointers()
    assert pointers["my-run/checkpoint-1"]["base_id"] == pointers["my-run/checkpoint-2"]["base_id"]
    assert copies(world) == []
    world.stop()


def test_a_link_is_not_replaced_under_those_that_hang_on_it(world: World) -> None:
    world.configure(chain=3)
    world.start()
    publish(world, 1, 2)
    before = world.pointers()
    shutil.rmtree(world.runs / "checkpoint-1")
    world.write("checkpoint-1", 5)
    world.wait_for_stage("checkpoint-1", "skipped")
    assert "checkpoint-2 packed against that" in world.rows()["checkpoint-1"]["reason"]
    publish(world, 3)
    assert before.items() <= world.pointers().items()
    for step in (1, 2, 3):
        assert_comes_back(world, step)
    world.stop()


def test_a_damaged_copy_is_noticed_and_the_base_is_used(world: World) -> None:
    world.configure(chain=3)
    world.start()
    publish(world, 1)
    (copy,) = copies(world)
    with (copy / "model.safetensors").open("r+b") as file:
        file.seek(-4, 2)
        file.write(b"\x11\x22\x33\x44")
    publish(world, 2)
    assert world.rows()["checkpoint-2"]["links"] == 0
    assert "copy of my-run/checkpoint-1 is damaged" in world.log.read_text()
    publish(world, 3)
    assert world.rows()["checkpoint-3"]["link"] == "checkpoint-2"
    for step in (2, 3):
        assert_comes_back(world, step)
    world.stop()


def test_a_link_that_vanished_from_the_hub_costs_a_second_pack(world: World) -> None:
    world.configure(chain=3)
    world.start()
    publish(world, 1)
    open_hub(str(world.hub)).remove("my-run/checkpoint-1")
    publish(world, 2)
    assert world.rows()["checkpoint-2"]["link"] == ""
    assert "is not on the hub as it was" in world.log.read_text()
    assert_comes_back(world, 2)
    world.stop()


def test_a_chain_goes_on_in_the_next_life_of_the_daemon(world: World) -> None:
    world.configure(chain=3)
    for step in (1, 2):
        daemon = world.start()
        publish(world, step)
        daemon.kill()
        daemon.wait()
    assert world.rows()["checkpoint-2"]["link"] == "checkpoint-1"
    world.start()
    world.wait_until_ready()
    world.stop()
    assert_comes_back(world, 2)
    assert len(world.leftovers()) == len(copies(world)) == 1


def test_a_copy_that_a_killed_daemon_had_no_time_to_remove_is_removed_by_the_next(world: World) -> None:
    """Killed when the second checkpoint was published, before the first one's copy was dropped."""
    world.configure(chain=3)
    world.start()
    for step in (1, 2):
        publish(world, step)
    world.stop()
    with Journal(world.state / "journal.sqlite3") as journal:
        journal.save(replace(journal.load()["checkpoint-1"], decoded="0123456789abcdef/archive.ddct"))
    (world.state / "spool" / "0123456789abcdef" / "model").mkdir(parents=True)
    world.start()
    world.stop()
    (copy,) = copies(world)
    assert copy.parent.name != "0123456789abcdef"


def survive_kills(world: World, kills: int) -> None:
    """Kill the daemon at random moments; every checkpoint comes back through whatever chain came about."""
    world.configure(chain=3)
    chance = random.Random()
    for step in range(1, kills + 1):
        world.write(f"checkpoint-{step}", step)
        daemon = world.start()
        with pytest.raises(subprocess.TimeoutExpired):
            daemon.wait(chance.uniform(0.3, 2.5))
        daemon.kill()
        daemon.wait()
    world.start()
    for step in range(1, kills + 1):
        world.wait_for_stage(f"checkpoint-{step}", "published")
    world.stop()
    rows = world.rows()
    assert len(world.objects()) == len(world.pointers()) == kills
    assert max(row["links"] for row in rows.values()) <= 3
    for name, row in rows.items():
        assert row["links"] == (rows[row["link"]]["links"] + 1 if row["link"] else 0)
        out = world.root / "back" / name
        out.parent.mkdir(exist_ok=True)
        report = pull(open_hub(str(world.hub)), f"my-run/{name}", world.base, out)
        assert report.target_id == row["target_id"]
    assert len(world.leftovers()) == len(copies(world)) <= 1


def test_kill_9_with_chains(world: World) -> None:
    survive_kills(world, 3)


@pytest.mark.slow
def test_kill_9_with_chains_at_very_many_moments(world: World) -> None:
    survive_kills(world, 40)


def test_training_state_is_carried_if_configured_and_else_named(world: World) -> None:
    world.start()
    publish(world, 1)
    row = world.rows()["checkpoint-1"]
    assert row["left_out"] == "optimizer.pt, rng_state.pth, scheduler.pt and 1 more"
    assert "without optimizer.pt, rng_state.pth, scheduler.pt and 1 more" in row["line"]
    world.stop()
    world.configure(training_state=True)
    world.start()
    world.write("checkpoint-3", 3)
    world.wait_for_stage("checkpoint-3", "published")
    row = world.rows()["checkpoint-3"]
    assert row["left_out"] == ""
    assert row["bits_per_weight"] < 32
    out = world.root / "out"
    pull(open_hub(str(world.hub)), "my-run/checkpoint-3", world.base, out, training_state=True)
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin", "trainer_state.json"):
        assert (out / name).read_bytes() == (world.runs / "checkpoint-3" / name).read_bytes()
    with open_archive(world.hub / "objects" / row["sha256"][:2] / f"{row['sha256']}.ddct") as opened:
        assert "optimizer.pt" in {file.path for file in opened.metadata.files}
    world.stop()
