"""Encoders of all backends mean the same, but for values at a threshold, and what they return is consistent."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import prod

import numpy as np
import numpy.typing as npt
import pytest
import torch

from ddct_format.backends import get_backend
from ddct_format.backends.encoder import (
    ACTIVITY_BINS,
    Band,
    Encoder,
    ResidualPlan,
    UlpCoding,
    UlpStreams,
    activity_bins,
)
from ddct_format.backends.numpy_encoder import NumpyEncoder
from ddct_format.codec.floats import float32_from_bytes, float32_to_bytes
from ddct_format.codec.patches import PatchGrid, cut_patches
from ddct_format.codec.symbols import pack_sparse, pack_symbols
from ddct_format.codec.transform import basis_matrix
from ddct_format.codec.ulp import MAX_BOUND
from ddct_format.errors import ConfigError
from parity.paths import CORE_PATHS, computing_by

SHAPES = [(1, 1), (15, 17), (16, 300), (100, 33), (64, 96)]
DTYPES = [("BF16", "BF16"), ("F16", "F16"), ("F32", "BF16"), ("BF16", "F32")]


@pytest.fixture(params=["reference", *CORE_PATHS, pytest.param("cuda", marks=pytest.mark.gpu)])
def encoder(request: pytest.FixtureRequest) -> Iterator[Encoder]:
    """The reference, the native core on each instruction set, and a GPU, or its code in torch on the CPU."""
    if request.param in CORE_PATHS:
        with computing_by(request.param):
            yield get_backend("cpu")
        return
    if request.param == "cuda" and not torch.cuda.is_available():
        yield pytest.importorskip("ddct_format.backends.cuda.backend").CudaBackend(torch.device("cpu"))
        return
    try:
        yield get_backend(request.param)
    except ConfigError as error:
        pytest.skip(str(error))


def make_band(shape: tuple[int, int], base_dtype: str = "BF16", dtype: str = "BF16", seed: int = 0) -> Band:
    random = np.random.default_rng(seed)
    base = float32_to_bytes(random.normal(0, 0.05, prod(shape)).astype(np.float32), base_dtype)
    tails = random.standard_t(4, prod(shape)).astype(np.float32) * np.float32(1e-3)
    target = float32_to_bytes(float32_from_bytes(base, base_dtype) + tails, dtype)
    return Band(base, base_dtype, target, dtype, shape[1])


def precision(encoder: Encoder) -> float:
    """How well sums are known: a GPU takes them over coefficients in float16 and values in parts of a step."""
    return 2e-3 if getattr(encoder, "name", "") == "cuda" else 1e-4


def delta_of(band: Band) -> npt.NDArray[np.float64]:
    values = float32_from_bytes(band.target, band.dtype).astype(np.float64)
    return (values - float32_from_bytes(band.base, band.base_dtype)).reshape(-1, band.cols)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtypes", DTYPES)
def test_deltas_and_their_sums(encoder: Encoder, shape: tuple[int, int], dtypes: tuple[str, str]) -> None:
    band = make_band(shape, *dtypes)
    wanted = delta_of(band).astype(np.float32)
    assert np.array_equal(encoder.difference(band), wanted)
    sums = encoder.delta_sums(band)
    assert sums.finite
    assert sums.energy == pytest.approx(float(np.square(wanted, dtype=np.float64).sum()), rel=1e-6)
    assert sums.magnitude == pytest.approx(float(np.abs(wanted).sum(dtype=np.float64)), rel=1e-6)
    assert sums.largest == float(np.abs(wanted).max())


@pytest.mark.parametrize("pattern", [0x7FC0, 0x7F80, 0xFF80])
def test_a_value_that_is_not_finite_is_seen(encoder: Encoder, pattern: int) -> None:
    band = make_band((40, 24))
    band.target.view("<u2")[777] = pattern
    assert not encoder.delta_sums(band).finite


@pytest.mark.parametrize("shape", SHAPES)
def test_a_power_step(encoder: Encoder, shape: tuple[int, int], request: pytest.FixtureRequest) -> None:
    band = make_band(shape)
    vectors = np.random.default_rng(1).normal(size=(shape[1], 21)).astype(np.float32)
    step = encoder.power_step(band, 1000.0, vectors)
    matrix = delta_of(band) * 1000
    projected = matrix @ vectors
    # The matrix unit rounds what it multiplies to bfloat16; errors of products are independent of one another.
    close = 2e-3 if request.node.callspec.params["encoder"] == "amx" else 1e-5
    of_rows = np.linalg.norm(matrix, axis=1)[:, None] * np.linalg.norm(vectors, axis=0)
    assert (np.abs(step.projected - projected) <= 3 * close * of_rows).all()
    of_cols = np.linalg.norm(matrix, axis=0)[:, None] * np.linalg.norm(projected, axis=0)
    rounding = close * np.linalg.norm(matrix, axis=0)[:, None] * np.linalg.norm(of_rows, axis=0)
    assert (np.abs(step.returned - matrix.T @ projected) <= 3 * (close * of_cols + rounding)).all()
    np.testing.assert_allclose(step.row_squares, np.square(matrix).sum(axis=1), rtol=1e-5)
    np.testing.assert_allclose(step.col_squares, np.square(matrix).sum(axis=0), rtol=1e-5)


@pytest.mark.parametrize(("shape", "dtypes"), list(zip(SHAPES, [*DTYPES, ("BF16", "BF16")], strict=True)))
@pytest.mark.parametrize(("patch", "transform"), [(16, "dct"), (8, "none"), (8, "dct"), (32, "dct"), (16, "hadamard")])
@pytest.mark.parametrize(
    ("step", "rank", "ordered"), [(1e-3, 0, False), (3e-5, 2, True), (3e-5, 41, True), (1e-3, 17, False)]
)
def test_quantised_bands(
    encoder: Encoder,
    shape: tuple[int, int],
    dtypes: tuple[str, str],
    patch: int,
    transform: str,
    step: float,
    rank: int,
    ordered: bool,
) -> None:
    band = make_band(shape, *dtypes)
    random = np.random.default_rng(2)
    left = random.normal(0, 0.3, (shape[0], rank)).astype(np.float32)
    right = random.normal(0, 0.3, (rank, shape[1])).astype(np.float32)
    if rank > 2:  # as they are stored: the right ones are whole numbers
        left, right = left / np.float32(100), np.rint(30 * right)
    norm = {"none": 1.0, "hadamard": float(patch), "dct": 4096.0 * patch}[transform]
    plan = ResidualPlan(
        patch=patch,
        transform=transform,
        scale=1000.0,
        right=right,
        col_order=random.permutation(shape[1]).astype(np.int64) if ordered else None,
        unit=norm / (step * 1000),
        dead_zone=0.2,
    )
    found = encoder.quantise(band, plan, left)

    residual = delta_of(band) * 1000 - left.astype(np.float64) @ plan.right
    if plan.col_order is not None:
        residual = residual[:, plan.col_order]
    patches = cut_patches(residual, PatchGrid(*shape, patch)).astype(np.float64)
    inverse = np.linalg.inv(basis_matrix(transform, patch).astype(np.float64)).T
    values = (inverse @ patches @ inverse.T).reshape(len(patches), -1) * plan.unit
    exact = np.minimum(np.abs(values) + 0.3, 127)
    magnitudes = (found.symbols.astype(np.int64) + 1) // 2
    wrong = magnitudes != np.floor(exact)
    assert np.abs(exact[wrong] - np.rint(exact[wrong])).max(initial=0) < 2e-2
    signs = np.where(found.symbols % 2 == 1, 1, -1)
    assert (np.sign(values) == signs)[magnitudes > 0].all()

    activity = magnitudes.sum(axis=1)
    assert np.array_equal(found.activity, activity)
    bins = activity_bins(found.activity)
    assert found.counts.shape == (ACTIVITY_BINS, 128)
    joint = bins.astype(np.int64)[:, None] * 128 + magnitudes
    assert np.array_equal(found.counts, np.bincount(joint.reshape(-1), minlength=128 * ACTIVITY_BINS).reshape(-1, 128))
    sums = np.bincount(magnitudes.reshape(-1), weights=np.abs(values).reshape(-1), minlength=128)
    close = precision(encoder)
    half_part = (shape == (1, 1)) / 120  # all values are alike, so what is rounded of them does not cancel
    assert (np.abs(found.sums - sums) <= close * sums + 10 * close + half_part * found.counts.sum(axis=0)).all()
    few = half_part * 2 * float(np.abs(values).sum())
    assert found.energy == pytest.approx(float(np.square(values).sum()), rel=close, abs=close + few)


@pytest.mark.parametrize("shape", [(100, 33), (64, 96)])
@pytest.mark.parametrize("dtypes", DTYPES)
def test_picked_rows(encoder: Encoder, shape: tuple[int, int], dtypes: tuple[str, str]) -> None:
    if not encoder.picks_rows:
        pytest.skip("it takes bands whose rows were gathered")
    band = make_band(shape, *dtypes)
    rows = np.random.default_rng(4).permutation(shape[0])[:50].astype(np.int64)
    left = np.zeros((rows.size, 0), dtype=np.float32)
    plan = ResidualPlan(16, "dct", 1000.0, np.zeros((0, shape[1]), dtype=np.float32), None, 65536 / 0.3, 0.2)
    base, target = (data.reshape(shape[0], -1)[rows].reshape(-1) for data in (band.base, band.target))
    gathered = encoder.quantise(Band(base, dtypes[0], target, dtypes[1], shape[1]), plan, left)
    picked = encoder.quantise(replace(band, rows=rows), plan, left)
    assert gathered.symbols.any()
    assert np.array_equal(picked.symbols, gathered.symbols)
    assert np.array_equal(picked.counts, gathered.counts)


@pytest.mark.parametrize("shape", [(200, 712), (97, 331)])
@pytest.mark.parametrize(("rank", "ordered"), [(0, False), (2, True)])
@pytest.mark.parametrize("step", [1.5e-3, 6e-4])
def test_bands_with_a_few_large_values(
    encoder: Encoder, shape: tuple[int, int], rank: int, ordered: bool, step: float
) -> None:
    """Most magnitudes are up to 3, some up to 127 and beyond: what a quantiser's usual work looks like."""
    random = np.random.default_rng(3)
    base = random.normal(0, 0.05, shape).astype(np.float32)
    delta = random.normal(0, 1e-3, shape).astype(np.float32)
    delta[:64, :64] = 0
    delta[random.random(shape) < 1e-4] *= 500
    stored = float32_to_bytes(base.reshape(-1), "BF16")
    target = float32_to_bytes((base + delta).reshape(-1), "BF16")
    band = Band(stored, "BF16", target, "BF16", shape[1])
    left = random.normal(0, 0.1, (shape[0], rank)).astype(np.float32)
    right = random.normal(0, 0.1, (rank, shape[1])).astype(np.float32)
    order = random.permutation(shape[1]).astype(np.int64) if ordered else None
    plan = ResidualPlan(16, "dct", 1000.0, right, order, 65536 / (step * 1000), 0.2)
    found, wanted = encoder.quantise(band, plan, left), NumpyEncoder().quantise(band, plan, left)
    signed = [np.where(one.symbols % 2, 1, -1) * ((one.symbols.astype(int) + 1) // 2) for one in (found, wanted)]
    apart = np.abs(signed[0] - signed[1])
    assert apart.max() <= 1 and apart.mean() < 2e-3
    assert found.activity.sum() == np.abs(signed[0]).sum()
    assert np.array_equal(found.counts.sum(axis=0), np.bincount(np.abs(signed[0]).reshape(-1), minlength=128))
    assert (
        np.abs(found.counts - wanted.counts).sum()
        <= 4 * np.count_nonzero(apart)
        + 256 * np.count_nonzero(activity_bins(found.activity) != activity_bins(wanted.activity)) * 2
    )
    assert found.energy == pytest.approx(wanted.energy, rel=4e-3)  # a few values are most of it
    np.testing.assert_allclose(found.sums, wanted.sums, rtol=2e-2, atol=4 * 127.0)  # of values at a threshold


def test_bins_are_half_octaves() -> None:
    assert activity_bins(np.array([0, 1, 2, 3, 4, 130048], dtype=np.int32)).tolist() == [0, 1, 3, 4, 5, 35]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("transform", ["dct", "none"])
def test_affine_bands(encoder: Encoder, shape: tuple[int, int], transform: str) -> None:
    band, patch = make_band(shape), 16
    grid = PatchGrid(*shape, patch)
    np.testing.assert_allclose(
        encoder.patch_energies(band, patch),
        np.square(cut_patches(delta_of(band), grid)).sum(axis=(1, 2)),
        rtol=1e-5,
    )
    alphabets = (np.arange(grid.count) % 3 + 1).astype(np.uint8)
    scale = 2.0 ** (20 if transform == "dct" else 4)
    found = encoder.quantise_affine(band, patch, transform, scale, alphabets)
    assert (found.symbols < alphabets[:, None]).all()
    inverse = np.linalg.inv(basis_matrix(transform, patch).astype(np.float64)).T
    patches = cut_patches(delta_of(band), grid).astype(np.float64) * scale
    values = (inverse @ patches @ inverse.T).reshape(grid.count, -1)
    coded = alphabets > 1
    assert not found.minima[~coded].any() and not found.steps[~coded].any()
    np.testing.assert_allclose(found.minima[coded], values.min(axis=1)[coded], rtol=2e-3)
    step, low = found.steps.astype(np.float64)[:, None], found.minima.astype(np.float64)[:, None]
    levels = np.where(coded[:, None], found.symbols * step + low, 0.0)
    inside = (values >= low) & (values <= low + step * (alphabets[:, None] - 1.0)) & coded[:, None]
    assert (np.abs(levels - values) <= 0.503 * step + 1e-3 * np.abs(values))[inside].all()
    basis = basis_matrix(transform, patch).astype(np.float64)
    decoded = basis.T @ levels.reshape(-1, patch, patch) @ basis
    view = decoded.reshape(grid.down, grid.across, patch, patch).swapaxes(1, 2).reshape(grid.down * patch, -1)
    view = view[: shape[0], : shape[1]]
    close = precision(encoder)
    assert found.magnitude == pytest.approx(float(np.abs(view).sum()), rel=close)
    assert found.energy == pytest.approx(float(np.square(view).sum()), rel=close)
    # On a GPU the basis counts as orthogonal here, which it is within half a percent.
    aligned = float((view * delta_of(band)).sum()) * scale
    assert found.aligned == pytest.approx(aligned, rel=5e-3 if close > 1e-3 else close)


@pytest.mark.parametrize("alphabet", [2, 3, 5, 7, 17, 255])
@pytest.mark.parametrize("density", [0.01, 0.6])
def test_classes_are_packed_as_the_codec_packs(encoder: Encoder, alphabet: int, density: float) -> None:
    random = np.random.default_rng(alphabet)
    symbols = random.integers(0, alphabet, (50, 256)) * (random.random((50, 256)) < density)
    symbols = symbols.astype(np.uint8)
    class_map = random.integers(0, 3, 50).astype(np.uint8)
    members = symbols[class_map == 1].reshape(-1)
    (dense,) = encoder.pack_class(symbols, class_map, 1, alphabet, False)
    assert np.array_equal(dense, pack_symbols(members, alphabet))
    runs, values = encoder.pack_class(symbols, class_map, 1, alphabet, True)
    wanted_runs, wanted_values = pack_sparse(members, alphabet)
    assert np.array_equal(runs, wanted_runs) and np.array_equal(values, wanted_values)


def ulp_coding(shape: tuple[int, int], keys: tuple[bool, bool], shift: int) -> UlpCoding:
    random = np.random.default_rng(4)
    row_keys, col_keys = (
        random.integers(0, 256, size if present else 0).astype(np.uint8)
        for size, present in zip(shape, keys, strict=True)
    )
    return UlpCoding(shift, row_keys, col_keys)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("base_dtype", "dtype", "shift"), [*((*types, 0) for types in DTYPES), ("F32", "F32", 16)])
@pytest.mark.parametrize("keys", [(False, False), (True, True)])
@pytest.mark.parametrize("narrow", [False, True])
def test_exact_symbols_are_counted_and_scattered_alike(
    encoder: Encoder,
    shape: tuple[int, int],
    base_dtype: str,
    dtype: str,
    shift: int,
    keys: tuple[bool, bool],
    narrow: bool,
) -> None:
    band = make_band(shape, base_dtype, dtype)
    if shift:
        band.target.view("<u4")[:] &= (1 << 32) - (1 << shift)
    band.base[:2] = 0xFF  # a NaN, or a part of a number
    coding = ulp_coding(shape, keys, shift)
    group_of = np.sort(np.random.default_rng(5).integers(0, 40, MAX_BOUND + 1)).astype(np.uint8)
    if narrow:  # all groups change within a few octaves, as they do in real tensors
        group_of = np.searchsorted(np.arange(600, 640), np.arange(MAX_BOUND + 1)).astype(np.uint8)
    mantissa = 3 if 8 * (4 if dtype == "F32" else 2) - shift <= 16 else 2
    found = []
    for one in (encoder, NumpyEncoder()):
        counts = np.ones((MAX_BOUND + 1, 256), dtype=np.int64)
        one.count_ulp(band, coding, counts)
        assert counts.sum() == counts.size + prod(shape)
        by_group = np.zeros((256, 256), dtype=np.int64)
        np.add.at(by_group, group_of, counts - 1)
        lengths = np.maximum(0, ((np.arange(256) + 1) // 2 >> mantissa) - 1)
        sizes, bits = 2 * by_group.sum(axis=1), 2 * by_group @ lengths
        assert np.array_equal(2 * one.measure_ulp(band, coding, group_of), [sizes, bits])
        streams = UlpStreams(
            group_of,
            np.full(sizes.sum(), 255, dtype=np.uint8),
            np.cumsum(sizes) - sizes,
            np.zeros(-(-bits.sum() // 8), dtype=np.uint8),
            np.cumsum(bits) - bits,
        )
        for _ in range(2):  # a second band goes on where the first one ended
            one.scatter_ulp(band, coding, streams)
        assert np.array_equal(streams.places, np.cumsum(sizes))
        assert np.array_equal(streams.positions, np.cumsum(bits))
        found.append((counts.tobytes(), streams.symbols.tobytes(), streams.extra.tobytes()))
    assert found[0] == found[1]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("base_dtype", "dtype"), DTYPES)
def test_sizes_of_residuals(encoder: Encoder, shape: tuple[int, int], base_dtype: str, dtype: str) -> None:
    band = make_band(shape, base_dtype, dtype)
    band.base[:4] = 0xFF
    predicted = float32_from_bytes(band.base, base_dtype)
    predicted = float32_from_bytes(float32_to_bytes(predicted, dtype), dtype)
    sizes = np.abs(float32_from_bytes(band.target, dtype) - predicted).reshape(shape)
    sizes[~np.isfinite(sizes)] = 0
    assert np.array_equal(encoder.ulp_sizes(band), sizes)
    weights = np.random.default_rng(6).random(shape[1]).astype(np.float32)
    np.testing.assert_allclose(encoder.ulp_row_sizes(band, weights), sizes @ weights, rtol=1e-4)
