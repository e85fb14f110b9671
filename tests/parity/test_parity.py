"""Every backend decodes every layer to the bytes of the reference.

The reference is compared with nothing but the text of section 7.2.3 (``test_arithmetic``); the others are compared with
the reference, over every option of the codec, every pair of element types, odd shapes, and bases of any bit pattern.
Equality is of bytes. A backend that is not on this machine is skipped with its reason.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from codec.layers import base_bytes, layers
from hypothesis import given, settings
from hypothesis import strategies as st

from ddct_format.backends import get_backend
from ddct_format.backends.encoder import Band
from ddct_format.backends.interface import Comparison
from ddct_format.backends.numpy_encoder import NumpyEncoder
from ddct_format.codec.dctq import DctqParams, DctqPayload, StoredPayload, build_sections, split_payload
from parity.paths import CORE_PATHS, computing_by

PATHS = [*CORE_PATHS, "numpy"]
"""Ways to the backend ``cpu``: the core's kernels, and torch where there is no core."""
DTYPES = ("BF16", "F16", "F32")


def stored(params: DctqParams, payload: DctqPayload) -> StoredPayload:
    return split_payload(params, np.concatenate(build_sections(params, payload)))


@pytest.mark.parametrize("path", PATHS)
@settings(max_examples=100, deadline=None)
@given(layers(), st.sampled_from(DTYPES), st.sampled_from(DTYPES), st.integers(0, 2**32 - 1), st.booleans())
def test_the_cpu_backend_decodes_to_the_bytes_of_the_reference(
    path: str, layer: tuple[DctqParams, DctqPayload], base_dtype: str, dtype: str, seed: int, finite: bool
) -> None:
    params, payload = layer
    base = base_bytes(params.grid.rows * params.grid.cols, base_dtype, seed, finite=finite)
    with computing_by(path):
        ours = get_backend("cpu").apply(params, payload, base, base_dtype, dtype)
    assert np.array_equal(ours, get_backend("reference").apply(params, payload, base, base_dtype, dtype))


@pytest.mark.parametrize("path", PATHS)
@settings(max_examples=30, deadline=None)
@given(layers(), st.sampled_from(DTYPES), st.sampled_from(DTYPES), st.integers(0, 2**32 - 1), st.integers(0, 3))
def test_bands_fill_memory_of_any_alignment(
    path: str, layer: tuple[DctqParams, DctqPayload], base_dtype: str, dtype: str, seed: int, offset: int
) -> None:
    params, payload = layer
    base = base_bytes(params.grid.rows * params.grid.cols, base_dtype, seed, finite=False)
    expected = get_backend("reference").apply(params, payload, base, base_dtype, dtype)
    memory = np.full(expected.size + 8, 0xA5, dtype=np.uint8)
    out = memory[offset : offset + expected.size]
    with computing_by(path):
        counts = list(get_backend("cpu").apply_bands(params, stored(params, payload), base, base_dtype, dtype, out))
    assert counts == sorted(set(counts)) and counts[-1] == out.size
    assert np.array_equal(out, expected)
    assert set(memory[:offset]) | set(memory[offset + out.size :]) == {0xA5}


@pytest.mark.parametrize("path", CORE_PATHS)
@settings(max_examples=30, deadline=None)
@given(layers(), st.sampled_from(DTYPES), st.sampled_from(DTYPES), st.integers(0, 2**32 - 1), st.booleans())
def test_a_comparison_on_the_way_is_that_of_the_result(
    path: str, layer: tuple[DctqParams, DctqPayload], base_dtype: str, dtype: str, seed: int, finite: bool
) -> None:
    params, payload = layer
    base = base_bytes(params.grid.rows * params.grid.cols, base_dtype, seed, finite=finite)
    target = base_bytes(params.grid.rows * params.grid.cols, dtype, seed + 1, finite=True)
    out, comparison = np.empty(target.size, dtype=np.uint8), Comparison(target)
    with computing_by(path):
        for _ in get_backend("cpu").apply_bands(
            params, stored(params, payload), base, base_dtype, dtype, out, comparison
        ):
            pass
    expected = NumpyEncoder().delta_sums(Band(out, dtype, target, dtype, params.grid.cols))
    if expected.finite:
        assert comparison.error == pytest.approx(expected.energy, rel=1e-6)
    else:
        assert comparison.error == np.inf


@pytest.mark.parametrize("path", PATHS)
@settings(max_examples=30, deadline=None)
@given(layers())
def test_decoded_deltas_are_equal_too(path: str, layer: tuple[DctqParams, DctqPayload]) -> None:
    params, payload = layer
    with computing_by(path):
        ours = get_backend("cpu").decode_delta(params, payload)
    theirs = get_backend("reference").decode_delta(params, payload)
    assert np.array_equal(ours.view(np.uint32), theirs.view(np.uint32))


@given(layers())
@settings(max_examples=20, deadline=None)
def test_a_caller_that_allows_coarse_matrix_products_changes_nothing(
    layer: tuple[DctqParams, DctqPayload],
) -> None:
    params, payload = layer
    reference = get_backend("reference").decode_delta(params, payload)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with computing_by("numpy"):
            ours = get_backend("cpu").decode_delta(params, payload)
    finally:
        torch.set_float32_matmul_precision(before)
    assert np.array_equal(ours.view(np.uint32), reference.view(np.uint32))


@pytest.mark.parametrize("path", PATHS)
def test_a_tensor_of_several_tiles_equals_the_reference(path: str) -> None:
    from ddct_format.codec.patches import PatchGrid

    random = np.random.default_rng(1)
    grid = PatchGrid(2100, 1030, 16)
    params = DctqParams(grid, "dct", "levels", ((0,), (0, -1, 1), (0, -3, 3)), (1,), 2, True, True)
    class_map = random.integers(0, 3, grid.count).astype(np.uint8)
    members = [int((class_map == number).sum()) for number in (1, 2)]
    payload = DctqPayload(
        scales=np.array([0, 1e-7, 2e-7, 1e-5], dtype="<f4"),
        class_map=class_map,
        codes=(
            np.zeros((0, 16, 16), dtype=np.uint8),
            *(random.integers(0, 3, (count, 16, 16)).astype(np.uint8) for count in members),
        ),
        row_keys=random.integers(0, 9, grid.rows).astype(np.uint8),
        col_keys=random.integers(0, 9, grid.cols).astype(np.uint8),
        multipliers=np.array([65535, 3], dtype="<u2"),
        left=random.integers(-128, 128, (grid.rows, 2)).astype(np.int8),
        right=random.integers(-128, 128, (grid.cols, 2)).astype(np.int8),
    )
    base = base_bytes(grid.rows * grid.cols, "BF16", 2, finite=True)
    with computing_by(path):
        ours = get_backend("cpu").apply(params, payload, base, "BF16", "BF16")
    assert np.array_equal(ours, get_backend("reference").apply(params, payload, base, "BF16", "BF16"))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("patch", [8, 16, 32])
def test_levels_at_the_edge_of_16_bits(path: str, patch: int) -> None:
    """Where one dimension of the transform just fits 16 bits, or just does not, or levels meet in one column."""
    from ddct_format.codec.patches import PatchGrid

    grid = PatchGrid(patch, 4 * patch, patch)
    for most in (1, 17, 18, 34, 35, 36, 69, 70, 71, 127):
        params = DctqParams(grid, "dct", "levels", ((0, -most, most),), ())
        codes = np.zeros((4, patch, patch), dtype=np.uint8)
        codes[0] = 1
        codes[1, ::2], codes[1, 1::2] = 1, 2
        codes[2, :, 0] = 2
        codes[3, : 364 // most, -1] = 1
        payload = DctqPayload(np.array([0.5], dtype="<f4"), np.zeros(4, dtype=np.uint8), (codes,))
        with computing_by(path):
            ours = get_backend("cpu").decode_delta(params, payload)
        assert np.array_equal(ours, get_backend("reference").decode_delta(params, payload))


@pytest.mark.parametrize("path", PATHS)
def test_low_rank_factors_of_any_width(path: str) -> None:
    from ddct_format.codec.patches import PatchGrid

    grid = PatchGrid(9, 40, 8)
    for multipliers in ([255, 256], [65535, 65535, 1], [0, 300, 255], [65535, 65534]):
        rank = len(multipliers)
        params = DctqParams(grid, "none", "levels", ((0,),), (), rank)
        edges = np.array([-128, 127, -1, 0, 1], dtype=np.int8)
        payload = DctqPayload(
            np.array([0, 1e-6], dtype="<f4"),
            np.zeros(grid.count, dtype=np.uint8),
            (np.zeros((0, 8, 8), dtype=np.uint8),),
            multipliers=np.array(multipliers, dtype="<u2"),
            left=np.resize(edges, (9, rank)),
            right=np.resize(edges[::-1], (40, rank)),
        )
        with computing_by(path):
            ours = get_backend("cpu").decode_delta(params, payload)
        assert np.array_equal(ours, get_backend("reference").decode_delta(params, payload))


def test_the_caller_may_flush_subnormals() -> None:
    """Decoding is defined with subnormals kept, whatever mode the host program has set."""
    from ddct_format.codec.patches import PatchGrid

    params = DctqParams(PatchGrid(64, 64, 16), "none", "levels", ((0, 1),))
    codes = np.ones((16, 16, 16), dtype=np.uint8)
    payload = DctqPayload(np.array([1e-40], dtype="<f4"), np.zeros(16, dtype=np.uint8), (codes,))
    base = np.zeros(64 * 64 * 4, dtype=np.uint8)
    with computing_by(PATHS[0]):
        backend = get_backend("cpu")
        flushing = torch.set_flush_denormal(True)
        try:
            ours = backend.apply(params, payload, base, "F32", "F32")
        finally:
            torch.set_flush_denormal(False)
    assert flushing or PATHS[0] == "numpy"
    assert np.unique(ours.view("<f4")).tolist() == [np.float32(1e-40)]
