"""When retention acts: one removal at a time, while nothing else is going on. Which ones, ``retention`` decides."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection
from pathlib import Path

from .crew import Crew
from .ledger import Ledger
from .retention import RetentionPolicy, base_checkpoints, best_checkpoints, removable
from .sightings import Sightings

__all__ = ["Retainer"]

_log = logging.getLogger(__name__)

_PAUSE_SECONDS = 3600.0
"""Between two attempts to remove the same checkpoint, or two lines about a dry run."""


class Retainer:
    """Does nothing without a policy. The directories ``bases`` are never removed."""

    def __init__(
        self,
        policy: RetentionPolicy | None,
        bases: Collection[Path],
        ledger: Ledger,
        sightings: Sightings,
        crew: Crew,
    ) -> None:
        self._policy = policy
        self._bases = bases
        self._ledger = ledger
        self._sightings = sightings
        self._crew = crew
        self._waits: dict[str, float] = {}

    def act(self) -> None:
        """Begin to remove one local original that is not to be kept."""
        if self._policy is None or self._crew.busy:
            return
        listings, now = self._sightings.listings(), time.monotonic()
        needed = best_checkpoints(listings) | base_checkpoints(listings, self._bases)
        for name in removable(self._ledger.entries, listings, needed, self._policy):
            if now < self._waits.get(name, 0.0):
                continue
            self._waits[name] = now + _PAUSE_SECONDS
            if not self._policy.dry_run:
                self._crew.remove(name)
                return
            _log.info("%s: retention would remove it (dry run)", name)
