"""Progress as a plain callable, so that a library user, a terminal and a daemon can each show it their way."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["Progress", "Tally"]

Progress = Callable[[int, int, str], None]
"""Called with (bytes done, bytes in all, what is being done). Must be quick; may raise to cancel."""


class Tally:
    """Adds up what is done and reports it."""

    def __init__(self, total: int, what: str, progress: Progress | None) -> None:
        self._done = 0
        self._total = total
        self._what = what
        self._progress = progress

    def add(self, amount: int) -> None:
        self._done += amount
        if self._progress is not None:
            self._progress(self._done, self._total, self._what)
