"""A tensor's 2-D view, cut into p×p patches (spec section 7.2.1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["PatchGrid", "cut_patches", "join_patches"]


@dataclass(frozen=True, slots=True)
class PatchGrid:
    """How a [rows, cols] view falls into patches: row-major, the last ones padded with zeros."""

    rows: int
    cols: int
    patch: int

    @property
    def down(self) -> int:
        """Patches in a column of patches."""
        return -(-self.rows // self.patch)

    @property
    def across(self) -> int:
        """Patches in a row of patches."""
        return -(-self.cols // self.patch)

    @property
    def count(self) -> int:
        return self.down * self.across


def cut_patches(view: npt.NDArray[Any], grid: PatchGrid) -> npt.NDArray[Any]:
    """[rows, cols] -> [count, patch, patch], contiguous, zero-padded at the right and bottom edge."""
    p = grid.patch
    padded = np.zeros((grid.down * p, grid.across * p), dtype=view.dtype)
    padded[: grid.rows, : grid.cols] = view
    return np.ascontiguousarray(padded.reshape(grid.down, p, grid.across, p).swapaxes(1, 2)).reshape(-1, p, p)


def join_patches(patches: npt.NDArray[Any], grid: PatchGrid) -> npt.NDArray[Any]:
    """[count, patch, patch] -> [rows, cols]; the inverse of :func:`cut_patches`, dropping the padding."""
    p = grid.patch
    padded = patches.reshape(grid.down, grid.across, p, p).swapaxes(1, 2).reshape(grid.down * p, grid.across * p)
    return np.ascontiguousarray(padded[: grid.rows, : grid.cols])
