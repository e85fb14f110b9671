"""The normative decoder in numpy, of dctq.v1: read it beside section 7.2. That of ulp.v1 is the codec's own."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from ..codec.dctq import DctqParams, DctqPayload, StoredPayload, unpack_codes
from ..codec.floats import add_delta
from ..codec.patches import join_patches
from ..codec.transform import basis_matrix
from ..codec.ulp import UlpParams, apply_ulp
from .interface import Comparison
from .numpy_encoder import NumpyEncoder

__all__ = ["ReferenceBackend"]


class ReferenceBackend(NumpyEncoder):
    """One step after the other, whole tensors at a time, in the order of the text."""

    name = "reference"

    def decode_delta(self, params: DctqParams, payload: DctqPayload) -> npt.NDArray[np.float32]:
        grid = params.grid
        basis = basis_matrix(params.transform, grid.patch).astype(np.int64)
        patches = np.zeros((grid.count, grid.patch, grid.patch), dtype=np.float32)
        ones = (basis.T @ np.ones_like(basis) @ basis).astype(np.float32)
        coded = np.cumsum(np.array(params.alphabets)[payload.class_map] > 1) - 1
        with np.errstate(over="ignore", invalid="ignore"):
            for number, levels in enumerate(params.levels):
                if len(levels) == 1:
                    continue
                members = np.flatnonzero(payload.class_map == number)
                level_patches = np.array(levels, dtype=np.int64)[payload.codes[number]]
                integers = (basis.T @ level_patches @ basis).astype(np.float32)
                if params.quantiser == "levels":
                    patches[members] = integers * payload.scales[number]
                else:
                    step = payload.steps[coded[members]].astype(np.float32)[:, None, None]
                    minimum = payload.minima[coded[members]].astype(np.float32)[:, None, None]
                    patches[members] = (integers * step + ones * minimum) * payload.scales[0]
            delta = np.empty((grid.rows, grid.cols), dtype=np.float32)
            row_order = np.argsort(payload.row_keys, kind="stable") if params.row_keys else np.arange(grid.rows)
            col_order = np.argsort(payload.col_keys, kind="stable") if params.col_keys else np.arange(grid.cols)
            delta[np.ix_(row_order, col_order)] = join_patches(patches, grid)
            if params.rank:
                weighted = payload.left.astype(np.int64) * payload.multipliers
                product = weighted @ payload.right.astype(np.int64).T
                delta = delta + product.astype(np.float32) * payload.scales[-1]
        return delta

    def apply(
        self,
        params: DctqParams,
        payload: DctqPayload,
        base: npt.NDArray[np.uint8],
        base_dtype: str,
        dtype: str,
    ) -> npt.NDArray[np.uint8]:
        return add_delta(base, base_dtype, self.decode_delta(params, payload).reshape(-1), dtype)

    def apply_stored(
        self,
        params: DctqParams,
        stored: StoredPayload,
        base: npt.NDArray[np.uint8],
        base_dtype: str,
        dtype: str,
    ) -> npt.NDArray[np.uint8]:
        return self.apply(params, unpack_codes(params, stored), base, base_dtype, dtype)

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
        out[:] = self.apply_stored(params, stored, base, base_dtype, dtype)
        yield out.size

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
