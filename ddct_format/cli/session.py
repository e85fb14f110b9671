"""A low priority that counts: where Linux shares the processor out among sessions first, in a session of one's own.

With ``kernel.sched_autogroup_enabled`` (sched(7)), niceness counts among the processes of one session only, say of a
terminal, and every session gets an equal share. So the command goes on in a session of its own, whose share is lowered.
What was started stays behind, in the terminal's: it passes signals on, Ctrl-C and Ctrl-Z among them, and ends as the
command does.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from typing import NoReturn

from ..niceness import lower_priority, sessions_share

__all__ = ["be_nice"]

_PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
_ALL = {*_PASSED_ON, signal.SIGTSTP, signal.SIGCONT}
_PR_SET_PDEATHSIG = 1


def be_nice(value: int) -> None:
    """Raise the niceness of this process by ``value``, and that of its session if it has one of its own or can get one.

    Returns in the process that goes on, which may be another one. To be called before there are other threads.
    """
    if value and sessions_share() and threading.active_count() == 1 and os.getsid(0) != os.getpid():
        _go_on_in_a_session()
    lower_priority(value)


def _go_on_in_a_session() -> None:
    """Return in a child that leads a session; this process waits for its end."""
    sys.stdout.flush()
    sys.stderr.flush()
    parent = os.getpid()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ALL)
    child = os.fork()
    if child:
        _wait_for(child, before)
    os.setsid()
    # Should the process that was started be killed, this one must not go on unseen.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    if os.getppid() != parent:
        os._exit(128 + signal.SIGTERM)


def _wait_for(child: int, mask: set[signal.Signals] | set[int]) -> NoReturn:
    def pass_on(number: int, frame: object) -> None:
        os.kill(child, number)

    def stop(number: int, frame: object) -> None:
        # A session without a terminal ignores the terminal's own kind of stop.
        os.kill(child, signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGSTOP)

    for number in _PASSED_ON:
        if signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
            signal.signal(number, pass_on)
    signal.signal(signal.SIGTSTP, stop)
    signal.signal(signal.SIGCONT, pass_on)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        ending = os.WTERMSIG(status)
        if ending != signal.SIGKILL:
            signal.signal(ending, signal.SIG_DFL)
        os.kill(os.getpid(), ending)
    os._exit(os.waitstatus_to_exitcode(status) & 0xFF)
