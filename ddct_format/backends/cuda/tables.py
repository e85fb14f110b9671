"""Small constant tables on the device, made once for each."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch

from ...codec.symbols import symbols_per_byte
from ...codec.transform import basis_matrix, largest_sum
from .decode import TILE

__all__ = ["basis_tile", "exact_halves", "level_table", "ones_tile"]


@lru_cache(maxsize=64)
def level_table(levels: tuple[tuple[int, ...], ...], device: torch.device) -> torch.Tensor:
    """int64 [classes, 256]: for every byte its levels, the first in the lowest eight bits, each 128 above its value."""
    table = np.zeros((len(levels), 256), dtype=np.uint64)
    for number, values in enumerate(levels):
        if len(values) == 1:
            continue
        raised = np.array(values, dtype=np.int64) + 128
        byte = np.arange(256)
        for digit in range(symbols_per_byte(len(values))):
            field = raised[(byte // len(values) ** digit) % len(values)].astype(np.uint64)
            table[number] |= field << np.uint64(8 * digit)
    return torch.from_numpy(table.view(np.int64)).to(device)


@lru_cache(maxsize=64)
def basis_tile(transform: str, patch: int, device: torch.device) -> torch.Tensor:
    """float16 [TILE, TILE]: the basis once for each patch along the diagonal."""
    blocks = np.kron(np.eye(TILE // patch), basis_matrix(transform, patch))
    return torch.from_numpy(blocks.astype(np.float16)).to(device)


@lru_cache(maxsize=64)
def ones_tile(transform: str, patch: int, device: torch.device) -> torch.Tensor:
    """float32 [TILE, TILE]: J of section 7.2.3 once for each patch."""
    basis = basis_matrix(transform, patch).astype(np.int64)
    ones = basis.T @ np.ones_like(basis) @ basis
    return torch.from_numpy(np.tile(ones, (TILE // patch, TILE // patch)).astype(np.float32)).to(device)


def exact_halves(levels: tuple[tuple[int, ...], ...], transform: str, patch: int) -> bool:
    """Whether the first product fits float16 exactly, and the second float32: |Bᵀ·L| ≤ 2^11 and |I| ≤ 2^24."""
    largest = max(abs(level) for values in levels for level in values)
    column = int(np.abs(basis_matrix(transform, patch)).sum(axis=0).max())
    return largest * column <= 1 << 11 and largest * largest_sum(transform, patch) <= 1 << 24
