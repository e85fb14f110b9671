"""A full disk under the daemon's state, on a real small file system."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemon_world import World


@pytest.fixture
def small_disk(world: World) -> Iterator[Path]:
    world.state.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "none", world.state]
    if subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("file systems can be mounted by root only")
    yield world.state
    for daemon in world.daemons:
        daemon.kill()
        daemon.wait()
    world.wait_for(lambda: not world.processes(), "the end of all workers")
    subprocess.run(["umount", world.state], check=True)


def test_a_full_disk_is_said_and_survived_and_nothing_half_is_left(world: World, small_disk: Path) -> None:
    world.configure(more="reserve_megabytes = 0")
    world.start()
    world.wait_until_ready()
    world.wait_for(lambda: (small_disk / "journal.sqlite3").exists(), "the journal")
    ballast = small_disk / "ballast"
    descriptor = os.open(ballast, os.O_WRONLY | os.O_CREAT)
    with contextlib.suppress(OSError):
        while os.write(descriptor, bytes(4096)):
            pass
    # Room for the journal, but for no archive.
    os.truncate(descriptor, max(0, os.fstat(descriptor).st_size - 24576))
    os.close(descriptor)
    world.write("checkpoint-1", 1)
    world.wait_for(
        lambda: world.stage("checkpoint-1") == "failed" or world.daemons[-1].poll() is not None, "trouble with the disk"
    )
    assert not world.pointers()
    if world.daemons[-1].poll() is None:
        assert "no space" in world.rows()["checkpoint-1"]["reason"]
        world.stop()
    else:
        # No room even for the journal: the daemon ends with the status for storage, and loses nothing.
        assert world.daemons[-1].returncode == 10
    ballast.unlink()
    world.start()
    world.wait_for_stage("checkpoint-1", "published")
    world.stop()
    assert world.leftovers() == []
