"""A real daemon, a real trainer process, a real hub: checkpoints arrive, or it is said why not."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

from daemon_models import base_tensors, nearest_seed, tuned_tensors, write_model
from daemon_world import DdctCommand, DigestTree, World
from fake_trainer import write_checkpoint

from ddct_format import verify
from ddct_format.hub import open_hub, pull

TRAINER = Path(__file__).with_name("fake_trainer.py")


def test_a_checkpoint_of_a_running_trainer_is_published_once_and_comes_back(
    world: World, digest_tree: DigestTree
) -> None:
    world.configure(device="cpu")
    daemon = world.start()
    with subprocess.Popen([sys.executable, TRAINER, world.runs / "checkpoint-10", "10", "1", "0.12"]) as trainer:
        while trainer.poll() is None:
            stage, pointers = world.stage("checkpoint-10"), world.pointers()
            # The process may outlive its last write by more than the settling time.
            if not (world.runs / "checkpoint-10" / "trainer_state.json").exists():
                assert stage in (None, "seen")
                assert not pointers
    assert trainer.returncode == 0
    before = digest_tree(world.runs)
    world.wait_for_stage("checkpoint-10", "published")

    pointer = world.pointers()["my-run/checkpoint-10"]
    (archive,) = world.objects()
    assert archive.name == f"{pointer['sha256']}.ddct"
    assert verify(archive, world.base).decoded
    report = pull(open_hub(str(world.hub)), "my-run/checkpoint-10", world.base, world.root / "back")
    assert report.applied == report.tensors == len(base_tensors())
    assert nearest_seed(world.root / "back") == 1
    assert digest_tree(world.runs) == before
    assert world.leftovers() == []
    assert daemon.poll() is None
    world.stop()


def test_what_a_killed_trainer_left_is_never_packed_but_its_next_try_is(world: World) -> None:
    world.start()
    half = world.runs / "checkpoint-10"
    with subprocess.Popen([sys.executable, TRAINER, half, "10", "1", "0.2"]) as trainer:
        world.wait_for(lambda: (half / "model.safetensors").exists(), "a weight file")
        trainer.kill()
    world.write("checkpoint-20", 2)
    world.wait_for_stage("checkpoint-20", "published")
    world.wait_for(lambda: "not finished" in world.rows()["checkpoint-10"]["reason"], "a reason")
    assert list(world.pointers()) == ["my-run/checkpoint-20"]
    shutil.rmtree(half)
    world.write("checkpoint-10", 1)
    world.wait_for_stage("checkpoint-10", "published")
    world.stop()


def test_a_model_directory_and_a_run_in_a_directory_of_runs_are_published_too(world: World) -> None:
    write_model(world.runs / "final", tuned_tensors(3))
    write_checkpoint(world.runs / "run-a" / "checkpoint-5", 5, 4)
    world.start()
    world.wait_for_stage("final", "published")
    world.wait_for_stage("run-a/checkpoint-5", "published")
    assert sorted(world.pointers()) == ["my-run/final", "my-run/run-a/checkpoint-5"]
    world.stop()


def test_what_is_published_is_not_packed_again_after_a_restart(world: World) -> None:
    world.write("checkpoint-1", 1)
    world.start()
    world.wait_for_stage("checkpoint-1", "published")
    world.stop()
    row, written = world.rows()["checkpoint-1"], (world.hub / "refs/my-run/checkpoint-1.json").stat().st_mtime_ns
    world.start()
    world.write("checkpoint-2", 2)
    world.wait_for_stage("checkpoint-2", "published")
    world.stop()
    assert world.rows()["checkpoint-1"]["updated_at"] == row["updated_at"]
    assert (world.hub / "refs/my-run/checkpoint-1.json").stat().st_mtime_ns == written


def test_a_lost_state_directory_costs_work_but_makes_no_duplicate(world: World) -> None:
    world.write("checkpoint-1", 1)
    world.start()
    world.wait_for_stage("checkpoint-1", "published")
    world.stop()
    before = world.pointers()
    shutil.rmtree(world.state)
    world.start()
    world.wait_for_stage("checkpoint-1", "published")
    world.stop()
    assert world.pointers() == before
    assert len(world.objects()) == 1


def test_a_checkpoint_that_is_written_again_is_published_again(world: World) -> None:
    world.write("checkpoint-1", 1)
    world.start()
    world.wait_for_stage("checkpoint-1", "published")
    first = world.pointers()["my-run/checkpoint-1"]
    shutil.rmtree(world.runs / "checkpoint-1")
    world.write("checkpoint-1", 2)
    world.wait_for(lambda: world.pointers()["my-run/checkpoint-1"] != first, "a new pointer")
    world.wait_for_stage("checkpoint-1", "published")
    world.stop()
    pull(open_hub(str(world.hub)), "my-run/checkpoint-1", world.base, world.root / "back")
    assert nearest_seed(world.root / "back") == 2


def test_a_name_that_belongs_to_another_publisher_is_not_taken(world: World) -> None:
    (world.hub / "refs" / "my-run").mkdir(parents=True)
    theirs = {"version": 1, "size": 1} | dict.fromkeys(("sha256", "content_id", "base_id", "target_id"), "0" * 64)
    (world.hub / "refs/my-run/checkpoint-1.json").write_text(json.dumps(theirs))
    world.write("checkpoint-1", 1)
    world.start()
    world.wait_for_stage("checkpoint-1", "failed")
    assert "another model" in world.rows()["checkpoint-1"]["reason"]
    assert world.pointers()["my-run/checkpoint-1"] == theirs
    world.stop()


def test_a_base_that_is_no_model_is_a_failure_with_the_reason(world: World) -> None:
    (world.root / "empty").mkdir()
    world.configure(base="empty")
    world.write("checkpoint-1", 1)
    world.start()
    world.wait_for_stage("checkpoint-1", "failed")
    row = world.rows()["checkpoint-1"]
    assert str(world.root / "empty") in row["reason"]
    assert "again in" in row["line"]
    world.stop()
    assert world.leftovers() == []


def test_a_base_of_another_shape_is_a_failure_that_asks_for_the_right_base_and_a_restart_mends_it(world: World) -> None:
    write_model(world.root / "other", base_tensors(width=40))
    world.configure(base="other")
    world.write("checkpoint-1", 1)
    world.start()
    world.wait_for_stage("checkpoint-1", "failed")
    assert "is it the right base?" in world.rows()["checkpoint-1"]["reason"]
    world.stop()
    world.configure()
    world.start()
    world.wait_for_stage("checkpoint-1", "published")
    world.stop()


def test_what_ddct_cannot_pack_is_skipped_with_the_reason(world: World) -> None:
    adapter = write_model(world.runs / "adapter", {"lora.weight": base_tensors()["norm.weight"]})
    (adapter / "adapter_config.json").write_text("{}")
    write_model(world.runs / "a model", tuned_tensors(1))
    world.start()
    world.wait_for_stage("adapter", "skipped")
    world.wait_for_stage("a model", "skipped")
    assert "adapter" in world.rows()["adapter"]["reason"]
    assert "cannot be a published name" in world.rows()["a model"]["reason"]
    world.stop()


def test_a_packed_checkpoint_survives_a_hub_that_is_away_and_its_own_rotation(world: World) -> None:
    world.hub.rename(world.root / "unplugged")
    world.write("checkpoint-1", 1)
    world.start()
    world.wait_for_stage("checkpoint-1", "failed")
    row = world.rows()["checkpoint-1"]
    assert "hub" in row["reason"]
    assert row["archive"]
    shutil.rmtree(world.runs / "checkpoint-1")
    world.stop()
    (world.root / "unplugged").rename(world.hub)
    world.start()
    world.wait_for_stage("checkpoint-1", "published")
    world.stop()
    pull(open_hub(str(world.hub)), "my-run/checkpoint-1", world.base, world.root / "back")
    assert nearest_seed(world.root / "back") == 1
    assert world.leftovers() == []


def test_a_run_directory_that_appears_later_is_watched(world: World) -> None:
    world.runs.rmdir()
    world.start()
    world.wait_until_ready()
    world.runs.mkdir()
    world.write("checkpoint-1", 1)
    world.wait_for_stage("checkpoint-1", "published")
    world.stop()


def test_events_make_the_daemon_quicker_than_its_regular_listings(world: World) -> None:
    world.configure(rescan=3600)
    world.start()
    world.wait_until_ready()
    world.write("checkpoint-1", 1)
    world.wait_for_stage("checkpoint-1", "published")
    world.stop()


def test_status_shows_a_line_and_a_reason_per_checkpoint(world: World, ddct: DdctCommand) -> None:
    quiet = ddct("daemon", "status", "--config", world.config)
    assert (quiet.returncode, quiet.stdout) == (0, "daemon: not running\n")
    world.write("checkpoint-1", 1)
    daemon = world.start(by_command_line=True)
    world.wait_for_stage("checkpoint-1", "published")
    shown = ddct("daemon", "status", "--config", world.config)
    first, head, line = shown.stdout.splitlines()
    assert first == f"daemon: running, process {daemon.pid}"
    assert head.split() == ["CHECKPOINT", "STATE", "BEFORE", "AFTER", "ERROR", "RETRY", "WHY"]
    row = world.rows()["checkpoint-1"]
    cells = ["checkpoint-1", "published", "0.04 MB", f"{row['size'] / 1e6:.2f} MB", f"{row['error']:.4f}", "-"]
    assert re.split(r"  +", line)[:6] == cells
    assert "as my-run/checkpoint-1" in line
    status = json.loads(ddct("daemon", "status", "--config", world.config, "--json").stdout)
    assert status["daemon"] == {"running": True, "process": daemon.pid, "paused": False}
    assert status["checkpoints"][0]["sha256"] == world.pointers()["my-run/checkpoint-1"]["sha256"]
    world.stop()


def test_pull_on_the_command_line_brings_a_model_back(world: World, ddct: DdctCommand) -> None:
    world.write("checkpoint-1", 1)
    world.start()
    world.wait_for_stage("checkpoint-1", "published")
    world.stop()
    arguments = ["pull", world.hub, "my-run/checkpoint-1", "--base", world.base, world.root / "back"]
    report = json.loads(ddct(*arguments, "--json").stdout)
    assert report["applied"] == report["tensors"] == len(base_tensors())
    assert nearest_seed(world.root / "back") == 1
    again = ddct(*arguments)
    assert again.returncode == 8
    assert again.stderr.count("\n") == 1
    assert ddct("pull", "ftp://bucket", "x", "--base", world.base, world.root / "new").returncode == 11


def test_the_command_runs_the_daemon_and_refuses_a_bad_configuration(world: World, ddct: DdctCommand) -> None:
    world.config.write_text(world.config.read_text().replace("settle_seconds", "setle_seconds", 1))
    refused = ddct("daemon", "run", "--config", world.config)
    assert refused.returncode == 12
    assert "setle_seconds" in refused.stderr
    assert refused.stderr.count("\n") == 1
