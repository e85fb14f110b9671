"""Coefficients -> symbols, reconstruction levels and a gain."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .quantiser import choose_gain

__all__ = ["COARSE_DEAD_ZONE", "DEAD_ZONE", "GAIN_LIMIT", "LARGEST_MAGNITUDE", "Quantised", "quantise"]

DEAD_ZONE = 0.2
"""A value is rounded up from 0.7 steps on: the bits saved by more zeros buy a smaller step."""
COARSE_DEAD_ZONE = 0.1
"""Where hardly any value survives: more values with a smaller gain disturb a model less than few with a large one."""
GAIN_LIMIT = 6.0
"""With few values left, an unbiased gain would blow up single weights."""
LARGEST_MAGNITUDE = 127
_FIRST_LEVEL = 16
"""Of magnitude 1, where the others leave room: what is the same in all tensors takes no room in the metadata."""
_UNFITTED_CENTROID = 0.15
"""What a value of magnitude m is above m on average, where measuring it would cost more than it saves."""


@dataclass(frozen=True, slots=True)
class Quantised:
    """Symbols of a tensor's patches.

    Symbol 0 is the level 0; 2m−1 and 2m are ±m steps, so that a class may cut the alphabet off anywhere.

    Attributes:
        symbols: uint8 [patches, values].
        magnitudes: uint8 [patches, values].
        levels: the integer level of each magnitude, from 0 up.
        levels_per_step: of the reconstruction; not a whole number.
        gain: what the decoded values must be multiplied with.
        noise: squared error after decoding, in squared steps.
    """

    symbols: npt.NDArray[np.uint8]
    magnitudes: npt.NDArray[np.uint8]
    levels: tuple[int, ...]
    levels_per_step: float
    gain: float
    noise: float


def quantise(
    values: npt.NDArray[np.float32], dead_zone: float = DEAD_ZONE, gain_kind: str = "unbiased", *, fitted: bool = True
) -> Quantised:
    """Quantise values given in steps, float32 [patches, values], with one centroid per magnitude.

    The unbiased gain makes the decoded values project onto the true ones with coefficient 1: <y,y> / <y,r>. Least
    squares would shrink them, and a shrunken delta is an under-trained model (spec/adr/0103-gain.md).
    """
    absolute = np.abs(values)
    shifted = absolute + np.float32(0.5 - dead_zone)
    magnitudes = np.minimum(shifted, np.float32(LARGEST_MAGNITUDE)).astype(np.uint8)
    flat = magnitudes.reshape(-1)
    places = np.flatnonzero(flat)
    found, kept = flat[places], absolute.reshape(-1)[places]
    counts = np.bincount(found, minlength=1)
    sums = np.bincount(found, weights=kept, minlength=1)
    centroids = np.arange(counts.size) + _UNFITTED_CENTROID
    if fitted:
        centroids = np.divide(sums, counts, out=centroids, where=counts > 0)
    lowest, highest = centroids[min(1, counts.size - 1)], centroids[-1]
    first = _FIRST_LEVEL
    while first > 1 and first * highest > LARGEST_MAGNITUDE * lowest:
        first //= 2
    levels_per_step = first / float(lowest)
    levels = np.minimum(np.rint(centroids * levels_per_step), LARGEST_MAGNITUDE).astype(np.int64)
    levels[0] = 0

    energy = float(np.einsum("ij,ij->i", values, values).sum(dtype=np.float64))
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
            absolute=float(absolute.sum(dtype=np.float64)),
            decoded_absolute=float((counts * levels).sum()) / levels_per_step,
        )
    symbols = magnitudes * np.uint8(2)
    np.subtract(symbols, 1, out=symbols, where=(values > 0) & (magnitudes > 0))
    return Quantised(
        symbols=symbols,
        magnitudes=magnitudes,
        levels=tuple(levels.tolist()),
        levels_per_step=levels_per_step,
        gain=gain,
        noise=energy - 2 * gain * aligned + gain * gain * decoded,
    )
