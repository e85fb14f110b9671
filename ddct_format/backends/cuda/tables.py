"""Small constant tables on the device, made once for each."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch

from ...codec.transform import basis_matrix, largest_sum
from .decode import BASIS_SHIFT, TILE_COLS, TILE_ROWS

__all__ = ["basis_tiles", "byte_table", "level_table", "needs_parts", "ones_tile", "symbol_width"]


def symbol_width(alphabet: int) -> int:
    """Bits in which a symbol is held on the device; with eight it is no symbol but a level, 128 above its value."""
    return 2 if alphabet <= 4 else 4 if alphabet <= 8 else 8


@lru_cache(maxsize=64)
def level_table(levels: tuple[tuple[int, ...], ...], device: torch.device) -> torch.Tensor:
    """int64 [classes]: the levels of a class of up to eight, a byte each, 128 above their values."""
    table = np.full((len(levels), 8), 128, dtype=np.uint8)
    for number, values in enumerate(levels):
        if len(values) <= 8:
            table[number, : len(values)] = np.array(values) + 128
    return torch.from_numpy(table.view("<i8").reshape(-1)).to(device)


@lru_cache(maxsize=256)
def byte_table(levels: tuple[int, ...], per_byte: int, device: torch.device) -> torch.Tensor:
    """int64 [256]: the ``per_byte`` digits of every byte as symbols of :func:`symbol_width` bits, the first lowest."""
    width = symbol_width(len(levels))
    fields = np.array(levels) + 128 if width == 8 else np.arange(len(levels))
    table = np.zeros(256, dtype=np.int64)
    for digit in range(per_byte):
        table |= fields[(np.arange(256) // len(levels) ** digit) % len(levels)] << (width * digit)
    return torch.from_numpy(table).to(device)


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
