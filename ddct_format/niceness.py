"""A low priority that counts, also where Linux shares the processor out among sessions first (sched(7), autogroup)."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

__all__ = ["lower_priority", "sessions_share"]

_ENABLED = Path("/proc/sys/kernel/sched_autogroup_enabled")
_AUTOGROUP = Path("/proc/self/autogroup")
_TRIES, _PAUSE = 30, 0.1
"""Of all processes together, the kernel takes one change in a tenth of a second, and answers EAGAIN to the others."""


def lower_priority(value: int) -> int:
    """Raise the niceness of this process by ``value``, and that of its session if it leads one; the new niceness.

    Niceness counts among the processes of one session only, where sessions are given equal shares. A session of others
    is not this process's to lower. Where the kernel refuses, this process is merely less polite.
    """
    niceness = os.nice(value)
    if value and sessions_share() and os.getsid(0) == os.getpid():
        _lower_session(niceness)
    return niceness


def sessions_share() -> bool:
    """Whether the kernel shares the processor out among sessions."""
    try:
        return sys.platform == "linux" and _ENABLED.read_text().strip() == "1" and _AUTOGROUP.exists()
    except OSError:
        return False


def _lower_session(niceness: int) -> None:
    for _ in range(_TRIES):
        try:
            _AUTOGROUP.write_text(str(niceness))
            return
        except BlockingIOError:
            time.sleep(_PAUSE)
        except OSError:
            return
