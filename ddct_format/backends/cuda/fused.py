"""dctq.v1 with patches of 16 × 16 in CUDA C++: the plan of a layer, and its three launches (see ``layer.cuh``)."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import lru_cache
from math import gcd
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from ...codec.dctq import DctqParams, StoredPayload
from ...codec.transform import basis_matrix
from .nvrtc import Kernels, load_kernels
from .part import Part

__all__ = ["FusedLayer", "FusedPlan", "plan_fused"]

_SOURCES = {
    "prepare": ("warp.cuh", "layer.cuh", "prepare.cu"),
    "rows": ("warp.cuh", "layer.cuh", "patch.cuh", "elements.cuh", "rows.cu"),
    "tiles": ("warp.cuh", "layer.cuh", "patch.cuh", "elements.cuh", "tiles.cu"),
}
_TYPES = {"none": 0, "BF16": 1, "F16": 2, "F32": 3}
_SIZES = {"none": 4, "BF16": 2, "F16": 2, "F32": 4}
_PATCH = 16
# As in layer.cuh.
_THREADS, _MAP_BLOCK, _RUN_BLOCK, _DENSE_BLOCK, _FILL_BLOCK = 256, 1024, 4096, 256 * 16, 256 * 64
_BLOCKS, _MOST_ACROSS, _TILE_COLS, _TILE_BLOCKS = 3, 65536, 512, 3
_TILE_FIXED = 64 * (_TILE_COLS + 1) + 11328
"""Bytes of shared memory that every block of ``decode_tiles`` takes, see ``tiles.cu``."""
_SHARED, _RESERVED_SHARED = 228 << 10, 1 << 10
"""Bytes of shared memory of a multiprocessor, and what each block takes of it besides."""
_MOST_CHUNKS, _MOST_TILE_CHUNKS = 2, 4
"""How many times 16 low-rank terms registers, or shared memory, have room for."""
_CENTRE, _SPLIT, _HIGH, _CODE_BITS = 2, 4, 8, 4
_READ_BEYOND = 256
"""Bytes after the symbols of a class into which the last 16 packed bytes may spill."""
_LARGEST_FACTOR = 1 << 11
"""Up to which float16 holds every integer."""
_UNALIGNED = 4
"""Bytes after the payload that are read together with its last ones."""
_WORD_UNIT = 64
_START = 0.2
"""What it costs a warp to begin, in strips."""
_CLASS = np.dtype([("levels", "u1", 8), ("factor", "<f4"), ("words", "<u4"), ("code", "<u4"), ("unused", "<u4", 3)])
_STREAM = (
    "packed", "packed_size", "runs", "runs_size", "words", "words_size", "totals", "levels", "alphabet", "width",
    "prepare_blocks", "place_blocks",
)  # fmt: skip
_LAYER = (
    "buffer", "rows", "cols", "down", "across", "patches", "class_map", "classes", "class_table", "streams",
    "stream_count", "map_blocks", "counts", "places", "ranges", "coded", "multipliers", "left", "right", "rank",
    "padded_rank", "left_limbs", "right_rows", "row_keys", "col_keys", "row_order", "col_order", "col_place",
    "tile_lengths", "tile_patches", "tile_cols", "tile_most", "tile_first", "tile_count", "scales",
    "low_rank_scale", "basis", "base", "result", "stride", "row_first", "row_stop", "col_first", "col_stop", "split",
    "finite", "run",
)  # fmt: skip


class _Layer(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in _LAYER]


@dataclass(frozen=True, slots=True)
class FusedPlan:
    """Where everything lies in the one buffer that a layer needs on the device.

    Attributes:
        head: tables that describe the layer: they follow the payload, with which the buffer begins.
        head_at: where.
        upload_size: bytes of the buffer that are uploaded: payload and head.
        size: bytes in all.
        fields: of the kernels' argument; those of ``places`` are relative to the buffer.
        places: names of fields that are places in the buffer.
        prepare_blocks, place_blocks: sizes of two launches.
        limbs: bytes in which a multiplier times a left factor is held; 0 without a low-rank part.
    """

    params: DctqParams
    stored: StoredPayload
    head: npt.NDArray[np.uint8]
    head_at: int
    upload_size: int
    size: int
    fields: dict[str, int]
    places: tuple[str, ...]
    prepare_blocks: int
    place_blocks: int
    limbs: int

    def write(self, buffer: npt.NDArray[np.uint8]) -> None:
        """Fill the part that is uploaded; a payload that lies there already is left alone."""
        payload = self.stored.payload
        if payload.ctypes.data != buffer.ctypes.data:
            buffer[: payload.size] = payload
        buffer[self.head_at : self.head_at + self.head.size] = self.head

    def build(self, buffer: torch.Tensor) -> FusedLayer:
        """Make the layer of an uploaded buffer, uint8 [size]."""
        return FusedLayer(self, buffer)


def fits(params: DctqParams) -> bool:
    """Whether these kernels decode such layers."""
    grid = params.grid
    return (
        grid.patch == _PATCH
        and max(grid.rows, 2 * grid.cols, grid.count) < 1 << 31
        and not (params.col_keys and grid.across > _MOST_ACROSS)
    )


class _Layout:
    """Hands out places in a buffer."""

    def __init__(self, start: int) -> None:
        self.end = start

    def take(self, size: int, alignment: int = 16) -> int:
        place = -(-self.end // alignment) * alignment
        self.end = place + size
        return place


def plan_fused(params: DctqParams, stored: StoredPayload) -> FusedPlan | None:
    """Lay out the buffer of a checked payload; None if the kernels cannot decode it. Needs no device."""
    if not fits(params):
        return None
    grid, classes, affine = params.grid, len(params.levels), params.quantiser == "affine"
    coded_classes = [number for number, alphabet in enumerate(params.alphabets) if alphabet > 1]
    layout = _Layout(stored.payload.size + _UNALIGNED)
    head_at = layout.take(classes * _CLASS.itemsize, 64)
    streams_at = layout.take(len(coded_classes) * 8 * len(_STREAM))
    wide = {number: layout.take(len(params.levels[number])) for number in coded_classes if _width(params, number) == 8}
    head = np.zeros(layout.end - head_at, dtype=np.uint8)
    upload_size = layout.take(0, 64)
    fields = {
        name: stored.sections[name][0] if stored.sections[name][1] > stored.sections[name][0] else 0
        for name in ("multipliers", "row_keys", "col_keys", "left", "right", "class_map", "ranges")
    }

    table = head[: classes * _CLASS.itemsize].view(_CLASS)
    table["levels"] = 128
    streams_in = streams_at - head_at
    streams = head[streams_in : streams_in + len(coded_classes) * 8 * len(_STREAM)].view("<i8")
    streams = streams.reshape(-1, len(_STREAM))
    split = affine and max(params.alphabets) > 2 * _CENTRE
    prepare_blocks = place_blocks = 0
    for place, number in enumerate(coded_classes):
        levels, codes, width = params.levels[number], stored.codes[number], _width(params, number)
        code, values, factor = {2: 1, 4: 2, 8: 3}[width], np.array(levels, dtype=np.int64), 1
        if not affine:
            values, factor = _divided(params.transform, values)
            code |= 0 if factor else _SPLIT
        high = values.astype(np.float16).view(np.uint16)
        if width < 8 and not affine and not (high & 0xFF).any():
            code |= _HIGH
        if width == 8:
            place_in = wide[number] - head_at
            head[place_in : place_in + len(levels)] = values + 128
        else:
            table["levels"][number, : len(levels)] = high >> 8 if code & _HIGH else values + 128
        words = codes.symbols * width // 8
        words_at = layout.take(words + _READ_BEYOND, _WORD_UNIT)
        table["factor"][number], table["code"][number] = factor or 1, code
        table["words"][number] = words_at // _WORD_UNIT
        run_blocks = _blocks(codes.runs[1] - codes.runs[0], _RUN_BLOCK) if codes.runs else 0
        filled = -(-words // 16) * 16
        packed_size = codes.packed[1] - codes.packed[0]
        own = run_blocks + _blocks(filled, _FILL_BLOCK) if codes.runs else _blocks(packed_size, _DENSE_BLOCK)
        runs_at = codes.runs[0] if codes.runs else 0  # scales come first, so that no place is 0
        streams[place] = (
            codes.packed[0], packed_size, runs_at, codes.runs[1] - codes.runs[0] if codes.runs else 0, words_at, filled,
            layout.take(16 * run_blocks), wide.get(number, 0), len(levels), width, own, run_blocks,
        )  # fmt: skip
        prepare_blocks, place_blocks = prepare_blocks + own, place_blocks + run_blocks
    if layout.end // _WORD_UNIT >= 1 << (32 - _CODE_BITS):
        return None

    map_blocks = _blocks(grid.count, _MAP_BLOCK)
    limbs = _limbs(params, stored)
    padded = -(-params.rank // 16) * 16
    tiles = _blocks(grid.cols, _TILE_COLS) if params.col_keys else 0
    most = min(_TILE_COLS, grid.across)
    fields |= {
        "rows": grid.rows, "cols": grid.cols, "down": grid.down, "across": grid.across, "patches": grid.count,
        "classes": classes, "streams": streams_at, "stream_count": len(coded_classes), "map_blocks": map_blocks,
        "buffer": 0, "coded": (stored.sections["ranges"][1] - stored.sections["ranges"][0]) // 4, "rank": params.rank,
        "padded_rank": padded, "split": int(split), "finite": int(_is_finite(params, stored)), "class_table": head_at,
        "counts": layout.take(4 * map_blocks * (classes + 1)), "places": layout.take(8 * grid.count),
        "left_limbs": layout.take(limbs * grid.rows * padded), "right_rows": layout.take(grid.cols * padded),
        "row_order": layout.take(4 * grid.rows) if params.row_keys else 0,
        "col_order": layout.take(4 * grid.cols) if params.col_keys else 0,
        "col_place": layout.take(4 * grid.cols) if params.col_keys else 0,
        "tile_lengths": layout.take(4 * tiles), "tile_patches": layout.take(4 * tiles * most),
        "tile_cols": layout.take(32 * tiles * most), "tile_most": most,
        "low_rank_scale": stored.sections["scales"][1] - 4,
    }  # fmt: skip
    prepare_blocks += int(params.row_keys) + int(params.col_keys) + (map_blocks if classes > 1 else 0)
    if limbs:
        prepare_blocks += _blocks(grid.rows, _THREADS) + _blocks(grid.cols, _THREADS)
    return FusedPlan(
        params, stored, head, head_at, upload_size, layout.take(0, 64), fields,
        ("class_map", "streams", "counts", "places", "ranges", "multipliers", "left", "right", "left_limbs",
         "right_rows", "row_keys", "col_keys", "row_order", "col_order", "col_place", "tile_lengths", "tile_patches",
         "tile_cols", "low_rank_scale", "class_table"),
        prepare_blocks, map_blocks + place_blocks + tiles, limbs,
    )  # fmt: skip


class FusedLayer:
    """A layer that is ready to be applied.

    Args:
        buffer: uint8 [plan.size] on the device, its first ``plan.upload_size`` bytes as :meth:`FusedPlan.write` fills
            them; the rest is overwritten here.
    """

    def __init__(self, plan: FusedPlan, buffer: torch.Tensor) -> None:
        self._plan, self._buffer, self._device = plan, buffer, buffer.device
        address = buffer.data_ptr()
        self._argument = _Layer(**plan.fields)
        for name in plan.places:
            if plan.fields[name]:
                setattr(self._argument, name, address + plan.fields[name])
        self._argument.buffer = self._argument.scales = address
        with torch.cuda.device(self._device):
            self._basis = _basis_table(plan.params.transform, self._device)
            self._argument.basis = self._basis.data_ptr()
            kernels = _load(self._device, "prepare", AFFINE=int(plan.params.quantiser == "affine"), LIMBS=plan.limbs)
            kernels.launch("prepare", plan.prepare_blocks, _THREADS, self._argument)
            kernels.launch("place", plan.place_blocks, _THREADS, self._argument)

    def delta(self) -> torch.Tensor:
        """The decoded delta, float32 [rows, cols]."""
        grid = self._plan.params.grid
        result = torch.empty((grid.rows, grid.cols), dtype=torch.float32, device=self._device)
        self._decode(result, "none", result, "F32", Part.whole(grid))
        return result

    def apply(
        self, base: torch.Tensor, base_dtype: str, result: torch.Tensor, dtype: str, part: Part | None = None
    ) -> None:
        """Write the tensor after the layer into ``result``, which may be ``base`` itself if the types are equal.

        Args:
            base, result: contiguous, on the layer's device, of the element types ``base_dtype`` and ``dtype``.
            part: rows and columns of the view that they hold; all of it when absent.
        """
        self._decode(base, base_dtype, result, dtype, part or Part.whole(self._plan.params.grid))

    def _decode(self, base: torch.Tensor, base_dtype: str, result: torch.Tensor, dtype: str, part: Part) -> None:
        params, argument = self._plan.params, self._argument
        grid = params.grid
        with torch.cuda.device(self._device):
            argument.base, argument.result, argument.stride = base.data_ptr(), result.data_ptr(), part.cols
            argument.row_first, argument.row_stop = part.row_first, part.row_stop
            argument.col_first, argument.col_stop = part.col_first, part.col_stop
            piece = 16 // min(_SIZES[base_dtype], _SIZES[dtype])
            vector = (
                part.col_first % piece == 0
                and part.cols % piece == 0
                and base.data_ptr() % 16 == 0
                and result.data_ptr() % 16 == 0
            )
            kernels = self._kernels(base_dtype, dtype, vector=vector)
            if params.col_keys:
                argument.tile_first = part.col_first // _TILE_COLS
                argument.tile_count = _blocks(part.col_stop, _TILE_COLS) - argument.tile_first
                shared = self._tile_size()
                blocks = argument.tile_count * _best_step(grid.down, argument.tile_count, shared, self._device)
                kernels.launch("decode_tiles", blocks, _THREADS, argument, shared)
            else:
                strip = 128 // _SIZES[dtype]
                staged = vector and base_dtype != "none" and _SIZES[base_dtype] == _SIZES[dtype]
                if staged:
                    strips = _blocks(grid.cols, strip)
                    argument.run = _best_run(grid.down, strips, self._device)
                    blocks = _blocks(grid.down * _blocks(strips, argument.run), _THREADS // 32)
                    kernels.launch("decode_rows", blocks, _THREADS, argument, self._stages(strip // _PATCH))
                if not staged or grid.rows % _PATCH or grid.cols % strip or part != Part.whole(grid):
                    kernels.launch("decode_edges", _blocks(grid.count, _THREADS // 32), _THREADS, argument)

    def _tile_size(self) -> int:
        """Bytes of shared memory of a block of ``decode_tiles``."""
        params, chunks = self._plan.params, _chunks(self._plan.params.rank, _MOST_TILE_CHUNKS)
        tables = 4 * 512 if params.quantiser == "affine" else 2 * 512 + 16 * len(params.levels)
        return _TILE_FIXED + tables + chunks * (32 * _THREADS + 512 * self._plan.limbs)

    def _stages(self, patches: int) -> int:
        """Bytes of shared memory of a block of ``decode_rows``: two stages a warp."""
        chunks = _chunks(self._plan.params.rank, _MOST_CHUNKS)
        return 2 * (_THREADS // 32) * (16 * 128 + patches * 64 + patches * 16 * 16 * chunks)

    def _kernels(self, base_dtype: str, dtype: str, *, vector: bool) -> Kernels:
        params, plan = self._plan.params, self._plan
        macros = {
            "BASE": _TYPES[base_dtype], "RESULT": _TYPES[dtype], "AFFINE": int(params.quantiser == "affine"),
            "LIMBS": plan.limbs, "VECTOR": int(vector),
        }  # fmt: skip
        if not params.col_keys:
            return _load(self._device, "rows", CHUNKS=_chunks(params.rank, _MOST_CHUNKS), **macros)
        return _load(self._device, "tiles", CHUNKS=_chunks(params.rank, _MOST_TILE_CHUNKS), **macros)


@lru_cache(maxsize=256)
def _load(device: torch.device, kind: str, **macros: int) -> Kernels:
    options = ["--std=c++17", "--fmad=false", *(f"-D{name}={value}" for name, value in macros.items())]
    source = "\n".join(Path(__file__).with_name(name).read_text() for name in _SOURCES[kind])
    return load_kernels(source, options, device)


def _width(params: DctqParams, number: int) -> int:
    """Bits in which a symbol is held on the device; with eight it is no symbol but a level, 128 above its value.

    Four select levels as they are: ``decode_tiles``, which is not limited by memory, spares what two cost to spread.
    """
    alphabet = params.alphabets[number]
    return 2 if alphabet <= 4 and not params.col_keys else 4 if alphabet <= 8 else 8


def _divided(transform: str, levels: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], int]:
    """Levels divided by what they have in common, and that; or 0, and undivided, if the first product needs parts.

    The quotient's sums are exact, and times the factor they are rounded once: to what the undivided sum rounds to.
    """
    factor = max(1, gcd(*levels.tolist()))
    largest = int(np.abs(levels).max()) // factor
    column = int(np.abs(basis_matrix(transform, _PATCH)).sum(axis=0).max())
    return (levels // factor, factor) if largest * column <= _LARGEST_FACTOR else (levels, 0)


@lru_cache(maxsize=1024)
def _best_run(down: int, strips: int, device: torch.device) -> int:
    """How many strips a warp takes: few, so that neighbours read what lies together, and all finish together."""
    warps = torch.cuda.get_device_properties(device).multi_processor_count * _BLOCKS * _THREADS // 32
    return min((4, 3, 2), key=lambda run: _blocks(down * _blocks(strips, run), warps) * (run + _START))


@lru_cache(maxsize=1024)
def _best_step(down: int, tiles: int, shared: int, device: torch.device) -> int:
    """How many blocks of so much shared memory go down a tile: all of them run at a time."""
    blocks = max(1, min(_TILE_BLOCKS, _SHARED // (shared + _RESERVED_SHARED)))
    most = torch.cuda.get_device_properties(device).multi_processor_count * blocks
    return max(1, min(down, most // max(1, tiles)))


def _chunks(rank: int, most: int) -> int:
    """How many times 16 terms are held; 0 if they are more than ``most``, or none."""
    chunks = -(-rank // 16)
    return chunks if chunks <= most else 0


def _limbs(params: DctqParams, stored: StoredPayload) -> int:
    """In how many signed bytes multiplier·left fits; 0 without a low-rank part."""
    if not params.rank:
        return 0
    largest = int(stored.section("multipliers").view("<u2").max()) << 7
    return 1 if largest < 1 << 7 else 2 if largest < 127 << 8 else 3


def _is_finite(params: DctqParams, stored: StoredPayload) -> bool:
    """Whether no delta can overflow, by a wide margin."""
    scales = stored.section("scales").view("<f4").astype(np.float64)
    largest = 2.0**31 if params.quantiser == "levels" else 2.0**31 * 65504 * 2
    return bool(scales.max() * largest * 4 < 2.0**127)


def _blocks(count: int, size: int) -> int:
    return -(-count // size)


@lru_cache(maxsize=16)
def _basis_table(transform: str, device: torch.device) -> torch.Tensor:
    """int32 [32 lanes, 16]: the basis as operands of both products, and J of section 7.2.3, as ``patch.cuh`` says."""
    basis = basis_matrix(transform, _PATCH).astype(np.float64)
    row = [4 * (k % 8 // 2) + 2 * (k // 8) + k % 2 for k in range(16)]  # of the levels, by the first product's index
    col = [2 * (k % 8) + k // 8 for k in range(16)]  # of the levels, by the second product's index
    ones = (basis.T @ np.ones((16, 16)) @ basis).astype(np.float32)
    table = np.zeros((32, 16), dtype=np.uint32)
    for lane in range(32):
        g, t = divmod(lane, 4)
        first = [(g + 8 * (i % 2), 2 * t + 8 * (i // 2)) for i in range(4)]
        halves = [[basis[row[k + e], m] / 64 for e in range(2)] for m, k in first]
        for tile in range(2):
            out = 4 * (g // 2) + 2 * tile + g % 2
            halves += [[basis[col[2 * t + 8 * part + e], out] * 64 for e in range(2)] for part in range(2)]
        table[lane, :8] = np.array(halves, dtype=np.float16).view(np.uint32)[:, 0]
        table[lane, 8:] = np.concatenate([ones[r, 4 * t : 4 * t + 4] for r in (g, g + 8)]).view(np.uint32)
    return torch.from_numpy(table.view(np.int32)).to(device)
