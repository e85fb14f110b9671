"""An encoder's primitives in numpy: what they mean, and what a machine without anything faster runs."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..codec import ulp
from ..codec.floats import FLOAT_WIDTHS, float32_from_bytes, float32_to_bytes
from ..codec.patches import PatchGrid, cut_patches, join_patches
from ..codec.symbols import pack_sparse, pack_symbols
from ..codec.transform import analysis_matrix, basis_matrix
from .encoder import (
    ACTIVITY_BINS,
    BAND_WEIGHTS,
    LARGEST_MAGNITUDE,
    AffineBand,
    Band,
    DeltaSums,
    PowerStep,
    QuantisedBand,
    ResidualPlan,
    UlpCoding,
    UlpStreams,
    activity_bins,
)

__all__ = ["LARGEST_SIZE", "NumpyEncoder", "prediction"]

LARGEST_SIZE = 2.0**60
"""Of a residual: what is larger says nothing about others."""
_SYMBOLS = 256


class NumpyEncoder:
    """See :class:`~ddct_format.backends.encoder.Encoder`; matrix products run on numpy's BLAS."""

    band_weights = BAND_WEIGHTS

    @property
    def picks_rows(self) -> bool:
        return False

    def difference(self, band: Band) -> npt.NDArray[np.float32]:
        with np.errstate(over="ignore", invalid="ignore"):
            values = float32_from_bytes(band.target, band.dtype) - float32_from_bytes(band.base, band.base_dtype)
        return values.reshape(-1, band.cols)

    def delta_sums(self, band: Band) -> DeltaSums:
        absolute = np.abs(self.difference(band).reshape(-1))
        largest = float(absolute.max(initial=0.0))
        if not np.isfinite(largest):
            return DeltaSums(0.0, 0.0, largest, False)
        energy = float(np.square(absolute, dtype=np.float64).sum())
        return DeltaSums(energy, float(absolute.sum(dtype=np.float64)), largest, True)

    def power_step(self, band: Band, scale: float, vectors: npt.NDArray[np.float32]) -> PowerStep:
        matrix: npt.NDArray[np.float32] = self.difference(band) * np.float32(scale)
        projected = matrix @ vectors
        squares = np.square(matrix)
        return PowerStep(
            projected,
            np.ascontiguousarray((projected.T @ matrix).T),
            squares.sum(axis=1, dtype=np.float64),
            squares.sum(axis=0, dtype=np.float64),
        )

    def quantise(
        self,
        band: Band,
        plan: ResidualPlan,
        left: npt.NDArray[np.float32],
        out: npt.NDArray[np.uint8] | None = None,
    ) -> QuantisedBand:
        residual = self.difference(band) * np.float32(plan.scale)
        if left.shape[1]:
            residual -= left @ plan.right
        if plan.col_order is not None:
            residual = residual[:, plan.col_order]
        values = _coefficients(residual, plan.patch, plan.transform) * np.float32(plan.unit)
        absolute = np.abs(values)
        shifted = absolute + np.float32(0.5 - plan.dead_zone)
        magnitudes = np.minimum(shifted, np.float32(LARGEST_MAGNITUDE)).astype(np.uint8)
        symbols = magnitudes * np.uint8(2)
        np.subtract(symbols, 1, out=symbols, where=(values > 0) & (magnitudes > 0))
        activity = magnitudes.sum(axis=1, dtype=np.int32)
        joint = activity_bins(activity).astype(np.int32)[:, None] * (LARGEST_MAGNITUDE + 1) + magnitudes
        counts = np.bincount(joint.reshape(-1), minlength=ACTIVITY_BINS * (LARGEST_MAGNITUDE + 1))
        sums = np.bincount(magnitudes.reshape(-1), weights=absolute.reshape(-1), minlength=LARGEST_MAGNITUDE + 1)
        return QuantisedBand(
            symbols=symbols,
            activity=activity,
            counts=counts.astype(np.int64).reshape(ACTIVITY_BINS, -1),
            sums=sums.astype(np.float64),
            energy=float(np.einsum("ij,ij->i", values, values).sum(dtype=np.float64)),
        )

    def patch_energies(self, band: Band, patch: int) -> npt.NDArray[np.float64]:
        patches = _cut(self.difference(band), patch)
        result: npt.NDArray[np.float64] = np.square(patches, dtype=np.float64).sum(axis=(1, 2))
        return result

    def quantise_affine(
        self, band: Band, patch: int, transform: str, scale: float, alphabets: npt.NDArray[np.uint8]
    ) -> AffineBand:
        delta = self.difference(band) * np.float32(scale)
        values = _coefficients(delta, patch, transform)
        coded = (alphabets > 1)[:, None]
        low = np.where(coded, values.min(axis=1, keepdims=True), 0).astype("<f2")
        largest = alphabets.astype(np.float32)[:, None] - 1
        span = values.max(axis=1, keepdims=True) - values.min(axis=1, keepdims=True)
        step = np.where(coded, span / np.maximum(largest, 1), 0).astype("<f2")
        minimum, width = low.astype(np.float32), step.astype(np.float32)
        ratio = np.divide(values - minimum, width, out=np.zeros_like(values), where=width > 0)
        symbols = np.clip(np.rint(ratio), 0, largest).astype(np.uint8)
        levels = np.where(coded, symbols * width + minimum, 0).reshape(-1, patch, patch)
        if transform != "none":
            levels = _two_sided(levels, basis_matrix(transform, patch).astype(np.float32).T)
        decoded = join_patches(levels, PatchGrid(delta.shape[0], delta.shape[1], patch))
        return AffineBand(
            symbols=symbols,
            minima=low.reshape(-1),
            steps=step.reshape(-1),
            magnitude=float(np.abs(decoded).sum(dtype=np.float64)),
            energy=float(np.square(decoded, dtype=np.float64).sum()),
            aligned=float(np.einsum("ij,ij->", decoded, delta, dtype=np.float64)),
        )

    def pack_class(
        self, symbols: npt.NDArray[np.uint8], class_map: npt.NDArray[np.uint8], number: int, alphabet: int, sparse: bool
    ) -> list[npt.NDArray[np.uint8]]:
        members = symbols[class_map == number].reshape(-1)
        return list(pack_sparse(members, alphabet)) if sparse else [pack_symbols(members, alphabet)]

    def ulp_sizes(self, band: Band) -> npt.NDArray[np.float32]:
        with np.errstate(over="ignore", invalid="ignore"):
            before, after = (float32_from_bytes(data, band.dtype) for data in (prediction(band), band.target))
            size = np.abs(after - before)
        finite = np.where(np.isfinite(size), np.minimum(size, np.float32(LARGEST_SIZE)), np.float32(0))
        return finite.reshape(-1, band.cols)

    def ulp_row_sizes(self, band: Band, weights: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        sums: npt.NDArray[np.float32] = self.ulp_sizes(band) @ weights
        return sums

    def count_ulp(self, band: Band, coding: UlpCoding, counts: npt.NDArray[np.int64]) -> None:
        contexts, symbols, _, _ = _ulp_elements(band, coding)
        joint = contexts.astype(np.int64) * _SYMBOLS + symbols
        counts += np.bincount(joint, minlength=counts.size).reshape(counts.shape)

    def measure_ulp(self, band: Band, coding: UlpCoding, group_of: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
        contexts, _, lengths, _ = _ulp_elements(band, coding)
        groups = group_of[contexts]
        return np.stack([np.bincount(groups, weights, _SYMBOLS) for weights in (None, lengths)]).astype(np.int64)

    def scatter_ulp(self, band: Band, coding: UlpCoding, streams: UlpStreams) -> None:
        contexts, symbols, lengths, values = _ulp_elements(band, coding)
        groups = streams.group_of[contexts]
        for number in np.unique(groups):
            members = np.flatnonzero(groups == number)
            place, position = int(streams.places[number]), int(streams.positions[number])
            streams.symbols[place : place + members.size] = symbols[members]
            bits = ulp.write_extra_bits(values[members], lengths[members], position & 7)
            streams.extra[position >> 3 : (position >> 3) + bits.size] |= bits
            streams.places[number] += members.size
            streams.positions[number] += int(lengths[members].sum(dtype=np.int64))


def prediction(band: Band) -> npt.NDArray[np.uint8]:
    """Bytes of the band's base, of the target's type."""
    if band.base_dtype == band.dtype:
        return band.base
    return float32_to_bytes(float32_from_bytes(band.base, band.base_dtype), band.dtype)


def _ulp_elements(
    band: Band, coding: UlpCoding
) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.uint8], npt.NDArray[np.uint8], npt.NDArray[np.uint32]]:
    """Context, symbol, number of extra bits and extra bits of each element of a band."""
    params = ulp.UlpParams(
        band.dtype,
        band.target.size // (FLOAT_WIDTHS[band.dtype] * band.cols),
        band.cols,
        shift=coding.shift,
        row_keys=coding.row_keys.size > 0,
        col_keys=coding.col_keys.size > 0,
    )
    patterns = ulp.predict(band.base, band.base_dtype, band.dtype)
    contexts = params.contexts(patterns, coding.row_keys, coding.col_keys)
    return contexts, *ulp.residual_symbols(patterns, band.target, params)


def _cut(view: npt.NDArray[np.float32], patch: int) -> npt.NDArray[np.float32]:
    return cut_patches(view, PatchGrid(view.shape[0], view.shape[1], patch))


def _coefficients(view: npt.NDArray[np.float32], patch: int, transform: str) -> npt.NDArray[np.float32]:
    """[rows, cols] -> [patches, p²], by the inverse of what the decoder does."""
    patches = _cut(view, patch)
    if transform != "none":
        patches = _two_sided(patches, analysis_matrix(transform, patch).astype(np.float32))
    return patches.reshape(len(patches), -1)


def _two_sided(patches: npt.NDArray[np.float32], matrix: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """matrix · patch · matrixᵀ for each patch, in two products of all patches at once."""
    side = matrix.shape[0]
    once = (patches.reshape(-1, side) @ matrix.T).reshape(-1, side, side)
    turned = np.ascontiguousarray(once.transpose(0, 2, 1)).reshape(-1, side)
    twice = (turned @ matrix.T).reshape(-1, side, side)
    return np.ascontiguousarray(twice.transpose(0, 2, 1))
