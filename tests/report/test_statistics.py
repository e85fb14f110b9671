"""Streaming statistics against the textbook's, whatever the blocks."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddct_format.report.distortion import Distortion, change_blocks, distortion_of
from ddct_format.report.statistics import Moments, ValueHistogram

Values = npt.NDArray[np.float64]
Bytes = npt.NDArray[np.uint8]


def measure_distortion(base: Bytes, true: Bytes, decoded: Bytes) -> Distortion:
    return sum((distortion_of(d, t) for _, (d, t) in change_blocks(base, "F32", "F32", decoded, true)), Distortion())


def textbook(values: Values) -> tuple[float, float, float]:
    mean = values.mean()
    variance = float(np.mean((values - mean) ** 2))
    skewness = float(np.mean((values - mean) ** 3) / variance**1.5)
    return variance, skewness, float(np.mean((values - mean) ** 4) / variance**2 - 3)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32), st.lists(st.integers(0, 400), min_size=2, max_size=6), st.sampled_from([1e-6, 1.0, 1e6]))
def test_moments_of_parts_add_up_to_those_of_the_whole(seed: int, sizes: list[int], scale: float) -> None:
    random = np.random.default_rng(seed)
    parts = [random.gamma(1 + i, scale, size) + 3 * scale for i, size in enumerate(sizes)]
    whole = np.concatenate(parts)
    total = Moments()
    for part in parts:
        total += Moments.of(part)
    assert total.count == whole.size
    if whole.size > 1:
        found = (total.variance, total.skewness, total.kurtosis)
        assert found == pytest.approx(textbook(whole), rel=1e-6, abs=1e-9)
        assert total.mean == pytest.approx(whole.mean())


def test_moments_of_nothing_and_of_one_value_many_times() -> None:
    assert (Moments().variance, Moments().skewness, Moments().kurtosis) == (None, None, None)
    constant = Moments.of(np.full(10, 0.25))
    assert (constant.variance, constant.skewness, constant.kurtosis) == (0.0, None, None)


def test_the_histogram_counts_what_numpy_counts() -> None:
    random = np.random.default_rng(0)
    for values in (
        random.standard_normal(20000) * 3e-5,
        random.standard_t(2, 20000),
        random.integers(-9, 9, 500) * 1.0,
    ):
        reach = 4 * values.std()
        edges = np.linspace(-reach, reach, 42)
        expected, _ = np.histogram(values, edges)
        whole, half = ValueHistogram(), ValueHistogram()
        half.add(values[:100])
        whole.add(values[100:])
        whole.merge(half)
        assert int(whole.counts.sum()) == values.size
        found = whole.between(edges)
        assert found.sum() == pytest.approx(expected.sum(), rel=0.01)
        # Values near an edge may fall to either side of it: keys are 1.6 % wide.
        assert np.abs(np.cumsum(found) - np.cumsum(expected)).max() < 0.02 * values.size
        wide = whole.between(np.array([-1e30, 0.0, 1e30]))
        assert wide.sum() == pytest.approx(values.size)


def test_the_histogram_takes_any_finite_value() -> None:
    values = np.array([0.0, -0.0, 1e-45, -1e-40, 3e38, -3.4e38, 1e300])
    histogram = ValueHistogram()
    histogram.add(values)
    assert int(histogram.counts.sum()) == 7
    assert histogram.between(np.array([-1e-30, 1e-30]))[0] == pytest.approx(4, abs=0.1)
    assert np.isfinite(histogram.between(np.linspace(-1, 1, 9))).all()
    assert not ValueHistogram().between(np.array([-1.0, 1.0])).any()


def test_distortion_leaves_out_what_is_not_finite() -> None:
    base, true, decoded = (np.array(v, dtype="<f4") for v in ([0, 1, 2, np.nan], [1, 1, np.inf, 0], [2, 1, 3, 0]))
    measured = measure_distortion(base.view(np.uint8), true.view(np.uint8), decoded.view(np.uint8))
    assert (measured.noise, measured.energy, measured.decoded_energy, measured.product) == (1.0, 1.0, 4.0, 2.0)
    assert (measured.error, measured.cosine) == (1.0, 1.0)
    ((finite, (change,)),) = change_blocks(base.view(np.uint8), "F32", "F32", decoded.view(np.uint8))
    assert finite.tolist() == [True, True, True, False] and change.tolist() == [2.0, 0.0, 1.0]


def test_blocks_change_nothing() -> None:
    random = np.random.default_rng(1)
    size = (1 << 18) * 17 + 12345
    base, true, decoded = (random.standard_normal(size, dtype=np.float32) for _ in range(3))
    measured = measure_distortion(base.view(np.uint8), true.view(np.uint8), decoded.view(np.uint8))
    t, d = (values.astype(np.float64) - base for values in (true, decoded))
    assert measured.error == pytest.approx(float(((t - d) ** 2).sum() / (t**2).sum()))
    assert measured.cosine == pytest.approx(float(t @ d / np.sqrt((t @ t) * (d @ d))))
