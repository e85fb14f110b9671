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
from ddct_format.codec.dctq import DctqParams, DctqPayload, StoredPayload, build_sections, split_payload

DTYPES = ("BF16", "F16", "F32")


def stored(params: DctqParams, payload: DctqPayload) -> StoredPayload:
    return split_payload(params, np.concatenate(build_sections(params, payload)))


@settings(max_examples=200, deadline=None)
@given(layers(), st.sampled_from(DTYPES), st.sampled_from(DTYPES), st.integers(0, 2**32 - 1), st.booleans())
def test_the_cpu_backend_decodes_to_the_bytes_of_the_reference(
    layer: tuple[DctqParams, DctqPayload], base_dtype: str, dtype: str, seed: int, finite: bool
) -> None:
    params, payload = layer
    base = base_bytes(params.grid.rows * params.grid.cols, base_dtype, seed, finite=finite)
    ours = get_backend("cpu").apply(params, payload, base, base_dtype, dtype)
    assert np.array_equal(ours, get_backend("reference").apply(params, payload, base, base_dtype, dtype))


@pytest.mark.parametrize("name", ["reference", "cpu"])
@settings(max_examples=50, deadline=None)
@given(layers(), st.sampled_from(DTYPES), st.sampled_from(DTYPES), st.integers(0, 2**32 - 1), st.integers(0, 3))
def test_bands_fill_memory_of_any_alignment(
    name: str, layer: tuple[DctqParams, DctqPayload], base_dtype: str, dtype: str, seed: int, offset: int
) -> None:
    params, payload = layer
    base = base_bytes(params.grid.rows * params.grid.cols, base_dtype, seed, finite=False)
    expected = get_backend("reference").apply(params, payload, base, base_dtype, dtype)
    memory = np.full(expected.size + 8, 0xA5, dtype=np.uint8)
    out = memory[offset : offset + expected.size]
    counts = list(get_backend(name).apply_bands(params, stored(params, payload), base, base_dtype, dtype, out))
    assert counts == sorted(set(counts)) and counts[-1] == out.size
    assert np.array_equal(out, expected)
    assert set(memory[:offset]) | set(memory[offset + out.size :]) == {0xA5}


@settings(max_examples=50, deadline=None)
@given(layers())
def test_decoded_deltas_are_equal_too(layer: tuple[DctqParams, DctqPayload]) -> None:
    params, payload = layer
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
        ours = get_backend("cpu").decode_delta(params, payload)
    finally:
        torch.set_float32_matmul_precision(before)
    assert np.array_equal(ours.view(np.uint32), reference.view(np.uint32))


@pytest.mark.parametrize("shape", [(1, 1), (15, 17), (16, 300), (3000, 700)])
def test_forward_transforms_agree_closely(shape: tuple[int, int]) -> None:
    """An encoder's primitive need not be exact; the decoder of what it wrote is."""
    from ddct_format.codec.patches import PatchGrid

    view = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    grid = PatchGrid(*shape, 16)
    ours = get_backend("cpu").coefficients(view, grid, "dct")
    np.testing.assert_allclose(ours, get_backend("reference").coefficients(view, grid, "dct"), atol=1e-8)


def test_a_tensor_of_several_tiles_equals_the_reference() -> None:
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
    ours = get_backend("cpu").apply(params, payload, base, "BF16", "BF16")
    assert np.array_equal(ours, get_backend("reference").apply(params, payload, base, "BF16", "BF16"))
