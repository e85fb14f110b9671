"""Patch classes: which patches share an alphabet and an entropy coder's table."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .rate import entropy_bits, magnitude_bits

__all__ = ["classify_patches"]

_FINEST = 16
_PER_OCTAVE = 2
_CLASS_BITS = 8 * 60
"""What a class costs beyond its symbols: its tables, scale, run count and its entry in the metadata."""
_MAP_SHARE = 0.8
"""Neighbours are alike once rows and columns are sorted: the map costs less than its entropy."""


def classify_patches(magnitudes: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """The class of each patch by the sum of its magnitudes, strongest first; [patches, values] -> uint8 [patches].

    Begins with half-octaves of activity and merges neighbours as long as that saves bits.
    """
    activity = magnitudes.sum(axis=1, dtype=np.int64)
    fine = np.full(activity.size, _FINEST, dtype=np.uint8)
    active = activity > 0
    if active.any():
        below = np.log2(activity.max() / activity[active])
        fine[active] = np.minimum(np.rint(below * _PER_OCTAVE), _FINEST - 1)
    largest = int(magnitudes.max(initial=0))
    histograms = [np.bincount(magnitudes[fine == c].reshape(-1), minlength=largest + 1) for c in range(_FINEST + 1)]
    members = np.bincount(fine, minlength=_FINEST + 1)
    groups = [[c] for c in range(_FINEST + 1) if members[c]]
    counts = [histograms[group[0]] for group in groups]
    sizes = [int(members[group[0]]) for group in groups]
    while len(groups) > 1:
        now = _bits(counts, sizes)
        merged = [
            _bits(
                [*counts[:i], counts[i] + counts[i + 1], *counts[i + 2 :]],
                [*sizes[:i], sizes[i] + sizes[i + 1], *sizes[i + 2 :]],
            )
            for i in range(len(groups) - 1)
        ]
        best = int(np.argmin(merged))
        if merged[best] >= now:
            break
        groups[best : best + 2] = [groups[best] + groups[best + 1]]
        counts[best : best + 2] = [counts[best] + counts[best + 1]]
        sizes[best : best + 2] = [sizes[best] + sizes[best + 1]]
    table = np.zeros(_FINEST + 1, dtype=np.uint8)
    for number, group in enumerate(groups):
        table[group] = number
    return table[fine]


def _bits(counts: list[npt.NDArray[np.int64]], sizes: list[int]) -> float:
    coded = sum(bool(histogram[1:].any()) for histogram in counts)
    return (
        float(magnitude_bits(np.array(counts)).sum())
        + _MAP_SHARE * float(entropy_bits(np.array(sizes)))
        + _CLASS_BITS * coded
        + (8 * 8 if len(sizes) > 1 else 0)
    )
