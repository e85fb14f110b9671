"""Decoding on the CPU by the native core: payload to result bytes in one pass, without torch."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from ..codec.dctq import DctqParams, DctqPayload, StoredPayload, build_sections, split_payload
from ..codec.floats import FLOAT_WIDTHS
from ..codec.transform import TRANSFORMS
from ..codec.ulp import UlpParams
from ..errors import InvalidError
from ..native import Core
from .interface import Comparison
from .native_encoder import NativeEncoder

__all__ = ["NativeCpuBackend"]

_BAND = 8 << 20
"""Bytes of the result, about, after which decoding pauses."""
_SCATTERED_ROWS = 16
"""Rows with keys lie all over the tensor, and each may bring a large page of two files into memory."""
_TYPES = {"BF16": 0, "F16": 1, "F32": 2}
_SECTIONS = ("scales", "multipliers", "row_keys", "col_keys", "left", "right", "class_map", "ranges")


class NativeCpuBackend(NativeEncoder):
    """Decodes with the core's kernels; tensors are the unit of parallelism, and the interpreter's lock is not held."""

    name = "cpu"

    def __init__(self, core: Core) -> None:
        self._core = core

    def decode_delta(self, params: DctqParams, payload: DctqPayload) -> npt.NDArray[np.float32]:
        out = np.empty((params.grid.rows, params.grid.cols), dtype=np.float32)
        for _ in self._decode(params, _stored(params, payload), None, "F32", "F32", out.reshape(-1).view(np.uint8)):
            pass
        return out

    def apply(
        self,
        params: DctqParams,
        payload: DctqPayload,
        base: npt.NDArray[np.uint8],
        base_dtype: str,
        dtype: str,
    ) -> npt.NDArray[np.uint8]:
        return self.apply_stored(params, _stored(params, payload), base, base_dtype, dtype)

    def apply_stored(
        self,
        params: DctqParams,
        stored: StoredPayload,
        base: npt.NDArray[np.uint8],
        base_dtype: str,
        dtype: str,
    ) -> npt.NDArray[np.uint8]:
        out = np.empty(params.grid.rows * params.grid.cols * FLOAT_WIDTHS[dtype], dtype=np.uint8)
        for _ in self._decode(params, stored, base, base_dtype, dtype, out):
            pass
        return out

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
        return self._decode(params, stored, base, base_dtype, dtype, out, comparison)

    def apply_ulp_bands(
        self,
        params: UlpParams,
        payload: npt.NDArray[np.uint8],
        before: npt.NDArray[np.uint8],
        before_dtype: str,
        out: npt.NDArray[np.uint8],
    ) -> Iterator[int]:
        sparse = bytearray(len(params.bounds) + 1)
        for number in params.sparse:
            sparse[number] = 1
        layer = self._core.ulp_open(
            payload,
            before,
            _TYPES[before_dtype],
            _TYPES[params.dtype],
            (params.rows, params.cols),
            params.shift,
            (params.row_keys, params.col_keys),
            params.group_table().tobytes(),
            bytes(sparse),
        )
        if isinstance(layer, str):
            raise InvalidError(f"ulp.v1: {layer}")
        done = 0
        while done < out.size:
            done = self._core.ulp_decode(layer, out, _BAND // FLOAT_WIDTHS[params.dtype])
            if done < 0:
                raise InvalidError("ulp.v1: a residual leads beyond the element type's patterns")
            yield done

    def _decode(
        self,
        params: DctqParams,
        stored: StoredPayload,
        base: npt.NDArray[np.uint8] | None,
        base_dtype: str,
        dtype: str,
        out: npt.NDArray[np.uint8],
        comparison: Comparison | None = None,
    ) -> Iterator[int]:
        layer, done = self._open(params, stored), 0
        wanted = None if comparison is None else comparison.target
        band = _BAND // FLOAT_WIDTHS[dtype]
        if params.row_keys:
            band = min(band, _SCATTERED_ROWS * params.grid.cols)
        while done < out.size:
            done = self._core.dctq_decode(layer, base, _TYPES[base_dtype], out, _TYPES[dtype], band, wanted)
            if comparison is not None and done == out.size:
                comparison.error = self._core.dctq_error(layer)
            yield done

    def _open(self, params: DctqParams, stored: StoredPayload) -> object:
        grid = params.grid
        starts = [stored.sections[name][0] for name in _SECTIONS]
        coded = (stored.sections["ranges"][1] - starts[-1]) // 4
        classes = [
            (
                np.array(levels, dtype=np.int8).tobytes(),
                place.symbols,
                *place.packed,
                *(place.runs or (-1, -1)),
            )
            for levels, place in zip(params.levels, stored.codes, strict=True)
        ]
        return self._core.dctq_open(
            stored.payload,
            (grid.rows, grid.cols, grid.patch),
            TRANSFORMS.index(params.transform),
            params.quantiser == "affine",
            params.rank,
            (*starts, coded),
            (params.row_keys, params.col_keys),
            classes,
        )


def _stored(params: DctqParams, payload: DctqPayload) -> StoredPayload:
    return split_payload(params, np.concatenate(build_sections(params, payload)))
