"""The daemon against a hub that fails: a real daemon, a real server. Afterwards all is as a quiet run leaves it."""

from __future__ import annotations

import hashlib
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemon_world import World
from fake_trainer import write_checkpoint
from hub_servers import TOKEN, MiniHub

from ddct_format import pack

TRAINER = Path(__file__).with_name("fake_trainer.py")
ATTRIBUTES = "Keep .ddct files in large file storage"


@pytest.fixture(params=[(), ("--xet",)], ids=["lfs", "xet"])
def server(request: pytest.FixtureRequest, tmp_path: Path, world: World) -> Iterator[MiniHub]:
    server = MiniHub(tmp_path / "server", *request.param)
    configure(world, server)
    yield server
    server.stop()


def configure(world: World, server: MiniHub, more: str = "") -> None:
    world.configure(hub=f'url = "hf://acme/run"\nendpoint = "{server.url}"\ntoken_file = "{server.token_file}"\n{more}')


def assert_as_after_a_quiet_run(world: World, server: MiniHub, *names: str) -> None:
    """Byte-equal archives, exactly one commit for each, nothing else in the repository, nothing left here."""
    found = server.repository()
    assert sorted(found["titles"]) == sorted(["initial commit", ATTRIBUTES, *(f"Publish {name}" for name in names)])
    for name in names:
        quiet = world.root / f"{name}.quiet.ddct"
        pack(world.base, world.runs / name, quiet, device="reference")
        assert found["files"][f"{name}/model.ddct"] == hashlib.sha256(quiet.read_bytes()).hexdigest()
    assert len(found["files"]) == 2 + 2 * len(names)
    assert found["tags"] == {}
    assert world.leftovers() == []
    assert TOKEN not in world.log.read_text()


@pytest.mark.parametrize(
    "fault",
    [
        {"match": "/commit/main", "mode": "after", "status": 500},
        {"match": "/preupload", "mode": "drop"},
        {"match": "/commit/main", "mode": "slow", "seconds": 1},
    ],
    ids=lambda fault: fault["mode"],
)
def test_what_passes_by_itself_costs_no_second_commit(world: World, server: MiniHub, fault: dict[str, object]) -> None:
    world.write("checkpoint-1", 1)
    server.fault(**{"times": 1, **fault})  # type: ignore[arg-type]
    world.start()
    world.wait_for_stage("checkpoint-1", "published", "failed")
    if world.stage("checkpoint-1") == "failed":
        world.stop()
        world.start()
        world.wait_for_stage("checkpoint-1", "published")
    world.stop()
    assert_as_after_a_quiet_run(world, server, "checkpoint-1")


def test_the_hourly_limit_stops_all_publishing_and_status_says_until_when(world: World, server: MiniHub) -> None:
    server.fault("/commit/main", "status", status=429, body="128 commits per hour", headers={"Retry-After": "3"})
    world.write("checkpoint-1", 1)
    world.start()
    world.wait_for_stage("checkpoint-1", "failed")
    row = world.rows()["checkpoint-1"]
    assert row["retry_at"] - row["updated_at"] == pytest.approx(3600, abs=5)
    world.write("checkpoint-2", 2)
    world.wait_for_stage("checkpoint-2", "packed")
    asked = len(server.log())
    world.wait_for(lambda: world.rows()["checkpoint-2"]["reason"] == "waits to be published", "a wait")
    assert len(server.log()) == asked
    world.stop()
    world.start()
    for name in ("checkpoint-1", "checkpoint-2"):
        world.wait_for_stage(name, "published")
    world.stop()
    assert_as_after_a_quiet_run(world, server, "checkpoint-1", "checkpoint-2")


def test_a_token_that_was_rotated_is_read_again(world: World, server: MiniHub) -> None:
    server.set_token("rotated")
    world.write("checkpoint-1", 1)
    world.start()
    world.wait_for_stage("checkpoint-1", "failed")
    assert "refuses the token" in world.rows()["checkpoint-1"]["reason"]
    world.stop()
    server.token_file.write_text("rotated")
    world.start()
    world.wait_for_stage("checkpoint-1", "published")
    world.stop()
    assert_as_after_a_quiet_run(world, server, "checkpoint-1")
    assert "rotated" not in "".join(world.processes().values())


def test_a_rotation_faster_than_a_slow_hub_loses_nothing_that_was_packed(world: World, server: MiniHub) -> None:
    server.fault("/commit/main", "slow", seconds=1, times=9)
    world.start()
    world.wait_until_ready()
    for step in (1, 2, 3):
        name = f"checkpoint-{step}"
        world.write(name, step)
        world.wait_for_stage(name, "packed", "publishing", "published")
        shutil.copytree(world.runs / name, world.root / "kept" / name)
        shutil.rmtree(world.runs / name)
    for step in (1, 2, 3):
        world.wait_for_stage(f"checkpoint-{step}", "published")
    world.stop()
    world.runs = world.root / "kept"
    assert_as_after_a_quiet_run(world, server, "checkpoint-1", "checkpoint-2", "checkpoint-3")


def test_save_total_limit_1_with_a_slow_hub(world: World, server: MiniHub) -> None:
    """A trainer that waits for nobody: what was packed arrives whole, of the rest it is said what became of it."""
    server.fault("/commit/main", "slow", seconds=1, times=99)
    world.start()
    world.wait_until_ready()
    steps = 4
    with subprocess.Popen([sys.executable, TRAINER, world.runs, str(steps), "0.25"]) as trainer:
        assert trainer.wait(120) == 0
    names = [f"checkpoint-{step}" for step in range(1, steps + 1)]
    for name in names:
        world.wait_for_stage(name, "published", "skipped")
    world.stop()
    rows = world.rows()
    published = [name for name in names if rows[name]["stage"] == "published"]
    assert names[-1] in published, "the one that stays"
    assert len(published) >= 2
    for name in set(names) - set(published):
        assert rows[name]["reason"] == "it was removed before it was packed"
    for name in published:
        write_checkpoint(world.root / "again" / name, int(name.split("-")[1]), int(name.split("-")[1]))
    world.runs = world.root / "again"
    assert_as_after_a_quiet_run(world, server, *published)


def survive_kills(world: World, server: MiniHub, kills: int) -> list[str]:
    """Kill daemon and workers at random moments from the start of a publication to after its end."""
    chance, names = random.Random(), []
    for number in range(1, kills + 1):
        names.append(f"checkpoint-{number}")
        world.write(names[-1], number)
        daemon = world.start()
        world.wait_for_stage(names[-1], "packed", "publishing", "published")
        with pytest.raises(subprocess.TimeoutExpired):
            daemon.wait(chance.uniform(0.0, 2.0))
        daemon.kill()
        daemon.wait()
        world.wait_for(lambda: not world.processes(), "the end of the workers")
    world.start()
    for name in names:
        world.wait_for_stage(name, "published")
    world.stop()
    return names


def test_kill_9_while_publishing_loses_nothing_and_commits_nothing_twice(world: World, server: MiniHub) -> None:
    assert_as_after_a_quiet_run(world, server, *survive_kills(world, server, 3))


def test_kill_9_while_publishing_with_tags_makes_one_commit_and_one_tag_each(world: World, server: MiniHub) -> None:
    configure(world, server, 'layout = "tags"')
    names = survive_kills(world, server, 3)
    found = server.repository()
    assert sorted(found["titles"]) == sorted(["initial commit", ATTRIBUTES, *(f"Publish {name}" for name in names)])
    assert found["tags"] == {name: f"Publish {name}" for name in names}
    assert sorted(found["files"]) == [".gitattributes", "README.md", "ddct.json", "model.ddct"]
    assert world.leftovers() == []


@pytest.mark.slow
def test_kill_9_at_very_many_moments_while_publishing(world: World, server: MiniHub) -> None:
    assert_as_after_a_quiet_run(world, server, *survive_kills(world, server, 50))


def test_a_hub_that_ignores_privacy_gets_nothing(world: World, tmp_path: Path) -> None:
    server = MiniHub(tmp_path / "server", "--public")
    try:
        configure(world, server)
        world.write("checkpoint-1", 1)
        world.start()
        world.wait_for_stage("checkpoint-1", "failed")
        assert "not private; nothing was sent" in world.rows()["checkpoint-1"]["reason"]
        world.stop()
        assert server.repository()["titles"] == ["initial commit"]
    finally:
        server.stop()
