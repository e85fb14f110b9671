"""What is left of a delta beside its low-rank part, as quantised patches."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..backends.interface import Backend
from ..codec.patches import PatchGrid, cut_patches
from .classes import classify_patches
from .ordering import worthwhile_keys
from .quantise import COARSE_DEAD_ZONE, DEAD_ZONE, quantise
from .quantiser import DEFAULT_QUANTISER, Quantiser

__all__ = ["CodedResidual", "encode_residual"]

_SPARSE_BELOW = 0.5
"""Share of symbols other than zero under which runs of zeros are coded."""


@dataclass(frozen=True, slots=True)
class CodedResidual:
    """The parts of a layer that describe patches (spec section 7.2); empty keys mean none."""

    grid: PatchGrid
    transform: str
    levels: tuple[tuple[int, ...], ...]
    sparse: tuple[int, ...]
    scale: float
    class_map: npt.NDArray[np.uint8]
    codes: tuple[npt.NDArray[np.uint8], ...]
    row_keys: npt.NDArray[np.uint8]
    col_keys: npt.NDArray[np.uint8]
    noise: float
    """Squared error after decoding, before it is rounded to the tensor's type."""


def encode_residual(
    residual: npt.NDArray[np.float32],
    patch: int,
    step: float,
    backend: Backend,
    *,
    plain: bool = False,
    coarse: bool = False,
    quantiser: Quantiser = DEFAULT_QUANTISER,
) -> CodedResidual:
    """Quantise a matrix with one step everywhere, as patches of DCT coefficients, unless told otherwise.

    The transform saves few bits, but what a dead zone drops of it is a little of every weight, not all of the small
    ones: at half a bit per weight that halves the damage to the model (spec/adr/0105-transform.md).

    Args:
        residual: float32 [rows, cols], finite.
        step: in the units of ``residual``, in which the whole delta has a mean square of 1.
        coarse: for targets at which hardly any value survives.
        plain: neither keys nor a transform nor classes: for what is too small to pay for them.
    """
    rows, cols = residual.shape
    grid = PatchGrid(rows, cols, patch)
    row_keys = col_keys = None
    if not plain and not coarse:  # sorted, whole rows would be left without a value
        squares = np.square(residual)
        row_keys = worthwhile_keys(squares.mean(axis=1, dtype=np.float64), cols, step, DEAD_ZONE)
        col_keys = worthwhile_keys(squares.mean(axis=0, dtype=np.float64), rows, step, DEAD_ZONE)
    if row_keys is not None:
        residual = residual[np.argsort(row_keys, kind="stable")]
    if col_keys is not None:
        residual = residual[:, np.argsort(col_keys, kind="stable")]
    transform = "none" if plain else quantiser.transform
    unit = _unit(transform, patch)
    values = _coefficients(residual, grid, transform, backend).reshape(grid.count, -1) * np.float32(unit / step)
    quantised = quantise(values, COARSE_DEAD_ZONE if coarse else DEAD_ZONE, quantiser.gain, fitted=not plain)
    class_map = np.zeros(grid.count, dtype=np.uint8) if plain else classify_patches(quantised.magnitudes)

    both_signs = [0]
    for level in quantised.levels[1:]:
        both_signs += [level, -level]
    levels, sparse, codes = [], [], []
    for number in range(int(class_map.max()) + 1):
        members = class_map == number
        symbols = quantised.symbols[members]
        magnitudes = quantised.magnitudes[members]
        largest = int(magnitudes.max(initial=0))
        levels.append(tuple(both_signs[: 2 * largest + 1]))
        if largest and np.count_nonzero(symbols) < _SPARSE_BELOW * symbols.size:
            sparse.append(number)
        codes.append((symbols if largest else symbols[:0]).reshape(-1, patch, patch))
    none = np.empty(0, dtype=np.uint8)
    return CodedResidual(
        grid=grid,
        transform=transform,
        levels=tuple(levels),
        sparse=tuple(sparse),
        scale=quantised.gain * step / (unit * quantised.levels_per_step),
        class_map=class_map,
        codes=tuple(codes),
        row_keys=none if row_keys is None else row_keys,
        col_keys=none if col_keys is None else col_keys,
        noise=quantised.noise * step * step,
    )


def _coefficients(
    view: npt.NDArray[np.float32], grid: PatchGrid, transform: str, backend: Backend
) -> npt.NDArray[np.float32]:
    if transform == "none":
        return cut_patches(view, grid)
    return backend.coefficients(view, grid, transform)


def _unit(transform: str, patch: int) -> float:
    """What a coefficient must be multiplied with to carry the energy of its patch: the basis's squared norm."""
    return {"none": 1.0, "hadamard": float(patch), "dct": 64.0 * 64.0 * patch}[transform]
