"""Estimated bits of symbols, from their histograms: for choices that are not worth compressing twice for."""

from __future__ import annotations

from math import erf, sqrt

import numpy as np
import numpy.typing as npt

__all__ = ["entropy_bits", "gaussian_magnitudes", "magnitude_bits"]

_MAGNITUDES = 24


def entropy_bits(counts: npt.NDArray[np.float64] | npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Total bits of ideally coded symbols, over the last axis of counts (or probabilities)."""
    counts = np.asarray(counts, dtype=np.float64)
    totals = counts.sum(axis=-1)
    logs = np.log2(counts, out=np.zeros_like(counts), where=counts > 0)
    total_logs = np.log2(totals, out=np.zeros_like(totals), where=totals > 0)
    result: npt.NDArray[np.float64] = totals * total_logs - (counts * logs).sum(axis=-1)
    return result


def magnitude_bits(counts: npt.NDArray[np.float64] | npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """As :func:`entropy_bits` for counts of the magnitudes 0, 1, …: the signs are added, a bit each."""
    signs: npt.NDArray[np.float64] = np.asarray(counts, dtype=np.float64)[..., 1:].sum(axis=-1)
    return entropy_bits(counts) + signs


def gaussian_magnitudes(deviations: npt.NDArray[np.float64], dead_zone: float) -> npt.NDArray[np.float64]:
    """Probabilities of quantised magnitudes, [..., 24], of normal values with these deviations in steps."""
    edges = np.arange(1, _MAGNITUDES) - (0.5 - dead_zone)
    flat = deviations.reshape(-1).tolist()
    below = np.array([[erf(edge / (sqrt(2) * max(d, 1e-9))) for edge in edges] for d in flat])
    cumulative = np.concatenate([np.zeros((len(below), 1)), below, np.ones((len(below), 1))], axis=1)
    result: npt.NDArray[np.float64] = np.diff(cumulative, axis=1).reshape(*deviations.shape, _MAGNITUDES)
    return result
