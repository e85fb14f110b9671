"""Where each patch's symbols begin: the patches of a class are stored together, in patch order.

Two passes over the class map, a count per block and then a rank within the block.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .launch import launch

__all__ = ["CLASS_BITS", "PLACE_BITS", "index_patches"]

CLASS_BITS = tl.constexpr(8)
PLACE_BITS = tl.constexpr(16)
"""A patch's place, int64: class (8 bits), bits per symbol (8), and from bit 16 its first byte in the layer's buffer."""

_BLOCK = 1024


def index_patches(
    class_map: torch.Tensor | None,
    streams: torch.Tensor,
    scales: torch.Tensor,
    ranges: torch.Tensor | None,
    patches: int,
    symbols: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The place (int64 [patches]), step and minimum (float32 [patches]) of every patch.

    Args:
        class_map: uint8 [patches]; None for a single class.
        streams: int64 [classes, 2]: the first byte of a class's symbols, and bits per symbol, 0 for a class without
            symbols.
        scales: float32; per class, unless there are ``ranges``.
        ranges: uint8, the four byte planes of minima and steps; None for the quantiser ``levels``.
        symbols: per patch.
    """
    device, classes = streams.device, streams.shape[0]
    blocks = triton.cdiv(patches, _BLOCK)
    place = torch.empty(patches, dtype=torch.int64, device=device)
    step = torch.empty(patches, dtype=torch.float32, device=device)
    affine = ranges is not None
    classes_at = place if class_map is None else class_map
    ranges_at = place if ranges is None else ranges
    minimum = torch.empty(patches if affine else 1, dtype=torch.float32, device=device)
    mapped = class_map is not None
    counts = torch.empty((classes + 1, blocks), dtype=torch.int64, device=device)
    if mapped or affine:
        launch(_count, (blocks,), classes_at, streams, counts, patches, blocks, classes, mapped,
               BLOCK=_BLOCK)  # fmt: skip
        counts = counts.cumsum(1) - counts
    launch(
        _rank, (blocks,), classes_at, streams, counts, scales, ranges_at, place,
        step, minimum, patches, blocks, classes, symbols, ranges_at.numel() // 4 if affine else 0, mapped, affine,
        BLOCK=_BLOCK,
    )  # fmt: skip
    return place, step, minimum


@triton.jit
def _count(class_ptr, streams_ptr, counts_ptr, patches, blocks, classes, MAPPED: tl.constexpr, BLOCK: tl.constexpr):
    block = tl.program_id(0)
    patch = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = patch < patches
    number = tl.zeros([BLOCK], tl.int32)
    if MAPPED:
        number = tl.load(class_ptr + patch, mask=inside, other=0).to(tl.int32)
    candidate = 0
    counts_ptr += block
    while candidate < classes:
        count = tl.sum((inside & (number == candidate)).to(tl.int32), 0)
        tl.store(counts_ptr, count.to(tl.int64))
        counts_ptr += blocks
        candidate += 1
    coded = inside & (tl.load(streams_ptr + number * 2 + 1) > 0)
    tl.store(counts_ptr, tl.sum(coded.to(tl.int32), 0).to(tl.int64))


@triton.jit
def _rank(
    class_ptr, streams_ptr, before_ptr, scales_ptr, ranges_ptr, place_ptr, step_ptr, minimum_ptr,
    patches, blocks, classes, symbols, coded_patches, MAPPED: tl.constexpr, AFFINE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    block = tl.program_id(0)
    patch = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = patch < patches
    number = tl.zeros([BLOCK], tl.int32)
    member = patch
    if MAPPED:
        number = tl.load(class_ptr + patch, mask=inside, other=0).to(tl.int32)
        candidate = 0
        class_before_ptr = before_ptr + block
        while candidate < classes:
            hit = inside & (number == candidate)
            member = tl.where(hit, tl.load(class_before_ptr) + tl.cumsum(hit.to(tl.int32), 0) - 1, member)
            class_before_ptr += blocks
            candidate += 1
    start = tl.load(streams_ptr + number * 2)
    width = tl.load(streams_ptr + number * 2 + 1)
    coded = inside & (width > 0)
    place = start + tl.where(coded, member * symbols * width // 8, 0)
    place = (place << PLACE_BITS) | (tl.where(coded, width, 2) << CLASS_BITS) | number
    tl.store(place_ptr + patch, place, mask=inside)
    if AFFINE:
        rank = tl.load(before_ptr + classes * blocks + block) + tl.cumsum(coded.to(tl.int32), 0) - 1
        minimum = _half(ranges_ptr + rank, coded_patches, coded)
        step = _half(ranges_ptr + 2 * coded_patches + rank, coded_patches, coded)
        tl.store(minimum_ptr + patch, minimum, mask=inside)
    else:
        step = tl.load(scales_ptr + number, mask=coded, other=0.0)
    tl.store(step_ptr + patch, step, mask=inside)


@triton.jit
def _half(low_ptr, stride, mask):
    """float16 from two byte planes, as float32."""
    low = tl.load(low_ptr, mask=mask, other=0).to(tl.int16)
    high = tl.load(low_ptr + stride, mask=mask, other=0).to(tl.int16)
    return (low | (high << 8)).to(tl.float16, bitcast=True).to(tl.float32)
