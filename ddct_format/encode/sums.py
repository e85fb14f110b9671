"""Sums over a whole delta."""

from __future__ import annotations

from collections.abc import Iterable

from ..backends.encoder import DeltaSums, Encoder
from .pair import Pair
from .workspace import Workspace

__all__ = ["add_sums", "sum_delta"]


def sum_delta(pair: Pair, encoder: Encoder, workspace: Workspace) -> DeltaSums:
    """Energy, magnitude and largest of ``target − base``, in one pass."""

    def measure(span: tuple[int, int]) -> DeltaSums:
        result = encoder.delta_sums(pair.band(span))
        pair.release(span)
        return result

    return add_sums(workspace.spread(measure, pair.spans(encoder.band_weights)))


def add_sums(parts: Iterable[DeltaSums]) -> DeltaSums:
    """Of all bands together."""
    energy = magnitude = largest = 0.0
    finite = True
    for part in parts:
        energy, magnitude = energy + part.energy, magnitude + part.magnitude
        largest, finite = max(largest, part.largest), finite and part.finite
    return DeltaSums(energy, magnitude, largest, finite)
