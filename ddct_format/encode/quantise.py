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
_FINEST_GRID = 16


@dataclass(frozen=True, slots=True)
class Quantised:
    """Symbols of a tensor's patches.

    Symbol 0 is the level 0; 2m−1 and 2m are ±m steps, so that a class may cut the alphabet off anywhere.

    Attributes:
        symbols: uint8 [patches, values].
        magnitudes: uint8 [patches, values].
        levels: the integer level of each magnitude, from 0 up.
        grid: levels in a step.
        gain: what the decoded values must be multiplied with.
        noise: squared error after decoding, in squared steps.
    """

    symbols: npt.NDArray[np.uint8]
    magnitudes: npt.NDArray[np.uint8]
    levels: tuple[int, ...]
    grid: int
    gain: float
    noise: float


def quantise(values: npt.NDArray[np.float32], dead_zone: float = DEAD_ZONE, gain_kind: str = "unbiased") -> Quantised:
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
    centroids = np.divide(sums, counts, out=np.arange(counts.size, dtype=np.float64), where=counts > 0)
    centroids = np.minimum(centroids, LARGEST_MAGNITUDE)
    grid = _FINEST_GRID
    while centroids[-1] * grid > LARGEST_MAGNITUDE:
        grid //= 2
    levels = np.rint(centroids * grid).astype(np.int64)
    levels[0] = 0

    energy = float(np.einsum("ij,ij->i", values, values).sum(dtype=np.float64))
    aligned = float((sums * levels).sum()) / grid
    decoded = float((counts * np.square(levels)).sum()) / grid**2
    if gain_kind == "unbiased":
        gain = min(GAIN_LIMIT, max(1.0, energy / aligned)) if aligned > 0 else 1.0
    else:
        gain = choose_gain(
            gain_kind,
            energy=energy,
            aligned=aligned,
            decoded=decoded,
            absolute=float(absolute.sum(dtype=np.float64)),
            decoded_absolute=float((counts * levels).sum()) / grid,
        )
    symbols = magnitudes * np.uint8(2)
    np.subtract(symbols, 1, out=symbols, where=(values > 0) & (magnitudes > 0))
    return Quantised(
        symbols=symbols,
        magnitudes=magnitudes,
        levels=tuple(levels.tolist()),
        grid=grid,
        gain=gain,
        noise=energy - 2 * gain * aligned + gain * gain * decoded,
    )
