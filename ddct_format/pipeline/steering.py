"""Meeting a target that was searched for on samples: the rest of the model makes up for what the first part took.

A sample's forecast is off by a per cent or so. Twice on its way the final pass compares what was written with what was
forecast, and gives the tensors that are left other steps if the whole would miss its target. Only if that was not
enough, all is encoded again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from .drafts import Draft
from .encoding import Encoded, Encoding

__all__ = ["Forecast", "Goal"]

_BITS_WINDOW = (0.985, 0.997)
_BITS_MISSED = (0.98, 0.9995)
_SPARE_BYTES = 96
"""Never above the target, with a little for what the metadata may take beyond the forecast; more in small models."""
_ERROR_MISSED = (0.95, 1.0)
_CHECKPOINTS = (0.5, 0.85)
"""Shares of the model's bytes after which the forecast is compared."""
_BITS_SLOPE = 1.1
"""Halving the steps takes about twice the bits, and a little more."""
_ERROR_SLOPE = 1.5
_STRONGEST = 1.5


@dataclass(frozen=True, slots=True)
class Goal:
    """What one preset's tensors should come to.

    Attributes:
        names: of all of them.
        drafts: of each, at the steps that were chosen.
        target: bytes of payloads if ``in_bytes``, else the relative squared error.
        reached: whether the search found steps that meet it; if not, there is nothing to correct.
        strict: whether it must be met at any price.
    """

    names: frozenset[str]
    drafts: Mapping[str, Draft]
    target: float
    in_bytes: bool
    reached: bool
    strict: bool


class Forecast:
    """What is known of the final pass.

    Args:
        goals: none where nothing was sampled, for then drafts were exact.
    """

    def __init__(self, encoding: Encoding, goals: Sequence[Goal] = ()) -> None:
        self._encoding = encoding
        self._goals = [goal for goal in goals if goal.reached]
        self._expected = {name: float(draft.stored) for goal in goals for name, draft in goal.drafts.items()}
        self._done: dict[str, Encoded] = {}
        self.must_be_met = False
        """Whether a target that the last pass missed allows no exception."""

    def encode_all(self) -> Iterator[Encoded]:
        """Encode the model, its tensors in any order, changing steps on the way where that is needed."""
        self._done = {}
        names = list(self._encoding.presets)
        last: Encoded | None = None
        for part in self._parts(names):
            for item in self._encoding.encode_all(part):
                self._done[item.record.name] = Encoded(item.record, (), item.noise, item.energy, item.stored)
                if last is not None:  # it is written while the next part has begun
                    yield last
                last = item
            for goal in self._goals:
                if goal.in_bytes:
                    self._correct(goal)
        if last is not None:
            yield last

    def finished(self) -> list[Encoded]:
        """What the last pass made, without the payloads, in the archive's order."""
        return [self._done[name] for name in self._encoding.presets]

    def missed(self) -> bool:
        """Whether the pass that has ended missed a target; steps are other ones then, for another pass."""
        missed = self.must_be_met = False
        for goal in self._goals:
            items = [self._done[name] for name in goal.names]
            if goal.in_bytes:
                found, (low, high), slope = float(sum(item.stored for item in items)), _BITS_MISSED, -_BITS_SLOPE
                high = min(high, 1 - _SPARE_BYTES / goal.target)
                for name in goal.names:
                    self._expected[name] = self._done[name].stored
            else:
                energy = sum(item.energy for item in items)
                found = sum(item.noise for item in items) / energy if energy else 0.0
                (low, high), slope = _ERROR_MISSED, _ERROR_SLOPE
            if not low * goal.target <= found <= high * goal.target:
                missed = True
                self.must_be_met |= goal.strict
                self._scale(goal.names, ((low + high) / 2 * goal.target / max(found, 1e-12)) ** (1 / slope))
        return missed

    def _parts(self, names: list[str]) -> list[list[str]]:
        if not self._goals:
            return [names]
        sizes = [self._encoding.target.tensors[name].nbytes for name in names]
        parts: list[list[str]] = [[]]
        reached, limits = 0, [share * sum(sizes) for share in _CHECKPOINTS]
        for name, size in zip(names, sizes, strict=True):
            if limits and reached >= limits[0]:
                limits.pop(0)
                parts.append([])
            parts[-1].append(name)
            reached += size
        return parts

    def _correct(self, goal: Goal) -> None:
        left = [name for name in goal.names if name not in self._done]
        known = [name for name in goal.names if name in self._done]
        taken, forecast = sum(self._done[name].stored for name in known), sum(self._expected[name] for name in known)
        rest = sum(self._expected[name] for name in left) * (taken / forecast if forecast else 1.0)
        low, high = (share * goal.target for share in _BITS_WINDOW)
        if not rest or low <= taken + rest <= high:
            return
        factor = min(max(((low + high) / 2 - taken) / rest, 1 / _STRONGEST), _STRONGEST)
        self._scale(left, factor ** (-1 / _BITS_SLOPE))
        for name in left:
            self._expected[name] *= factor

    def _scale(self, names: frozenset[str] | list[str], factor: float) -> None:
        steps = self._encoding.steps
        steps.update((name, steps[name] * factor) for name in names if name in steps)
