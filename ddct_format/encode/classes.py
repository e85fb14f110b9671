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
_SPARE_BITS = 8 * 8
"""Of a class map, where there is one."""

Numbers = npt.NDArray[np.float64]


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
    sizes_of: Numbers = np.bincount(fine, weights=members * weight, minlength=_FINEST + 1).astype(np.float64)
    used = [c for c in range(_FINEST + 1) if sizes_of[c]]
    groups = [[c] for c in used]
    histograms, sizes = merged_counts[used], sizes_of[used]
    while len(groups) > 1:
        merged = _bits_merged(histograms, sizes)
        best = int(np.argmin(merged))
        if merged[best] >= _bits(histograms, sizes):
            break
        groups[best : best + 2] = [groups[best] + groups[best + 1]]
        histograms[best] += histograms[best + 1]
        sizes[best] += sizes[best + 1]
        histograms, sizes = np.delete(histograms, best + 1, axis=0), np.delete(sizes, best + 1)
    table = np.zeros(_FINEST + 1, dtype=np.uint8)
    for number, group in enumerate(groups):
        table[group] = number
    return table[fine]


def _bits(histograms: Numbers, sizes: Numbers) -> float:
    """What these classes cost."""
    map_bits = _MAP_SHARE * float(entropy_bits(sizes)) + (_SPARE_BITS if sizes.size > 1 else 0)
    return float(_class_bits(histograms).sum()) + map_bits


def _bits_merged(histograms: Numbers, sizes: Numbers) -> Numbers:
    """What they cost after merging each class with the next, [classes − 1]."""
    apart, together = _class_bits(histograms), _class_bits(histograms[:-1] + histograms[1:])
    classes = apart.sum() - apart[:-1] - apart[1:] + together
    total, logs = sizes.sum(), sizes * np.log2(sizes)
    both = sizes[:-1] + sizes[1:]
    map_bits = total * np.log2(total) - (logs.sum() - logs[:-1] - logs[1:] + both * np.log2(both))
    result: Numbers = classes + _MAP_SHARE * map_bits + (_SPARE_BITS if sizes.size > 2 else 0)
    return result


def _class_bits(histograms: Numbers) -> Numbers:
    """The symbols of each class, and what it costs beside them if it has any other than 0."""
    result: Numbers = magnitude_bits(histograms) + _CLASS_BITS * histograms[:, 1:].any(axis=1)
    return result
