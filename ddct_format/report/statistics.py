"""Distributions of weights' changes, one pass, a few kilobytes, mergeable."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import numpy as np
import numpy.typing as npt

__all__ = ["Moments", "ValueHistogram"]

_KEY_SHIFT = 17
"""A key is a float32's sign, exponent and six leading mantissa bits: 1.6 % wide, whatever the scale."""
_KEYS = 1 << (32 - _KEY_SHIFT)
_SIGN = _KEYS >> 1
_LARGEST_KEY = 0x7F80_0000 >> _KEY_SHIFT


@dataclass(frozen=True, slots=True)
class Moments:
    """Count, mean and sums of powers of deviations from it, as Pébay (SAND2008-6212) merges them."""

    count: int = 0
    mean: float = 0.0
    m2: float = 0.0
    m3: float = 0.0
    m4: float = 0.0

    @classmethod
    def of(cls, values: npt.NDArray[np.float64]) -> Moments:
        """Of finite values, 1-D."""
        if not values.size:
            return cls()
        mean = float(values.mean())
        deviations = values - mean
        squares = deviations * deviations
        return cls(
            count=values.size,
            mean=mean,
            m2=float(squares.sum()),
            m3=float(squares @ deviations),
            m4=float(squares @ squares),
        )

    def __add__(self, other: Moments) -> Moments:
        if not self.count or not other.count:
            return self if self.count else other
        n, na, nb = self.count + other.count, self.count, other.count
        shift = other.mean - self.mean
        part = shift / n
        return Moments(
            count=n,
            mean=self.mean + nb * part,
            m2=self.m2 + other.m2 + shift * part * na * nb,
            m3=self.m3
            + other.m3
            + shift * part * part * na * nb * (na - nb)
            + 3 * part * (na * other.m2 - nb * self.m2),
            m4=self.m4
            + other.m4
            + shift * part**3 * na * nb * (na * na - na * nb + nb * nb)
            + 6 * part * part * (na * na * other.m2 + nb * nb * self.m2)
            + 4 * part * (na * other.m3 - nb * self.m3),
        )

    @property
    def variance(self) -> float | None:
        """Of the population; None of nothing."""
        return self.m2 / self.count if self.count else None

    @property
    def skewness(self) -> float | None:
        """0 for what is symmetric; None where there is no variance."""
        return sqrt(self.count) * self.m3 / self.m2**1.5 if self.m2**1.5 > 0 else None

    @property
    def kurtosis(self) -> float | None:
        """Excess over that of a normal distribution, whose kurtosis is 0 here; None where there is no variance."""
        return self.count * self.m4 / self.m2**2 - 3 if self.m2**2 > 0 else None


class ValueHistogram:
    """Counts of values over all scales; an interval's count follows from it once the interval is known.

    Attributes:
        counts: int64 [32768], by the leading 15 bits of the values as float32.
    """

    def __init__(self) -> None:
        self.counts: npt.NDArray[np.int64] = np.zeros(_KEYS, dtype=np.int64)

    def add(self, values: npt.NDArray[np.float64]) -> None:
        """Count finite values."""
        with np.errstate(over="ignore"):
            single = values.astype(np.float32) + np.float32(0)  # no −0
        self.counts += np.bincount(single.view(np.uint32) >> np.uint32(_KEY_SHIFT), minlength=_KEYS)

    def merge(self, other: ValueHistogram) -> None:
        self.counts += other.counts

    def between(self, edges: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """About how many values lie between ascending edges, [len − 1]: a key's count is spread over its width."""
        keys = np.flatnonzero(self.counts)
        negative = keys[keys >= _SIGN][::-1]
        ordered = np.concatenate([negative, keys[keys < _SIGN]])
        near, far = _bounds(ordered & (_SIGN - 1))
        low = np.where(ordered >= _SIGN, -far, near)
        high = np.where(ordered >= _SIGN, -near, far)
        until = np.cumsum(self.counts[ordered]).astype(np.float64)
        # Twice the points: the sum stays level in the gaps between keys.
        points = np.stack([low, high], axis=1).reshape(-1)
        sums = np.stack([until - self.counts[ordered], until], axis=1).reshape(-1)
        if not points.size:
            return np.zeros(edges.size - 1)
        found: npt.NDArray[np.float64] = np.diff(np.interp(edges, points, sums))
        return found


def _bounds(keys: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Where the magnitudes of keys begin and end."""
    kept = np.minimum(keys, _LARGEST_KEY - 1).astype(np.uint32)
    near = (kept << np.uint32(_KEY_SHIFT)).view(np.float32).astype(np.float64)
    far = (((kept + np.uint32(1)) << np.uint32(_KEY_SHIFT)) - np.uint32(1)).view(np.float32).astype(np.float64)
    return near, far
