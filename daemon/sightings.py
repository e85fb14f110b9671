"""What the listings so far have shown: since when each checkpoint has been as it is, and its verdict."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .completeness import Verdict
from .listing import Listing
from .planner import Observation

__all__ = ["Sightings"]


@dataclass(slots=True)
class _Sighting:
    listing: Listing
    first: float
    last: float
    verdict: Verdict | None = None


class Sightings:
    """Kept in memory only: a daemon that starts again looks again."""

    def __init__(self) -> None:
        self._sightings: dict[str, _Sighting] = {}

    def update(self, listings: Iterable[Listing], now: float) -> None:
        """Take in a listing of everything, made at ``now`` (seconds of a clock that never jumps)."""
        current = {}
        for listing in listings:
            sighting = self._sightings.get(listing.name)
            if sighting is None or sighting.listing.fingerprint != listing.fingerprint:
                sighting = _Sighting(listing, now, now)
            sighting.last = now
            if sighting.verdict is not None and not sighting.verdict.weights:
                # What is missing may be a file beside the checkpoint, which no fingerprint covers.
                sighting.verdict = None
            current[listing.name] = sighting
        self._sightings = current

    def listing(self, name: str) -> Listing:
        return self._sightings[name].listing

    def listings(self) -> list[Listing]:
        return [sighting.listing for sighting in self._sightings.values()]

    def judge(self, name: str, verdict: Verdict) -> None:
        """Keep the verdict until the checkpoint changes."""
        self._sightings[name].verdict = verdict

    def observations(self) -> list[Observation]:
        """For the planner."""
        return [
            Observation(name, s.listing.kind, s.listing.fingerprint, s.last - s.first, s.verdict)
            for name, s in self._sightings.items()
        ]
