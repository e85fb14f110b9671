"""The decoder in one pass: packed symbols -> levels -> inverse transform -> scale -> low rank -> add -> round.

A program owns a tile of 64 × 64 elements of the reordered view. The inverse transform of all its patches, whatever
their size, is two products with one block-diagonal basis. Products of float16 integers summed in float32 are exact
while every sum stays below 2^24; larger sums are taken in two parts, whose only rounding is the conversion to
float32 that the specification asks for.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .arithmetic import add_rounded
from .class_index import CLASS_BITS, OFFSET_BITS, PLACE_BITS

__all__ = ["TILE", "decode_tile"]

TILE = 64
_NO_LEVELS = tl.constexpr(-0x7F7F7F7F7F7F7F80)
"""Eight levels of zero: levels are held as bytes, 128 above their value."""


@triton.jit
def decode_tile(
    buffer_ptr, place_ptr, step_ptr, minimum_ptr, levels_ptr, scales_ptr, basis_ptr, ones_ptr,
    left_ptr, right_ptr, row_order_ptr, col_order_ptr, base_ptr, result_ptr,
    rows, cols, down, across, tiles_across, log_patch, rank, low_rank_scale,
    SPAN: tl.constexpr, SPLIT: tl.constexpr, AFFINE: tl.constexpr, LIMBS: tl.constexpr, ORDERED: tl.constexpr,
    BASE: tl.constexpr, RESULT: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Decode one tile; with ``BASE`` "none" the float32 delta itself is the result.

    Args:
        place_ptr, step_ptr, minimum_ptr: per patch, see ``class_index``.
        levels_ptr: int64 [classes, 256]: the levels of every byte.
        basis_ptr, ones_ptr: float16 and float32 [TILE, TILE]: the block-diagonal basis, and J of section 7.2.3.
        left_ptr, right_ptr: float16 [LIMBS, rows, rank] and [cols, rank]; rank is a multiple of 16.
        row_order_ptr, col_order_ptr: int64 [rows], [cols].
        SPAN: bytes that eight symbols can be spread over, at most.
        SPLIT: whether the first product needs two parts.
    """
    program = tl.program_id(0)
    tile_row = program // tiles_across
    tile_col = program - tile_row * tiles_across
    row = tile_row * TILE + tl.arange(0, TILE)
    levels = _unpack(
        buffer_ptr, place_ptr, levels_ptr, row, tile_col * TILE, down, across, log_patch, SPAN, TILE
    )
    line = tl.arange(0, TILE)
    basis = tl.load(basis_ptr + line[:, None] * TILE + line[None, :])
    transposed = tl.load(basis_ptr + line[None, :] * TILE + line[:, None])
    half = tl.dot(transposed, levels)
    if SPLIT:
        high = tl.floor(half * 0.00048828125)
        low = half - high * 2048
        integers = tl.dot(high.to(tl.float16), basis) * 2048 + tl.dot(low.to(tl.float16), basis)
    else:
        integers = tl.dot(half.to(tl.float16), basis)

    group = tl.arange(0, TILE // 8)
    patch_row = row >> log_patch
    patch_col = (tile_col * TILE + group * 8) >> log_patch
    coded = (patch_row < down)[:, None] & (patch_col < across)[None, :]
    patch = patch_row.to(tl.int64)[:, None] * across + patch_col[None, :]
    step = _spread(tl.load(step_ptr + patch, mask=coded, other=0.0), TILE)
    delta = integers * step
    if AFFINE:
        minimum = _spread(tl.load(minimum_ptr + patch, mask=coded, other=0.0), TILE)
        ones = tl.load(ones_ptr + line[:, None] * TILE + line[None, :])
        delta = (delta + ones * minimum) * tl.load(scales_ptr)

    col = tile_col * TILE + tl.arange(0, TILE)
    inside = (row < rows)[:, None] & (col < cols)[None, :]
    view_row, view_col = row.to(tl.int64), col.to(tl.int64)
    if ORDERED:
        view_row = tl.load(row_order_ptr + row, mask=row < rows, other=0)
        view_col = tl.load(col_order_ptr + col, mask=col < cols, other=0)
    if LIMBS > 0:
        product = _low_rank(left_ptr, right_ptr, view_row, view_col, row < rows, col < cols, rows, rank, LIMBS, TILE)
        delta = delta + product * tl.load(low_rank_scale)
    element = view_row[:, None] * cols + view_col[None, :]
    if BASE == "none":
        tl.store(result_ptr + element, delta, mask=inside)
    else:
        bits = tl.load(base_ptr + element, mask=inside, other=0)
        tl.store(result_ptr + element, add_rounded(bits, delta, BASE, RESULT), mask=inside)


@triton.jit
def _unpack(
    buffer_ptr, place_ptr, levels_ptr, row, first_col, down, across, log_patch, SPAN: tl.constexpr, TILE: tl.constexpr
):  # fmt: skip
    """Levels of a tile, float16 [TILE, TILE].

    Eight symbols that are neighbours in a row are a group, and neighbours in the payload too. The levels of each of
    their bytes come from a table, eight bits each, and are shifted into one word.
    """
    col = first_col + tl.arange(0, TILE // 8) * 8
    patch_row = row >> log_patch
    patch_col = col >> log_patch
    coded = (patch_row < down)[:, None] & (patch_col < across)[None, :]
    patch = patch_row.to(tl.int64)[:, None] * across + patch_col[None, :]
    place = tl.load(place_ptr + patch, mask=coded, other=0)
    fields = place.to(tl.int32)
    per_byte = (fields >> (CLASS_BITS + OFFSET_BITS)) & 15
    coded = coded & (per_byte > 0)
    patch_mask = (1 << log_patch) - 1
    within = ((row & patch_mask) << log_patch)[:, None] + (col & patch_mask)[None, :]
    within += (fields >> CLASS_BITS) & 7
    byte = (within * ((fields >> (CLASS_BITS + OFFSET_BITS + 4)) & 0x7FFF)) >> 14
    skipped = tl.where(coded, within - byte * per_byte, 0)
    bytes_ptr = buffer_ptr + (place >> PLACE_BITS) + byte
    table_ptr = levels_ptr + (fields & 0xFF) * 256
    packed = tl.load(bytes_ptr, mask=coded, other=0).to(tl.int32)
    word = tl.load(table_ptr + packed, mask=coded, other=_NO_LEVELS).to(tl.uint64, bitcast=True)
    word = word >> (skipped * 8).to(tl.uint64)
    for index in tl.static_range(1, SPAN):
        shift = per_byte * index - skipped
        needed = coded & (shift < 8)
        packed = tl.load(bytes_ptr + index, mask=needed, other=0).to(tl.int32)
        more = tl.load(table_ptr + packed, mask=needed, other=0).to(tl.uint64, bitcast=True)
        word |= more << ((shift & 7) * 8).to(tl.uint64)
    low, high = word.to(tl.uint32), (word >> 32).to(tl.uint32)
    even = tl.join(tl.join(_level(low, 0), _level(high, 0)), tl.join(_level(low, 16), _level(high, 16)))
    odd = tl.join(tl.join(_level(low, 8), _level(high, 8)), tl.join(_level(low, 24), _level(high, 24)))
    return tl.reshape(tl.join(even, odd), [TILE, TILE])


@triton.jit
def _level(word, shift: tl.constexpr):
    """Byte ``shift / 8`` as a level: 0x6400 | b is the float16 1024 + b."""
    bits = ((word >> shift) & 0xFF) | 0x6400
    return bits.to(tl.uint16).to(tl.float16, bitcast=True) - 1152.0


@triton.jit
def _spread(values, TILE: tl.constexpr):
    """[TILE, TILE / 8] -> [TILE, TILE], each value eight times in a row."""
    pair = tl.join(values, values)
    quad = tl.join(pair, pair)
    return tl.reshape(tl.join(quad, quad), [TILE, TILE])


@triton.jit
def _low_rank(
    left_ptr, right_ptr, view_row, view_col, row_inside, col_inside, rows, rank,
    LIMBS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """f(y) of section 7.2.3, step 4: the sum in parts that are exact, then one rounding."""
    term = tl.arange(0, 16)
    lowest = tl.zeros([TILE, TILE], tl.float32)
    middle = tl.zeros([TILE, TILE], tl.float32)
    highest = tl.zeros([TILE, TILE], tl.float32)
    limb = rows.to(tl.int64) * rank
    first = 0
    while first < rank:
        left = left_ptr + view_row[:, None] * rank + (first + term)[None, :]
        right = tl.load(
            right_ptr + view_col[None, :] * rank + (first + term)[:, None], mask=col_inside[None, :], other=0.0
        )
        lowest = tl.dot(tl.load(left, mask=row_inside[:, None], other=0.0), right, lowest)
        if LIMBS > 1:
            middle = tl.dot(tl.load(left + limb, mask=row_inside[:, None], other=0.0), right, middle)
        if LIMBS > 2:
            highest = tl.dot(tl.load(left + 2 * limb, mask=row_inside[:, None], other=0.0), right, highest)
        first += 16
    if LIMBS > 2:
        middle = highest * 256 + middle
    if LIMBS > 1:
        lowest = middle * 256 + lowest
    return lowest
