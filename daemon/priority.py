"""Staying out of the way of the training: last in line for CPU and disk, and no more memory than allowed."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import resource
from pathlib import Path

__all__ = ["limit_memory", "lower_priority"]

_IOPRIO_SET = {"x86_64": 251, "aarch64": 30}
"""Number of the system call ioprio_set(2), which the C library does not offer."""
_THIS_PROCESS = 1
_CLASS_IDLE = 3 << 13
_AUTOGROUP = Path("/proc/self/autogroup")


def lower_priority(nice: int) -> None:
    """Raise this process's niceness; unless that is 0, the disk serves it only when nobody else wants it."""
    niceness = os.nice(nice)
    if nice and os.getsid(0) == os.getpid():
        # Linux shares the processor out among sessions first (sched(7), autogroup), niceness counts within one only:
        # so that of the session is raised, too. A session of others is not this process's to lower.
        with contextlib.suppress(OSError), _AUTOGROUP.open("r+") as autogroup:
            autogroup.write(str(niceness))
    number = _IOPRIO_SET.get(platform.machine())
    if nice and number is not None:
        # Where the kernel or a sandbox refuses, the pack is merely less polite.
        ctypes.CDLL(None).syscall(number, _THIS_PROCESS, 0, _CLASS_IDLE)


def limit_memory(size: int) -> None:
    """Let allocations beyond ``size`` bytes fail, which ends the pack with a reason; 0 for no limit."""
    if size:
        resource.setrlimit(resource.RLIMIT_DATA, (size, size))
