"""Local originals: kept unless asked for, and removed only after the hub's copy was read back."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from daemon_world import World

from ddct_daemon.listing import Kind, Listing, list_checkpoint
from ddct_daemon.retention import (
    RetentionPolicy,
    base_checkpoints,
    best_checkpoints,
    removable,
    remove_checkpoint,
)
from ddct_daemon.state import Entry, Stage
from ddct_format.hub import open_hub

POLICY = RetentionPolicy(keep_last=2, dry_run=False)


def listing(step: int, run: str = "run") -> Listing:
    name = f"{run}/checkpoint-{step}"
    return Listing(name, Path("/watch") / name, Kind.TRAINER, ())


def published(*steps: int, run: str = "run") -> dict[str, Entry]:
    listings = (listing(step, run) for step in steps)
    return {each.name: Entry(each.name, Stage.PUBLISHED, "", each.fingerprint) for each in listings}


def names(*steps: int) -> list[str]:
    return [f"run/checkpoint-{step}" for step in steps]


def test_all_but_the_last_may_go_oldest_first() -> None:
    steps = (100, 20, 3, 1000)
    found = removable(published(*steps), [listing(step) for step in steps], (), POLICY)
    assert found == names(3, 20)


def test_every_run_keeps_its_own_last() -> None:
    entries = published(1, 2, 3) | published(4, 5, run="other")
    listings = [*(listing(step) for step in (1, 2, 3)), *(listing(step, "other") for step in (4, 5))]
    assert removable(entries, listings, (), POLICY) == names(1)


def test_unpublished_checkpoints_count_as_last_but_never_go() -> None:
    entries = published(1, 2)
    entries |= {name: replace(entry, stage=Stage.PACKED) for name, entry in published(3).items()}
    assert removable(entries, [listing(step) for step in (1, 2, 3, 4)], (), POLICY) == names(1, 2)
    failed = {name: replace(entry, stage=Stage.FAILED) for name, entry in published(1, 2, 3).items()}
    assert removable(failed, [listing(step) for step in (1, 2, 3, 4)], (), POLICY) == []


def test_what_changed_since_it_was_published_stays() -> None:
    entries = {name: replace(entry, fingerprint="of before") for name, entry in published(1, 2, 3).items()}
    assert removable(entries, [listing(step) for step in (1, 2, 3)], (), POLICY) == []


def test_milestones_and_the_best_stay() -> None:
    steps = (1, 2, 50, 99, 100, 101, 102)
    listings = [listing(step) for step in steps]
    policy = replace(POLICY, keep_every=50)
    assert removable(published(*steps), listings, names(2), policy) == names(1, 99)


def test_other_kinds_of_checkpoint_never_go() -> None:
    plain = replace(listing(1), kind=Kind.PLAIN)
    entries = {plain.name: Entry(plain.name, Stage.PUBLISHED, "", plain.fingerprint)} | published(2, 3)
    assert removable(entries, [plain, listing(2), listing(3)], (), POLICY) == []


def test_the_best_is_what_any_trainer_state_names_wherever_it_ran(tmp_path: Path) -> None:
    for step, best in ((10, None), (20, "/elsewhere/output/checkpoint-10"), (30, 5)):
        directory = tmp_path / "run" / f"checkpoint-{step}"
        directory.mkdir(parents=True)
        (directory / "trainer_state.json").write_text(json.dumps({"best_model_checkpoint": best}))
    listings = [replace(listing(step), path=tmp_path / f"run/checkpoint-{step}") for step in (10, 20, 30, 40)]
    assert best_checkpoints(listings) == {"run/checkpoint-10"}


def test_nothing_is_removed_without_a_log_or_after_a_change(tmp_path: Path) -> None:
    path = tmp_path / "run" / "checkpoint-1"
    path.mkdir(parents=True)
    assert not remove_checkpoint(tmp_path, "run/checkpoint-1", "another fingerprint", tmp_path / "log", "why")
    assert path.is_dir()
    assert not (tmp_path / "log").exists()


def test_a_checkpoint_that_is_a_base_stays(tmp_path: Path) -> None:
    listings = [replace(listing(step), path=tmp_path / f"run/checkpoint-{step}") for step in (1, 10, 100)]
    for each in listings:
        (each.path / "model").mkdir(parents=True)
    (tmp_path / "base").symlink_to(listings[0].path)
    assert base_checkpoints(listings, [tmp_path / "elsewhere"]) == set()
    bases = [tmp_path / "base", listings[1].path / "model"]
    assert base_checkpoints(listings, bases) == {"run/checkpoint-1", "run/checkpoint-10"}


def checkpoint_on_disk(watch: Path) -> tuple[Path, str]:
    path = watch / "run" / "checkpoint-1"
    path.mkdir(parents=True)
    (path / "model.safetensors").write_bytes(b"weights")
    found = list_checkpoint(watch, "run/checkpoint-1")
    assert found is not None
    return path, found.fingerprint


@pytest.mark.parametrize("made_anew", [False, True])
def test_what_is_written_until_it_has_another_name_is_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made_anew: bool
) -> None:
    path, fingerprint = checkpoint_on_disk(tmp_path)
    rename = Path.rename

    def write_first(source: Path, target: Path) -> Path:
        if source == path:
            (path / "optimizer.pt").write_bytes(b"more")
        result = rename(source, target)
        if source == path and made_anew:
            path.mkdir()
            (path / "model.safetensors").write_bytes(b"others")
        return result

    monkeypatch.setattr(Path, "rename", write_first)
    assert not remove_checkpoint(tmp_path, "run/checkpoint-1", fingerprint, tmp_path / "log", "why")
    found = sorted(file.read_bytes() for file in path.parent.glob("checkpoint-1*/*"))
    assert found == [b"more", *([b"others"] if made_anew else []), b"weights"]
    assert not list(path.parent.glob(".*"))


def test_what_a_killed_removal_left_is_removed_by_the_next(tmp_path: Path) -> None:
    path, fingerprint = checkpoint_on_disk(tmp_path)
    leftover = path.with_name(".checkpoint-0.tmp-removing-0123abcd")
    leftover.mkdir()
    (leftover / "optimizer.pt").write_bytes(b"large")
    assert remove_checkpoint(tmp_path, "run/checkpoint-1", fingerprint, tmp_path / "log", "why")
    assert not list(path.parent.iterdir())


def test_what_a_killed_removal_had_not_looked_at_again_is_given_back(tmp_path: Path) -> None:
    path, fingerprint = checkpoint_on_disk(tmp_path)
    leftover = path.with_name(".checkpoint-0.tmp-moved-0123abcd")
    leftover.mkdir()
    (leftover / "optimizer.pt").write_bytes(b"more")
    assert remove_checkpoint(tmp_path, "run/checkpoint-1", fingerprint, tmp_path / "log", "why")
    assert [place.name for place in path.parent.iterdir()] == ["checkpoint-0"]
    assert (path.parent / "checkpoint-0/optimizer.pt").read_bytes() == b"more"


def configure(world: World, dry_run: str) -> None:
    world.configure(more=f"[retention]\nkeep_last = 1\ndry_run = {dry_run}")


def test_the_daemon_removes_originals_after_reading_the_hub_back(world: World) -> None:
    configure(world, "false")
    world.start()
    for step in (1, 2, 3):
        world.write(f"checkpoint-{step}", step)
        world.wait_for_stage(f"checkpoint-{step}", "published")
    world.wait_for(lambda: [path.name for path in world.runs.iterdir()] == ["checkpoint-3"], "the removals")
    world.wait_for(lambda: world.rows()["checkpoint-2"]["removed_at"], "the note of the removal")
    world.stop()
    log = (world.state / "retention.log").read_text()
    assert log.count("remove ") == 2
    for pointer in (world.pointers()[f"my-run/checkpoint-{step}"] for step in (1, 2)):
        assert pointer["sha256"] in log
    assert len(world.pointers()) == 3
    assert "local original removed" in world.rows()["checkpoint-1"]["line"]


def test_a_dry_run_only_says_what_it_would_remove(world: World) -> None:
    configure(world, "true")
    for step in (1, 2):
        world.write(f"checkpoint-{step}", step)
    world.start()
    world.wait_for(lambda: "checkpoint-1: retention would remove it" in world.log.read_text(), "the line")
    world.stop()
    assert len(list(world.runs.iterdir())) == 2


@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_nothing_is_removed_if_the_hub_has_lost_or_damaged_it(world: World, damage: str) -> None:
    for step in (1, 2):
        world.write(f"checkpoint-{step}", step)
    world.start()
    for step in (1, 2):
        world.wait_for_stage(f"checkpoint-{step}", "published")
    world.stop()
    sha256 = world.pointers()["my-run/checkpoint-1"]["sha256"]
    path = world.hub / "objects" / sha256[:2] / f"{sha256}.ddct"
    raw = bytearray(path.read_bytes())
    raw[50] ^= 1
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(raw if damage == "flip" else raw[:-1])
    configure(world, "false")
    world.start()
    world.wait_for(lambda: "checkpoint-1: not removed" in world.log.read_text(), "the refusal")
    world.stop()
    assert len(list(world.runs.iterdir())) == 2
    assert not (world.state / "retention.log").exists()


def test_nothing_is_removed_if_the_hub_has_lost_what_it_was_packed_against(world: World) -> None:
    world.configure(chain=3)
    world.start()
    for step in (1, 2, 3):
        world.write(f"checkpoint-{step}", step)
        world.wait_for_stage(f"checkpoint-{step}", "published")
    world.stop()
    assert world.rows()["checkpoint-2"]["link"] == "checkpoint-1"
    open_hub(str(world.hub)).remove("my-run/checkpoint-1")
    world.configure(chain=3, more="[retention]\nkeep_last = 1\ndry_run = false")
    world.start()
    world.wait_for(lambda: "checkpoint-2: not removed" in world.log.read_text(), "the refusal")
    world.stop()
    assert len(list(world.runs.iterdir())) == 3
