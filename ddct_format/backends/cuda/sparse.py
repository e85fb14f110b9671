"""Runs of zeros and values (spec section 7.2.5) -> words of fixed width, as ``repack`` makes of dense symbols."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ...codec.symbols import symbols_per_byte
from .launch import launch

__all__ = ["expand_runs"]

_BLOCK = 4096


def expand_runs(
    runs: torch.Tensor, values: torch.Tensor, words: torch.Tensor, table: torch.Tensor, alphabet: int, width: int
) -> None:
    """Put the symbols of a sparse class that are not 0 among the zeros that ``words`` holds.

    Args:
        runs, values: uint8, checked: the runs stay within the symbols, the values are digits.
        words: int32 (uint8 for a width of 8); it holds zeros, or what the symbol 0 becomes.
        table: int64 [256]: what a symbol becomes.
        alphabet: of the class.
        width: bits per symbol, 2, 4 or 8.
    """
    if not runs.numel():
        return
    blocks = triton.cdiv(runs.numel(), _BLOCK)
    totals = torch.empty((2, blocks), dtype=torch.int64, device=runs.device)
    launch(_total, (blocks,), runs, totals, runs.numel(), blocks, BLOCK=_BLOCK)
    before = totals.cumsum(1) - totals
    launch(
        _expand, (blocks,), runs, values, before, words, table, runs.numel(), blocks, ALPHABET=alphabet,
        VALUES_PER_BYTE=symbols_per_byte(alphabet - 1) if alphabet > 2 else 0, WIDTH=width, BLOCK=_BLOCK,
    )  # fmt: skip


@triton.jit
def _total(runs_ptr, totals_ptr, count, blocks, BLOCK: tl.constexpr):
    block = tl.program_id(0)
    place = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < count
    run = tl.load(runs_ptr + place, mask=inside, other=0).to(tl.int32)
    valued = (inside & (run != 255)).to(tl.int32)
    tl.store(totals_ptr + block, tl.sum(run + valued, 0).to(tl.int64))
    tl.store(totals_ptr + blocks + block, tl.sum(valued, 0).to(tl.int64))


@triton.jit
def _expand(
    runs_ptr, values_ptr, before_ptr, words_ptr, table_ptr, count, blocks,
    ALPHABET: tl.constexpr, VALUES_PER_BYTE: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    block = tl.program_id(0)
    place = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < count
    run = tl.load(runs_ptr + place, mask=inside, other=0).to(tl.int32)
    valued = inside & (run != 255)
    symbol_place = tl.load(before_ptr + block) + tl.cumsum(run + valued.to(tl.int32), 0) - 1
    symbol = tl.full([BLOCK], 1, tl.int32)
    if VALUES_PER_BYTE > 0:
        value_place = tl.load(before_ptr + blocks + block) + tl.cumsum(valued.to(tl.int32), 0) - 1
        byte = tl.load(values_ptr + value_place // VALUES_PER_BYTE, mask=valued, other=0).to(tl.int32)
        digit = (value_place % VALUES_PER_BYTE).to(tl.int32)
        for _ in tl.static_range(VALUES_PER_BYTE - 1):
            byte = tl.where(digit > 0, byte // (ALPHABET - 1), byte)
            digit -= 1
        symbol = byte % (ALPHABET - 1) + 1
    if WIDTH == 8:
        level = tl.load(table_ptr + symbol, mask=valued, other=0)
        tl.store(words_ptr + symbol_place, level.to(tl.uint8), mask=valued)
    else:
        bit = symbol_place * WIDTH
        shifted = symbol << (bit % 32).to(tl.int32)
        tl.atomic_add(words_ptr + bit // 32, shifted, mask=valued, sem="relaxed")
