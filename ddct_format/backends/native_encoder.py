"""An encoder's primitives in the native core, for backends whose arithmetic is on the CPU."""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt

from .. import native
from ..codec.floats import FLOAT_DTYPES, FLOAT_WIDTHS
from ..codec.patches import PatchGrid
from ..codec.transform import analysis_matrix, basis_matrix
from .encoder import (
    ACTIVITY_BINS,
    BIN_EDGES,
    LARGEST_MAGNITUDE,
    AffineBand,
    Band,
    DeltaSums,
    PowerStep,
    QuantisedBand,
    ResidualPlan,
    UlpCoding,
    UlpStreams,
)
from .numpy_encoder import LARGEST_SIZE, NumpyEncoder, prediction

__all__ = ["NativeEncoder"]

_TYPES = {dtype: number for number, dtype in enumerate(("BF16", "F16", "F32"))}
_NONE = np.empty(0, dtype=np.float64)
_VECTOR = 16
"""Floats that the core works on together."""

assert set(_TYPES) == set(FLOAT_DTYPES)


class NativeEncoder(NumpyEncoder):
    """Where the core was not built, numpy does the work."""

    @property
    def picks_rows(self) -> bool:
        return native.core is not None

    def difference(self, band: Band) -> npt.NDArray[np.float32]:
        if native.core is None:
            return super().difference(band)
        out = np.empty((_rows(band), band.cols), dtype=np.float32)
        if out.size:
            native.core.difference(*_pair(band), band.cols, 1.0, out, np.empty(0), np.empty(0))
        return out

    def delta_sums(self, band: Band) -> DeltaSums:
        if native.core is None:
            return super().delta_sums(band)
        return DeltaSums(*native.core.delta_sums(*_pair(band)))

    def power_step(self, band: Band, scale: float, vectors: npt.NDArray[np.float32]) -> PowerStep:
        if native.core is None:
            return super().power_step(band, scale, vectors)
        rows, width = _rows(band), vectors.shape[1]
        stride = max(_VECTOR, -(-width // _VECTOR) * _VECTOR)
        padded = np.zeros((band.cols, stride), dtype=np.float32)
        padded[:, :width] = vectors
        projected, returned = (np.empty((count, stride), dtype=np.float32) for count in (rows, band.cols))
        row_squares, col_squares = np.empty(rows), np.empty(band.cols)
        native.core.power_band(
            *_pair(band), band.cols, scale, stride, padded, projected, returned, row_squares, col_squares
        )
        return PowerStep(projected[:, :width], returned[:, :width], row_squares, col_squares)

    def quantise(
        self,
        band: Band,
        plan: ResidualPlan,
        left: npt.NDArray[np.float32],
        out: npt.NDArray[np.uint8] | None = None,
    ) -> QuantisedBand:
        if native.core is None:
            return super().quantise(band, plan, left, out)
        patches = PatchGrid(left.shape[0], band.cols, plan.patch).count
        symbols = np.empty((patches, plan.patch**2), dtype=np.uint8) if out is None else out
        activity = np.empty(patches, dtype=np.int32)
        counts = np.empty((ACTIVITY_BINS, LARGEST_MAGNITUDE + 1), dtype=np.int64)
        sums = np.empty(LARGEST_MAGNITUDE + 1, dtype=np.float64)
        energy = native.core.quantise_band(
            *_pair(band),
            band.cols,
            _NONE if band.rows is None else np.ascontiguousarray(band.rows),
            plan.patch,
            *_analysis(plan.transform, plan.patch),
            plan.scale,
            plan.unit,
            0.5 - plan.dead_zone,
            left.shape[1],
            np.ascontiguousarray(left),
            np.ascontiguousarray(plan.right),
            _NONE if plan.col_order is None else np.ascontiguousarray(plan.col_order),
            BIN_EDGES,
            symbols,
            activity,
            counts,
            sums,
        )
        return QuantisedBand(symbols, activity, counts, sums, energy)

    def patch_energies(self, band: Band, patch: int) -> npt.NDArray[np.float64]:
        if native.core is None:
            return super().patch_energies(band, patch)
        energies = np.empty(PatchGrid(_rows(band), band.cols, patch).count)
        native.core.patch_energies(*_pair(band), band.cols, patch, energies)
        return energies

    def quantise_affine(
        self, band: Band, patch: int, transform: str, scale: float, alphabets: npt.NDArray[np.uint8]
    ) -> AffineBand:
        if native.core is None:
            return super().quantise_affine(band, patch, transform, scale, alphabets)
        symbols = np.empty((alphabets.size, patch**2), dtype=np.uint8)
        minima, steps = (np.empty(alphabets.size, dtype="<f2") for _ in range(2))
        sums = native.core.affine_band(
            *_pair(band),
            band.cols,
            patch,
            *_analysis(transform, patch),
            _basis(transform, patch),
            scale,
            np.ascontiguousarray(alphabets),
            symbols,
            minima,
            steps,
        )
        return AffineBand(symbols, minima, steps, *sums)

    def pack_class(
        self, symbols: npt.NDArray[np.uint8], class_map: npt.NDArray[np.uint8], number: int, alphabet: int, sparse: bool
    ) -> list[npt.NDArray[np.uint8]]:
        if native.core is None:
            return super().pack_class(symbols, class_map, number, alphabet, sparse)
        runs, packed = native.core.pack_class(symbols, class_map, number, alphabet, sparse)
        parts = [runs, packed] if sparse else [packed]
        return [np.frombuffer(part, dtype=np.uint8) for part in parts]

    def ulp_sizes(self, band: Band) -> npt.NDArray[np.float32]:
        if native.core is None:
            return super().ulp_sizes(band)
        sizes = self.difference(Band(prediction(band), band.dtype, band.target, band.dtype, band.cols))
        np.abs(sizes, out=sizes)
        np.copyto(sizes, 0, where=~(sizes < np.inf))
        return np.minimum(sizes, np.float32(LARGEST_SIZE), out=sizes)

    def ulp_row_sizes(self, band: Band, weights: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        if native.core is None:
            return super().ulp_row_sizes(band, weights)
        sizes = np.empty(_rows(band), dtype=np.float32)
        native.core.ulp_row_sizes(prediction(band), band.target, _TYPES[band.dtype], band.cols, weights, sizes)
        return sizes

    def count_ulp(self, band: Band, coding: UlpCoding, counts: npt.NDArray[np.int64]) -> None:
        if native.core is None:
            super().count_ulp(band, coding, counts)
        else:
            native.core.ulp_count(*_ulp_pair(band, coding), counts)

    def measure_ulp(self, band: Band, coding: UlpCoding, group_of: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
        if native.core is None:
            return super().measure_ulp(band, coding, group_of)
        totals = np.zeros((2, 256), dtype=np.int64)
        native.core.ulp_measure(*_ulp_pair(band, coding), group_of, totals)
        return totals

    def scatter_ulp(self, band: Band, coding: UlpCoding, streams: UlpStreams) -> None:
        if native.core is None:
            super().scatter_ulp(band, coding, streams)
            return
        native.core.ulp_scatter(
            *_ulp_pair(band, coding),
            streams.group_of,
            streams.symbols,
            streams.places,
            streams.extra,
            streams.positions,
        )


def _rows(band: Band) -> int:
    return band.target.size // (band.cols * FLOAT_WIDTHS[band.dtype])


def _pair(band: Band) -> tuple[npt.NDArray[np.uint8], int, npt.NDArray[np.uint8], int]:
    return band.base, _TYPES[band.base_dtype], band.target, _TYPES[band.dtype]


def _ulp_pair(
    band: Band, coding: UlpCoding
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8], int, int, int, npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    keys = coding.row_keys, coding.col_keys
    return prediction(band), band.target, _TYPES[band.dtype], coding.shift, band.cols, *keys


@cache
def _analysis(transform: str, patch: int) -> tuple[npt.NDArray[np.float32], bool]:
    """The forward transform, none for the identity, and whether its rows are symmetric and antisymmetric in turn."""
    if transform == "none":
        return np.empty(0, dtype=np.float32), False
    return np.ascontiguousarray(analysis_matrix(transform, patch), dtype=np.float32), transform == "dct"


@cache
def _basis(transform: str, patch: int) -> npt.NDArray[np.float32]:
    if transform == "none":
        return np.empty(0, dtype=np.float32)
    return basis_matrix(transform, patch).astype(np.float32)
