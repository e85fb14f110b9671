"""Reconstruction levels and a gain for quantised values."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..backends.encoder import LARGEST_MAGNITUDE
from .quantiser import choose_gain

__all__ = ["COARSE_DEAD_ZONE", "DEAD_ZONE", "GAIN_LIMIT", "Quantised", "choose_levels"]

DEAD_ZONE = 0.2
"""A value is rounded up from 0.7 steps on: the bits saved by more zeros buy a smaller step."""
COARSE_DEAD_ZONE = 0.1
"""Where hardly any value survives: more values with a smaller gain disturb a model less than few with a large one."""
GAIN_LIMIT = 6.0
"""With few values left, an unbiased gain would blow up single weights."""
_FIRST_LEVEL = 16
"""Of magnitude 1, where the others leave room: what is the same in all tensors takes no room in the metadata."""
_UNFITTED_CENTROID = 0.15
"""What a value of magnitude m is above m on average, where measuring it would cost more than it saves."""


@dataclass(frozen=True, slots=True)
class Quantised:
    """What the symbols of a tensor's patches stand for.

    Attributes:
        levels: the integer level of each magnitude, from 0 up.
        levels_per_step: of the reconstruction; not a whole number.
        gain: what the decoded values must be multiplied with.
        noise: squared error after decoding, in squared steps.
    """

    levels: tuple[int, ...]
    levels_per_step: float
    gain: float
    noise: float


def choose_levels(
    counts: npt.NDArray[np.int64],
    sums: npt.NDArray[np.float64],
    energy: float,
    gain_kind: str = "unbiased",
    *,
    fitted: bool = True,
) -> Quantised:
    """One centroid per magnitude, and a gain, from what the quantiser counted.

    The unbiased gain makes the decoded values project onto the true ones with coefficient 1: <y,y> / <y,r>. Least
    squares would shrink them, and a shrunken delta is an under-trained model (spec/adr/0103-gain.md).

    Args:
        counts, sums: how many values of each magnitude there are, and Σ |y| over them.
        energy: Σ y² of all values y.
        fitted: whether centroids are measured or those that are usual.
    """
    absolute = float(sums.sum())
    largest = int(np.flatnonzero(counts).max(initial=0))
    counts, sums = counts[: largest + 1].copy(), sums[: largest + 1].copy()
    counts[0] = sums[0] = 0  # whatever it holds, it is decoded as nothing
    centroids = np.arange(counts.size) + _UNFITTED_CENTROID
    if fitted:
        centroids = np.divide(sums, counts, out=centroids, where=counts > 0)
    lowest, highest = centroids[min(1, largest)], centroids[-1]
    first = _FIRST_LEVEL
    while first > 1 and first * highest > LARGEST_MAGNITUDE * lowest:
        first //= 2
    levels_per_step = first / float(lowest)
    levels = np.minimum(np.rint(centroids * levels_per_step), LARGEST_MAGNITUDE).astype(np.int64)
    levels[0] = 0

    aligned = float((sums * levels).sum()) / levels_per_step
    decoded = float((counts * np.square(levels)).sum()) / levels_per_step**2
    if gain_kind == "unbiased":
        gain = min(GAIN_LIMIT, max(1.0, energy / aligned)) if aligned > 0 else 1.0
    else:
        gain = choose_gain(
            gain_kind,
            energy=energy,
            aligned=aligned,
            decoded=decoded,
            absolute=absolute,
            decoded_absolute=float((counts * levels).sum()) / levels_per_step,
        )
    return Quantised(
        levels=tuple(levels.tolist()),
        levels_per_step=levels_per_step,
        gain=gain,
        noise=energy - 2 * gain * aligned + gain * gain * decoded,
    )
