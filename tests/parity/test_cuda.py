"""The CUDA backend decodes every layer to the bytes of the reference.

Where there is a GPU, it decides. Elsewhere the kernels in Triton run through its interpreter, which
``tests/conftest.py`` chooses; those in CUDA C++ need a device. Without Triton, both are skipped with their reason.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from codec.layers import base_bytes, layers, random_payload
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ddct_format.backends import get_backend
from ddct_format.codec.dctq import DctqParams, DctqPayload
from ddct_format.codec.patches import PatchGrid

HAS_TRITON = importlib.util.find_spec("triton") is not None
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DTYPES = ("BF16", "F16", "F32")
PATCHES = (8, 16, 32)
SHAPES = ((1, 1), (1, 67), (33, 1), (7, 9), (15, 17), (31, 33), (40, 24), (65, 130))
"""Less than a patch, whole patches, and some more; the last one is several tiles."""
LAYOUTS = (
    ("levels", ((0,),), ()),
    ("levels", ((0, 1, -1),), ()),
    ("levels", ((0,), (0, 2, -3, 5, 7), (0, -127, 127)), (2,)),
    ("levels", ((0, 18, -18), (0,), tuple(range(128)), (0, -1)), (0, 3)),
    ("affine", ((0, 1),), ()),
    ("affine", ((0,), tuple(range(17)), (0, 1, 2), (0, 1)), (1, 3)),
)
"""Quantiser, levels of each class, and which classes are stored sparse: widths of 2, 4 and 8 bits, alone and mixed."""

needs_kernels = pytest.mark.skipif(
    not HAS_TRITON or not (INTERPRETED or torch.cuda.is_available()),
    reason="no CUDA device" if HAS_TRITON else "Triton is not installed",
)
pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")  # numpy, under the interpreter


def kernels():
    from ddct_format.backends.cuda import CudaBackend

    return CudaBackend(torch.device("cpu") if INTERPRETED else torch.device("cuda", 0))


def examples(on_device: int, interpreted: int) -> settings:
    return settings(
        max_examples=interpreted if INTERPRETED else on_device,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
    )


@pytest.mark.gpu
@needs_kernels
@examples(300, 8)
@given(layers(), st.sampled_from(DTYPES), st.sampled_from(DTYPES), st.integers(0, 2**32 - 1), st.booleans())
def test_layers_decode_to_the_bytes_of_the_reference(
    layer: tuple[DctqParams, DctqPayload], base_dtype: str, dtype: str, seed: int, finite: bool
) -> None:
    params, payload = layer
    base = base_bytes(params.grid.rows * params.grid.cols, base_dtype, seed, finite=finite)
    ours = kernels().apply(params, payload, base, base_dtype, dtype)
    assert np.array_equal(ours, get_backend("reference").apply(params, payload, base, base_dtype, dtype))


@pytest.mark.gpu
@needs_kernels
@examples(100, 4)
@given(layers())
def test_deltas_are_equal_too(layer: tuple[DctqParams, DctqPayload]) -> None:
    params, payload = layer
    ours = kernels().decode_delta(params, payload)
    assert np.array_equal(ours.view(np.uint32), get_backend("reference").decode_delta(params, payload).view(np.uint32))


@pytest.mark.gpu
@needs_kernels
@pytest.mark.parametrize("patch", PATCHES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_layout_at_every_odd_shape(shape: tuple[int, int], patch: int) -> None:
    backend, reference = kernels(), get_backend("reference")
    # Where there are several tiles, which take the interpreter longest, the patches share the layouts.
    layouts = LAYOUTS[PATCHES.index(patch) :: len(PATCHES)] if shape == SHAPES[-1] and INTERPRETED else LAYOUTS
    for number, (quantiser, levels, sparse) in enumerate(layouts):
        random = np.random.default_rng([*shape, patch, number])
        transform = str(random.choice(("dct", "hadamard", "none")))
        base_dtype, dtype = map(str, random.choice(DTYPES, 2))
        row_keys, col_keys = map(bool, random.integers(0, 2, 2))
        grid, rank = PatchGrid(*shape, patch), int(random.integers(0, 5))
        params = DctqParams(grid, transform, quantiser, levels, sparse, rank, row_keys, col_keys)
        payload = random_payload(params, random, float(random.choice((0.01, 0.5, 1.0))))
        base = base_bytes(grid.rows * grid.cols, base_dtype, number, finite=bool(number % 2))
        ours = backend.apply(params, payload, base, base_dtype, dtype)
        wanted = reference.apply(params, payload, base, base_dtype, dtype)
        assert np.array_equal(ours, wanted), (params, base_dtype, dtype)


@pytest.mark.gpu
@needs_kernels
def test_leaves_have_the_digests_of_the_standard_library() -> None:
    from ddct_format.backends.cuda.digest import leaf_digests

    device = torch.device("cpu") if INTERPRETED else torch.device("cuda", 0)
    count, leaf = 33, 64
    data = np.random.default_rng(count).integers(0, 256, (count, leaf)).astype(np.uint8)
    stored = torch.from_numpy(data).to(device)
    places = torch.arange(count, device=device) * leaf + stored.data_ptr()
    assert leaf_digests(places, leaf) == [hashlib.sha256(row.tobytes()).digest() for row in data]


def large_layer(
    rank: int, *, keys: bool = False, patch: int = 16, rows: int = 2100, cols: int = 1030
) -> tuple[DctqParams, DctqPayload]:
    """Many tiles, many blocks of the class index, long runs, and low-rank sums near their limit."""
    random = np.random.default_rng(rank)
    grid = PatchGrid(rows, cols, patch)
    params = DctqParams(grid, "dct", "levels", ((0,), (0, -1, 1), (0, -127, 127, 5)), (2,), rank, keys, keys)
    class_map = random.integers(0, 3, grid.count).astype(np.uint8)
    members = [int((class_map == number).sum()) for number in (1, 2)]
    shape = (grid.patch, grid.patch)
    few = random.random((members[1], *shape)) < 0.002
    return params, DctqPayload(
        scales=np.array([0, 1e-7, 2e-7] + [1e-9] * (rank > 0), dtype="<f4"),
        class_map=class_map,
        codes=(
            np.zeros((0, *shape), dtype=np.uint8),
            random.integers(0, 3, (members[0], *shape)).astype(np.uint8),
            np.where(few, random.integers(0, 4, (members[1], *shape)), 0).astype(np.uint8),
        ),
        row_keys=random.integers(0, 9, rows if keys else 0).astype(np.uint8),
        col_keys=random.integers(0, 9, cols if keys else 0).astype(np.uint8),
        multipliers=np.full(rank, (2**17 - 1) // max(rank, 2), dtype="<u2"),
        left=np.where(random.random((rows, rank)) < 0.9, -128, 127).astype(np.int8),
        right=np.where(random.random((cols, rank)) < 0.9, -128, 127).astype(np.int8),
    )


@pytest.mark.gpu
@pytest.mark.skipif(INTERPRETED or not HAS_TRITON or not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("rank", [0, 2, 16, 40, 256])
@pytest.mark.parametrize(("keys", "patch"), [(False, 16), (True, 8), (True, 16)])
def test_a_tensor_of_many_tiles_equals_the_reference(rank: int, keys: bool, patch: int) -> None:
    params, payload = large_layer(rank, keys=keys, patch=patch)
    base = base_bytes(params.grid.rows * params.grid.cols, "BF16", 2, finite=True)
    ours = kernels().apply(params, payload, base, "BF16", "BF16")
    assert np.array_equal(ours, get_backend("cpu").apply(params, payload, base, "BF16", "BF16"))


@pytest.mark.gpu
@pytest.mark.skipif(INTERPRETED or not HAS_TRITON or not torch.cuda.is_available(), reason="no CUDA device")
def test_kernels_that_are_damaged_in_the_cache_are_compiled_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ddct_format.backends.cuda import fused, nvrtc

    if not nvrtc.find_nvrtc(torch.device("cuda", 0)):
        pytest.skip("no NVRTC")
    params, payload = large_layer(2, rows=64, cols=64)
    base = base_bytes(64 * 64, "F16", 2, finite=True)
    wanted = get_backend("reference").apply(params, payload, base, "F16", "F16")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for _ in range(2):
        monkeypatch.setattr(nvrtc, "_loaded", {})
        fused._load.cache_clear()
        assert np.array_equal(kernels().apply(params, payload, base, "F16", "F16"), wanted)
        images = list(tmp_path.rglob("*.cubin"))
        assert images
        for image in images:
            image.write_bytes(image.read_bytes()[:100])
