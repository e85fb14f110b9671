"""Section 7.3: ulp.v1 restores every bit pattern, and refuses every payload that it does not define."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddct_format.codec.floats import float32_from_bytes, float32_to_bytes
from ddct_format.codec.ulp import UlpParams, apply_ulp, predict, residual_symbols, write_extra_bits
from ddct_format.container.payload import store_payload
from ddct_format.errors import InvalidError

from .layers import base_bytes
from .ulp_pairs import encoded, pairs

WIDTH = {"BF16": 2, "F16": 2, "F32": 4}
DTYPES = sorted(WIDTH)
Bytes = npt.NDArray[np.uint8]


def round_trip(before: Bytes, before_dtype: str, target: Bytes, dtype: str, cols: int) -> tuple[UlpParams, int]:
    """Encode, decode and compare; the parameters and the payload's size."""
    params, sections = encoded(before, before_dtype, target, dtype, cols)
    payload = np.concatenate(sections)
    assert UlpParams.parse(params.as_json(), target.size // WIDTH[dtype], dtype) == params
    smallest, largest = params.size_bounds()
    assert smallest <= payload.size <= largest
    assert np.array_equal(apply_ulp(params, payload, before, before_dtype), target)
    return params, payload.size


@settings(deadline=None)
@given(pairs())
def test_every_target_is_restored_bit_for_bit(pair: tuple[Bytes, str, Bytes, str, int]) -> None:
    round_trip(*pair)


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_every_pattern_is_reached_from_every_special_one(dtype: str) -> None:
    """All 65536 targets, from zeros, the smallest and largest numbers, Inf, NaN with payloads and both signs."""
    everything = np.arange(2**16, dtype="<u2")
    infinity = {"BF16": 0x7F80, "F16": 0x7C00}[dtype]
    for start in (0, 1, infinity - 1, infinity, infinity + 1, 0x7FFF):
        for sign in (0, 0x8000):
            before = np.full(2**16, start | sign, dtype="<u2").view(np.uint8)
            round_trip(before, dtype, everything.view(np.uint8), dtype, 256)
            round_trip(everything.view(np.uint8), dtype, before, dtype, 256)


def test_the_extremes_of_binary32_are_restored() -> None:
    special = np.array([0, 1, 0x7F7FFFFF, 0x7F800000, 0x7F800001, 0x7FFFFFFF, 0x3F800000], dtype="<u4")
    special = np.concatenate([special, special | 0x80000000])
    before, target = (grid.reshape(-1).view(np.uint8) for grid in np.meshgrid(special, special, indexing="ij"))
    round_trip(np.ascontiguousarray(before), "F32", np.ascontiguousarray(target), "F32", 14)


def test_the_steps_of_the_text_by_hand() -> None:
    """One BF16 element, 1.0 = 3F80, to 3FE4: v = 100, so k = 6 − 3 = 3 and f = ⌊100 / 8⌋ + 3·8 = 36."""
    params = UlpParams("BF16", 1, 1)
    before = np.array([0x3F80], dtype="<u2").view(np.uint8)
    symbols, lengths, values = residual_symbols(
        predict(before, "BF16", "BF16"), np.array([0x3FE4], dtype="<u2").view(np.uint8), params
    )
    # 100 = 1100100 in binary: 1.100 and three more bits, 100.
    assert (symbols.tolist(), lengths.tolist(), values.tolist()) == ([2 * (12 + 3 * 8)], [3], [0b100])
    payload = np.array([72, 0b100], dtype=np.uint8)
    assert apply_ulp(params, payload, before, "BF16").view("<u2").tolist() == [0x3FE4]
    # From −1.0 the same symbol leads away from zero too.
    before = np.array([0xBF80], dtype="<u2").view(np.uint8)
    assert apply_ulp(params, payload, before, "BF16").view("<u2").tolist() == [0xBFE4]
    # One step down from +0 is −0, and from −0 it is +0.
    down = np.array([1], dtype=np.uint8)
    assert apply_ulp(params, down, np.array([0, 0], dtype=np.uint8), "BF16").view("<u2").tolist() == [0x8000]
    assert apply_ulp(params, down, np.array([0, 0x80], dtype=np.uint8), "BF16").view("<u2").tolist() == [0]


@pytest.mark.parametrize(
    ("dtype", "shift", "alphabet"), [("BF16", 0, 223), ("F32", 0, 247), ("F32", 16, 223), ("F16", 8, 95)]
)
def test_the_alphabets_of_the_text(dtype: str, shift: int, alphabet: int) -> None:
    assert UlpParams(dtype, 1, 1, shift=shift).alphabet == alphabet


def test_another_base_type_is_rounded_to_the_targets_first() -> None:
    before = base_bytes(500, "F32", 3, finite=False)
    rounded = float32_to_bytes(float32_from_bytes(before, "F32"), "BF16")
    params, sections = encoded(before, "F32", rounded, "BF16", 10)
    assert sum(section.size for section in sections) < 40
    assert np.array_equal(apply_ulp(params, np.concatenate(sections), before, "F32"), rounded)


def test_a_bfloat16_model_stored_as_float32_costs_no_more() -> None:
    narrow, tuned = (base_bytes(4096, "BF16", seed, finite=True) for seed in (0, 1))
    wide, wide_tuned = (float32_from_bytes(data, "BF16").view(np.uint8) for data in (narrow, tuned))
    params, size = round_trip(wide, "F32", wide_tuned, "F32", 64)
    assert params.shift == 16
    assert size == round_trip(narrow, "BF16", tuned, "BF16", 64)[1]


def test_a_sparse_step_costs_little() -> None:
    """Two weights in a hundred changed by one unit: 0.161 bits a weight by entropy."""
    random = np.random.default_rng(0)
    before = base_bytes(1 << 18, "BF16", 0, finite=True)
    changed = random.random(1 << 18) < 0.02
    target = (before.view("<u2") + np.where(changed, random.choice([1, 65535], 1 << 18), 0).astype("<u2")).view(
        np.uint8
    )
    params, sections = encoded(before, "BF16", target, "BF16", 512)
    assert params.sparse
    assert 8 * store_payload(sections, 65536).stored_size / (1 << 18) < 0.18
    assert np.array_equal(apply_ulp(params, np.concatenate(sections), before, "BF16"), target)


VALID: dict[str, Any] = {"cols": 4, "bounds": [1000, 1010], "shift": 1, "sparse": [0, 2], "row_keys": True}


@pytest.mark.parametrize(
    "change",
    [
        {"cols": 0},
        {"cols": 3},
        {"cols": True},
        {"cols": "4"},
        {"bounds": [2, 1]},
        {"bounds": [1, 1]},
        {"bounds": [0]},
        {"bounds": [1527]},
        {"bounds": list(range(1, 256))},
        {"bounds": [1.0]},
        {"bounds": 5},
        {"shift": -1},
        {"shift": 9},
        {"shift": False},
        {"sparse": []},
        {"sparse": [3]},
        {"sparse": [1, 0]},
        {"row_keys": False},
        {"col_keys": 1},
        {"more": 1},
    ],
)
def test_parameters_that_break_the_text_are_invalid(change: dict[str, Any]) -> None:
    UlpParams.parse(VALID, 8, "BF16")
    with pytest.raises(InvalidError):
        UlpParams.parse({**VALID, **change}, 8, "BF16")


def test_other_element_types_and_empty_tensors_are_invalid() -> None:
    with pytest.raises(InvalidError):
        UlpParams.parse(VALID, 8, "I32")
    with pytest.raises(InvalidError):
        UlpParams.parse({"cols": 1, "bounds": []}, 0, "BF16")
    with pytest.raises(InvalidError):
        UlpParams.parse({"cols": 1}, 1, "BF16")


def test_payloads_that_break_the_text_are_invalid() -> None:
    dense = UlpParams("BF16", 1, 2)
    before = np.array([0x3F80, 0x7F7F], dtype="<u2").view(np.uint8)
    for symbols in ([0], [0, 0, 0], [223, 0], [72, 0], [72, 0, 0b1000], [72, 0, 4, 0], [0, 222, 255, 15]):
        with pytest.raises(InvalidError):
            apply_ulp(dense, np.array(symbols, dtype=np.uint8), before, "BF16")
    assert apply_ulp(dense, np.array([0, 0], dtype=np.uint8), before, "BF16").tolist() == before.tolist()
    runs = UlpParams("BF16", 1, 2, sparse=(0,))
    for payload in ([1, 0, 0, 0, 2, 0], [1, 0, 0, 0, 0], [0, 0, 0], [2, 0, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 254]):
        with pytest.raises(InvalidError):
            apply_ulp(runs, np.array(payload, dtype=np.uint8), before, "BF16")


@settings(deadline=None)
@given(pairs(), st.data())
def test_a_damaged_payload_gives_a_tensor_or_invalid_and_nothing_else(
    pair: tuple[Bytes, str, Bytes, str, int], data: st.DataObject
) -> None:
    before, before_dtype, target, dtype, cols = pair
    params, sections = encoded(before, before_dtype, target, dtype, cols)
    payload = np.concatenate(sections)
    for _ in range(data.draw(st.integers(1, 4))):
        payload[data.draw(st.integers(0, payload.size - 1))] = data.draw(st.integers(0, 255))
    payload = payload[: data.draw(st.integers(0, payload.size))]
    with suppress(InvalidError):
        assert apply_ulp(params, payload, before, before_dtype).size == target.size


@given(st.lists(st.integers(0, 29)), st.integers(0, 2**32 - 1))
def test_extra_bits_are_written_lowest_first(lengths: list[int], seed: int) -> None:
    values = [int(value) for value in np.random.default_rng(seed).integers(0, 2**29, len(lengths))]
    values = [value % (1 << length) for value, length in zip(values, lengths, strict=True)]
    number, position = 0, 0
    for value, length in zip(values, lengths, strict=True):
        number |= value << position
        position += length
    written = write_extra_bits(np.array(values, dtype=np.uint32), np.array(lengths, dtype=np.uint8))
    assert written.tobytes() == number.to_bytes(-(-position // 8), "little")
