"""The encoder's parts on matrices whose structure is known."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddct_format.backends import get_backend
from ddct_format.backends.encoder import ACTIVITY_BINS, LARGEST_MAGNITUDE, activity_bins
from ddct_format.codec.dctq import MAX_MULTIPLIER_SUM, DctqParams, parse_payload
from ddct_format.encode.allocation import StepSearch, relative_steps
from ddct_format.encode.classes import choose_classes
from ddct_format.encode.delta import DeltaAnalysis, analyse_delta, encode_delta, matrix_view, vector_view
from ddct_format.encode.factors import RANK_LIMIT, Factors, factorise
from ddct_format.encode.low_rank import quantise_low_rank, residual_squares
from ddct_format.encode.ordering import energy_keys, worthwhile_keys
from ddct_format.encode.pair import Pair, TensorData
from ddct_format.encode.quantise import DEAD_ZONE, GAIN_LIMIT, choose_levels
from ddct_format.encode.rate import entropy_bits, gaussian_magnitudes
from ddct_format.encode.sampling import spread_rows
from ddct_format.encode.workspace import Workspace

ENCODER = get_backend("reference")
WORKSPACE = Workspace()
Matrix = npt.NDArray[np.float32]


def noise(rows: int, cols: int, seed: int = 0) -> Matrix:
    return np.random.default_rng(seed).standard_normal((rows, cols), dtype=np.float32)


def low_rank_plus_noise(rows: int, cols: int, rank: int, seed: int = 0) -> Matrix:
    """Mean square 1, half of it in ``rank`` directions."""
    structure = noise(rows, rank, seed + 1) @ noise(rank, cols, seed + 2) / np.float32(np.sqrt(rank))
    matrix = structure + noise(rows, cols, seed)
    return matrix / np.sqrt(np.square(matrix).mean())


def pair_of(matrix: Matrix, view: tuple[int, int] | None = None) -> Pair:
    """A tensor whose base is zero, so that it is its own delta."""
    data = np.ascontiguousarray(matrix, dtype="<f4").view(np.uint8).reshape(-1)
    tensors = (TensorData("F32", matrix.shape, bytes_) for bytes_ in (np.zeros_like(data), data))
    return Pair(*tensors, view or matrix_view(matrix.shape) or vector_view(matrix.shape) or matrix.shape)


def analyse(pair: Pair, is_matrix: bool = True) -> DeltaAnalysis | None:
    return analyse_delta(pair, ENCODER, WORKSPACE, is_matrix=is_matrix)


def factors_of(matrix: Matrix) -> Factors:
    return factorise(pair_of(matrix, matrix.shape), 1.0, ENCODER, WORKSPACE)


def decode(matrix: Matrix, step: float) -> tuple[DctqParams, Matrix]:
    """The matrix as a reader gets it, through the bytes of the payload."""
    pair = pair_of(matrix)
    analysis = analyse(pair, matrix_view(matrix.shape) is not None)
    assert analysis is not None
    encoded = encode_delta(pair, analysis, step, ENCODER, WORKSPACE)
    params = DctqParams.parse(encoded.params.as_json(), matrix.size)
    data = np.concatenate(encoded.sections)
    low, high = params.size_bounds()
    assert low <= data.size <= high
    return params, ENCODER.decode_delta(params, parse_payload(params, data))


@pytest.mark.parametrize("shape", [(200, 90), (90, 200)])
def test_the_low_rank_part_finds_the_directions_that_are_there(shape: tuple[int, int]) -> None:
    matrix = low_rank_plus_noise(*shape, rank=3)
    factors = factors_of(matrix)
    part = quantise_low_rank(factors, shape[0], step=2.0)
    assert part is not None
    assert part.rank == 3
    assert part.left.shape == (shape[0], 3) and part.right.shape == (shape[1], 3)
    exact = (part.left.astype(np.int64) * part.multipliers) @ part.right.T.astype(np.int64) * part.scale
    left, right = part.weighted()
    assert np.allclose(left @ right, exact, atol=1e-4)
    assert np.square(matrix - exact).mean() < 0.62
    rows, cols = residual_squares(factors, part)
    np.testing.assert_allclose(rows, np.square(matrix - exact).sum(axis=1), rtol=0.05)
    np.testing.assert_allclose(cols, np.square(matrix - exact).sum(axis=0), rtol=0.05)


def test_noise_alone_has_no_low_rank_part() -> None:
    for step in (0.1, 0.5, 1.0, 2.7):
        assert quantise_low_rank(factors_of(noise(128, 128)), 128, step) is None


def test_the_low_rank_parts_limits_hold_for_any_spread_of_strengths() -> None:
    strengths = np.geomspace(1e-3, 1e3, 80, dtype=np.float32)
    matrix = (noise(256, 80) * strengths) @ noise(80, 256, 1)
    matrix /= np.sqrt(np.square(matrix).mean())
    part = quantise_low_rank(factors_of(matrix), 256, step=1e-3)
    assert part is not None
    assert 0 < part.rank <= RANK_LIMIT
    assert int(part.multipliers.sum(dtype=np.int64)) <= MAX_MULTIPLIER_SUM
    assert max(np.abs(part.left).max(), np.abs(part.right).max()) <= 127


def test_factors_are_the_same_every_time() -> None:
    matrix = low_rank_plus_noise(300, 200, rank=5)
    first, second = factors_of(matrix), factors_of(matrix.copy())
    assert np.array_equal(first.values, second.values) and np.array_equal(first.vectors, second.vectors)


def test_singular_values_are_those_of_an_exact_decomposition() -> None:
    matrix = low_rank_plus_noise(400, 300, rank=4)
    exact = np.linalg.svd(matrix, compute_uv=False)
    assert np.allclose(factors_of(matrix).values[:4], exact[:4], rtol=1e-3)


@settings(deadline=None, max_examples=40)
@given(st.floats(0.02, 3.0), st.integers(0, 2**31), st.sampled_from([0.3, 1.0, 4.0]))
def test_the_decoded_residual_projects_onto_the_true_one_with_coefficient_one(
    step: float, seed: int, tail: float
) -> None:
    """Unbiased: <y, g·r> = <y, y>, unless the gain would exceed its limit."""
    values = noise(20, 256, seed)
    values = np.sign(values) * np.abs(values) ** np.float32(tail) / np.float32(step)
    magnitudes = np.minimum(np.abs(values) + 0.5 - DEAD_ZONE, LARGEST_MAGNITUDE).astype(np.int64)
    sums = np.bincount(magnitudes.reshape(-1), np.abs(values).reshape(-1), 128)
    energy = float(np.square(values, dtype=np.float64).sum())
    quantised = choose_levels(np.bincount(magnitudes.reshape(-1), minlength=128), sums, energy)
    signed = np.sign(values) * np.array(quantised.levels)[magnitudes]
    decoded = quantised.gain * signed / quantised.levels_per_step
    assert 1.0 <= quantised.gain <= GAIN_LIMIT
    if 1.0 < quantised.gain < GAIN_LIMIT:
        assert float((values * decoded).sum()) == pytest.approx(energy, rel=1e-3)
    assert quantised.noise == pytest.approx(float(np.square(values - decoded).sum()), rel=1e-3, abs=1e-4 * energy)
    assert max(quantised.levels) <= 127


def test_without_a_value_there_is_one_level() -> None:
    counts, sums = np.zeros(128, dtype=np.int64), np.zeros(128)
    counts[0], sums[0] = 192, 19.2
    assert choose_levels(counts, sums, 1.92).levels == (0,)


def classify(magnitudes: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """The class of each patch, by way of what an encoder counts."""
    bins = activity_bins(magnitudes.sum(axis=1, dtype=np.int32))
    counts = np.zeros((ACTIVITY_BINS, 128), dtype=np.int64)
    np.add.at(counts, (bins[:, None], magnitudes), 1)
    return choose_classes(counts, magnitudes.shape[1])[bins]


def test_classes_separate_strong_from_weak_patches() -> None:
    strength = np.repeat([8, 0, 2], 200)
    magnitudes = np.abs(np.rint(noise(600, 256) * strength[:, None] / 2)).astype(np.uint8)
    classes = classify(magnitudes)
    assert classes[0] == 0
    means = [magnitudes[classes == number].mean() for number in range(int(classes.max()) + 1)]
    assert means == sorted(means, reverse=True) and means[-1] == 0 and len(means) <= 5


def test_patches_that_are_alike_share_a_class() -> None:
    assert not classify(np.abs(np.rint(noise(50, 256))).astype(np.uint8)).any()


@given(st.integers(1, 5000), st.integers(1, 400), st.sampled_from([1, 16]))
def test_samples_of_rows_are_spread_and_whole_groups(rows: int, wanted: int, group: int) -> None:
    chosen = spread_rows(rows, wanted, group)
    inside = chosen[chosen < rows]
    assert (np.diff(chosen) > 0).all() and np.array_equal(chosen, spread_rows(rows, wanted, group))
    assert chosen.size % group == 0 and inside.size
    assert chosen.size >= min(wanted, rows // group * group)


def test_a_large_matrix_is_decomposed_as_well_as_a_small_one() -> None:
    """Beyond the size at which a sample of rows stands for all of them in the search for directions."""
    matrix = low_rank_plus_noise(3000, 1500, rank=4)
    exact = np.linalg.eigvalsh(matrix.T.astype(np.float64) @ matrix)[::-1]
    factors = factors_of(matrix)
    assert np.allclose(np.square(factors.values[:4]), exact[:4], rtol=5e-3)
    np.testing.assert_allclose(factors.row_squares, np.square(matrix).sum(axis=1), rtol=1e-4)
    terms = factors.left[:, :4] * factors.values[:4] @ factors.vectors[:, :4].T
    assert np.square(matrix - terms).sum() == pytest.approx(exact[4:].sum(), rel=5e-3)


def test_keys_are_taken_only_where_rows_differ() -> None:
    alike = np.ones(512)
    different = np.where(np.arange(512) % 3 == 0, 16.0, 0.1)
    assert worthwhile_keys(alike, 512, 1.0, DEAD_ZONE) is None
    keys = worthwhile_keys(different, 512, 1.0, DEAD_ZONE)
    assert keys is not None
    assert np.array_equal(keys, energy_keys(different)) and set(keys.tolist()) == {0, 7}


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=50))
def test_keys_stay_in_range_and_follow_energy(energies: list[float]) -> None:
    keys = energy_keys(np.array(energies))
    assert keys.min() == 0 and keys.max() <= 15
    assert (np.diff(keys[np.argsort(energies, kind="stable")].astype(int)) <= 0).all()


def test_estimates_agree_with_definitions() -> None:
    assert float(entropy_bits(np.array([4, 4, 4, 4]))) == pytest.approx(32)
    assert entropy_bits(np.array([[7, 0], [0, 0]])).tolist() == [0, 0]
    assert np.allclose(gaussian_magnitudes(np.array([0.2, 1.0, 3.0]), 0.2).sum(axis=-1), 1)


@pytest.mark.parametrize("step", [0.05, 0.3, 1.2, 2.7])
@pytest.mark.parametrize("shape", [(130, 70), (33, 257), (16, 16), (24, 3, 5, 5), (192,), (64,)])
def test_what_is_encoded_decodes_to_the_delta(shape: tuple[int, ...], step: float) -> None:
    delta = (noise(1, int(np.prod(shape)))[0] * np.float32(1e-3)).reshape(shape)
    _, decoded = decode(delta.reshape(shape), step)
    error = np.square(decoded.reshape(-1) - delta.reshape(-1)).sum() / np.square(delta).sum()
    assert error < {0.05: 0.002, 0.3: 0.02, 1.2: 0.4, 2.7: 5.0}[step]


def test_rows_and_columns_come_back_in_their_places() -> None:
    rows, cols = np.arange(480) % 4 == 0, np.arange(400) % 5 == 0
    matrix = noise(480, 400) * np.where(rows, 3, 0.3).astype(np.float32)[:, None]
    matrix *= np.where(cols, 3, 0.3).astype(np.float32)
    matrix /= np.sqrt(np.square(matrix).mean())
    params, decoded = decode(matrix, 0.5)
    assert params.row_keys and params.col_keys and len(params.levels) > 1
    assert np.square(decoded - matrix).mean() < 0.1


def test_a_delta_of_nothing_is_coded_as_nothing() -> None:
    params, decoded = decode(np.zeros((64, 64), dtype=np.float32), 1.0)
    assert not decoded.any() and params.alphabets == (1,)


@pytest.mark.parametrize("size", [1e-36, 1e34])
def test_deltas_at_the_ends_of_float32_are_carried(size: float) -> None:
    assert analyse(pair_of(noise(32, 32) * np.float32(size))) is None


def test_views() -> None:
    assert matrix_view((24, 3, 5, 5)) == (24, 75)
    assert matrix_view((3, 40, 32)) == (120, 32)
    assert matrix_view((200, 1)) is None and matrix_view((8, 500)) is None and matrix_view((500,)) is None
    assert vector_view((192,)) == (24, 8)
    assert vector_view((63,)) is None and vector_view((100,)) is None and vector_view(()) is None


def test_steps_grow_slower_than_deviations() -> None:
    shares = relative_steps({"weak": 1e-4, "strong": 1e-2, "still": 0.0})
    assert shares["weak"] > 1 > shares["strong"]
    assert shares["weak"] * shares["strong"] == pytest.approx(1)
    assert shares["still"] == pytest.approx(1)
    coarse = relative_steps({"weak": 1e-4, "strong": 1e-2}, coarse=True)
    assert coarse["weak"] > shares["weak"] and coarse["strong"] < shares["strong"]
    assert relative_steps({}) == {}


@given(st.floats(0.02, 6), st.floats(0.3, 3), st.floats(0.1, 10))
def test_the_search_meets_its_target_on_any_power_law(target: float, slope: float, factor: float) -> None:
    search = StepSearch(target, rising=False, low=0.985, high=1.0)
    for _ in range(12):
        if search.done or search.exhausted:
            break
        search.record(factor * search.scale**-slope)
    assert search.exhausted or search.done
    assert search.exhausted or target * 0.985 <= factor * search.scale**-slope <= target


def test_the_search_gives_up_on_what_cannot_be_met() -> None:
    search = StepSearch(0.1, rising=False, low=0.985, high=1.0)
    for _ in range(12):
        search.record(0.5)
    assert search.exhausted and not search.done


def test_a_loose_search_stays_within_reach_of_the_usual_scale() -> None:
    search = StepSearch(0.5, rising=False, low=0.985, high=1.0, strict=False)
    usual = search.scale
    for _ in range(12):
        if search.done:
            break
        search.record(5.0)
    assert search.done and not search.exhausted
    assert search.scale == pytest.approx(1.5 * usual)
