"""The decoder in one pass: packed symbols -> levels -> inverse transform -> scale -> low rank -> add -> round.

A program owns a few tiles of the reordered view. The inverse transform of all patches of a tile, whatever their size,
is two products with block-diagonal bases. Products of float16 numbers summed in float32 are exact while every sum has
at most 24 significant bits; where the sums may be larger they are taken in two parts, and the only rounding is the
conversion to float32 that the specification asks for.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .arithmetic import INTERPRETED, add_rounded
from .class_index import CLASS_BITS, PLACE_BITS

__all__ = ["BASIS_SHIFT", "TILE_COLS", "TILE_ROWS", "decode_tiles"]

TILE_ROWS = 64
TILE_COLS = 32
BASIS_SHIFT = 6
"""The first product is with the basis / 2^6, so that its parts are float16 numbers, the second with the basis · 2^6."""

_PART = tl.constexpr(1.5 * 2.0**23 * 2**5)
"""Added and subtracted, it rounds a float32 number to a multiple of 2^5."""


@triton.jit
def decode_tiles(
    buffer_ptr, place_ptr, step_ptr, minimum_ptr, levels_ptr, scales_ptr, first_basis_ptr, second_basis_ptr, ones_ptr,
    left_ptr, right_ptr, row_order_ptr, col_order_ptr, base_ptr, result_ptr,
    rows, cols, down, across, programs_across, rank, limb_size, low_rank_scale,
    PATCH: tl.constexpr, WIDTHS: tl.constexpr, SPLIT: tl.constexpr, AFFINE: tl.constexpr, LIMBS: tl.constexpr,
    ORDERED: tl.constexpr, BASE: tl.constexpr, RESULT: tl.constexpr,
    TILE_ROWS: tl.constexpr, TILE_COLS: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """Decode STEPS tiles side by side; with ``BASE`` "none" the float32 delta itself is the result.

    Args:
        place_ptr, step_ptr, minimum_ptr: per patch, see ``class_index``.
        buffer_ptr: int32: words of eight symbols, see ``repack``.
        levels_ptr: int64 [classes]: the levels of a class of up to eight.
        first_basis_ptr: float16 [TILE_ROWS, TILE_ROWS]: transposed, block-diagonal, divided by 2^BASIS_SHIFT.
        second_basis_ptr: float16 [TILE_COLS, TILE_COLS]: block-diagonal, times 2^BASIS_SHIFT.
        ones_ptr: float32 [TILE_ROWS, TILE_COLS]: J of section 7.2.3 for every patch.
        left_ptr, right_ptr: float16 [LIMBS, rows, rank] and [cols, rank]; rank is a multiple of 16.
        row_order_ptr, col_order_ptr: int64 [rows], [cols].
        limb_size: rows · rank.
        WIDTHS: the sum of the widths of symbols that occur.
        SPLIT: whether the sums need two parts.
    """
    program = tl.program_id(0)
    program_row = program // programs_across
    program_col = program - program_row * programs_across
    row = program_row * TILE_ROWS + tl.arange(0, TILE_ROWS)
    line, place = tl.arange(0, TILE_ROWS), tl.arange(0, TILE_COLS)
    first_basis = tl.load(first_basis_ptr + line[:, None] * TILE_ROWS + line[None, :])
    second_basis = tl.load(second_basis_ptr + place[:, None] * TILE_COLS + place[None, :])
    view_row = row.to(tl.int64)
    if ORDERED:
        view_row = tl.load(row_order_ptr + row, mask=row < rows, other=0)
    patch_row = program_row * (TILE_ROWS // PATCH) + tl.arange(0, TILE_ROWS // PATCH)

    for step_number in range(STEPS):
        first_col = (program_col * STEPS + step_number) * TILE_COLS
        col = first_col + place
        inside = (row < rows)[:, None] & (col < cols)[None, :]
        view_col = col.to(tl.int64)
        if ORDERED:
            view_col = tl.load(col_order_ptr + col, mask=col < cols, other=0)
        element = view_row[:, None] * cols + view_col[None, :]
        if BASE != "none":
            bits = tl.load(base_ptr + element, mask=inside, other=0)

        levels = _unpack(buffer_ptr, place_ptr, levels_ptr, row, first_col, down, across, PATCH, WIDTHS, TILE_ROWS,
                         TILE_COLS)  # fmt: skip
        half = tl.dot(first_basis, levels)
        if SPLIT:
            high = (half + _PART) - _PART
            low = half - high
            integers = _add(tl.dot(high.to(tl.float16), second_basis), tl.dot(low.to(tl.float16), second_basis))
        else:
            integers = tl.dot(half.to(tl.float16), second_basis)

        patch_col = first_col // PATCH + tl.arange(0, TILE_COLS // PATCH)
        there = (patch_row < down)[:, None] & (patch_col < across)[None, :]
        patch = patch_row.to(tl.int64)[:, None] * across + patch_col[None, :]
        delta = integers * _spread(tl.load(step_ptr + patch, mask=there, other=0.0), PATCH, TILE_ROWS, TILE_COLS)
        if AFFINE:
            minimum = _spread(tl.load(minimum_ptr + patch, mask=there, other=0.0), PATCH, TILE_ROWS, TILE_COLS)
            ones = tl.load(ones_ptr + line[:, None] * TILE_COLS + place[None, :])
            delta = (delta + ones * minimum) * tl.load(scales_ptr)
        if LIMBS > 0:
            product = _low_rank(left_ptr, right_ptr, view_row, view_col, row < rows, col < cols, rank, limb_size, LIMBS,
                                TILE_ROWS, TILE_COLS)  # fmt: skip
            delta = delta + product * tl.load(low_rank_scale)
        if BASE == "none":
            tl.store(result_ptr + element, delta, mask=inside)
        else:
            tl.store(result_ptr + element, add_rounded(bits, delta, BASE, RESULT), mask=inside)


@triton.jit
def _unpack(
    buffer_ptr, place_ptr, levels_ptr, row, first_col, down, across,
    PATCH: tl.constexpr, WIDTHS: tl.constexpr, TILE_ROWS: tl.constexpr, TILE_COLS: tl.constexpr,
):  # fmt: skip
    """Levels of a tile, float16 [TILE_ROWS, TILE_COLS].

    Eight symbols that are neighbours in a row are a group, and neighbours in the payload too. Those of two bits become
    digits of four; four such digits select four bytes of the class's levels in one instruction. Patches beyond the view
    get the place 0: whatever they decode to is dropped.
    """
    col = first_col + tl.arange(0, TILE_COLS // 8) * 8
    patch_row = row // PATCH
    patch_col = col // PATCH
    there = (patch_row < down)[:, None] & (patch_col < across)[None, :]
    patch = patch_row.to(tl.int64)[:, None] * across + patch_col[None, :]
    place = tl.load(place_ptr + patch, mask=there, other=0)
    fields = place.to(tl.int32)
    width = (fields >> CLASS_BITS) & 15
    within = ((row % PATCH) * PATCH)[:, None] + (col % PATCH)[None, :]
    byte = (place >> PLACE_BITS) + ((within * width) >> 3)
    word_ptr = buffer_ptr + (byte >> 2)
    digits = tl.load(word_ptr).to(tl.uint32, bitcast=True)
    whole = digits
    if WIDTHS & 2:
        pairs = (digits >> ((byte.to(tl.int32) & 2) * 8).to(tl.uint32)) & 0xFFFF
        pairs = (pairs | (pairs << 8)) & 0x00FF00FF
        pairs = (pairs | (pairs << 4)) & 0x0F0F0F0F
        pairs = (pairs | (pairs << 2)) & 0x33333333
        digits = tl.where(width == 4, digits, pairs) if WIDTHS & 4 else pairs
    low, high = _select_levels(tl.load(levels_ptr + (fields & 0xFF)), digits)
    if WIDTHS & 8:
        low = tl.where(width == 8, whole, low)
        high = tl.where(width == 8, tl.load(word_ptr + 1, mask=width == 8, other=0).to(tl.uint32, bitcast=True), high)
    a, b, c, d = _four_levels(low)
    e, f, g, h = _four_levels(high)
    even = tl.join(tl.join(a, e), tl.join(c, g))
    odd = tl.join(tl.join(b, f), tl.join(d, h))
    # Subtracted after the reshape: Triton 3.6 does not compile a product whose operand is a reshape.
    return tl.reshape(tl.join(even, odd), [TILE_ROWS, TILE_COLS]) - 1152.0


@triton.jit
def _add(high, low):
    """A sum that is rounded once, to nearest: Triton would let the tensor cores add, and those truncate."""
    if INTERPRETED:
        total = high + low
    else:
        total = tl.inline_asm_elementwise(
            "add.rn.f32 $0, $1, $2;", "=f,f,f", [high, low], dtype=tl.float32, is_pure=True, pack=1
        )
    return total


@triton.jit
def _select_levels(levels, digits):
    """Bytes of ``levels``, one for each of eight four-bit digits below 8."""
    if INTERPRETED:
        low, high = digits & 0, digits & 0
        for index in tl.static_range(4):
            for half in tl.static_range(2):
                digit = (digits >> (4 * index + 16 * half)) & 7
                level = ((levels >> (digit * 8).to(tl.int64)) & 0xFF).to(tl.uint32) << (8 * index)
                if half == 0:
                    low |= level
                else:
                    high |= level
    else:
        low, high = tl.inline_asm_elementwise(
            "{.reg .b32 a, b, d; mov.b64 {a, b}, $2; prmt.b32 $0, a, b, $3; shr.u32 d, $3, 16; prmt.b32 $1, a, b, d;}",
            "=&r,=r,l,r",
            [levels, digits],
            dtype=(tl.uint32, tl.uint32),
            is_pure=True,
            pack=1,
        )
    return low, high


@triton.jit
def _four_levels(word):
    """The bytes of a word, levels plus 128, as float16 plus 1024: the bits 0x6400 | b are the number 1024 + b."""
    if INTERPRETED:
        a, b, c, d = _level(word), _level(word >> 8), _level(word >> 16), _level(word >> 24)
    else:
        a, b, c, d = tl.inline_asm_elementwise(
            "{.reg .b32 t, u; prmt.b32 t, $4, 0x64646464, 0x4140; prmt.b32 u, $4, 0x64646464, 0x4342;"
            " mov.b32 {$0, $1}, t; mov.b32 {$2, $3}, u;}",
            "=h,=h,=h,=h,r",
            [word],
            dtype=(tl.float16, tl.float16, tl.float16, tl.float16),
            is_pure=True,
            pack=1,
        )
    return a, b, c, d


@triton.jit
def _level(word):
    return ((word & 0xFF) | 0x6400).to(tl.uint16).to(tl.float16, bitcast=True)


@triton.jit
def _spread(values, PATCH: tl.constexpr, TILE_ROWS: tl.constexpr, TILE_COLS: tl.constexpr):
    """One value per patch -> one per element, [TILE_ROWS, TILE_COLS]."""
    values = tl.broadcast_to(values[:, None, :, None], [TILE_ROWS // PATCH, PATCH, TILE_COLS // PATCH, PATCH])
    return tl.reshape(values, [TILE_ROWS, TILE_COLS])


@triton.jit
def _low_rank(
    left_ptr, right_ptr, view_row, view_col, row_inside, col_inside, rank, limb_size,
    LIMBS: tl.constexpr, TILE_ROWS: tl.constexpr, TILE_COLS: tl.constexpr,
):  # fmt: skip
    """f(y) of section 7.2.3, step 4: the sum in parts that are exact, then one rounding."""
    term = tl.arange(0, 16)
    lowest = tl.zeros([TILE_ROWS, TILE_COLS], tl.float32)
    middle = tl.zeros([TILE_ROWS, TILE_COLS], tl.float32)
    highest = tl.zeros([TILE_ROWS, TILE_COLS], tl.float32)
    first = 0
    while first < rank:
        left = left_ptr + view_row[:, None] * rank + (first + term)[None, :]
        right = tl.load(
            right_ptr + view_col[None, :] * rank + (first + term)[:, None], mask=col_inside[None, :], other=0.0
        )
        lowest = tl.dot(tl.load(left, mask=row_inside[:, None], other=0.0), right, lowest)
        if LIMBS > 1:
            middle = tl.dot(tl.load(left + limb_size, mask=row_inside[:, None], other=0.0), right, middle)
        if LIMBS > 2:
            highest = tl.dot(tl.load(left + 2 * limb_size, mask=row_inside[:, None], other=0.0), right, highest)
        first += 16
    if LIMBS > 2:
        middle = highest * 256 + middle
    if LIMBS > 1:
        lowest = middle * 256 + lowest
    return lowest
