"""Runs of zeros and values (spec section 7.2.5) -> the same symbols packed densely, so that one kernel decodes both."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .launch import launch

__all__ = ["expand_runs"]

_BLOCK = 4096


def expand_runs(
    runs: torch.Tensor, values: torch.Tensor, packed: torch.Tensor, alphabet: int, per_byte: int, values_per_byte: int
) -> None:
    """Add the symbols of a sparse class to ``packed``, where they are stored as section 7.2.4 stores dense ones.

    Args:
        runs, values: uint8, checked: the runs stay within the symbols, the values are digits.
        packed: int32, zeros; bytes of the packed symbols, padded to whole words.
        alphabet: of the class.
        per_byte: symbols per byte of ``packed``.
        values_per_byte: symbols other than 0 per byte of ``values``; 0 if there is only one such symbol.
    """
    if not runs.numel():
        return
    blocks = triton.cdiv(runs.numel(), _BLOCK)
    totals = torch.empty((2, blocks), dtype=torch.int64, device=runs.device)
    launch(_total, (blocks,), runs, totals, runs.numel(), blocks, BLOCK=_BLOCK)
    before = totals.cumsum(1) - totals
    launch(
        _expand, (blocks,), runs, values, before, packed, runs.numel(), blocks, alphabet, per_byte, values_per_byte,
        BLOCK=_BLOCK,
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
    runs_ptr, values_ptr, before_ptr, packed_ptr, count, blocks,
    ALPHABET: tl.constexpr, PER_BYTE: tl.constexpr, VALUES_PER_BYTE: tl.constexpr, BLOCK: tl.constexpr,
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
    weight = symbol
    digit = (symbol_place % PER_BYTE).to(tl.int32)
    for _ in tl.static_range(PER_BYTE - 1):
        weight = tl.where(digit > 0, weight * ALPHABET, weight)
        digit -= 1
    target = symbol_place // PER_BYTE
    # Digits of one byte add up to at most 255: no carry ever reaches the next byte of the word.
    tl.atomic_add(packed_ptr + target // 4, weight << ((target % 4) * 8).to(tl.int32), mask=valued, sem="relaxed")
