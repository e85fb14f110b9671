"""dctq.v1 through torch on the CPU: the same steps as ``reference``, in tiles that stay in cache.

Exactness rests on two facts. Sums of integers are exact in any order while they fit the significand, so a
floating-point matrix product may do the inverse transform. And eager torch rounds after every operation:
nothing here may be fused or compiled.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch

from ..codec.dctq import DctqParams, DctqPayload, StoredPayload, unpack_codes
from ..codec.patches import PatchGrid
from ..codec.transform import basis_matrix, largest_sum
from ..codec.ulp import UlpParams, apply_ulp
from .interface import Comparison
from .native_encoder import NativeEncoder

__all__ = ["TorchCpuBackend"]

_TILE_WEIGHTS = 1 << 20
_QUIET_NAN = {"BF16": 0x7FC0, "F16": 0x7E00, "F32": 0x7FC00000}
_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}


class TorchCpuBackend(NativeEncoder):
    """Decodes and transforms on the CPU with torch's own threads."""

    name = "cpu"

    def decode_delta(self, params: DctqParams, payload: DctqPayload) -> npt.NDArray[np.float32]:
        delta = torch.empty((params.grid.rows, params.grid.cols), dtype=torch.float32)
        for rows, tile in _delta_tiles(params, payload):
            delta[rows] = tile
        return delta.numpy()

    def apply(
        self,
        params: DctqParams,
        payload: DctqPayload,
        base: npt.NDArray[np.uint8],
        base_dtype: str,
        dtype: str,
    ) -> npt.NDArray[np.uint8]:
        return self._collect(params, payload, base, base_dtype, dtype)

    def apply_stored(
        self,
        params: DctqParams,
        stored: StoredPayload,
        base: npt.NDArray[np.uint8],
        base_dtype: str,
        dtype: str,
    ) -> npt.NDArray[np.uint8]:
        return self._collect(params, unpack_codes(params, stored), base, base_dtype, dtype)

    def apply_bands(
        self,
        params: DctqParams,
        stored: StoredPayload,
        base: npt.NDArray[np.uint8],
        base_dtype: str,
        dtype: str,
        out: npt.NDArray[np.uint8],
        comparison: Comparison | None = None,
    ) -> Iterator[int]:
        return _apply_tiles(params, unpack_codes(params, stored), base, base_dtype, dtype, out)

    def apply_ulp_bands(
        self,
        params: UlpParams,
        payload: npt.NDArray[np.uint8],
        before: npt.NDArray[np.uint8],
        before_dtype: str,
        out: npt.NDArray[np.uint8],
    ) -> Iterator[int]:
        out[:] = apply_ulp(params, payload, before, before_dtype)
        yield out.size

    def _collect(
        self, params: DctqParams, payload: DctqPayload, base: npt.NDArray[np.uint8], base_dtype: str, dtype: str
    ) -> npt.NDArray[np.uint8]:
        result = np.empty(params.grid.rows * params.grid.cols * _DTYPES[dtype].itemsize, dtype=np.uint8)
        for _ in _apply_tiles(params, payload, base, base_dtype, dtype, result):
            pass
        return result


def _apply_tiles(
    params: DctqParams,
    payload: DctqPayload,
    base: npt.NDArray[np.uint8],
    base_dtype: str,
    dtype: str,
    out: npt.NDArray[np.uint8],
) -> Iterator[int]:
    """Fill ``out`` tile by tile; how many of its bytes are finished, after each."""
    base_view, out_view = base.reshape(params.grid.rows, -1), out.reshape(params.grid.rows, -1)
    done = 0
    for rows, tile in _delta_tiles(params, payload):
        stored = _as_tensor(np.ascontiguousarray(base_view[_numpy_index(rows)]), base_dtype).view(tile.shape)
        rounded = _round(stored.float() + tile, dtype)
        kept = stored if base_dtype == dtype else _round(stored.float(), dtype)
        result = torch.where(tile == 0, kept, rounded)
        out_view[_numpy_index(rows)] = result.view(torch.uint8).numpy()
        done += result.nbytes
        yield done


def _delta_tiles(params: DctqParams, payload: DctqPayload) -> Iterator[tuple[torch.Tensor | slice, torch.Tensor]]:
    """Row numbers of the view and their delta, float32 [rows, cols], until every row was given once."""
    grid = params.grid
    exact = _exact_type(params)
    basis = torch.from_numpy(basis_matrix(params.transform, grid.patch).astype(np.int64)).to(exact)
    ones = (basis.T @ torch.ones_like(basis) @ basis).float()
    tables = [np.array(levels, dtype=np.float32 if exact is torch.float32 else np.float64) for levels in params.levels]
    row_order = _order(payload.row_keys) if params.row_keys else None
    col_position = torch.argsort(_order(payload.col_keys)) if params.col_keys else None
    left, right = _low_rank_factors(payload)
    taken = [0] * len(tables)
    coded_taken = 0

    for down in _patch_rows(grid):
        classes = payload.class_map[down.start * grid.across : down.stop * grid.across]
        patches = torch.zeros((classes.size, grid.patch, grid.patch), dtype=torch.float32)
        coded = np.cumsum(np.array(params.alphabets)[classes] > 1)
        for number, table in enumerate(tables):
            members = np.flatnonzero(classes == number)
            if table.size == 1 or not members.size:
                continue
            codes = payload.codes[number][taken[number] : taken[number] + members.size]
            taken[number] += members.size
            levels = torch.from_numpy(table.take(codes.reshape(-1)).reshape(-1, grid.patch, grid.patch))
            integers = (basis.T @ levels @ basis).float()
            if params.quantiser == "levels":
                scaled = integers * float(payload.scales[number])
            else:
                place = coded_taken + coded[members] - 1
                step = torch.from_numpy(payload.steps[place].astype(np.float32))[:, None, None]
                minimum = torch.from_numpy(payload.minima[place].astype(np.float32))[:, None, None]
                scaled = (integers * step + ones * minimum) * float(payload.scales[0])
            patches[torch.from_numpy(members)] = scaled
        coded_taken += int(coded[-1])

        tile = patches.view(len(down), grid.across, grid.patch, grid.patch).transpose(1, 2)
        first = down.start * grid.patch
        height = min(grid.rows - first, len(down) * grid.patch)
        tile = tile.reshape(len(down) * grid.patch, -1)[:height, : grid.cols]
        rows = slice(first, first + height) if row_order is None else row_order[first : first + height]
        if col_position is not None:
            tile = tile[:, col_position]
        if params.rank:
            tile = tile + (left[rows] @ right.T).float() * float(payload.scales[-1])
        yield rows, tile


def _patch_rows(grid: PatchGrid) -> Iterator[range]:
    """Ranges of rows of patches, each about a tile's worth of weights."""
    step = max(1, _TILE_WEIGHTS // (grid.across * grid.patch**2))
    for start in range(0, grid.down, step):
        yield range(start, min(start + step, grid.down))


def _exact_type(params: DctqParams) -> torch.dtype:
    """float32 where all integer sums stay within 24 bits and products are not silently made coarser, else float64."""
    largest = max(abs(level) for levels in params.levels for level in levels)
    return _type_for_sums(largest * largest_sum(params.transform, params.grid.patch))


def _type_for_sums(largest: int) -> torch.dtype:
    plain = torch.get_float32_matmul_precision() == "highest"
    return torch.float32 if plain and largest <= 1 << 24 else torch.float64


def _low_rank_factors(payload: DctqPayload) -> tuple[torch.Tensor, torch.Tensor]:
    """Left, each term times its multiplier, and right, in a type in which their product is exact."""
    exact = _type_for_sums(int(payload.multipliers.sum(dtype=np.int64)) << 14)
    left = payload.left.astype(np.int32) * payload.multipliers.astype(np.int32)
    return torch.from_numpy(left).to(exact), torch.from_numpy(payload.right.astype(np.int32)).to(exact)


def _order(keys: npt.NDArray[np.uint8]) -> torch.Tensor:
    return torch.from_numpy(np.argsort(keys, kind="stable"))


def _numpy_index(rows: torch.Tensor | slice) -> npt.NDArray[np.int64] | slice:
    return rows if isinstance(rows, slice) else rows.numpy()


def _as_tensor(data: npt.NDArray[np.uint8], dtype: str) -> torch.Tensor:
    """A copy as a 1-D tensor: checkpoints are mapped read-only, which torch's zero-copy views do not allow."""
    return (
        torch.frombuffer(bytearray(data), dtype=_DTYPES[dtype]) if data.size else torch.empty(0, dtype=_DTYPES[dtype])
    )


def _round(values: torch.Tensor, dtype: str) -> torch.Tensor:
    """float32 -> ``dtype``, to nearest, ties to even, every NaN the quiet one.

    bfloat16 is rounded on bit patterns: the processor's own conversion may flush subnormals.
    """
    if dtype == "BF16":
        bits = values.view(torch.int32)
        rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).to(torch.int16)
        return torch.where(values.isnan(), torch.tensor(_QUIET_NAN[dtype], dtype=torch.int16), rounded).view(
            torch.bfloat16
        )
    converted = values.to(_DTYPES[dtype])
    pattern = torch.int16 if dtype == "F16" else torch.int32
    quiet = torch.tensor(_QUIET_NAN[dtype], dtype=pattern)
    return torch.where(converted.isnan(), quiet, converted.view(pattern)).view(_DTYPES[dtype])
