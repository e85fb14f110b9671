"""Hints from the operating system that something changed. Rescans work without them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer
from watchdog.observers.api import BaseObserver

__all__ = ["Hints"]

_log = logging.getLogger(__name__)

_CHANGES = frozenset({"created", "modified", "moved", "deleted", "closed"})
"""Not "opened" and the like: the daemon's own reading would wake it for ever."""


class Hints(FileSystemEventHandler):
    """Calls ``notify`` from another thread when something below ``root`` may have changed.

    Events can be lost or never come (full queues, network file systems, new directories), so
    nothing may depend on them.
    """

    def __init__(self, root: Path, notify: Callable[[], None]) -> None:
        self._root = root
        self._notify = notify
        self._observer: BaseObserver | None = None
        self._watched: tuple[int, int] | None = None

    def keep_watching(self) -> None:
        """Start to watch, or start again if the root is another directory than before."""
        try:
            status = self._root.stat()
        except OSError:
            current = None
        else:
            current = (status.st_dev, status.st_ino)
        if current == self._watched and self._is_alive():
            return
        self.stop()
        self._watched = current
        if current is None:
            return
        observer = Observer()
        try:
            observer.schedule(self, str(self._root), recursive=True)
            observer.start()
        except OSError as error:
            _log.warning("no file events for %s (%s): only regular listings", self._root, error)
            return
        self._observer = observer

    def stop(self) -> None:
        """Stop watching; harmless if not started."""
        if self._observer is not None:
            self._observer.stop()
            self._observer.join()
            self._observer = None

    def _is_alive(self) -> bool:
        # A watch ends with its directory, and the next directory may get the same inode number.
        return self._observer is None or all(emitter.is_alive() for emitter in self._observer.emitters)

    def on_any_event(self, event: FileSystemEvent) -> None:
        """Called by watchdog."""
        if event.event_type in _CHANGES:
            self._notify()
