"""Sections 7.2.4 and 7.2.5: symbols as bytes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddct_format.codec.symbols import (
    pack_sparse,
    pack_symbols,
    packed_size,
    symbols_per_byte,
    unpack_sparse,
    unpack_symbols,
)
from ddct_format.errors import InvalidError


@pytest.mark.parametrize(
    ("alphabet", "per_byte"),
    [(2, 8), (3, 5), (4, 4), (5, 3), (6, 3), (7, 2), (16, 2), (17, 1), (256, 1)],
)
def test_a_byte_holds_as_many_digits_as_fit(alphabet: int, per_byte: int) -> None:
    assert symbols_per_byte(alphabet) == per_byte


def test_the_first_symbol_is_the_least_significant_digit() -> None:
    assert pack_symbols(np.array([1, 2, 0, 1, 2, 1], dtype=np.uint8), 3).tolist() == [
        1 + 2 * 3 + 27 + 2 * 81,
        1,
    ]


@given(st.integers(2, 256), st.integers(0, 300), st.integers(0, 2**32 - 1))
def test_dense_symbols_round_trip(alphabet: int, count: int, seed: int) -> None:
    symbols = np.random.default_rng(seed).integers(0, alphabet, count).astype(np.uint8)
    packed = pack_symbols(symbols, alphabet)
    assert packed.size == packed_size(count, alphabet)
    assert np.array_equal(unpack_symbols(packed, count, alphabet), symbols)


@given(st.integers(2, 255), st.integers(0, 2000), st.floats(0, 1), st.integers(0, 2**32 - 1))
def test_sparse_symbols_round_trip(alphabet: int, count: int, density: float, seed: int) -> None:
    random = np.random.default_rng(seed)
    symbols = (random.integers(1, alphabet, count) * (random.random(count) < density)).astype(np.uint8)
    assert np.array_equal(unpack_sparse(*pack_sparse(symbols, alphabet), count, alphabet), symbols)


def test_runs_of_zeros_as_bytes() -> None:
    symbols = np.zeros(1000, dtype=np.uint8)
    symbols[[0, 2, 257, 258 + 255]] = 1
    runs, values = pack_sparse(symbols, 2)
    assert runs.tolist() == [0, 1, 254, 255, 0]
    assert values.size == 0


def test_a_byte_that_is_no_number_of_the_base_is_invalid() -> None:
    with pytest.raises(InvalidError, match="out of range"):
        unpack_symbols(np.array([243], dtype=np.uint8), 5, 3)


def test_a_digit_after_the_last_symbol_is_invalid() -> None:
    with pytest.raises(InvalidError, match="not zero"):
        unpack_symbols(np.array([81], dtype=np.uint8), 4, 3)


def test_a_run_beyond_the_last_symbol_is_invalid() -> None:
    with pytest.raises(InvalidError, match="beyond"):
        unpack_sparse(np.array([10], dtype=np.uint8), np.empty(0, dtype=np.uint8), 10, 2)
    with pytest.raises(InvalidError, match="beyond"):
        unpack_sparse(np.array([255], dtype=np.uint8), np.empty(0, dtype=np.uint8), 254, 2)
