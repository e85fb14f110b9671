"""Section 7.2.3, step 5: rounding, NaN, and untouched elements."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ddct_format.codec.floats import add_delta, float32_from_bytes, float32_to_bytes


@pytest.mark.parametrize(("dtype", "kind"), [("BF16", torch.bfloat16), ("F16", torch.float16)])
def test_conversions_agree_with_torch_on_every_16_bit_pattern(dtype: str, kind: torch.dtype) -> None:
    patterns = np.arange(1 << 16, dtype="<u2")
    values = float32_from_bytes(patterns.view(np.uint8), dtype)
    theirs = torch.frombuffer(bytearray(patterns.tobytes()), dtype=kind).float().numpy()
    assert np.array_equal(values, theirs, equal_nan=True)
    back = float32_to_bytes(values, dtype).view("<u2")
    assert np.array_equal(back[~np.isnan(values)], patterns[~np.isnan(values)])


@pytest.mark.parametrize(("dtype", "kind"), [("BF16", torch.bfloat16), ("F16", torch.float16)])
def test_rounding_agrees_with_torch(dtype: str, kind: torch.dtype) -> None:
    bits = np.random.default_rng(0).integers(0, 1 << 32, 1 << 18, dtype=np.uint32)
    values = bits.view(np.float32)
    values = values[np.isfinite(values)]
    theirs = torch.from_numpy(values).to(kind).view(torch.int16).numpy().view("<u2")
    assert np.array_equal(float32_to_bytes(values, dtype).view("<u2"), theirs)


@pytest.mark.parametrize(("dtype", "quiet"), [("BF16", 0x7FC0), ("F16", 0x7E00), ("F32", 0x7FC00000)])
def test_every_nan_becomes_the_quiet_nan(dtype: str, quiet: int) -> None:
    nans = np.array([0x7F800001, 0xFFC00000, 0xFFFFFFFF, 0x7FFFFFFF], dtype="<u4").view(np.float32)
    assert set(float32_to_bytes(nans, dtype).view("<u2" if dtype != "F32" else "<u4").tolist()) == {quiet}


def test_a_zero_delta_leaves_the_bits_of_the_base() -> None:
    base = np.array([0x8000, 0x7F81, 0xFFFF, 0x0001], dtype="<u2").view(np.uint8)
    assert np.array_equal(add_delta(base, "BF16", np.array([0.0, -0.0, 0.0, 0.0], dtype=np.float32), "BF16"), base)


def test_minus_zero_plus_a_delta_that_rounds_away_is_the_rounded_sum() -> None:
    base = np.array([0x8000], dtype="<u2").view(np.uint8)
    tiny = np.array([1e-45], dtype=np.float32)
    assert add_delta(base, "BF16", tiny, "BF16").view("<u2").tolist() == [0x0000]


def test_a_sum_beyond_the_range_is_infinite() -> None:
    largest = np.array([0x7BFF], dtype="<u2").view(np.uint8)
    assert add_delta(largest, "F16", np.array([1000.0], dtype=np.float32), "F16").view("<u2").tolist() == [0x7C00]
