"""Which rows stand for a whole tensor."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["spread_rows"]


def spread_rows(rows: int, wanted: int, group: int) -> npt.NDArray[np.int64]:
    """About ``wanted`` rows, in whole groups of ``group`` neighbours: one group at random from each of equal parts."""
    groups = max(1, rows // group)
    count = min(groups, max(1, -(-wanted // group)))
    random = np.random.default_rng(rows)
    parts = np.arange(count + 1) * groups // count
    chosen = parts[:-1] + (random.random(count) * np.diff(parts)).astype(np.int64)
    return (chosen[:, None] * group + np.arange(group)).reshape(-1)
