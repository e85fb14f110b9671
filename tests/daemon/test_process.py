"""The daemon as a process: signals, kill -9 at any moment, and one daemon per state."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from daemon_models import nearest_seed, tuned_bytes
from daemon_world import DigestTree, World

from ddct_format import pack, pull, verify
from ddct_format.hub import open_hub


def test_sigterm_ends_an_idle_daemon_at_once_and_well(world: World) -> None:
    daemon = world.start()
    world.wait_until_ready()
    begun = time.monotonic()
    daemon.send_signal(signal.SIGTERM)
    assert daemon.wait(20) == 0
    assert time.monotonic() - begun < 5


def test_sigterm_lets_a_pack_end_within_the_budget(world: World) -> None:
    daemon = world.start()
    world.write("checkpoint-1", 1)
    world.wait_for_stage("checkpoint-1", "packing")
    daemon.send_signal(signal.SIGTERM)
    assert daemon.wait(60) == 0
    assert world.stage("checkpoint-1") == "packed"
    world.start()
    world.wait_for_stage("checkpoint-1", "published")
    world.stop()


def test_sigterm_abandons_a_pack_that_exceeds_the_budget_and_leaves_nothing(world: World) -> None:
    world.configure(stop=0.5)
    daemon = world.start()
    world.write("checkpoint-1", 1)
    world.wait_for_stage("checkpoint-1", "packing")
    world.freeze_worker()
    daemon.send_signal(signal.SIGTERM)
    assert daemon.wait(20) == 0
    assert world.stage("checkpoint-1") == "seen"
    assert world.rows()["checkpoint-1"]["reason"] == "packing was interrupted"
    assert world.leftovers() == []
    assert not world.processes()
    world.start()
    world.wait_for_stage("checkpoint-1", "published")
    world.stop()


def test_a_second_signal_leaves_at_once(world: World) -> None:
    world.configure(stop=3600)
    daemon = world.start()
    world.write("checkpoint-1", 1)
    world.wait_for_stage("checkpoint-1", "packing")
    worker = world.freeze_worker()
    daemon.send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        daemon.wait(0.5)
    daemon.send_signal(signal.SIGTERM)
    assert daemon.wait(5) == 128 + signal.SIGTERM
    os.kill(worker, signal.SIGCONT)
    world.wait_for(lambda: not world.processes(), "the end of the worker")


def test_a_second_daemon_on_one_state_says_so_and_ends(world: World) -> None:
    first = world.start()
    world.wait_until_ready()
    second = world.start()
    assert second.wait(20) == 12
    assert f"another daemon (process {first.pid}) already works on this state" in world.log.read_text()
    assert first.poll() is None
    world.write("checkpoint-1", 1)
    world.wait_for_stage("checkpoint-1", "published")


def test_a_second_daemon_on_one_folder_with_another_state_says_so_and_ends(world: World) -> None:
    first = world.start()
    world.wait_until_ready()
    text = world.config.read_text()
    world.config.write_text(text.replace('path = "state"', 'path = "other-state"').replace('"runs"', '"../runs-link"'))
    (world.root.parent / "runs-link").symlink_to(world.runs)
    second = world.start()
    assert second.wait(20) == 12
    assert f"another daemon (process {first.pid}) already publishes this folder" in world.log.read_text()
    world.config.write_text(text)
    world.write("checkpoint-1", 1)
    world.wait_for_stage("checkpoint-1", "published")
    assert len(world.objects()) == 1
    assert first.poll() is None


def test_a_worker_has_the_configured_threads_and_sees_no_gpu(world: World) -> None:
    world.config.write_text(
        world.config.read_text().replace("nice = 0", "nice = 0\nthreads = 3\ngpu_memory_megabytes = 2")
    )
    world.start()
    world.write("checkpoint-1", 1)
    world.wait_for_stage("checkpoint-1", "packing")
    worker = world.freeze_worker()
    environment = Path(f"/proc/{worker}/environ").read_bytes().split(b"\0")
    os.kill(worker, signal.SIGCONT)
    assert {b"CUDA_VISIBLE_DEVICES=", b"OMP_NUM_THREADS=3", b"OPENBLAS_NUM_THREADS=3"} <= set(environment)
    assert b"DDCT_GPU_MEMORY=2000000" in environment
    world.wait_for_stage("checkpoint-1", "published")
    world.stop()


def test_a_worker_is_last_in_line_for_processor_and_disk_and_cannot_exceed_its_memory() -> None:
    program = """
import ctypes, os, platform
from ddct_daemon.priority import be_last_in_line, limit_memory
be_last_in_line(7)
limit_memory(1_000_000_000)
ioprio = ctypes.CDLL(None).syscall({"x86_64": 252, "aarch64": 31}[platform.machine()], 1, 0)
try:
    bytearray(2_000_000_000)
except MemoryError:
    print(os.nice(0), ioprio >> 13)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    idle = 3
    assert done.stdout.split() == ["7", str(idle)]


@pytest.mark.skipif(not Path("/proc/self/autogroup").exists(), reason="the kernel does not schedule by sessions")
@pytest.mark.parametrize(("own_session", "niceness"), [(True, "7"), (False, "0")])
def test_a_worker_is_last_in_line_among_sessions_too_but_lowers_no_session_of_others(
    own_session: bool, niceness: str
) -> None:
    lower = "from ddct_daemon.priority import be_last_in_line; be_last_in_line(7)"
    program = f"{lower}; print(open('/proc/self/autogroup').read())"
    if not own_session:
        program = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {program!r}], check=True)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, start_new_session=True
    )
    assert done.stdout.split()[1:] == ["nice", niceness]


def test_a_rewrite_in_place_during_a_pack_discards_it_and_the_new_content_is_published(world: World) -> None:
    world.start()
    path = world.write("checkpoint-1", 1)
    world.wait_for_stage("checkpoint-1", "packing")
    worker = world.freeze_worker()
    with (path / "model.safetensors").open("r+b") as file:
        file.write(tuned_bytes(2))
    os.kill(worker, signal.SIGCONT)
    world.wait_for(lambda: "it changed" in world.log.read_text(), "a discarded pack")
    world.wait_for_stage("checkpoint-1", "published")
    world.stop()
    pull(open_hub(str(world.hub)), "my-run/checkpoint-1", world.base, world.root / "back")
    assert nearest_seed(world.root / "back") == 2
    assert len(world.objects()) == 1
    assert world.leftovers() == []


def test_a_worker_ends_when_its_daemon_is_killed(world: World) -> None:
    daemon = world.start()
    world.write("checkpoint-1", 1)
    world.wait_for_stage("checkpoint-1", "packing")
    daemon.kill()
    daemon.wait()
    world.wait_for(lambda: not world.processes(), "the end of the worker")


def survive_kills(world: World, digest_tree: DigestTree, kills: int) -> None:
    """Kill the daemon at random moments of its work; then all must be as a quiet run leaves it."""
    chance = random.Random()
    names = []
    for number in range(kills):
        names.append(f"checkpoint-{number + 1}")
        world.write(names[-1], number)
        daemon = world.start()
        # Two moments that matter most, then any: from before the first entry until after the last.
        if number < 2:
            world.wait_for_stage(names[-1], ("packing", "publishing")[number], "published")
        else:
            with pytest.raises(subprocess.TimeoutExpired):
                daemon.wait(chance.uniform(0.1, 1.6))
        daemon.kill()
        daemon.wait()
    before = digest_tree(world.runs)
    world.start()
    for name in names:
        world.wait_for_stage(name, "published")
    world.stop()

    pointers = world.pointers()
    assert sorted(pointers) == sorted(f"my-run/{name}" for name in names)
    assert sorted(path.stem for path in world.objects()) == sorted(p["sha256"] for p in pointers.values())
    assert world.leftovers() == []
    assert digest_tree(world.runs) == before
    for name in names:
        quiet = pack(world.base, world.runs / name, world.root / f"{name}.ddct", device="reference")
        assert quiet.file_sha256 == pointers[f"my-run/{name}"]["sha256"]
    for path in world.objects():
        assert verify(path, world.base).decoded

    written = {path: path.stat().st_mtime_ns for path in world.hub.rglob("*") if path.is_file()}
    world.start()
    world.write("checkpoint-1000", 1000)
    world.wait_for_stage("checkpoint-1000", "published")
    world.stop()
    assert written == {path: path.stat().st_mtime_ns for path in written}


def test_kill_9_at_random_moments_loses_nothing_and_duplicates_nothing(world: World, digest_tree: DigestTree) -> None:
    survive_kills(world, digest_tree, 7)


@pytest.mark.slow
def test_kill_9_at_very_many_moments_loses_nothing_and_duplicates_nothing(
    world: World, digest_tree: DigestTree
) -> None:
    survive_kills(world, digest_tree, 60)
