"""Symbols packed part by part are those that were packed at once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddct_format.backends import get_backend
from ddct_format.codec.symbols import pack_sparse
from ddct_format.encode.packing import pack_class, pack_runs
from ddct_format.encode.workspace import Workspace


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@settings(deadline=None, max_examples=60)
@given(st.data())
def test_parts_give_the_bytes_of_the_whole(backend: str, data: st.DataObject) -> None:
    encoder = get_backend(backend)
    random = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    alphabet, patches = data.draw(st.sampled_from([2, 3, 4, 5, 7, 19, 255])), data.draw(st.integers(1, 60))
    density = data.draw(st.sampled_from([0.0, 0.0005, 0.02, 0.5, 1.0]))
    symbols = random.integers(1, alphabet, (patches, 64), dtype=np.uint8)
    symbols[random.random(symbols.shape) >= density] = 0
    class_map = (random.random(patches) < data.draw(st.sampled_from([0.0, 0.1, 0.5, 1.0]))).astype(np.uint8)
    sparse = data.draw(st.booleans())
    whole = encoder.pack_class(symbols, class_map, 1, alphabet, sparse)
    values = int(np.count_nonzero(symbols[class_map == 1])) if sparse else None
    part = data.draw(st.integers(1, 64 * patches))
    parts = pack_class(encoder, symbols, class_map, 1, alphabet, values, Workspace(), part)
    assert [section.tobytes() for section in parts] == [section.tobytes() for section in whole]


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32), st.integers(1, 5000), st.sampled_from([0.0, 0.001, 0.1, 1.0]), st.integers(1, 5000))
def test_runs_of_parts_are_those_of_the_whole(seed: int, size: int, density: float, part: int) -> None:
    random = np.random.default_rng(seed)
    symbols = random.integers(1, 256, size, dtype=np.uint8)
    symbols[random.random(size) >= density] = 0
    parts = pack_runs(symbols, int(np.count_nonzero(symbols)), Workspace(), part)
    assert [section.tobytes() for section in parts] == [section.tobytes() for section in pack_sparse(symbols, 256)]
