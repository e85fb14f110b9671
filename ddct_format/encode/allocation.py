"""Quantiser steps: how they are shared between tensors, and how the common scale is found."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import pairwise
from math import exp, log

__all__ = ["StepSearch", "relative_steps"]

_SHARING = 0.8
"""The step follows a tensor's deviation to this power. At 1, all tensors get the same bits; at 0, the same error."""
_COARSE_SHARING = 0.6
"""Where hardly any value survives."""
_BITS_TO_SCALE = ((0.05, 4.5), (0.25, 2.7), (0.5, 2.0), (1.0, 1.2), (2.0, 0.55), (3.0, 0.27), (8.0, 0.0085))
_ERROR_TO_SCALE = ((0.0001, 0.02), (0.01, 0.3), (0.1, 1.0), (1.0, 2.5))
_LARGEST_STRIDE = 1.5
_LOOSE_REACH = 1.5
_TRUSTED = (0.05, 0.2)
"""How far from one or two measured scales, in logarithms, a forecast is off by less than a per cent."""
_SMALLEST_SCALE, _LARGEST_SCALE = 1e-3, 1e2


def relative_steps(deviations: Mapping[str, float], *, coarse: bool = False) -> dict[str, float]:
    """Each tensor's step at scale 1, as a multiple of its own deviation (spec/adr/0104-bit-allocation.md).

    Args:
        deviations: of the tensors' deltas; zero where nothing changed.
        coarse: for targets at which hardly any value survives.
    """
    power = _COARSE_SHARING if coarse else _SHARING
    logs = {name: log(deviation) for name, deviation in deviations.items() if deviation > 0}
    mean = sum(logs.values()) / max(len(logs), 1)
    return {name: exp((power - 1) * (logs.get(name, mean) - mean)) for name in deviations}


class StepSearch:
    """Finds the scale of all steps at which a measured quantity (bits or error) meets its target.

    In logarithms of both, the quantity is nearly a straight line: a secant, kept inside a bracket once there is one.

    Args:
        target: the quantity wanted.
        rising: whether it grows with the scale, as an error does, or falls, as bits do.
        low, high: what is near enough, as multiples of the target.
        strict: whether the target must be met at any price. If not, the search stays within reach of the usual scale:
            where fixed costs dominate, as in small models, coarser steps would ruin the model and save nothing.
        corrected: whether the final pass makes up for a small error: what the measurements so far say of a scale near
            them is then as good as another measurement.

    Attributes:
        reached: whether the target was met, or will be.
    """

    def __init__(
        self,
        target: float,
        *,
        rising: bool,
        low: float,
        high: float,
        strict: bool = True,
        corrected: bool = False,
    ) -> None:
        self._aim = log(target * (low + high) / 2)
        self._low, self._high = log(target * low), log(target * high)
        self._rising = rising
        self._points: list[tuple[float, float]] = []
        self._next = _interpolate(target, _ERROR_TO_SCALE if rising else _BITS_TO_SCALE)
        self._strict = strict
        self._corrected = corrected
        self._finest = log(_SMALLEST_SCALE)
        self._coarsest = log(_LARGEST_SCALE) if strict else self._next + log(_LOOSE_REACH)
        self._at_bound = False
        self.done = self.reached = False

    @property
    def scale(self) -> float:
        """The scale to measure next, or the one that was found."""
        return exp(self._next)

    @property
    def exhausted(self) -> bool:
        """Whether the target lies outside of what steps can do."""
        return self._strict and self._at_bound

    def record(self, quantity: float) -> None:
        """Take the measurement at ``scale``."""
        value = log(max(quantity, 1e-12))
        too_coarse = value > self._high if self._rising else value < self._low
        beyond = self._at_bound and too_coarse == (self._next <= self._finest)
        self.reached = self._low <= value <= self._high
        if self.reached or (beyond and not self._strict):
            self.done = True
            return
        self._points.append((self._next, value if self._rising else -value))
        wanted = self._advance(self._aim if self._rising else -self._aim)
        self._next = min(max(wanted, self._finest), self._coarsest)
        self._at_bound = wanted != self._next
        trusted = _TRUSTED[min(len(self._points), len(_TRUSTED)) - 1] if self._corrected else 0.0
        if not self._at_bound and min(abs(self._next - point[0]) for point in self._points) < trusted:
            self.done = self.reached = True

    def _advance(self, aim: float) -> float:
        below = max((p for p in self._points if p[1] < aim), default=None)
        above = min((p for p in self._points if p[1] >= aim), default=None)
        if below is not None and above is not None:
            return _secant(below, above, aim, inside=True)
        last = self._points[-1]
        slope_from = self._points[-2] if len(self._points) > 1 else (last[0] - 1, last[1] - 1.3)
        found = _secant(slope_from, last, aim, inside=False)
        stride = found - last[0]
        if (stride > 0) != (aim > last[1]):
            stride = _LARGEST_STRIDE if aim > last[1] else -_LARGEST_STRIDE
        return last[0] + min(max(stride, -_LARGEST_STRIDE), _LARGEST_STRIDE)


def _secant(first: tuple[float, float], second: tuple[float, float], aim: float, *, inside: bool) -> float:
    rise = second[1] - first[1]
    if abs(rise) < 1e-9:
        return (first[0] + second[0]) / 2
    place = (aim - first[1]) / rise
    if inside:
        place = min(max(place, 0.05), 0.95)
    return first[0] + place * (second[0] - first[0])


def _interpolate(target: float, table: Iterable[tuple[float, float]]) -> float:
    points = [(log(value), log(scale)) for value, scale in table]
    wanted = min(max(log(target), points[0][0]), points[-1][0])
    for left, right in pairwise(points):
        if wanted <= right[0]:
            return _secant((left[1], left[0]), (right[1], right[0]), wanted, inside=False)
    return points[-1][1]
