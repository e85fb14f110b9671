"""ulp.v1 decoded on the device (spec section 7.3.3): symbols and extra bits become residuals where they lie, in the
order of the payload; then every element takes its own from its place there.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
import triton
import triton.language as tl

from ...codec.symbols import measure_runs
from ...codec.ulp import UlpParams
from ...errors import InvalidError
from .launch import launch
from .sparse import expand_runs
from .ulp_elements import (
    BLOCK,
    ELEMENT_ARGUMENTS,
    Grouping,
    find_contexts,
    find_places,
    load_pattern,
    predict,
    split_code,
)

__all__ = ["decode_ulp", "extra_bit_starts"]

_TYPES = {"BF16": torch.int16, "F16": torch.int16, "F32": torch.int32}
_ANY_VALUE = 257
"""An alphabet in which every byte is a value: what is beyond the layer's own is found among the symbols."""


def decode_ulp(
    params: UlpParams,
    payload: npt.NDArray[np.uint8],
    uploaded: torch.Tensor,
    before: torch.Tensor,
    before_dtype: str,
    result: torch.Tensor,
) -> None:
    """Write the tensor after a layer into ``result``, which may be ``before`` itself if the types are equal.

    Waits for the device: what the payload means depends on the prediction, and whether it is valid on all of it.

    Args:
        payload: of a size within :meth:`UlpParams.size_bounds`.
        uploaded: the same on the device, uint8.
        before, result: contiguous, on the device, of the element types ``before_dtype`` and ``params.dtype``.

    Raises:
        InvalidError: the payload is not as section 7.3 demands. ``result`` is undefined then.
    """
    predicted = predict(before.view(-1).view(_TYPES[before_dtype]), before_dtype, params.dtype)
    result = result.view(-1).view(_TYPES[params.dtype])
    cols_at = params.rows if params.row_keys else 0
    grouping = Grouping(
        predicted=predicted,
        dtype=params.dtype,
        cols=params.cols,
        row_keys=uploaded[: params.rows] if params.row_keys else None,
        col_keys=uploaded[cols_at : cols_at + params.cols] if params.col_keys else None,
        group_of=_group_table(params, before.device),
        groups=len(params.bounds) + 1,
    )
    starts = grouping.starts()
    ends = [*starts[1:, 0].tolist(), predicted.numel()]
    sections = _find_sections(params, payload, ends)
    stream = _stream(sections, uploaded, predicted.numel())
    status = torch.zeros(2, dtype=torch.int32, device=before.device)
    bits = extra_bit_starts(stream, params.mantissa, params.alphabet, status)
    extra = uploaded[sections.extra_at :]
    wide = params.dtype == "F32"
    residuals = torch.empty(stream.numel(), dtype=torch.int64 if wide else torch.int32, device=before.device)
    launch(
        _find_residuals, (bits.numel() - 1,), stream, bits, extra, residuals, stream.numel(), extra.numel(),
        MANTISSA=params.mantissa, BLOCK=BLOCK,
    )  # fmt: skip
    grouping.launch(_restore, starts, residuals, result, status, params.shift, 1 << (params.width - 1))
    _check_extra_bits(payload[sections.extra_at :], int(bits[-1]))
    beyond, outside = status.tolist()
    if beyond:
        raise InvalidError(f"ulp.v1: a symbol is not below {params.alphabet}")
    if outside:
        raise InvalidError("ulp.v1: a residual leads beyond the element type's patterns")


def extra_bit_starts(stream: torch.Tensor, mantissa: int, alphabet: int, status: torch.Tensor) -> torch.Tensor:
    """Extra bits before each tile of a stream of symbols, and of all, int64 [tiles + 1].

    Args:
        stream: uint8, at least one.
        status: int32; its first becomes 1 if a symbol is not below ``alphabet``.
    """
    tiles = triton.cdiv(stream.numel(), BLOCK)
    bits = torch.zeros(tiles + 1, dtype=torch.int64, device=stream.device)
    launch(_measure, (tiles,), stream, bits[1:], status, stream.numel(), alphabet, MANTISSA=mantissa, BLOCK=BLOCK)
    return bits.cumsum(0)


@dataclass(frozen=True, slots=True)
class _Sections:
    """Where the symbols of a payload lie, in order.

    Attributes:
        dense: of each piece where its symbols lie in the payload and where they belong in the stream, and how many.
        sparse: of each group, where its runs and its values begin and end, and where its symbols do in the stream.
    """

    dense: list[tuple[int, int, int]]
    sparse: list[tuple[int, int, int, int, int]]
    extra_at: int


def _find_sections(params: UlpParams, payload: npt.NDArray[np.uint8], ends: list[int]) -> _Sections:
    counts_at = params.fixed_size - 4 * len(params.sparse)
    run_counts = iter(payload[counts_at : params.fixed_size].view("<u4").tolist())
    position, begin = params.fixed_size, 0
    dense: list[tuple[int, int, int]] = []
    sparse: list[tuple[int, int, int, int, int]] = []
    for number, end in enumerate(ends):
        if number in params.sparse:
            values_at = position + next(run_counts)
            inside, values = measure_runs(payload[position:values_at], end - begin)
            if not inside:
                raise InvalidError("ulp.v1: a run of zeros leads beyond the last symbol of its group")
            sparse.append((position, values_at, values_at + values, begin, end))
            position = values_at + values
        else:
            if dense and dense[-1][1] + dense[-1][2] == begin and dense[-1][0] + dense[-1][2] == position:
                dense[-1] = (*dense[-1][:2], dense[-1][2] + end - begin)
            else:
                dense.append((position, begin, end - begin))
            position += end - begin
        begin = end
        if position > payload.size:
            raise InvalidError(f"ulp.v1: the payload has {payload.size} bytes, its contents take more")
    return _Sections(dense, sparse, position)


def _stream(sections: _Sections, uploaded: torch.Tensor, elements: int) -> torch.Tensor:
    """The symbols of all groups, one after another, uint8 [elements]."""
    if not sections.sparse:
        position, _, count = sections.dense[0]
        return uploaded[position : position + count]
    stream = torch.zeros(elements, dtype=torch.uint8, device=uploaded.device)
    for position, begin, count in sections.dense:
        stream[begin : begin + count] = uploaded[position : position + count]
    table = _byte_table(uploaded.device)
    for runs_at, values_at, values_end, begin, end in sections.sparse:
        runs, values = uploaded[runs_at:values_at], uploaded[values_at:values_end]
        expand_runs(runs, values, stream[begin:end], table, _ANY_VALUE, 8)
    return stream


def _check_extra_bits(extra: npt.NDArray[np.uint8], bits: int) -> None:
    needed = -(-bits // 8)
    if needed > extra.size:
        raise InvalidError("ulp.v1: there are fewer extra bits than the symbols need")
    if needed < extra.size:
        raise InvalidError("ulp.v1: the payload is longer than its contents")
    if bits & 7 and extra[-1] >> (bits & 7):
        raise InvalidError("ulp.v1: bits after the last extra bit are not zero")


@lru_cache(maxsize=256)
def _group_table(params: UlpParams, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(params.group_table()).to(device)


@lru_cache(maxsize=16)
def _byte_table(device: torch.device) -> torch.Tensor:
    return torch.arange(_ANY_VALUE, device=device).clamp_max(255)


@triton.jit(do_not_specialize=["alphabet"])
def _measure(stream_ptr, bits_ptr, status_ptr, elements, alphabet, MANTISSA: tl.constexpr, BLOCK: tl.constexpr):
    tile = tl.program_id(0)
    place = tile.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    symbol = tl.load(stream_ptr + place, mask=place < elements, other=0).to(tl.int32)
    _, extra = split_code(symbol, MANTISSA)
    tl.store(bits_ptr + tile, tl.sum(extra, 0).to(tl.int64))
    if tl.max(symbol, 0) >= alphabet:
        tl.store(status_ptr, 1)


@triton.jit(do_not_specialize=["extra_size"])
def _find_residuals(
    stream_ptr, bits_ptr, extra_ptr, residuals_ptr, elements, extra_size, MANTISSA: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Symbols and extra bits -> residuals, positive where the magnitude of the prediction grows."""
    tile = tl.program_id(0)
    place = tile.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < elements
    symbol = tl.load(stream_ptr + place, mask=inside, other=0).to(tl.int32)
    code, extra = split_code(symbol, MANTISSA)
    wide_extra = extra.to(tl.int64)
    position = tl.load(bits_ptr + tile) + tl.cumsum(extra, 0) - extra
    byte = position >> 3
    field = tl.zeros([BLOCK], tl.int64)
    for index in tl.static_range(5):  # at most 29 bits, and 7 before them
        used = (extra > 0) & ((position & 7) + wide_extra > 8 * index) & (byte + index < extra_size)
        field |= tl.load(extra_ptr + byte + index, mask=used, other=0).to(tl.int64) << (8 * index)
    field = (field >> (position & 7)) & ((tl.full([BLOCK], 1, tl.int64) << wide_extra) - 1)
    magnitude = ((code - (extra << MANTISSA)).to(tl.int64) << wide_extra) | field
    residual = tl.where((symbol & 1) == 1, -magnitude, magnitude)
    tl.store(residuals_ptr + place, residual.to(residuals_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=ELEMENT_ARGUMENTS)
def _restore(
    predicted_ptr, row_keys_ptr, col_keys_ptr, group_of_ptr, elements, cols, tiles,
    starts_ptr, residuals_ptr, result_ptr, status_ptr, shift, half,
    DTYPE: tl.constexpr, ROW_KEYS: tl.constexpr, COL_KEYS: tl.constexpr, NARROW: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < elements
    pattern = load_pattern(predicted_ptr, place, inside, DTYPE)
    context = find_contexts(pattern, inside, row_keys_ptr, col_keys_ptr, cols, DTYPE, ROW_KEYS, COL_KEYS, NARROW, BLOCK)
    group = tl.load(group_of_ptr + context, mask=inside, other=0).to(tl.int32)
    position = find_places(group, inside, starts_ptr, tiles, BLOCK)
    # Within bounds even if someone changes the prediction meanwhile.
    residual = tl.load(residuals_ptr + position, mask=inside & (position < elements), other=0)
    low = pattern >> shift
    negative = low >= half
    target = tl.where(negative, half - 1 - low - residual, low + residual)
    outside = inside & ((target < -half) | (target >= half))
    if tl.max(outside.to(tl.int32), 0) > 0:
        tl.store(status_ptr + 1, 1)
    target = tl.where(target >= 0, target, half - 1 - target) << shift
    tl.store(result_ptr + place, target.to(result_ptr.dtype.element_ty), mask=inside)
