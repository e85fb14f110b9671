"""The run loop: list, plan, act, wait. Decisions are the planner's, work is done by child processes."""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import signal
import time
from collections.abc import Iterator
from types import FrameType

from .child import Child
from .claim import Claim
from .commands import Commands
from .completeness import inspect
from .config import Config
from .control import ControlServer
from .crew import Crew
from .ledger import Ledger
from .listing import list_checkpoints
from .metrics import write_metrics
from .notify import Notifier
from .page import StatusPage
from .planner import Action, Inspect, Note, Pack, Policy, Publish, plan
from .retainer import Retainer
from .sightings import Sightings
from .state import Journal
from .state_directory import StateDirectory
from .status import read_status
from .watch import Hints

__all__ = ["run"]

_log = logging.getLogger(__name__)

_LEAST_RESCAN_SECONDS = 0.5
"""Between two listings, however many events come: a checkpoint being written causes thousands."""


def run(config: Config) -> None:
    """Run until SIGTERM or SIGINT; a second signal leaves at once. Call from the main thread.

    Raises:
        ConfigError: another daemon works on this state, or publishes this folder to this hub.
        StorageError: the state directory or the journal cannot be used.
    """
    with (
        StateDirectory(config.state_path) as state,
        Claim(config.watch_path, config.hub, config.hub_name),
        Journal(state.journal) as journal,
    ):
        service = _Service(config, state, journal)
        with service.signals():
            service.run()


class _Service:
    def __init__(self, config: Config, state: StateDirectory, journal: Journal) -> None:
        self._config = config
        self._policy = Policy(config.settle_seconds, config.plain_settle_seconds, config.rescan_seconds)
        self._state = state
        self._selector = selectors.DefaultSelector()
        self._ledger = Ledger(journal, self._write_metrics)
        self._sightings = Sightings()
        self._crew = Crew(config, state, self._ledger, self._selector)
        bases = (config.base_path, *config.other_bases)
        self._retainer = Retainer(config.retention, bases, self._ledger, self._sightings, self._crew)
        self._notifier = Notifier()
        self._stopping = False
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)
        self._selector.register(self._wake_read, selectors.EVENT_READ)

    @contextlib.contextmanager
    def signals(self) -> Iterator[None]:
        """Let signals stop the loop; closes the service's file descriptors in the end."""
        handlers = {number: signal.signal(number, self._on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
        old_wakeup = signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(old_wakeup)
            for number, handler in handlers.items():
                signal.signal(number, handler)
            self._selector.close()
            os.close(self._wake_read)
            os.close(self._wake_write)

    def run(self) -> None:
        self._ledger.recover(self._state)
        self._crew.drop_outdated_copies()  # of a life that ended just after it had published
        self._crew.remove_hub_leftovers()
        hints = Hints(self._config.watch_path, self._wake) if self._config.events else None
        commands = Commands(self._config.watch_path, self._state, self._ledger, self._sightings, self._look)
        control = ControlServer(self._config.state_path, commands.answer)
        page = None
        try:
            self._selector.register(control, selectors.EVENT_READ)
            if self._config.status_port is not None:
                page = StatusPage(self._config.status_port, lambda: read_status(self._config))
                _log.info("status page at http://127.0.0.1:%d/", page.port)
            _log.info("watching %s for checkpoints to publish to %s", self._config.watch_path, self._config.hub)
            self._notifier.ready(f"watching {self._config.watch_path}")
            while not self._stopping:
                if hints is not None:
                    hints.keep_watching()
                listed = self._look()
                self._wait(listed, min(self._act(), self._notifier.interval))
        finally:
            self._notifier.stopping()
            self._selector.unregister(control)
            control.close()
            if page is not None:
                page.close()
            if hints is not None:
                hints.stop()
            self._crew.stop(self._config.stop_seconds, self._wait_for_workers)

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        if self._stopping:
            # The workers end themselves when their standard input does.
            os._exit(128 + number)
        self._stopping = True

    def _wake(self) -> None:
        # A full pipe wakes, too; a closed one has nobody to wake.
        with contextlib.suppress(OSError):
            os.write(self._wake_write, b"\0")

    def _look(self) -> float:
        """List everything; when, on the clock that never jumps."""
        self._notifier.alive()
        listed = time.monotonic()
        self._sightings.update(list_checkpoints(self._config.watch_path), listed)
        return listed

    def _act(self) -> float:
        """Do what there is to do; the seconds after which to look again."""
        while not self._stopping:
            steps = plan(
                self._ledger.entries,
                self._sightings.observations(),
                policy=self._policy,
                waits=self._ledger.waits,
                may_pack=not self._crew.packing and not self._state.paused,
                may_publish=not self._crew.publishing and not self._state.paused,
                hub_closed_for=self._ledger.hub_closed_for,
            )
            if not steps.actions:
                if not self._state.paused:
                    self._retainer.act()
                return steps.wake_in
            for action in steps.actions:
                self._do(action)
            self._notifier.alive()
        return 0.0

    def _do(self, action: Action) -> None:
        match action:
            case Note():
                self._ledger.note(action)
            case Inspect(name):
                submitted = self._ledger.entries[name].submitted
                self._sightings.judge(name, inspect(self._sightings.listing(name), submitted=submitted))
            case Pack(name):
                self._crew.pack(name, resumable=action.resumable)
            case Publish(name):
                self._crew.publish(name)

    def _wait(self, listed: float, seconds: float) -> None:
        """Until ``seconds`` are over, a child has ended, something changed, or a signal came."""
        deadline = time.monotonic() + seconds
        while not self._stopping and (left := deadline - time.monotonic()) > 0:
            for key, _ in self._selector.select(left):
                if isinstance(key.fileobj, Child):
                    if self._crew.take_result(key.fileobj):
                        return
                elif isinstance(key.fileobj, ControlServer):
                    key.fileobj.serve()
                    return
                else:
                    self._empty_pipe()
                    deadline = min(deadline, listed + _LEAST_RESCAN_SECONDS)

    def _wait_for_workers(self, seconds: float) -> None:
        self._notifier.alive()
        for key, _ in self._selector.select(min(seconds, self._notifier.interval)):
            if isinstance(key.fileobj, Child):
                self._crew.take_result(key.fileobj)
            else:
                self._empty_pipe()

    def _empty_pipe(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake_read, 65536)

    def _write_metrics(self) -> None:
        if self._config.metrics_path is None:
            return
        try:
            write_metrics(self._config.metrics_path, read_status(self._config))
        except OSError as error:
            _log.warning("metrics cannot be written: %s", error)
