"""Elements of ulp.v1 in Triton: patterns, contexts and groups, and where each stands in its group (spec section 7.3.1).

Elements are cut into tiles. A first pass counts each tile's elements by group; the sums of all counts before, group by
group and tile by tile, are the places from which a tile's elements go on in the stream of all groups. A second pass
ranks the elements of a tile.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

from .arithmetic import binary32, round_bits
from .launch import launch

__all__ = ["BLOCK", "Grouping", "find_contexts", "find_places", "load_pattern", "predict", "split_code"]

BLOCK = 2048
"""Elements of a tile: fewer than 2^15, for ranks are counted in fields of 16 bits."""
_NARROW_COLS = 1 << 30
ELEMENT_ARGUMENTS = ["cols", "tiles", "groups", "shift", "half"]
"""Of kernels: numbers for which nothing is compiled anew; that the elements divide by 16 makes wide loads."""


@dataclass(frozen=True, slots=True)
class Grouping:
    """A prediction on the device, and how its elements fall into groups.

    Attributes:
        predicted: int16 or int32, bits of the target's element type; at least one element.
        dtype: the target's element type.
        row_keys, col_keys: uint8; None without.
        group_of: uint8 [contexts], the group of each context.
        groups: how many there are.
    """

    predicted: torch.Tensor
    dtype: str
    cols: int
    row_keys: torch.Tensor | None
    col_keys: torch.Tensor | None
    group_of: torch.Tensor
    groups: int

    @property
    def tiles(self) -> int:
        return -(-self.predicted.numel() // BLOCK)

    def launch(self, kernel: Any, *arguments: object, **constants: object) -> None:
        """Run a kernel for each tile, whose first arguments and last constants are what describes the elements."""
        keys = (self.group_of if keys is None else keys for keys in (self.row_keys, self.col_keys))
        launch(
            kernel, (self.tiles,), self.predicted, *keys, self.group_of, self.predicted.numel(), self.cols, self.tiles,
            *arguments, **constants, DTYPE=self.dtype, ROW_KEYS=self.row_keys is not None,
            COL_KEYS=self.col_keys is not None, NARROW=self.cols < _NARROW_COLS, BLOCK=BLOCK,
        )  # fmt: skip

    def starts(self) -> torch.Tensor:
        """Where in the stream of all groups a tile's elements of a group go on, int64 [groups, tiles]."""
        counts = torch.empty((self.groups, self.tiles), dtype=torch.int32, device=self.predicted.device)
        self.launch(_count, counts, self.groups, BINS=max(64, triton.next_power_of_2(self.groups + 1)))
        flat = counts.view(-1)
        return (flat.cumsum(0) - flat).view(self.groups, self.tiles)


def predict(before: torch.Tensor, before_dtype: str, dtype: str) -> torch.Tensor:
    """Bits of the tensor so far, int16 or int32, rounded to the target's type where its own differs (step 1)."""
    if before_dtype == dtype:
        return before
    rounded = torch.empty(before.numel(), dtype=torch.int32 if dtype == "F32" else torch.int16, device=before.device)
    tiles = -(-before.numel() // BLOCK)
    launch(_round, (tiles,), before, rounded, before.numel(), BASE=before_dtype, DTYPE=dtype, BLOCK=BLOCK)
    return rounded


@triton.jit
def _round(before_ptr, rounded_ptr, elements, BASE: tl.constexpr, DTYPE: tl.constexpr, BLOCK: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    bits = tl.load(before_ptr + place, mask=place < elements, other=0)
    tl.store(rounded_ptr + place, round_bits(binary32(bits, BASE), DTYPE), mask=place < elements)


@triton.jit
def load_pattern(bits_ptr, place, inside, DTYPE: tl.constexpr):
    """Bit patterns of elements, not negative, int32; int64 for F32."""
    bits = tl.load(bits_ptr + place, mask=inside, other=0)
    if DTYPE == "F32":
        pattern = bits.to(tl.int64) & 0xFFFFFFFF
    else:
        pattern = bits.to(tl.int32) & 0xFFFF
    return pattern


@triton.jit
def find_contexts(
    pattern, inside, row_keys_ptr, col_keys_ptr, cols,
    DTYPE: tl.constexpr, ROW_KEYS: tl.constexpr, COL_KEYS: tl.constexpr, NARROW: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The context of each element of this program's tile, int32."""
    if DTYPE == "F16":
        context = 4 * (31 - tl.maximum((pattern >> 10) & 31, 1))
    elif DTYPE == "BF16":
        context = 4 * (255 - tl.maximum((pattern >> 7) & 255, 1))
    else:
        context = 4 * (255 - tl.maximum((pattern >> 23) & 255, 1)).to(tl.int32)
    if ROW_KEYS or COL_KEYS:
        first = tl.program_id(0).to(tl.int64) * BLOCK
        row = first // cols
        col = first - row * cols
        if NARROW:
            col = col.to(tl.int32)
        col += tl.arange(0, BLOCK)
        below = col // cols
        if ROW_KEYS:
            context += tl.load(row_keys_ptr + (row + below), mask=inside, other=0).to(tl.int32)
        if COL_KEYS:
            context += tl.load(col_keys_ptr + (col - below * cols), mask=inside, other=0).to(tl.int32)
    return context


@triton.jit
def find_places(group, inside, starts_ptr, tiles, BLOCK: tl.constexpr):
    """Where the elements of this program's tile stand in the stream of all groups, int64.

    Ranks of four groups are counted at a time, in fields of 16 bits.
    """
    field = (group & 3).to(tl.int64) * 16
    one = tl.full([BLOCK], 1, tl.int64) << field
    four = group >> 2
    rank = tl.zeros([BLOCK], tl.int64)
    number = tl.min(tl.where(inside, four, 255), 0)
    last = tl.max(tl.where(inside, four, -1), 0)
    while number <= last:
        hit = inside & (four == number)
        counted = tl.cumsum(tl.where(hit, one, 0), 0)
        rank = tl.where(hit, (counted >> field) & 0xFFFF, rank)
        number += 1
    start = tl.load(starts_ptr + group.to(tl.int64) * tiles + tl.program_id(0), mask=inside, other=0)
    return start + rank - 1


@triton.jit
def split_code(symbol, MANTISSA: tl.constexpr):
    """Symbols, int32 -> their codes and numbers of extra bits."""
    code = (symbol + 1) >> 1
    return code, tl.maximum((code >> MANTISSA) - 1, 0)


@triton.jit(do_not_specialize=ELEMENT_ARGUMENTS)
def _count(
    predicted_ptr, row_keys_ptr, col_keys_ptr, group_of_ptr, elements, cols, tiles, counts_ptr, groups,
    BINS: tl.constexpr, DTYPE: tl.constexpr, ROW_KEYS: tl.constexpr, COL_KEYS: tl.constexpr, NARROW: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0)
    place = tile.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < elements
    pattern = load_pattern(predicted_ptr, place, inside, DTYPE)
    context = find_contexts(pattern, inside, row_keys_ptr, col_keys_ptr, cols, DTYPE, ROW_KEYS, COL_KEYS, NARROW, BLOCK)
    group = tl.load(group_of_ptr + context, mask=inside, other=0).to(tl.int32)
    counts = tl.histogram(tl.where(inside, group, groups), BINS)
    number = tl.arange(0, BINS)
    tl.store(counts_ptr + number.to(tl.int64) * tiles + tile, counts, mask=number < groups)
