"""Patch classes: which patches share an alphabet and an entropy coder's table."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .rate import entropy_bits, magnitude_bits

__all__ = ["choose_classes"]

_FINEST = 16
_CLASS_BITS = 8 * 60
"""What a class costs beyond its symbols: its tables, scale, run count and its entry in the metadata."""
_MAP_SHARE = 0.8
"""Neighbours are alike once rows and columns are sorted: the map costs less than its entropy."""


def choose_classes(counts: npt.NDArray[np.int64], values: int, weight: float = 1.0) -> npt.NDArray[np.uint8]:
    """The class of each bin of patches, those of the strongest patches first; uint8 [bins].

    Begins with the bins' half-octaves of activity and merges neighbours as long as that saves bits.

    Args:
        counts: [bins, magnitudes], how often each magnitude stands in the patches of each bin; bin 0 is of patches
            without a value, the others rise with activity.
        values: of a patch.
        weight: how many patches each that was counted stands for.
    """
    bins = len(counts)
    members = counts.sum(axis=1) // values
    strongest = int(np.flatnonzero(members).max(initial=0))
    fine = np.minimum(strongest - np.arange(bins), _FINEST - 1)
    fine[0] = _FINEST
    fine = np.maximum(fine, 0)
    merged_counts = np.zeros((_FINEST + 1, counts.shape[1]))
    np.add.at(merged_counts, fine, counts * weight)
    sizes_of = np.bincount(fine, weights=members * weight, minlength=_FINEST + 1)
    groups = [[c] for c in range(_FINEST + 1) if sizes_of[c]]
    histograms = [merged_counts[group[0]] for group in groups]
    sizes = [float(sizes_of[group[0]]) for group in groups]
    while len(groups) > 1:
        now = _bits(histograms, sizes)
        merged = [
            _bits(
                [*histograms[:i], histograms[i] + histograms[i + 1], *histograms[i + 2 :]],
                [*sizes[:i], sizes[i] + sizes[i + 1], *sizes[i + 2 :]],
            )
            for i in range(len(groups) - 1)
        ]
        best = int(np.argmin(merged))
        if merged[best] >= now:
            break
        groups[best : best + 2] = [groups[best] + groups[best + 1]]
        histograms[best : best + 2] = [histograms[best] + histograms[best + 1]]
        sizes[best : best + 2] = [sizes[best] + sizes[best + 1]]
    table = np.zeros(_FINEST + 1, dtype=np.uint8)
    for number, group in enumerate(groups):
        table[group] = number
    return table[fine]


def _bits(counts: list[npt.NDArray[np.float64]], sizes: list[float]) -> float:
    coded = sum(bool(histogram[1:].any()) for histogram in counts)
    return (
        float(magnitude_bits(np.array(counts)).sum())
        + _MAP_SHARE * float(entropy_bits(np.array(sizes)))
        + _CLASS_BITS * coded
        + (8 * 8 if len(sizes) > 1 else 0)
    )
