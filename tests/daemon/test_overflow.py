"""The kernel's queue of file events overflows while a checkpoint is written: its events are lost, it is not."""

from __future__ import annotations

import ctypes
import os
import signal
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemon_world import World

from ddct_daemon.listing import list_checkpoints

_QUEUE = Path("/proc/sys/fs/inotify/max_queued_events")
_IN_ALL_EVENTS, _IN_Q_OVERFLOW = 0xFFF, 0x4000


@pytest.fixture
def witness(world: World) -> Iterator[int]:
    """An inotify queue of the test's own on the same directory, of the same length, which nobody reads either."""
    if not _QUEUE.exists() or int(_QUEUE.read_text()) > 100_000:
        pytest.skip("the kernel's event queue is too long to fill here")
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    assert descriptor >= 0
    assert libc.inotify_add_watch(descriptor, os.fsencode(world.runs), _IN_ALL_EVENTS) >= 0
    yield descriptor
    os.close(descriptor)


def overflowed(descriptor: int) -> bool:
    while True:
        try:
            raw = os.read(descriptor, 1 << 20)
        except BlockingIOError:
            return False
        while raw:
            _, mask, _, length = struct.unpack_from("iIII", raw)
            if mask & _IN_Q_OVERFLOW:
                return True
            raw = raw[16 + length :]


def flood(directory: Path, events: int) -> None:
    """Events that no kernel merges with the one before: two files, one after the other."""
    paths = [directory / name for name in (".flood-a", ".flood-b")]
    for number in range(events):
        os.close(os.open(paths[number % 2], os.O_WRONLY | os.O_CREAT))
    for path in paths:
        path.unlink()


def test_a_checkpoint_whose_events_were_all_lost_is_published(world: World, witness: int) -> None:
    world.configure(rescan=2)
    daemon = world.start()
    world.wait_until_ready()
    world.write("checkpoint-1", 1)
    world.wait_for_stage("checkpoint-1", "published")
    # Frozen, the daemon reads no events; the kernel drops what comes when its queue is full.
    daemon.send_signal(signal.SIGSTOP)
    flood(world.runs, int(_QUEUE.read_text()))
    world.write("checkpoint-2", 2)
    assert overflowed(witness)
    daemon.send_signal(signal.SIGCONT)
    world.wait_for_stage("checkpoint-2", "published")
    # And afterwards it still hears of new ones, and of what happens in directories whose creation it missed.
    world.write("checkpoint-3", 3)
    world.wait_for_stage("checkpoint-3", "published")
    (world.runs / "checkpoint-2" / "config.json").write_text('{"model_type": "changed"}')
    world.wait_for(lambda: world.rows()["checkpoint-2"]["stage"] != "published", "the change is seen")
    world.wait_for_stage("checkpoint-2", "published")
    world.stop()
    assert sorted(world.pointers()) == ["my-run/checkpoint-1", "my-run/checkpoint-2", "my-run/checkpoint-3"]
    assert len(list_checkpoints(world.runs)) == 3
    assert world.leftovers() == []
