"""One change of a session's niceness is taken in a tenth of a second, of all processes: the others must try again."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from ddct_format import lower_priority
from ddct_format.niceness import sessions_share

SCRIPT = """
import ctypes, os, sys
from ddct_format import lower_priority

CAP_SYS_ADMIN = 21  # who has it, is not held up
libc = ctypes.CDLL(None)
header, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
assert libc.capget(header, sets) == 0
sets[0] &= ~(1 << CAP_SYS_ADMIN)
assert libc.capset(header, sets) == 0
print(flush=True)
sys.stdin.readline()
print(lower_priority(3), os.nice(0), open("/proc/self/autogroup").read().split()[-1])
"""


@pytest.mark.skipif(not sessions_share(), reason="the kernel does not share the processor among sessions")
def test_many_at_once_are_all_lowered() -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        for _ in range(8)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "\n"
    wanted = str(min(os.nice(0) + 3, 19))
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    assert [process.communicate()[0].split() for process in processes] == [[wanted] * 3] * 8


def test_zero_changes_nothing() -> None:
    assert lower_priority(0) == os.nice(0)
