"""A layer on the device: its payload crosses the bus once, packed, and everything else happens there."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import triton

from ...codec.dctq import DctqParams, StoredPayload
from ...codec.symbols import symbols_per_byte
from .class_index import index_patches
from .decode import TILE_COLS, TILE_ROWS, decode_tiles
from .fused import FusedPlan, plan_fused
from .launch import launch
from .nvrtc import find_nvrtc
from .repack import repack_symbols
from .sparse import expand_runs
from .tables import basis_tiles, byte_table, level_table, needs_parts, ones_tile, symbol_width

__all__ = ["BITS", "DeviceLayer", "LayerPlan", "plan_layer", "plan_portable"]

BITS = {"BF16": torch.int16, "F16": torch.int16, "F32": torch.int32}
"""The integer type in which the kernels see elements."""

_STEPS = 4
"""Tiles of one program."""

_READ_BEYOND = 256
"""Bytes that a patch without symbols, or a group at the end, may read although nothing is stored there."""


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """Where everything lies in the one buffer that a layer needs on the device.

    The buffer holds the payload; from ``streams_at`` on the table of streams, int64 [classes, 2]; from ``upload_size``
    on symbols of fixed width, made on the device; in all ``size`` bytes. The first ``upload_size`` bytes are uploaded.

    Attributes:
        streams: see ``class_index.index_patches``.
        stops: for each class the end of its symbols in the buffer.
        limbs: parts of eight bits or more in which the low-rank factors are held.
    """

    params: DctqParams
    stored: StoredPayload
    streams: npt.NDArray[np.int64]
    stops: tuple[int, ...]
    streams_at: int
    upload_size: int
    size: int
    limbs: int

    def write(self, buffer: npt.NDArray[np.uint8]) -> None:
        """Fill the part that is uploaded."""
        buffer[: self.stored.payload.size] = self.stored.payload
        buffer[self.streams_at : self.upload_size] = self.streams.reshape(-1).view(np.uint8)

    def build(self, buffer: torch.Tensor) -> DeviceLayer:
        """Make the layer of an uploaded buffer, uint8 [size]."""
        return DeviceLayer(self, buffer)


def plan_layer(params: DctqParams, stored: StoredPayload, device: torch.device) -> LayerPlan | FusedPlan:
    """Lay out the buffer of a checked payload, for the kernels in CUDA C++ where they can decode it, else in Triton."""
    plan = plan_fused(params, stored) if find_nvrtc(device) else None
    return plan or plan_portable(params, stored)


def plan_portable(params: DctqParams, stored: StoredPayload) -> LayerPlan:
    """Lay out the buffer of a checked payload for the kernels in Triton. Needs no device."""
    streams = np.zeros((len(params.levels), 2), dtype=np.int64)
    streams_at = _aligned(max(stored.payload.size, _READ_BEYOND))
    scratch_at = position = streams_at + streams.nbytes
    streams[:, 0] = scratch_at  # classes without symbols read zeros there
    position += _READ_BEYOND
    stops = []
    for number, (codes, alphabet) in enumerate(zip(stored.codes, params.alphabets, strict=True)):
        if alphabet > 1:
            width = symbol_width(alphabet)
            streams[number] = position, width
            position += _aligned(codes.symbols * width // 8)
        stops.append(position)
    size = position + _READ_BEYOND
    return LayerPlan(params, stored, streams, tuple(stops), streams_at, scratch_at, size, _limbs(params, stored))


class DeviceLayer:
    """A layer that is ready to be applied to any number of base tensors' ranges of rows.

    Args:
        buffer: uint8 [plan.size] on the device, aligned to 8 bytes, its first ``plan.upload_size`` bytes as
            :meth:`LayerPlan.write` fills them; the rest is overwritten here.
    """

    def __init__(self, plan: LayerPlan, buffer: torch.Tensor) -> None:
        self._plan = plan
        self._buffer = buffer
        self._device = buffer.device
        params = plan.params
        buffer[plan.upload_size : plan.upload_size + _READ_BEYOND].zero_()
        for number, levels in enumerate(params.levels):
            if len(levels) > 1:
                self._unpack_class(number, levels)
        affine = params.quantiser == "affine"
        self._scales = self._section("scales").view(torch.float32)
        self._place, self._step, self._minimum = index_patches(
            self._section("class_map") if len(params.levels) > 1 else None,
            buffer[plan.streams_at : plan.upload_size].view(torch.int64).view(-1, 2),
            self._scales,
            self._section("ranges") if affine else None,
            params.grid.count,
            params.grid.patch**2,
        )
        self._orders = self._row_and_column_order()
        self._factors = self._low_rank_factors()

    def _unpack_class(self, number: int, levels: tuple[int, ...]) -> None:
        codes = self._plan.stored.codes[number]
        start, width = self._plan.streams[number].tolist()
        words = self._buffer[start : self._plan.stops[number]]
        packed = self._buffer[slice(*codes.packed)]
        if codes.runs is None:
            per_byte = symbols_per_byte(len(levels))
            table = byte_table(levels, per_byte, self._device)
            words = words[: codes.symbols * width // 8].view({2: torch.int16, 4: torch.int32, 8: torch.int64}[width])
            repack_symbols(packed, table, words, per_byte, width)
            return
        words.fill_(128 if width == 8 else 0)
        if width < 8:
            words = words.view(torch.int32)
        table = byte_table(levels, 1, self._device)
        expand_runs(self._buffer[slice(*codes.runs)], packed, words, table, len(levels), width)

    def delta(self) -> torch.Tensor:
        """The decoded delta, float32 [rows, cols]."""
        grid = self._plan.params.grid
        result = torch.empty((grid.rows, grid.cols), dtype=torch.float32, device=self._device)
        self._decode(result, result, "none", "F32")
        return result

    def apply(self, base: torch.Tensor, base_dtype: str, result: torch.Tensor, dtype: str) -> None:
        """Write the tensor after the layer into ``result``, which may be ``base`` itself if the types are equal.

        Args:
            base, result: contiguous, on the layer's device, of the element types ``base_dtype`` and ``dtype``.
        """
        self._decode(base.view(-1).view(BITS[base_dtype]), result.view(-1).view(BITS[dtype]), base_dtype, dtype)

    def _decode(self, base: torch.Tensor, result: torch.Tensor, base_dtype: str, dtype: str) -> None:
        params = self._plan.params
        grid, transform = params.grid, params.transform
        programs_down = triton.cdiv(grid.rows, TILE_ROWS)
        programs_across = triton.cdiv(grid.cols, TILE_COLS * _STEPS)
        left, right = self._factors
        row_order, col_order = self._orders
        launch(
            decode_tiles, (programs_down * programs_across,),
            self._buffer.view(torch.int32), self._place, self._step, self._minimum,
            level_table(params.levels, self._device), self._scales,
            *basis_tiles(transform, grid.patch, self._device),
            ones_tile(transform, grid.patch, self._device),
            left, right, row_order, col_order, base, result,
            grid.rows, grid.cols, grid.down, grid.across, programs_across, right.shape[-1], grid.rows * right.shape[-1],
            self._scales[-1:],
            PATCH=grid.patch, WIDTHS=_widths(params), SPLIT=needs_parts(params.levels, transform, grid.patch),
            AFFINE=params.quantiser == "affine", LIMBS=self._plan.limbs, ORDERED=params.row_keys or params.col_keys,
            BASE=base_dtype, RESULT=dtype, TILE_ROWS=TILE_ROWS, TILE_COLS=TILE_COLS, STEPS=_STEPS, num_stages=1,
            maxnreg=None if self._plan.limbs or params.quantiser == "affine" else 64,
        )  # fmt: skip

    def _section(self, name: str) -> torch.Tensor:
        return self._buffer[slice(*self._plan.stored.sections[name])]

    def _row_and_column_order(self) -> tuple[torch.Tensor, torch.Tensor]:
        params = self._plan.params
        if not (params.row_keys or params.col_keys):
            return self._place, self._place
        grid = params.grid
        return (
            self._order("row_keys") if params.row_keys else torch.arange(grid.rows, device=self._device),
            self._order("col_keys") if params.col_keys else torch.arange(grid.cols, device=self._device),
        )

    def _order(self, section: str) -> torch.Tensor:
        return torch.sort(self._section(section), stable=True).indices

    def _low_rank_factors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Left, each term times its multiplier, in limbs, and right; terms padded with zeros to a multiple of 16."""
        params, limbs = self._plan.params, self._plan.limbs
        if not limbs:
            nothing = torch.empty((1, 16), dtype=torch.float16, device=self._device)
            return nothing, nothing
        grid, rank = params.grid, params.rank
        padded = -(-rank // 16) * 16
        multipliers = self._section("multipliers").view(torch.uint16).to(torch.int32)
        weighted = self._section("left").view(torch.int8).view(rank, grid.rows).to(torch.int32)
        weighted *= multipliers[:, None]
        left = torch.zeros((limbs, grid.rows, padded), dtype=torch.float16, device=self._device)
        for limb in range(limbs):
            part = weighted >> (8 * limb)
            left[limb, :, :rank] = (part if limb == limbs - 1 else part & 0xFF).T.half()
        right = torch.zeros((grid.cols, padded), dtype=torch.float16, device=self._device)
        right[:, :rank] = self._section("right").view(torch.int8).view(rank, grid.cols).T.half()
        return left, right


def _limbs(params: DctqParams, stored: StoredPayload) -> int:
    """In how many parts multiplier·left must be held for float16 to hold each, and float32 the sums, exactly."""
    if not params.rank:
        return 0
    multipliers = stored.section("multipliers").view("<u2").astype(np.int64)
    largest, total = int(multipliers.max()) << 7, int(multipliers.sum()) << 14
    if largest <= 1 << 11 and total <= 1 << 24:
        return 1
    return 2 if largest >> 8 <= 1 << 11 and (total >> 8) + (params.rank << 7) <= 1 << 24 else 3


def _widths(params: DctqParams) -> int:
    return sum({symbol_width(alphabet) for alphabet in params.alphabets} | {2})


def _aligned(size: int) -> int:
    return -(-size // 8) * 8
