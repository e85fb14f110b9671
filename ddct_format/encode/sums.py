"""Sums over a whole delta."""

from __future__ import annotations

from ..backends.encoder import DeltaSums, Encoder
from .pair import Pair
from .workspace import Workspace

__all__ = ["sum_delta"]


def sum_delta(pair: Pair, encoder: Encoder, workspace: Workspace) -> DeltaSums:
    """Energy, magnitude and largest of ``target − base``, in one pass."""

    def measure(span: tuple[int, int]) -> DeltaSums:
        result = encoder.delta_sums(pair.band(span))
        pair.release(span)
        return result

    energy = magnitude = largest = 0.0
    finite = True
    for part in workspace.spread(measure, pair.spans(encoder.band_weights)):
        energy, magnitude = energy + part.energy, magnitude + part.magnitude
        largest, finite = max(largest, part.largest), finite and part.finite
    return DeltaSums(energy, magnitude, largest, finite)
