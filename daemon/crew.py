"""The workers at work: at most one that packs, one that publishes and one that removes; and what becomes of each."""

from __future__ import annotations

import logging
import selectors
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ddct_format.errors import DdctError, HubError
from ddct_format.hub import open_hub

from .chains import dependents, link_for, links_of, outdated_copies
from .child import Child
from .config import Config
from .jobs import pack_job, publish_job, published_name, remove_job
from .ledger import Ledger
from .state import Entry, Stage, recover
from .state_directory import StateDirectory

__all__ = ["Crew"]

_log = logging.getLogger(__name__)


class Crew:
    """Starts workers, registers them with ``selector`` and writes what came of them to the ledger."""

    def __init__(self, config: Config, state: StateDirectory, ledger: Ledger, selector: selectors.BaseSelector) -> None:
        self._config = config
        self._state = state
        self._ledger = ledger
        self._selector = selector
        self._packing: Child | None = None
        self._publishing: Child | None = None
        self._removing: Child | None = None

    @property
    def packing(self) -> bool:
        return self._packing is not None

    @property
    def publishing(self) -> bool:
        return self._publishing is not None

    @property
    def busy(self) -> bool:
        return bool(self._children())

    def pack(self, name: str, *, resumable: bool) -> None:
        """Begin to pack a checkpoint, or note why not."""
        entry, config = self._ledger.entries[name], self._config
        others = dependents(self._ledger.entries, name)
        if others:
            # Its archive is the base of theirs: replaced, theirs could not be decoded any more.
            reason = f"was published before, and {', '.join(others)} packed against that; it is not replaced"
            self._ledger.save(replace(entry, stage=Stage.SKIPPED, reason=reason))
            return
        try:
            published_name(config, name)
        except HubError as error:
            self._ledger.save(replace(entry, stage=Stage.SKIPPED, reason=error.reason))
            return
        try:
            self._state.check_space(config.reserve_bytes)
            archive = self._state.new_archive()
            link = link_for(self._ledger.entries, name, config.chain)
            job = pack_job(
                config,
                entry,
                self._state.archive(archive),
                link=None if link is None else (link, self._state.decoded(link.decoded)),
                decoded=self._state.decoded(archive) if config.chain else None,
            )
            reason = f"is packed with preset {config.preset}" + (f" against {link.name}" if link else "")
            packing = replace(entry, stage=Stage.PACKING, reason=reason, resumable=resumable, archive=archive)
            # Already now, so that the link is not replaced meanwhile.
            linked = replace(packing, link=link.name if link else "", links=link.links + 1 if link else 0)
            self._ledger.save(replace(linked, decoded=""))
            self._state.remove_archive(entry.decoded)
            self._packing = self._start(
                job, threads=config.threads, device=config.device, gpu_memory=config.gpu_memory_bytes
            )
            self._state.remove_archive(entry.archive)  # of a checkpoint that was submitted anew before it was published
        except DdctError as error:
            self._ledger.fail(entry, str(error))

    def publish(self, name: str) -> None:
        """Begin to publish a packed checkpoint, or note why not."""
        entry = self._ledger.entries[name]
        try:
            job = publish_job(self._config, entry, self._state.archive(entry.archive))
            self._ledger.save(replace(entry, stage=Stage.PUBLISHING, reason=f"goes to {self._config.hub}"))
            self._publishing = self._start(job)
        except DdctError as error:
            self._ledger.fail(entry, str(error))

    def remove(self, name: str) -> None:
        """Begin to remove the local original of a published checkpoint, or log why not."""
        entries = self._ledger.entries
        try:
            self._removing = self._start(remove_job(self._config, entries[name], links_of(entries, name)))
        except KeyError as error:
            _log.warning("%s: not removed: %s, which it was packed against, is not in the journal", name, error)
        except DdctError as error:
            _log.warning("%s: not removed: %s", name, error)

    def take_result(self, child: Child) -> bool:
        """Read from a worker that has something to say; whether it has ended."""
        if not child.finished():
            return False
        self._selector.unregister(child)
        result, entry = child.result(), self._ledger.entries[child.name]
        if child is self._removing:
            self._removing = None
            self._removed(entry, result)
        elif child is self._packing:
            self._packing = None
            self._packed(entry, result)
        else:
            self._publishing = None
            self._published(entry, result)
        return True

    def stop(self, seconds: float, wait: Callable[[float], None]) -> None:
        """Let running work end within the budget, then abandon it, cleanly.

        Args:
            wait: waits for at most so many seconds, and takes the results that come.
        """
        deadline = time.monotonic() + seconds
        while self.busy and (left := deadline - time.monotonic()) > 0:
            wait(left)
        for child in self._children():
            self._selector.unregister(child)
            child.kill()
            entry = self._ledger.entries[child.name]
            if child is self._removing:
                continue
            if child is self._packing:
                self._state.remove_archive(entry.archive)
                entry = replace(entry, archive="")
            else:
                self.remove_hub_leftovers()
            self._ledger.save(recover(entry, archive_there=bool(entry.archive), copy_there=bool(entry.decoded)))
        self._packing = self._publishing = self._removing = None

    def drop_outdated_copies(self) -> None:
        """Remove the decoded copies that nothing will be packed against any more."""
        for outdated in outdated_copies(self._ledger.entries, self._config.chain):
            self._drop_copy(outdated)

    def remove_hub_leftovers(self) -> None:
        """Remove what interrupted uploads left on the hub, if it can be reached now."""
        try:
            open_hub(self._config.hub, self._config.hub_options).remove_leftovers()
        except HubError as error:
            _log.warning("the hub cannot be used now: %s", error)

    def _start(self, job: dict[str, object], *, threads: int = 1, device: str = "cpu", gpu_memory: int = 0) -> Child:
        child = Child(job, threads=threads, device=device, gpu_memory=gpu_memory)
        self._selector.register(child, selectors.EVENT_READ)
        return child

    def _children(self) -> list[Child]:
        return [child for child in (self._packing, self._publishing, self._removing) if child is not None]

    def _packed(self, entry: Entry, result: dict[str, Any]) -> None:
        if result["outcome"] == "packed":
            report = result["report"]
            self._ledger.save(
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
                    original_size=report["original_size"] + report["side_files"],
                    bits_per_weight=report[
                        "tensor_bits_per_weight" if self._config.training_state else "bits_per_weight"
                    ],
                    error=report["error"],
                    base=result["base"],
                    left_out=result["left_out"],
                    link=entry.link if result["linked"] else "",
                    links=entry.links if result["linked"] else 0,
                    decoded=entry.archive if result["decoded"] else "",
                )
            )
            self.drop_outdated_copies()
            return
        archive, entry = entry.archive, replace(entry, archive="", link="", links=0)
        if result["outcome"] == "changed":
            self._ledger.save(replace(entry, stage=Stage.SEEN, reason=result["reason"]))
        elif result["outcome"] == "unusable":
            self._ledger.save(replace(entry, stage=Stage.SKIPPED, reason=result["reason"]))
        else:
            self._ledger.fail(entry, result["reason"])
        self._state.remove_archive(archive)

    def _published(self, entry: Entry, result: dict[str, Any]) -> None:
        archive = entry.archive
        if result["outcome"] == "unlinked":
            self._drop_copy(self._ledger.entries[entry.link])
            again = replace(entry, stage=Stage.SEEN, reason=result["reason"], archive="", decoded="", link="", links=0)
            self._ledger.save(again)
            self._state.remove_archive(archive)
            return
        if result["outcome"] != "published":
            self._ledger.fail(entry, result["reason"], at_least=result.get("retry_after") or 0.0)
            return
        self._ledger.save(
            replace(
                entry,
                stage=Stage.PUBLISHED,
                reason=f"as {published_name(self._config, entry.name)}",
                attempts=0,
                archive="",
                published_sha256=result["sha256"],
            )
        )
        self._state.remove_archive(archive, keep_decoded=bool(entry.decoded))
        self.drop_outdated_copies()

    def _drop_copy(self, entry: Entry) -> None:
        """Forget the decoded copy of a checkpoint, then remove it."""
        if entry.decoded:
            self._ledger.save(replace(entry, decoded=""))
            self._state.remove_archive(entry.decoded)

    def _removed(self, entry: Entry, result: dict[str, Any]) -> None:
        if result["outcome"] != "removed":
            _log.warning("%s: not removed: %s", entry.name, result["reason"])
            return
        now = time.time()
        self._ledger.save(replace(entry, verified_at=now, removed_at=now))
