"""Staying out of the way of the training: last in line for CPU and disk, and no more memory than allowed."""

from __future__ import annotations

import ctypes
import platform
import resource

from ddct_format import lower_priority

__all__ = ["be_last_in_line", "limit_memory"]

_IOPRIO_SET = {"x86_64": 251, "aarch64": 30}
"""Number of the system call ioprio_set(2), which the C library does not offer."""
_THIS_PROCESS = 1
_CLASS_IDLE = 3 << 13


def be_last_in_line(nice: int) -> None:
    """Raise this process's niceness; unless that is 0, the disk serves it only when nobody else wants it."""
    lower_priority(nice)
    number = _IOPRIO_SET.get(platform.machine())
    if nice and number is not None:
        # Where the kernel or a sandbox refuses, the pack is merely less polite.
        ctypes.CDLL(None).syscall(number, _THIS_PROCESS, 0, _CLASS_IDLE)


def limit_memory(size: int) -> None:
    """Let allocations beyond ``size`` bytes fail, which ends the pack with a reason; 0 for no limit."""
    if size:
        resource.setrlimit(resource.RLIMIT_DATA, (size, size))
