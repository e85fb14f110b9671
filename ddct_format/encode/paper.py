"""Delta-DCT as published ("Seeing Delta Parameters as JPEG Images", arXiv 2503.06676), data-free.

Patches of the delta are ranked by L2 norm within their tensor (section 3.2 of the paper); the strongest get 2 bits per
coefficient, the next 1, the rest none. Coefficients of a patch are quantised uniformly between their minimum and
maximum (section 3.3), and the decoded delta is rescaled to the tensor's mean absolute delta (section 3.4). Transform,
patches and rescaling are the quantiser's, for ablations.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..backends.encoder import AffineBand, DeltaSums, Encoder
from ..codec.dctq import DctqParams, split_halves
from ..codec.patches import PatchGrid
from ..codec.transform import analysis_matrix
from .delta import EncodedDelta
from .packing import pack_class
from .pair import Pair
from .quantiser import Quantiser, choose_gain
from .sums import add_sums
from .workspace import Workspace

__all__ = ["encode_paper"]

_HALF_EXPONENT = 15
"""The largest numbers of float16 are just below 2 to the 16th."""

Span = tuple[int, int]


def encode_paper(
    pair: Pair,
    shares: tuple[tuple[int, float], ...],
    quantiser: Quantiser,
    encoder: Encoder,
    workspace: Workspace,
) -> tuple[EncodedDelta, float] | None:
    """Quantise one tensor's delta; it, and Σ (t−b)². None if the delta is not finite.

    Args:
        shares: (bits, share of the patches) from the strongest patches down; what is left gets no bits.
    """
    patch = quantiser.patch
    grid = PatchGrid(pair.rows, pair.cols, patch)
    alphabets = [1] + [2**bits for bits, _ in reversed(shares)]
    energies, sums = _measure(pair, grid, encoder, workspace)
    if not sums.finite:
        return None
    class_map = _rank_patches(energies, shares)
    alphabet_of = np.array(alphabets, dtype=np.uint8)[class_map]
    magnification = _to_half_precision_range(float(energies.max(initial=0.0)), quantiser)

    def places(span: Span) -> slice:
        return slice(span[0] // patch * grid.across, -(-span[1] // patch) * grid.across)

    def quantise(span: Span) -> AffineBand:
        result = encoder.quantise_affine(
            pair.band(span), patch, quantiser.transform, magnification, alphabet_of[places(span)]
        )
        pair.release(span)
        return result

    symbols = workspace.allocate(grid.count * patch**2).reshape(grid.count, -1)
    minima, steps = (np.zeros(grid.count, dtype="<f2") for _ in range(2))
    magnitude = energy = aligned = 0.0
    spans = pair.spans(encoder.band_weights, patch)
    for span, part in zip(spans, workspace.spread(quantise, spans), strict=True):
        symbols[places(span)] = part.symbols
        minima[places(span)], steps[places(span)] = part.minima, part.steps
        magnitude, energy, aligned = magnitude + part.magnitude, energy + part.energy, aligned + part.aligned
        workspace.release()
    unit = 1 / magnification
    gain = choose_gain(
        quantiser.gain,
        energy=sums.energy,
        aligned=aligned * unit**2,
        decoded=energy * unit**2,
        absolute=sums.magnitude,
        decoded_absolute=magnitude * unit,
    )
    coded = alphabet_of > 1
    codes = workspace.spread(
        lambda number: pack_class(encoder, symbols, class_map, number, alphabets[number], None, workspace),
        range(1, len(alphabets)),
    )
    params = DctqParams(grid, quantiser.transform, "affine", tuple(tuple(range(alphabet)) for alphabet in alphabets))
    scales = np.array([gain * unit], dtype="<f4").view(np.uint8)
    halves = split_halves(minima[coded], steps[coded])
    sections = [scales, class_map, *halves, *(part for parts in codes for part in parts)]
    return EncodedDelta(params, sections, []), sums.energy


def _measure(
    pair: Pair, grid: PatchGrid, encoder: Encoder, workspace: Workspace
) -> tuple[npt.NDArray[np.float64], DeltaSums]:
    """Σ d² of each patch, and sums over the whole delta, both while a band is in the second-level cache."""

    def measure(span: Span) -> tuple[npt.NDArray[np.float64], DeltaSums]:
        band = pair.band(span)
        result = encoder.patch_energies(band, grid.patch), encoder.delta_sums(band)
        pair.release(span)
        return result

    spans = pair.spans(encoder.band_weights // 2, grid.patch)
    energies, sums = zip(*workspace.spread(measure, spans), strict=True)
    return np.concatenate(energies), add_sums(sums)


def _rank_patches(energies: npt.NDArray[np.float64], shares: tuple[tuple[int, float], ...]) -> npt.NDArray[np.uint8]:
    """Class of each patch, the last class for the strongest ones; ties go by position."""
    strongest_first = np.argsort(-energies, kind="stable")
    class_map = np.zeros(energies.size, dtype=np.uint8)
    start, reached = 0, 0.0
    for position, (_, share) in enumerate(shares):
        reached += share
        stop = round(reached * energies.size)
        class_map[strongest_first[start:stop]] = len(shares) - position
        start = stop
    return class_map


def _to_half_precision_range(energy: float, quantiser: Quantiser) -> float:
    """A power of two that makes float16 minima and steps normal numbers; the gain takes it back.

    No coefficient of a patch is larger than the root of its energy times the squared norm of the transform, and no
    step is more than twice that.
    """
    norm = np.linalg.norm(analysis_matrix(quantiser.transform, quantiser.patch), 2)
    bound = 2 * float(norm) ** 2 * energy**0.5
    return 1.0 if bound == 0 else float(2.0 ** (_HALF_EXPONENT - np.frexp(bound)[1]))
