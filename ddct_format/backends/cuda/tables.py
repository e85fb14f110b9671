"""Small constant tables on the device, made once for each."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch

from ...codec.symbols import symbols_per_byte
from ...codec.transform import basis_matrix, largest_sum
from .decode import BASIS_SHIFT, TILE_COLS, TILE_ROWS

__all__ = ["basis_tiles", "level_table", "needs_parts", "ones_tile"]


@lru_cache(maxsize=64)
def level_table(levels: tuple[tuple[int, ...], ...], device: torch.device) -> torch.Tensor:
    """int64 [classes, 256]: for every byte its levels, the first in the lowest eight bits, each 128 above its value."""
    table = np.zeros((len(levels), 256), dtype=np.uint64)
    for number, values in enumerate(levels):
        if len(values) == 1:
            table[number] = np.uint64(0x8080808080808080)
            continue
        raised = np.array(values, dtype=np.int64) + 128
        byte = np.arange(256)
        for digit in range(symbols_per_byte(len(values))):
            field = raised[(byte // len(values) ** digit) % len(values)].astype(np.uint64)
            table[number] |= field << np.uint64(8 * digit)
    return torch.from_numpy(table.view(np.int64)).to(device)


@lru_cache(maxsize=64)
def basis_tiles(transform: str, patch: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """The operands of the two products, float16: see ``decode.decode_tiles``."""
    basis = basis_matrix(transform, patch).astype(np.float64)
    first = np.kron(np.eye(TILE_ROWS // patch), basis.T * 2.0**-BASIS_SHIFT)
    second = np.kron(np.eye(TILE_COLS // patch), basis * 2.0**BASIS_SHIFT)
    return torch.from_numpy(first).to(device, torch.float16), torch.from_numpy(second).to(device, torch.float16)


@lru_cache(maxsize=64)
def ones_tile(transform: str, patch: int, device: torch.device) -> torch.Tensor:
    """float32 [TILE_ROWS, TILE_COLS]: J of section 7.2.3 once for each patch."""
    basis = basis_matrix(transform, patch).astype(np.int64)
    ones = basis.T @ np.ones_like(basis) @ basis
    return torch.from_numpy(np.tile(ones, (TILE_ROWS // patch, TILE_COLS // patch)).astype(np.float32)).to(device)


def needs_parts(levels: tuple[tuple[int, ...], ...], transform: str, patch: int) -> bool:
    """Whether float16 may not hold the first product, or float32 the second: |Bᵀ·L| > 2^11 or |I| > 2^24."""
    largest = max(abs(level) for values in levels for level in values)
    column = int(np.abs(basis_matrix(transform, patch)).sum(axis=0).max())
    return largest * column > 1 << 11 or largest * largest_sum(transform, patch) > 1 << 24
