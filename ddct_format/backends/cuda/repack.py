"""Dense symbols (spec section 7.2.4) -> words of fixed width, which the decoder takes apart with a few instructions.

Base-A digits are compact but awkward: the digits of eight neighbours are spread over several bytes at any offset. A
pass of its own, over the packed bytes alone, is cheaper than finding them again in every tile.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .launch import launch

__all__ = ["repack_symbols"]

_BLOCK = 1024


def repack_symbols(packed: torch.Tensor, table: torch.Tensor, words: torch.Tensor, per_byte: int, width: int) -> None:
    """Write eight symbols a word.

    Args:
        packed: uint8, checked.
        table: int64 [256]: what the symbols of a byte become, ``width`` bits each, the first one lowest.
        words: int16, int32 or int64 for a width of 2, 4 or 8.
    """
    if packed.numel():
        launch(_repack, (triton.cdiv(words.numel(), _BLOCK),), packed, table, words, packed.numel(), words.numel(),
               PER_BYTE=per_byte, WIDTH=width, BLOCK=_BLOCK)  # fmt: skip


@triton.jit
def _repack(
    packed_ptr, table_ptr, words_ptr, size, count, PER_BYTE: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    group = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    byte = group * 8 // PER_BYTE
    skipped = (group * 8 - byte * PER_BYTE).to(tl.int32)
    word = tl.load(table_ptr + tl.load(packed_ptr + byte, mask=byte < size, other=0))
    word = word.to(tl.uint64, bitcast=True) >> (skipped * WIDTH).to(tl.uint64)
    for index in tl.static_range(1, (7 + PER_BYTE - 1) // PER_BYTE + 1):
        shift = PER_BYTE * index - skipped
        needed = (byte + index < size) & (shift < 8)
        more = tl.load(table_ptr + tl.load(packed_ptr + byte + index, mask=needed, other=0), mask=needed, other=0)
        word |= more.to(tl.uint64, bitcast=True) << ((shift & 7) * WIDTH).to(tl.uint64)
    tl.store(words_ptr + group, word.to(words_ptr.dtype.element_ty, bitcast=WIDTH == 8), mask=group < count)
