"""The core decodes ulp.v1 to what numpy decodes it to, and refuses what numpy refuses."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from codec.layers import base_bytes
from codec.ulp_pairs import encoded, pairs
from hypothesis import given, settings
from hypothesis import strategies as st

from ddct_format.backends import get_backend
from ddct_format.codec.floats import FLOAT_WIDTHS
from ddct_format.codec.ulp import UlpParams
from ddct_format.errors import InvalidError
from parity.paths import CORE_PATHS, computing_by

Bytes = npt.NDArray[np.uint8]
Pair = tuple[Bytes, str, Bytes, str, int]


def decoded(path: str, params: UlpParams, payload: Bytes, before: Bytes, before_dtype: str) -> bytes | None:
    """The target's bytes, or None if the payload is refused."""
    with computing_by(path):
        try:
            out = np.empty(params.rows * params.cols * FLOAT_WIDTHS[params.dtype], dtype=np.uint8)
            for _ in get_backend("cpu").apply_ulp_bands(params, payload, before, before_dtype, out):
                pass
            return out.tobytes()
        except InvalidError:
            return None


@pytest.mark.parametrize("path", CORE_PATHS)
@settings(max_examples=60, deadline=None)
@given(pairs(), st.data())
def test_damaged_or_not_all_agree(path: str, pair: Pair, data: st.DataObject) -> None:
    before, before_dtype, target, dtype, cols = pair
    params, sections = encoded(before, before_dtype, target, dtype, cols)
    payload = np.concatenate(sections)
    assert decoded(path, params, payload, before, before_dtype) == target.tobytes()
    for _ in range(data.draw(st.integers(1, 3))):
        payload[data.draw(st.integers(0, payload.size - 1))] = data.draw(st.integers(0, 255))
    payload = payload[: data.draw(st.integers(payload.size - 1, payload.size))]
    expected = decoded("numpy", params, payload, before, before_dtype)
    assert decoded(path, params, payload, before, before_dtype) == expected


@pytest.mark.parametrize("path", [*CORE_PATHS, "numpy"])
@settings(max_examples=20, deadline=None)
@given(pairs(), st.integers(0, 3))
def test_a_tensor_is_changed_in_place_at_any_alignment(path: str, pair: Pair, offset: int) -> None:
    before, before_dtype, target, dtype, cols = pair
    params, sections = encoded(before, before_dtype, target, dtype, cols)
    memory = np.full(target.size + 8, 0xA5, dtype=np.uint8)
    out = memory[offset : offset + target.size]
    if before_dtype == dtype:
        out[:] = before
        before = out
    with computing_by(path):
        counts = list(get_backend("cpu").apply_ulp_bands(params, np.concatenate(sections), before, before_dtype, out))
    assert counts == sorted(set(counts)) and counts[-1] == out.size
    assert np.array_equal(out, target)
    assert set(memory[:offset]) | set(memory[offset + out.size :]) == {0xA5}


@pytest.mark.parametrize("path", CORE_PATHS)
def test_a_tensor_of_several_bands(path: str) -> None:
    random = np.random.default_rng(0)
    before = base_bytes(3000 * 1500, "BF16", 0, finite=True)
    moves = np.rint(random.standard_cauchy(before.size // 2)).clip(-2000, 2000).astype(np.int64)
    target = (before.view("<u2") + moves).astype("<u2").view(np.uint8)
    params, sections = encoded(before, "BF16", target, "BF16", 1500)
    out = np.empty_like(target)
    with computing_by(path):
        counts = list(get_backend("cpu").apply_ulp_bands(params, np.concatenate(sections), before, "BF16", out))
    assert len(counts) > 1
    assert np.array_equal(out, target)
