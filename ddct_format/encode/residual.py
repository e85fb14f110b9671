"""What is left of a delta beside its low-rank part, as quantised patches."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..backends.encoder import (
    ACTIVITY_BINS,
    LARGEST_MAGNITUDE,
    Encoder,
    QuantisedBand,
    ResidualPlan,
    activity_bins,
)
from ..codec.patches import PatchGrid
from .classes import choose_classes
from .low_rank import LowRankPart
from .ordering import worthwhile_keys
from .packing import pack_class
from .pair import Pair
from .quantise import COARSE_DEAD_ZONE, DEAD_ZONE, choose_levels
from .quantiser import DEFAULT_QUANTISER, Quantiser
from .workspace import Workspace

__all__ = ["CodedResidual", "encode_residual"]

_SPARSE_BELOW = 0.38
"""Share of symbols other than zero under which runs of zeros are coded."""

Bytes = npt.NDArray[np.uint8]
Squares = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class CodedResidual:
    """The parts of a layer that describe patches (spec section 7.2); empty keys mean none.

    Attributes:
        codes: of each class the packed symbols, or run bytes and packed values; none of a class without symbols.
    """

    grid: PatchGrid
    transform: str
    levels: tuple[tuple[int, ...], ...]
    sparse: tuple[int, ...]
    scale: float
    class_map: Bytes
    codes: tuple[list[Bytes], ...]
    row_keys: Bytes
    col_keys: Bytes


def encode_residual(
    pair: Pair,
    scale: float,
    low_rank: LowRankPart | None,
    squares: tuple[Squares, Squares] | None,
    step: float,
    encoder: Encoder,
    workspace: Workspace,
    *,
    patch: int,
    weight: float = 1.0,
    coarse: bool = False,
    quantiser: Quantiser = DEFAULT_QUANTISER,
) -> CodedResidual:
    """Quantise a matrix with one step everywhere, as patches of DCT coefficients, unless told otherwise.

    The transform saves few bits, but what a dead zone drops of it is a little of every weight, not all of the small
    ones: at half a bit per weight that halves the damage to the model (spec/adr/0105-transform.md).

    Args:
        scale: what the delta is multiplied with so that its mean square is 1.
        low_rank: of the scaled delta; it is subtracted first.
        squares: sums of squares of the rows and of the columns of what that leaves; None for what is too small to pay
            for keys, a transform or classes.
        step: in the units of the scaled delta.
        weight: how many rows each stands for, in a sample.
        coarse: for targets at which hardly any value survives.
    """
    grid = PatchGrid(pair.rows, pair.cols, patch)
    none = np.empty(0, dtype=np.uint8)
    row_keys = col_keys = None
    if squares is not None and not coarse:  # sorted, whole rows would be left without a value
        row_keys = worthwhile_keys(squares[0] / pair.cols, pair.cols, step, DEAD_ZONE, weight)
        col_keys = worthwhile_keys(squares[1] / pair.rows, round(pair.rows * weight), step, DEAD_ZONE)
    left = np.zeros((pair.rows, 0), dtype=np.float32)
    right = np.zeros((0, pair.cols), dtype=np.float32)
    if low_rank is not None:
        left, right = low_rank.weighted()
    if row_keys is not None:
        order = np.argsort(row_keys, kind="stable")
        pair, left = pair.ordered(order), left[order]
    transform = "none" if squares is None else quantiser.transform
    unit = _unit(transform, patch)
    plan = ResidualPlan(
        patch=patch,
        transform=transform,
        scale=scale,
        right=right,
        col_order=None if col_keys is None else np.argsort(col_keys, kind="stable"),
        unit=unit / step,
        dead_zone=COARSE_DEAD_ZONE if coarse else DEAD_ZONE,
    )
    symbols, class_bins, counts, sums, energy = _quantise(pair, grid, plan, left, encoder, workspace)
    quantised = choose_levels(counts.sum(axis=0), sums, energy, quantiser.gain, fitted=squares is not None)
    classes = np.zeros(ACTIVITY_BINS, dtype=np.uint8)
    if squares is not None:
        classes = choose_classes(counts, patch * patch, weight)
    class_map = classes[class_bins]

    both_signs = [0]
    for level in quantised.levels[1:]:
        both_signs += [level, -level]
    levels, sparse = [], {}
    for number in range(int(class_map.max()) + 1):
        histogram = counts[classes == number].sum(axis=0)
        largest = int(np.flatnonzero(histogram).max(initial=0))
        levels.append(tuple(both_signs[: 2 * largest + 1]))
        if largest and histogram[1:].sum() < _SPARSE_BELOW * histogram.sum():
            sparse[number] = int(histogram[1:].sum())

    def pack(number: int) -> list[Bytes]:
        alphabet = len(levels[number])
        if alphabet == 1:
            return []
        return pack_class(encoder, symbols, class_map, number, alphabet, sparse.get(number), workspace)

    codes = tuple(workspace.spread(pack, range(len(levels))))
    return CodedResidual(
        grid=grid,
        transform=transform,
        levels=tuple(levels),
        sparse=tuple(sparse),
        scale=quantised.gain * step / (unit * quantised.levels_per_step),
        class_map=class_map,
        codes=codes,
        row_keys=none if row_keys is None else row_keys,
        col_keys=none if col_keys is None else col_keys,
    )


def _quantise(
    pair: Pair,
    grid: PatchGrid,
    plan: ResidualPlan,
    left: npt.NDArray[np.float32],
    encoder: Encoder,
    workspace: Workspace,
) -> tuple[Bytes, Bytes, npt.NDArray[np.int64], Squares, float]:
    """Symbols [patches, p²], the bin of each patch, and the counts, sums and energy of all bands."""
    symbols = workspace.allocate(grid.count * grid.patch**2).reshape(grid.count, -1)
    bins = np.empty(grid.count, dtype=np.uint8)
    counts = np.zeros((ACTIVITY_BINS, LARGEST_MAGNITUDE + 1), dtype=np.int64)
    sums = np.zeros(LARGEST_MAGNITUDE + 1)
    energy = 0.0

    def places(span: tuple[int, int]) -> slice:
        return slice(span[0] // grid.patch * grid.across, -(-span[1] // grid.patch) * grid.across)

    def quantise(span: tuple[int, int]) -> QuantisedBand:
        band, out = pair.band(span, picked=encoder.picks_rows), symbols[places(span)]
        result = encoder.quantise(band, plan, left[slice(*span)], out)
        if not np.may_share_memory(result.symbols, out):
            out[...] = result.symbols
        pair.release(span)
        return result

    spans = pair.spans(encoder.band_weights, grid.patch)
    for span, part in zip(spans, workspace.spread(quantise, spans), strict=True):
        bins[places(span)] = activity_bins(part.activity)
        counts += part.counts
        sums += part.sums
        energy += part.energy
        workspace.release()
    return symbols, bins, counts, sums, energy


def _unit(transform: str, patch: int) -> float:
    """What a coefficient must be multiplied with to carry the energy of its patch: the basis's squared norm."""
    return {"none": 1.0, "hadamard": float(patch), "dct": 64.0 * 64.0 * patch}[transform]
