"""The p×p integer transforms of dctq.v1 (spec section 7.2.3).

The inverse transform is exact integer arithmetic, ``I = Bᵀ·L·B``, so it cannot differ between machines.
Row k of ``B`` is the k-th basis vector. The DCT-II basis is rounded to 8 bits, as in HEVC; its error against the
real DCT is 43 dB down, far below the quantisation noise at a few bits per weight.
"""

from __future__ import annotations

from functools import cache
from math import cos, pi

import numpy as np
import numpy.typing as npt

__all__ = ["PATCH_SIZES", "TRANSFORMS", "analysis_matrix", "basis_matrix", "largest_sum"]

PATCH_SIZES = (8, 16, 32)
TRANSFORMS = ("dct", "hadamard", "none")


@cache
def basis_matrix(transform: str, patch: int) -> npt.NDArray[np.int32]:
    """The integer basis ``B``, shape [patch, patch], read-only.

    ``dct``: B[0][n] = 64, B[k][n] = round(90·cos(π(2n+1)k / 2p)); no value lies near a half, so every libm agrees.
    ``hadamard``: Sylvester's order, ±1. ``none``: the identity.
    """
    index = range(patch)
    if transform == "dct":
        rows = [[64 if k == 0 else round(90 * cos(pi * (2 * n + 1) * k / (2 * patch))) for n in index] for k in index]
    elif transform == "hadamard":
        rows = [[-1 if (k & n).bit_count() % 2 else 1 for n in index] for k in index]
    else:
        rows = [[int(k == n) for n in index] for k in index]
    matrix = np.array(rows, dtype=np.int32)
    matrix.setflags(write=False)
    return matrix


@cache
def analysis_matrix(transform: str, patch: int) -> npt.NDArray[np.float64]:
    """``A`` such that ``L = A·D·Aᵀ`` inverts ``D = Bᵀ·L·B``: the encoder's forward transform, shape [patch, patch]."""
    matrix = np.linalg.inv(basis_matrix(transform, patch).astype(np.float64)).T
    matrix.setflags(write=False)
    return matrix


@cache
def largest_sum(transform: str, patch: int) -> int:
    """max |I| over all L with |L| ≤ 1: what decides in which type the integer sums stay exact."""
    column = np.abs(basis_matrix(transform, patch)).sum(axis=0)
    return int(column.max()) ** 2
