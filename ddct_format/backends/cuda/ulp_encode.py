"""Symbols and extra bits of ulp.v1 made on the device: counted, or put in the order of groups (spec section 7.3)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import triton
import triton.language as tl

from ...codec.ulp import MAX_BOUND
from .launch import launch
from .ulp_decode import extra_bit_starts
from .ulp_elements import BLOCK, ELEMENT_ARGUMENTS, Grouping, find_contexts, find_places, load_pattern, split_code

__all__ = ["Scattered", "copy_bits", "count_symbols", "scatter_symbols"]

_SYMBOLS = 256
_WORD = 32


@dataclass(frozen=True, slots=True)
class Scattered:
    """Symbols and extra bits of all elements, group by group.

    Attributes:
        symbols: uint8 [elements].
        extra: int32, the extra bits of all elements without a gap.
        starts, bit_starts: int64 [groups + 1], where each group's begin in both, and where the last one's end.
    """

    symbols: torch.Tensor
    extra: torch.Tensor
    starts: torch.Tensor
    bit_starts: torch.Tensor


def count_symbols(grouping: Grouping, target: torch.Tensor, shift: int, mantissa: int) -> torch.Tensor:
    """How often each symbol stands in each context, int32 [contexts, 256]; groups say nothing.

    Args:
        target: int16 or int32, patterns of the target, whose low ``shift`` bits are zero.
    """
    counts = torch.zeros((MAX_BOUND + 1, _SYMBOLS), dtype=torch.int32, device=target.device)
    grouping.launch(_count_symbols, target, counts, shift, _half(grouping, shift), MANTISSA=mantissa)
    return counts


def scatter_symbols(grouping: Grouping, target: torch.Tensor, shift: int, mantissa: int) -> Scattered:
    """Put symbols and extra bits where their groups have them; the arguments are as above."""
    device, elements = target.device, target.numel()
    starts = grouping.starts()
    symbols = torch.empty(elements, dtype=torch.uint8, device=device)
    values = torch.empty(elements, dtype=torch.int32, device=device)
    half = _half(grouping, shift)
    grouping.launch(_scatter, target, starts, symbols, values, shift, half, MANTISSA=mantissa)
    bits = extra_bit_starts(symbols, mantissa, _SYMBOLS, torch.zeros(1, dtype=torch.int32, device=device))
    extra = torch.zeros(-(-int(bits[-1]) // _WORD) + 1, dtype=torch.int32, device=device)
    launch(_write_bits, (bits.numel() - 1,), symbols, values, bits, extra, elements, MANTISSA=mantissa, BLOCK=BLOCK)
    group_starts = torch.cat([starts[:, 0], torch.tensor([elements], device=device)])
    bit_starts = torch.empty_like(group_starts)
    launch(_find_bit_starts, (grouping.groups + 1,), symbols, bits, group_starts, bit_starts, elements,
           MANTISSA=mantissa, BLOCK=BLOCK)  # fmt: skip
    return Scattered(symbols, extra, group_starts, bit_starts)


def copy_bits(source: npt.NDArray[np.uint8], first: int, count: int, out: npt.NDArray[np.uint8], position: int) -> None:
    """Put ``count`` bits of ``source``, from bit ``first`` on, into ``out`` from bit ``position`` on.

    The lowest bit of a byte comes first; the bits of ``out`` that are written, and those after them, are zero before.
    """
    if not count:
        return
    place, inside = divmod(position, 8)
    size = -(-(inside + count) // 8)
    origin, skipped = divmod(first - inside, 8)  # where the first byte of `out` that is written begins in `source`
    window = np.zeros(size + 1, dtype=np.uint16)
    begin = max(origin, 0)
    piece = source[begin : origin + size + 1]
    window[begin - origin : begin - origin + piece.size] = piece
    moved = ((window[:-1] | window[1:] << 8) >> skipped).astype(np.uint8)
    moved[0] &= 0xFF << inside & 0xFF
    moved[-1] &= 0xFF >> (-(inside + count) % 8)
    out[place : place + size] |= moved


def _half(grouping: Grouping, shift: int) -> int:
    return 1 << ((32 if grouping.dtype == "F32" else 16) - shift - 1)


@triton.jit
def _find_symbols(
    pattern, target_ptr, place, inside, shift, half, DTYPE: tl.constexpr, MANTISSA: tl.constexpr
):  # fmt: skip
    """Symbols and extra bits of a tile, both int32."""
    low = pattern >> shift
    high = load_pattern(target_ptr, place, inside, DTYPE) >> shift
    negative = low >= half
    before = tl.where(negative, half - 1 - low, low)
    after = tl.where(high >= half, half - 1 - high, high)
    residual = tl.where(negative, before - after, after - before)
    magnitude = tl.abs(residual)
    if DTYPE == "F32":  # the exponent of a float that is exact is the place of the highest bit
        top = (magnitude.to(tl.float64).to(tl.int64, bitcast=True) >> 52) - 1023
    else:
        top = (magnitude.to(tl.float32).to(tl.int32, bitcast=True) >> 23) - 127
    extra = tl.maximum(top - MANTISSA, 0)
    code = (magnitude >> extra) + (extra << MANTISSA)
    symbol = 2 * code - (residual < 0).to(code.dtype)
    value = magnitude & ((tl.full(extra.shape, 1, extra.dtype) << extra) - 1)
    return symbol.to(tl.int32), value.to(tl.int32)


@triton.jit(do_not_specialize=ELEMENT_ARGUMENTS)
def _count_symbols(
    predicted_ptr, row_keys_ptr, col_keys_ptr, group_of_ptr, elements, cols, tiles, target_ptr, counts_ptr,
    shift, half, MANTISSA: tl.constexpr, DTYPE: tl.constexpr, ROW_KEYS: tl.constexpr, COL_KEYS: tl.constexpr,
    NARROW: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < elements
    pattern = load_pattern(predicted_ptr, place, inside, DTYPE)
    context = find_contexts(pattern, inside, row_keys_ptr, col_keys_ptr, cols, DTYPE, ROW_KEYS, COL_KEYS, NARROW, BLOCK)
    symbol, _ = _find_symbols(pattern, target_ptr, place, inside, shift, half, DTYPE, MANTISSA)
    tl.atomic_add(counts_ptr + context * 256 + symbol, 1, mask=inside, sem="relaxed")


@triton.jit(do_not_specialize=ELEMENT_ARGUMENTS)
def _scatter(
    predicted_ptr, row_keys_ptr, col_keys_ptr, group_of_ptr, elements, cols, tiles,
    target_ptr, starts_ptr, symbols_ptr, values_ptr, shift, half, MANTISSA: tl.constexpr,
    DTYPE: tl.constexpr, ROW_KEYS: tl.constexpr, COL_KEYS: tl.constexpr, NARROW: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < elements
    pattern = load_pattern(predicted_ptr, place, inside, DTYPE)
    context = find_contexts(pattern, inside, row_keys_ptr, col_keys_ptr, cols, DTYPE, ROW_KEYS, COL_KEYS, NARROW, BLOCK)
    group = tl.load(group_of_ptr + context, mask=inside, other=0).to(tl.int32)
    position = find_places(group, inside, starts_ptr, tiles, BLOCK)
    symbol, value = _find_symbols(pattern, target_ptr, place, inside, shift, half, DTYPE, MANTISSA)
    _, extra = split_code(symbol, MANTISSA)
    tl.store(symbols_ptr + position, symbol.to(tl.uint8), mask=inside)
    tl.store(values_ptr + position, value, mask=inside & (extra > 0))


@triton.jit
def _write_bits(
    symbols_ptr, values_ptr, bits_ptr, extra_ptr, elements, MANTISSA: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    tile = tl.program_id(0)
    place = tile.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    symbol = tl.load(symbols_ptr + place, mask=place < elements, other=0).to(tl.int32)
    _, extra = split_code(symbol, MANTISSA)
    used = extra > 0
    position = tl.load(bits_ptr + tile) + tl.cumsum(extra, 0) - extra
    field = tl.load(values_ptr + place, mask=used, other=0).to(tl.int64) << (position & 31)
    word_ptr = extra_ptr + (position >> 5)
    tl.atomic_or(word_ptr, field.to(tl.int32), mask=used, sem="relaxed")
    high = (field >> 32).to(tl.int32)
    tl.atomic_or(word_ptr + 1, high, mask=used & (high != 0), sem="relaxed")


@triton.jit
def _find_bit_starts(
    symbols_ptr, bits_ptr, starts_ptr, bit_starts_ptr, elements, MANTISSA: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Extra bits before the place where a group starts."""
    start = tl.load(starts_ptr + tl.program_id(0))
    tile = start // BLOCK
    place = tile * BLOCK + tl.arange(0, BLOCK)
    symbol = tl.load(symbols_ptr + place, mask=place < start, other=0).to(tl.int32)
    _, extra = split_code(symbol, MANTISSA)
    tl.store(bit_starts_ptr + tl.program_id(0), tl.load(bits_ptr + tile) + tl.sum(extra, 0))
