"""Row and column keys: one small number per row and column that brings rows of like strength together.

Sorted, strong rows and columns meet in the same patches, and the patch classes catch what would cost a scale per row
otherwise (spec/adr/0102-row-and-column-keys.md).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .rate import entropy_bits, gaussian_magnitudes, magnitude_bits

__all__ = ["energy_keys", "worthwhile_keys"]

_LARGEST_KEY = 15
_SECTION_BITS = 8 * 24
"""What a section of keys costs beyond their entropy: the entropy coder's table."""


def energy_keys(energies: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
    """Octaves of energy below the strongest one, at most 15, per row or column."""
    octaves = np.log2(np.maximum(energies, np.finfo(np.float64).tiny))
    keys: npt.NDArray[np.uint8] = np.clip(np.rint(octaves.max() - octaves), 0, _LARGEST_KEY).astype(np.uint8)
    return keys


def worthwhile_keys(
    energies: npt.NDArray[np.float64], width: int, step: float, dead_zone: float, weight: float = 1.0
) -> npt.NDArray[np.uint8] | None:
    """Keys for rows (or columns) of mean squares ``energies`` and ``width`` values each, if they pay for themselves.

    The gain is the information that the key gives on a symbol, were all values normal.

    Args:
        weight: how many rows each stands for, in a sample.
    """
    keys = energy_keys(energies)
    counts = np.bincount(keys)
    side_bits = weight * float(entropy_bits(counts)) + _SECTION_BITS
    deviations = np.sqrt(np.bincount(keys, weights=energies) / np.maximum(counts, 1)) / step
    magnitudes = gaussian_magnitudes(deviations, dead_zone) * (weight * counts * width)[:, None]
    gained = float(magnitude_bits(magnitudes.sum(axis=0)) - magnitude_bits(magnitudes).sum())
    return keys if gained > side_bits else None
