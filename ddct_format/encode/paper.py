"""Delta-DCT as published ("Seeing Delta Parameters as JPEG Images", arXiv 2503.06676), data-free.

Patches of the delta are ranked by L2 norm within their tensor (section 3.2 of the paper); the strongest get 2 bits per
coefficient, the next 1, the rest none. Coefficients of a patch are quantised uniformly between their minimum and
maximum (section 3.3), and the decoded delta is rescaled to the tensor's mean absolute delta (section 3.4). Transform,
patches and rescaling are the quantiser's, for ablations.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..backends.interface import Backend
from ..codec.dctq import DctqParams, DctqPayload
from ..codec.patches import PatchGrid, cut_patches
from .quantiser import Quantiser, choose_gain

__all__ = ["encode_paper"]


def encode_paper(
    delta: npt.NDArray[np.float32], shares: tuple[tuple[int, float], ...], quantiser: Quantiser, backend: Backend
) -> tuple[DctqParams, DctqPayload]:
    """Quantise one tensor's delta.

    Args:
        delta: float32 [rows, cols], finite.
        shares: (bits, share of the patches) from the strongest patches down; what is left gets no bits.
    """
    patch = quantiser.patch
    grid = PatchGrid(delta.shape[0], delta.shape[1], patch)
    alphabets = [1] + [2**bits for bits, _ in reversed(shares)]
    class_map = _rank_patches(delta, grid, shares)
    transformed = quantiser.transform != "none"
    coefficients = backend.coefficients(delta, grid, quantiser.transform) if transformed else cut_patches(delta, grid)
    coefficients = coefficients.reshape(grid.count, -1)
    magnification = _to_half_precision_range(coefficients)
    coefficients = coefficients * np.float32(magnification)

    codes: list[npt.NDArray[np.uint8]] = []
    minima = np.zeros(grid.count, dtype="<f2")
    steps = np.zeros(grid.count, dtype="<f2")
    for number, alphabet in enumerate(alphabets):
        members = np.flatnonzero(class_map == number) if alphabet > 1 else np.empty(0, dtype=np.intp)
        values = coefficients[members]
        low, high = values.min(axis=1, initial=np.inf), values.max(axis=1, initial=-np.inf)
        minima[members] = low
        steps[members] = (high - low) / np.float32(max(1, alphabet - 1))
        step = steps[members].astype(np.float32)[:, None]
        offset = values - minima[members].astype(np.float32)[:, None]
        ratio = np.divide(offset, step, out=np.zeros_like(offset), where=step > 0)
        codes.append(np.clip(np.rint(ratio), 0, alphabet - 1).astype(np.uint8).reshape(-1, patch, patch))
    coded = np.array(alphabets)[class_map] > 1

    params = DctqParams(grid, quantiser.transform, "affine", tuple(tuple(range(alphabet)) for alphabet in alphabets))
    payload = DctqPayload(
        scales=np.ones(1, dtype=np.float32),
        class_map=class_map,
        codes=tuple(codes),
        minima=minima[coded],
        steps=steps[coded],
    )
    payload.scales[0] = _gain(quantiser.gain, delta, backend.decode_delta(params, payload), 1 / magnification)
    return params, payload


def _gain(kind: str, delta: npt.NDArray[np.float32], decoded: npt.NDArray[np.float32], unit: float) -> float:
    """The gain for ``decoded``, which is in units of ``unit``."""
    gain = choose_gain(
        kind,
        energy=_product(delta, delta),
        aligned=_product(delta, decoded) * unit,
        decoded=_product(decoded, decoded) * unit**2,
        absolute=float(np.abs(delta).sum(dtype=np.float64)),
        decoded_absolute=float(np.abs(decoded).sum(dtype=np.float64)) * unit,
    )
    return gain * unit


def _product(left: npt.NDArray[np.float32], right: npt.NDArray[np.float32]) -> float:
    return float(np.einsum("ij,ij->", left, right, dtype=np.float64))


def _rank_patches(
    delta: npt.NDArray[np.float32], grid: PatchGrid, shares: tuple[tuple[int, float], ...]
) -> npt.NDArray[np.uint8]:
    """Class of each patch, the last class for the strongest ones; ties go by position."""
    norms = np.square(cut_patches(delta, grid), dtype=np.float64).sum(axis=(1, 2))
    strongest_first = np.argsort(-norms, kind="stable")
    class_map = np.zeros(grid.count, dtype=np.uint8)
    start, reached = 0, 0.0
    for position, (_, share) in enumerate(shares):
        reached += share
        stop = round(reached * grid.count)
        class_map[strongest_first[start:stop]] = len(shares) - position
        start = stop
    return class_map


def _to_half_precision_range(coefficients: npt.NDArray[np.float32]) -> float:
    """A power of two that makes float16 minima and steps normal numbers; the gain takes it back."""
    largest = float(np.abs(coefficients).max(initial=0.0))
    return 1.0 if largest == 0 else float(2.0 ** (10 - np.frexp(largest)[1]))
