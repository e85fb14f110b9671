"""What an encoder asks of a backend: band by band, so that no primitive ever needs a whole tensor.

Nothing here is bound to equal bytes. Backends may differ in the last bits of a float, and so in a symbol at a
threshold; they agree on what everything means, and counts and sums agree with the symbols that are returned
(tests/parity/test_encoders.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

__all__ = [
    "ACTIVITY_BINS",
    "BAND_WEIGHTS",
    "BIN_EDGES",
    "LARGEST_MAGNITUDE",
    "AffineBand",
    "Band",
    "DeltaSums",
    "Encoder",
    "PowerStep",
    "QuantisedBand",
    "ResidualPlan",
    "UlpCoding",
    "UlpStreams",
    "activity_bins",
]

BAND_WEIGHTS = 1 << 19
"""A band of bfloat16 pairs and its delta then stay within a core's second-level cache, or nearly."""
LARGEST_MAGNITUDE = 127
"""Of a quantised value, in steps; larger ones are cut off."""
ACTIVITY_BINS = 36
"""Patches without a value, then half-octaves of the sum of a patch's magnitudes, at most 32² · 127."""
BIN_EDGES = np.ceil(2.0 ** ((np.arange(ACTIVITY_BINS - 1) - 0.5) / 2)).astype(np.int64)
"""The smallest activity of each bin from 1 on."""
_BIN_OF = np.repeat(np.arange(ACTIVITY_BINS, dtype=np.uint8), np.diff(BIN_EDGES, prepend=0, append=32**2 * 127 + 1))
_BIN_OF[0] = 0


def activity_bins(activity: npt.NDArray[np.int32]) -> npt.NDArray[np.uint8]:
    """The bin of each patch: 0 where nothing is left of it, else 1 + round(2 · log2 activity)."""
    result: npt.NDArray[np.uint8] = _BIN_OF[activity]
    return result


@dataclass(frozen=True, slots=True)
class Band:
    """Rows of a fine-tune's tensor and the same rows of its base.

    Attributes:
        base, target: uint8, 1-D, row-major, of the element types ``base_dtype`` and ``dtype``: BF16, F16 or F32.
        cols: elements of a row.
        rows: int64, which rows of base and target the band has, in this order; None for all. Only for ``quantise``, and
            only of an encoder that says so.
    """

    base: npt.NDArray[np.uint8]
    base_dtype: str
    target: npt.NDArray[np.uint8]
    dtype: str
    cols: int
    rows: npt.NDArray[np.int64] | None = None


@dataclass(frozen=True, slots=True)
class DeltaSums:
    """Of the delta ``target − base``, each difference rounded to float32, the sums in float64.

    Attributes:
        energy: Σ d².
        magnitude: Σ |d|.
        largest: max |d|.
        finite: whether every d is; the other numbers mean nothing if not.
    """

    energy: float
    magnitude: float
    largest: float
    finite: bool


@dataclass(frozen=True, slots=True)
class PowerStep:
    """One step of a subspace iteration with the band's delta D, which has ``rows`` rows.

    Attributes:
        projected: float32 [rows, k], D·V.
        returned: float32 [cols, k], Dᵀ·D·V.
        row_squares: float64 [rows], Σ d² of each row.
        col_squares: float64 [cols], Σ d² of each column.
    """

    projected: npt.NDArray[np.float32]
    returned: npt.NDArray[np.float32]
    row_squares: npt.NDArray[np.float64]
    col_squares: npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ResidualPlan:
    """How a tensor's delta becomes symbols.

    Attributes:
        patch: p, 8, 16 or 32.
        transform: ``dct``, ``hadamard`` or ``none``.
        scale: what a delta is multiplied with first.
        right: float32 [k, cols]; the product with a band's left factors is subtracted from the scaled delta.
        col_order: int64 [cols], the column of the view that each column of the patches takes; None for the identity.
        unit: what a coefficient of the transform is multiplied with to become a value in steps.
        dead_zone: z; a value v has the magnitude ⌊|v| + 0.5 − z⌋, at most 127.
    """

    patch: int
    transform: str
    scale: float
    right: npt.NDArray[np.float32]
    col_order: npt.NDArray[np.int64] | None
    unit: float
    dead_zone: float


@dataclass(frozen=True, slots=True)
class QuantisedBand:
    """Symbols of a band's patches, and what choosing classes, levels and a gain takes.

    Attributes:
        symbols: uint8 [patches, p²]: 0, or 2m−1 and 2m for a value of the magnitude m above and below zero.
        activity: int32 [patches], the sum of each patch's magnitudes.
        counts: int64 [ACTIVITY_BINS, 128], how often each magnitude stands in the patches of each bin.
        sums: float64 [128], Σ |v| of the values of each magnitude.
        energy: Σ v².
    """

    symbols: npt.NDArray[np.uint8]
    activity: npt.NDArray[np.int32]
    counts: npt.NDArray[np.int64]
    sums: npt.NDArray[np.float64]
    energy: float


@dataclass(frozen=True, slots=True)
class AffineBand:
    """Symbols of a band's patches between the extremes of each.

    Attributes:
        symbols: uint8 [patches, p²], each below its patch's alphabet; 0 in patches whose alphabet is 1.
        minima, steps: float16 [patches]; 0 in patches whose alphabet is 1.
        magnitude, energy, aligned: Σ |r|, Σ r² and Σ r·d of the scaled delta d and of r, what these symbols stand for
            with a gain of 1, both without the padding.
    """

    symbols: npt.NDArray[np.uint8]
    minima: npt.NDArray[np.float16]
    steps: npt.NDArray[np.float16]
    magnitude: float
    energy: float
    aligned: float


@dataclass(frozen=True, slots=True)
class UlpCoding:
    """What makes contexts and symbols of ulp.v1 (section 7.3) of a band: its base, rounded to the target's type, is the
    prediction.

    Attributes:
        shift: low bits that are zero in every pattern of the target.
        row_keys: uint8 [rows]; empty without.
        col_keys: uint8 [cols]; empty without.
    """

    shift: int
    row_keys: npt.NDArray[np.uint8]
    col_keys: npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class UlpStreams:
    """Symbols and extra bits of a tensor, group by group, which fill up band by band.

    Attributes:
        group_of: uint8 [contexts], the group of each context.
        symbols: uint8, those of all groups.
        places: int64 [256], of each group the place of its next symbol.
        extra: uint8, zero where nothing was written.
        positions: int64 [256], of each group the bit of ``extra`` from which its next extra bits go.
    """

    group_of: npt.NDArray[np.uint8]
    symbols: npt.NDArray[np.uint8]
    places: npt.NDArray[np.int64]
    extra: npt.NDArray[np.uint8]
    positions: npt.NDArray[np.int64]


class Encoder(Protocol):
    """The arithmetic of an encoder. Bands begin at a row of patches; only a tensor's last one may end inside of one.

    Patches are cut from the band's rows in the order given, padded with zeros at the right and bottom edge.

    Attributes:
        band_weights: about how many weights a band should have.
    """

    band_weights: int

    @property
    def picks_rows(self) -> bool:
        """Whether ``quantise`` takes bands with ``rows``."""

    def difference(self, band: Band) -> npt.NDArray[np.float32]:
        """``target − base``, float32 [rows, cols]."""

    def delta_sums(self, band: Band) -> DeltaSums:
        """Sums over a band's delta."""

    def power_step(self, band: Band, scale: float, vectors: npt.NDArray[np.float32]) -> PowerStep:
        """One power iteration with the delta times ``scale``; ``vectors`` is V, float32 [cols, k]."""

    def quantise(
        self,
        band: Band,
        plan: ResidualPlan,
        left: npt.NDArray[np.float32],
        out: npt.NDArray[np.uint8] | None = None,
    ) -> QuantisedBand:
        """Delta − left · right, in patches, transformed and quantised.

        Args:
            left: float32 [rows, k].
            out: uint8 [patches, p²], for the symbols; an encoder may return an array of its own instead.
        """

    def patch_energies(self, band: Band, patch: int) -> npt.NDArray[np.float64]:
        """Σ d² of each patch of the delta, float64 [patches]."""

    def quantise_affine(
        self, band: Band, patch: int, transform: str, scale: float, alphabets: npt.NDArray[np.uint8]
    ) -> AffineBand:
        """The delta times ``scale``, in patches, transformed, each patch uniformly between its extremes.

        Args:
            alphabets: uint8 [patches], the number of symbols of each patch, 1 to 127.
        """

    def pack_class(
        self, symbols: npt.NDArray[np.uint8], class_map: npt.NDArray[np.uint8], number: int, alphabet: int, sparse: bool
    ) -> list[npt.NDArray[np.uint8]]:
        """The symbols of one class's patches as a payload holds them (spec sections 7.2.4 and 7.2.5).

        Args:
            symbols: uint8 [patches, p²] of all classes, those of class ``number`` below ``alphabet``.
            class_map: uint8 [patches].

        Returns:
            The packed symbols; for a sparse class its run bytes, then its packed values.
        """

    def ulp_sizes(self, band: Band) -> npt.NDArray[np.float32]:
        """|target − prediction|, float32 [rows, cols], at most 2^60; 0 where it is not finite."""

    def ulp_row_sizes(self, band: Band, weights: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Of each row the sum of :meth:`ulp_sizes`, times ``weights``, float32 [cols]; about."""

    def count_ulp(self, band: Band, coding: UlpCoding, counts: npt.NDArray[np.int64]) -> None:
        """Add how often each symbol stands in each context to ``counts``, int64 [contexts, 256], C-contiguous."""

    def measure_ulp(self, band: Band, coding: UlpCoding, group_of: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
        """How many elements fall into each group, and how many extra bits they have, int64 [2, 256].

        Args:
            group_of: uint8 [contexts], the group of each context.
        """

    def scatter_ulp(self, band: Band, coding: UlpCoding, streams: UlpStreams) -> None:
        """Write each element's symbol and extra bits where its group goes on, and move the places on."""
