"""What people may ask of a running daemon through its control socket (``control`` carries the messages)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from .ledger import Ledger
from .sightings import Sightings
from .state import Entry, Stage
from .state_directory import StateDirectory

__all__ = ["Commands"]


class Commands:
    """Answers one request at a time.

    Args:
        root: the watched directory.
        look: lists it again.
    """

    def __init__(
        self, root: Path, state: StateDirectory, ledger: Ledger, sightings: Sightings, look: Callable[[], object]
    ) -> None:
        self._root = root
        self._state = state
        self._ledger = ledger
        self._sightings = sightings
        self._look = look

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """``paused`` and ``pending``, or ``error`` if the request is refused."""
        match request.get("command"):
            case "pause":
                self._state.set_paused(True)
            case "resume":
                self._state.set_paused(False)
            case "drain":
                self._look()
                self._ledger.retry_now()
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
        path, root = Path(text).resolve(), self._root.resolve()
        if not path.is_relative_to(root):
            return f"{path} is not below {root}"
        name = path.relative_to(root).as_posix()
        fingerprint = next((o.fingerprint for o in self._sightings.observations() if o.name == name), None)
        if fingerprint is None:
            return f"{path} is no checkpoint that the daemon sees"
        entry = self._ledger.entries.get(name) or Entry(name, Stage.SEEN, "", fingerprint)
        if entry.stage in (Stage.PACKING, Stage.PACKED, Stage.PUBLISHING):
            return None
        if entry.stage is Stage.PUBLISHED and entry.fingerprint == fingerprint:
            return None
        entry = replace(entry, stage=Stage.SEEN, reason="was submitted", fingerprint=fingerprint)
        self._ledger.save(replace(entry, attempts=0, submitted=True))
        return None

    def _pending(self) -> list[str]:
        """Checkpoints that are not published yet, but could be."""
        entries = self._ledger.entries
        waiting = {
            entry.name
            for entry in entries.values()
            if entry.stage not in (Stage.PUBLISHED, Stage.SKIPPED) and not entry.reason.startswith("not finished")
        }
        return sorted(waiting | {o.name for o in self._sightings.observations() if o.name not in entries})
