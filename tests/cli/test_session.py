"""``--nice``: a session of its own where Linux shares by sessions, which answers to signals all the same."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ENABLED = Path("/proc/sys/kernel/sched_autogroup_enabled")
pytestmark = pytest.mark.skipif(
    not ENABLED.exists() or ENABLED.read_text().strip() != "1" or not Path("/proc/self/autogroup").exists(),
    reason="the kernel does not share the processor among sessions",
)

SCRIPT = """
import os, sys, time
from ddct_format.cli.session import be_nice
be_nice(7)
print(os.getpid(), os.getsid(0), os.nice(0), open('/proc/self/autogroup').read().split()[-1], flush=True)
time.sleep(float(sys.argv[1]))
sys.exit(int(sys.argv[2]))
"""


@contextmanager
def started(seconds: float, status: int = 0) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """The process that was started, and the id of the one that works."""
    command = [sys.executable, "-c", SCRIPT, str(seconds), str(status)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        worker, session, niceness, shared = map(int, process.stdout.readline().split())
        assert worker == session != process.pid
        assert niceness == shared == os.nice(0) + 7
        try:
            yield process, worker
        finally:
            process.kill()


def state(pid: int) -> str:
    """R, S, T and so on; X for a process that is no more."""
    try:
        found = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "X"
    return "X" if found == "Z" else found


def wait_until(pid: int, states: str) -> None:
    end = time.monotonic() + 20
    while state(pid) not in states:
        assert time.monotonic() < end, f"process {pid} is in state {state(pid)}, not in {states}"
        time.sleep(0.02)


def test_its_own_session_is_lowered_and_that_of_the_caller_is_not() -> None:
    before = Path("/proc/self/autogroup").read_text()
    with started(0, 5) as (process, _):
        assert process.wait(20) == 5
    assert Path("/proc/self/autogroup").read_text() == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_reach_it_and_end_what_was_started_alike(number: signal.Signals) -> None:
    with started(60) as (process, worker):
        process.send_signal(number)
        assert process.wait(20) == -number
        wait_until(worker, "X")


def test_it_stops_and_goes_on_with_what_was_started() -> None:
    with started(60) as (process, worker):
        process.send_signal(signal.SIGTSTP)
        wait_until(worker, "T")
        wait_until(process.pid, "T")
        process.send_signal(signal.SIGCONT)
        wait_until(worker, "RS")
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == -signal.SIGINT


def test_it_does_not_outlive_what_was_started() -> None:
    with started(60) as (process, worker):
        process.kill()
        process.wait(20)
        wait_until(worker, "X")


def test_a_leader_of_a_session_stays_where_it_is() -> None:
    command = [sys.executable, "-c", SCRIPT, "0", "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, start_new_session=True)
    worker, session, niceness, shared = map(int, done.stdout.split())
    assert worker == session and niceness == shared == os.nice(0) + 7
