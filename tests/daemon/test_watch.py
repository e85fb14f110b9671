"""Events of the operating system are hints; the daemon's own reading is none."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from watchdog.events import DirModifiedEvent, FileClosedEvent, FileClosedNoWriteEvent, FileOpenedEvent

from ddct_daemon.watch import Hints


@pytest.fixture
def notified() -> threading.Event:
    return threading.Event()


@pytest.fixture
def hints(tmp_path: Path, notified: threading.Event) -> Iterator[Hints]:
    hints = Hints(tmp_path / "runs", notified.set)
    yield hints
    hints.stop()


def test_a_file_in_a_new_directory_is_a_hint(tmp_path: Path, hints: Hints, notified: threading.Event) -> None:
    (tmp_path / "runs").mkdir()
    hints.keep_watching()
    (tmp_path / "runs" / "checkpoint-1").mkdir()
    assert notified.wait(20)


def test_a_root_that_appears_later_or_is_replaced_is_watched(
    tmp_path: Path, hints: Hints, notified: threading.Event
) -> None:
    hints.keep_watching()
    for _ in range(2):
        (tmp_path / "runs").mkdir()
        # Several rounds: the first hint may be the last one of the directory before.
        for number in range(3):
            notified.clear()
            deadline = time.monotonic() + 20
            while not notified.wait(0.1):
                assert time.monotonic() < deadline
                hints.keep_watching()
                (tmp_path / "runs" / f"file-{number}").touch()
        (tmp_path / "runs").rename(tmp_path / "aside")
        shutil.rmtree(tmp_path / "aside")


def test_reading_is_no_hint_and_writing_is(hints: Hints, notified: threading.Event) -> None:
    for event in (FileOpenedEvent("x"), FileClosedNoWriteEvent("x")):
        hints.on_any_event(event)
        assert not notified.is_set()
    for change in (FileClosedEvent("x"), DirModifiedEvent("x")):
        hints.on_any_event(change)
        assert notified.is_set()
        notified.clear()
