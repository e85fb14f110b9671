"""The run loop: list, plan, act, wait. Decisions are the planner's, work is done by child processes."""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

from ddct_format.errors import DdctError, HubError
from ddct_format.hub import open_hub

from .child import Child
from .completeness import inspect
from .config import Config
from .control import ControlServer
from .listing import list_checkpoints
from .metrics import write_metrics
from .notify import Notifier
from .page import StatusPage
from .planner import Action, Inspect, Note, Pack, Policy, Publish, plan, retry_delay
from .publish import publish_job, published_name, remove_job
from .retention import best_checkpoints, removable
from .sightings import Sightings
from .state import Entry, Journal, Stage, recover
from .state_directory import StateDirectory
from .status import read_status
from .watch import Hints

__all__ = ["run"]

_log = logging.getLogger(__name__)

_LEAST_RESCAN_SECONDS = 0.5
"""Between two listings, however many events come: a checkpoint being written causes thousands."""

_RETENTION_PAUSE_SECONDS = 3600.0
"""Between two attempts to remove the same checkpoint, or two lines about a dry run."""


def run(config: Config) -> None:
    """Run until SIGTERM or SIGINT; a second signal leaves at once. Call from the main thread.

    Raises:
        ConfigError: another daemon works on this state.
        StorageError: the state directory or the journal cannot be used.
    """
    with StateDirectory(config.state_path) as state, Journal(state.journal) as journal:
        service = _Service(config, state, journal)
        with service.signals():
            service.run()


class _Service:
    def __init__(self, config: Config, state: StateDirectory, journal: Journal) -> None:
        self._config = config
        self._policy = Policy(config.settle_seconds, config.plain_settle_seconds, config.rescan_seconds)
        self._state = state
        self._journal = journal
        self._entries: dict[str, Entry] = {}
        self._sightings = Sightings()
        self._notifier = Notifier()
        self._packing: Child | None = None
        self._publishing: Child | None = None
        self._removing: Child | None = None
        self._retention_waits: dict[str, float] = {}
        self._stopping = False
        self._hub_opens_at = time.monotonic()
        self._selector = selectors.DefaultSelector()
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
        self._recover()
        _log.info("watching %s for checkpoints to publish to %s", self._config.watch_path, self._config.hub)
        hints = Hints(self._config.watch_path, self._wake) if self._config.events else None
        control = ControlServer(self._config.state_path, self._command)
        page = None
        try:
            self._selector.register(control, selectors.EVENT_READ)
            if self._config.status_port is not None:
                page = StatusPage(self._config.status_port, lambda: read_status(self._config))
                _log.info("status page at http://127.0.0.1:%d/", page.port)
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
            self._stop()

    def _look(self) -> float:
        """List everything; when, on the clock that never jumps."""
        self._notifier.alive()
        listed = time.monotonic()
        self._sightings.update(list_checkpoints(self._config.watch_path), listed)
        return listed

    def _command(self, request: dict[str, Any]) -> dict[str, Any]:
        """Answer a client of the control socket."""
        match request.get("command"):
            case "pause":
                self._state.set_paused(True)
            case "resume":
                self._state.set_paused(False)
            case "drain":
                self._look()
                for entry in self._entries.values():
                    if entry.stage is Stage.FAILED:
                        self._save(replace(entry, retry_at=0.0))
            case "submit":
                self._look()
                problem = self._submit(str(request.get("path")))
                if problem is not None:
                    return {"error": problem}
            case "status":
                pass
            case _:
                return {"error": "there is no such command"}
        return {"paused": self._state.paused, "pending": self._pending()}

    def _submit(self, text: str) -> str | None:
        """Take somebody's word that a checkpoint is finished; why not, if not."""
        path, root = Path(text).resolve(), self._config.watch_path.resolve()
        if not path.is_relative_to(root):
            return f"{path} is not below {root}"
        name = path.relative_to(root).as_posix()
        fingerprint = next((o.fingerprint for o in self._sightings.observations() if o.name == name), None)
        if fingerprint is None:
            return f"{path} is no checkpoint that the daemon sees"
        entry = self._entries.get(name) or Entry(name, Stage.SEEN, "", fingerprint)
        if entry.stage in (Stage.PACKING, Stage.PACKED, Stage.PUBLISHING):
            return None
        if entry.stage is Stage.PUBLISHED and entry.fingerprint == fingerprint:
            return None
        reason = "was submitted"
        self._save(replace(entry, stage=Stage.SEEN, reason=reason, fingerprint=fingerprint, attempts=0, submitted=True))
        return None

    def _pending(self) -> list[str]:
        """Checkpoints that are not published yet, but could be."""
        waiting = {
            entry.name
            for entry in self._entries.values()
            if entry.stage not in (Stage.PUBLISHED, Stage.SKIPPED) and not entry.reason.startswith("not finished")
        }
        return sorted(waiting | {o.name for o in self._sightings.observations() if o.name not in self._entries})

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        if self._stopping:
            # The workers end themselves when their standard input does.
            os._exit(128 + number)
        self._stopping = True

    def _wake(self) -> None:
        # A full pipe wakes, too; a closed one has nobody to wake.
        with contextlib.suppress(OSError):
            os.write(self._wake_write, b"\0")

    def _recover(self) -> None:
        """Take over from the last life of the daemon."""
        for entry in self._journal.load().values():
            there = bool(entry.archive) and self._state.archive(entry.archive).is_file()
            recovered = recover(entry, archive_there=there)
            self._entries[entry.name] = recovered
            if recovered != entry:
                self._save(recovered)
        self._state.remove_orphans([entry.archive for entry in self._entries.values() if entry.archive])
        self._remove_hub_leftovers()

    def _remove_hub_leftovers(self) -> None:
        try:
            open_hub(self._config.hub, self._config.hub_options).remove_leftovers()
        except HubError as error:
            _log.warning("the hub cannot be used now: %s", error)

    def _act(self) -> float:
        """Do what there is to do; the seconds after which to look again."""
        while not self._stopping:
            steps = plan(
                self._entries,
                self._sightings.observations(),
                now=time.time(),
                policy=self._policy,
                may_pack=self._packing is None and not self._state.paused,
                may_publish=self._publishing is None and not self._state.paused,
                hub_closed_for=max(0.0, self._hub_opens_at - time.monotonic()),
            )
            if not steps.actions:
                self._retain()
                return steps.wake_in
            for action in steps.actions:
                self._do(action)
            self._notifier.alive()
        return 0.0

    def _do(self, action: Action) -> None:
        match action:
            case Note():
                self._note(action)
            case Inspect(name):
                submitted = self._entries[name].submitted
                self._sightings.judge(name, inspect(self._sightings.listing(name), submitted=submitted))
            case Pack():
                self._start_pack(action)
            case Publish(name):
                self._start_publish(self._entries[name])

    def _note(self, note: Note) -> None:
        entry = self._entries.get(note.name) or Entry(note.name, note.stage, note.reason, "")
        if entry.fingerprint != note.fingerprint:
            entry = replace(entry, attempts=0, submitted=False)
        self._save(replace(entry, stage=note.stage, reason=note.reason, fingerprint=note.fingerprint))

    def _start_pack(self, action: Pack) -> None:
        entry, config = self._entries[action.name], self._config
        try:
            published_name(config, action.name)
        except HubError as error:
            self._save(replace(entry, stage=Stage.SKIPPED, reason=error.reason))
            return
        try:
            self._state.check_space(config.reserve_bytes)
            archive = self._state.new_archive()
            job = {
                "job": "pack",
                "name": action.name,
                "watch": str(config.watch_path),
                "fingerprint": action.fingerprint,
                "bases": [str(base) for base in (config.base_path, *config.other_bases)],
                "out": str(self._state.archive(archive)),
                "preset": config.preset,
                "device": config.device,
                "threads": config.threads,
                "nice": config.nice,
                "memory": config.memory_bytes,
                "base_names": {str(config.base_path): config.base_repo} if config.base_repo else {},
            }
            reason = f"is packed with preset {config.preset}"
            self._save(replace(entry, stage=Stage.PACKING, reason=reason, resumable=action.resumable, archive=archive))
            self._packing = Child(job, threads=config.threads, device=config.device)
        except DdctError as error:
            self._fail(entry, str(error))
            return
        self._selector.register(self._packing, selectors.EVENT_READ)

    def _retain(self) -> None:
        """Begin to remove one local original that is not to be kept, if nothing else is going on."""
        policy = self._config.retention
        if policy is None or self._children() or self._state.paused:
            return
        listings = self._sightings.listings()
        for name in removable(self._entries, listings, best_checkpoints(listings), policy):
            entry = self._entries[name]
            if time.monotonic() < self._retention_waits.get(name, 0.0):
                continue
            self._retention_waits[name] = time.monotonic() + _RETENTION_PAUSE_SECONDS
            if policy.dry_run:
                _log.info("%s: retention would remove it (dry run)", name)
                continue
            try:
                self._removing = Child(remove_job(self._config, entry))
            except DdctError as error:
                _log.warning("%s: not removed: %s", name, error)
                return
            self._selector.register(self._removing, selectors.EVENT_READ)
            return

    def _removed(self, entry: Entry, result: dict[str, Any]) -> None:
        if result["outcome"] != "removed":
            _log.warning("%s: not removed: %s", entry.name, result["reason"])
            return
        now = time.time()
        self._save(replace(entry, verified_at=now, removed_at=now))

    def _start_publish(self, entry: Entry) -> None:
        try:
            job = publish_job(self._config, entry, self._state.archive(entry.archive))
            self._save(replace(entry, stage=Stage.PUBLISHING, reason=f"goes to {self._config.hub}"))
            self._publishing = Child(job)
        except DdctError as error:
            self._fail(entry, str(error))
            return
        self._selector.register(self._publishing, selectors.EVENT_READ)

    def _wait(self, listed: float, seconds: float) -> None:
        """Until ``seconds`` are over, a child has ended, something changed, or a signal came."""
        deadline = time.monotonic() + seconds
        while not self._stopping and (left := deadline - time.monotonic()) > 0:
            for key, _ in self._selector.select(left):
                if isinstance(key.fileobj, Child):
                    if self._take_result(key.fileobj):
                        return
                elif isinstance(key.fileobj, ControlServer):
                    key.fileobj.serve()
                    return
                else:
                    with contextlib.suppress(BlockingIOError):
                        os.read(self._wake_read, 65536)
                    deadline = min(deadline, listed + _LEAST_RESCAN_SECONDS)

    def _take_result(self, child: Child) -> bool:
        if not child.finished():
            return False
        self._selector.unregister(child)
        result = child.result()
        if child is self._removing:
            self._removing = None
            self._removed(self._entries[child.name], result)
        elif child is self._packing:
            self._packing = None
            self._packed(self._entries[child.name], result)
        else:
            self._publishing = None
            self._published(self._entries[child.name], result)
        return True

    def _packed(self, entry: Entry, result: dict[str, Any]) -> None:
        if result["outcome"] == "packed":
            report = result["report"]
            self._save(
                replace(
                    entry,
                    stage=Stage.PACKED,
                    reason="waits to be published",
                    attempts=0,
                    sha256=report["file_sha256"],
                    size=report["file_size"],
                    content_id=report["content_id"],
                    base_id=report["base_id"],
                    target_id=report["target_id"],
                    original_size=report["original_size"],
                    bits_per_weight=report["bits_per_weight"],
                    error=report["error"],
                )
            )
            return
        archive, entry = entry.archive, replace(entry, archive="")
        if result["outcome"] == "changed":
            self._save(replace(entry, stage=Stage.SEEN, reason=result["reason"]))
        elif result["outcome"] == "unusable":
            self._save(replace(entry, stage=Stage.SKIPPED, reason=result["reason"]))
        else:
            self._fail(entry, result["reason"])
        self._state.remove_archive(archive)

    def _published(self, entry: Entry, result: dict[str, Any]) -> None:
        if result["outcome"] != "published":
            self._fail(entry, result["reason"], at_least=result.get("retry_after") or 0.0)
            return
        archive = entry.archive
        self._save(
            replace(
                entry,
                stage=Stage.PUBLISHED,
                reason=f"as {published_name(self._config, entry.name)}",
                attempts=0,
                archive="",
                published_sha256=result["sha256"],
            )
        )
        self._state.remove_archive(archive)

    def _fail(self, entry: Entry, reason: str, *, at_least: float = 0.0) -> None:
        """Note a failure; ``at_least``: seconds for which the hub wants to be left alone, by all checkpoints."""
        attempts = entry.attempts + 1
        self._hub_opens_at = max(self._hub_opens_at, time.monotonic() + at_least)
        retry_at = time.time() + max(retry_delay(attempts), at_least)
        self._save(replace(entry, stage=Stage.FAILED, reason=reason, attempts=attempts, retry_at=retry_at))

    def _save(self, entry: Entry) -> None:
        entry = replace(entry, updated_at=time.time())
        self._journal.save(entry)
        self._entries[entry.name] = entry
        self._write_metrics()
        _log.info("%s: %s: %s", entry.name, entry.stage, entry.reason)

    def _write_metrics(self) -> None:
        if self._config.metrics_path is None:
            return
        try:
            write_metrics(self._config.metrics_path, read_status(self._config))
        except OSError as error:
            _log.warning("metrics cannot be written: %s", error)

    def _children(self) -> list[Child]:
        return [child for child in (self._packing, self._publishing, self._removing) if child is not None]

    def _stop(self) -> None:
        """Let running work end within the budget, then abandon it, cleanly."""
        deadline = time.monotonic() + self._config.stop_seconds
        while self._children() and (left := deadline - time.monotonic()) > 0:
            self._notifier.alive()
            for key, _ in self._selector.select(min(left, self._notifier.interval)):
                if isinstance(key.fileobj, Child):
                    self._take_result(key.fileobj)
                else:
                    with contextlib.suppress(BlockingIOError):
                        os.read(self._wake_read, 65536)
        for child in self._children():
            self._selector.unregister(child)
            child.kill()
            entry = self._entries[child.name]
            if child is self._removing:
                continue
            if child is self._packing:
                self._state.remove_archive(entry.archive)
                entry = replace(entry, archive="")
            else:
                self._remove_hub_leftovers()
            self._save(recover(entry, archive_there=bool(entry.archive)))
        self._packing = self._publishing = self._removing = None
