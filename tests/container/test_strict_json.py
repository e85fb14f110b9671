"""Spec section 5, first paragraph: JSON as the format allows it."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddct_format.container.strict_json import parse_json
from ddct_format.errors import InvalidError

texts = st.text(st.characters(exclude_categories=["Cs"]))
values = st.recursive(
    st.none() | st.booleans() | st.integers(0, 2**53 - 1) | texts,
    lambda children: st.lists(children, max_size=4) | st.dictionaries(texts, children, max_size=4),
    max_leaves=20,
)


def refuse(raw: bytes) -> str:
    with pytest.raises(InvalidError) as caught:
        parse_json(raw)
    assert type(caught.value) is InvalidError
    return caught.value.reason


@settings(deadline=None)
@given(value=values, ascii_only=st.booleans(), indent=st.none() | st.integers(0, 3))
def test_valid_json_is_read_as_the_library_reads_it(value: Any, ascii_only: bool, indent: int | None) -> None:
    raw = json.dumps(value, ensure_ascii=ascii_only, indent=indent).encode()
    assert parse_json(raw) == value


@settings(deadline=None)
@given(raw=st.binary(max_size=60) | st.text('{}[]",:0123e-.\\ud8xNaIfty ', max_size=60).map(str.encode))
def test_any_bytes_are_read_or_refused_but_never_crash(raw: bytes) -> None:
    try:
        value = parse_json(raw)
    except InvalidError:
        return
    assert json.dumps(value, ensure_ascii=False, allow_nan=False).encode()


@pytest.mark.parametrize(
    "raw",
    [
        b'{"a":1,"a":1}',
        b'{"b":{"a":1,"c":2,"a":3}}',
        b'[[[{"a":1,"\\u0061":2}]]]',
        b'{"x-free":{"a":1,"a":1}}',
    ],
)
def test_a_duplicate_name_at_any_depth_is_invalid(raw: bytes) -> None:
    assert "twice" in refuse(raw)


def test_many_names_with_one_duplicate_are_refused_in_linear_time() -> None:
    names = [f'"{index}":0' for index in range(200_000)]
    started = time.monotonic()
    assert "'199999'" in refuse(f"{{{','.join(names)},{names[-1]}}}".encode())
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("raw", [b"NaN", b"[Infinity]", b'{"a":-Infinity}', b"1e999", b"[-1e999]"])
def test_numbers_that_are_not_finite_do_not_exist(raw: bytes) -> None:
    refuse(raw)


@pytest.mark.parametrize(
    "raw", [b"9007199254740992", b"-9007199254740992", b"123456789012345678901234567890", b"9" * 100_000]
)
def test_integers_stay_within_2_to_the_53(raw: bytes) -> None:
    refuse(raw)
    refuse(b'{"a":[%s]}' % raw)


def test_the_largest_integer_is_read() -> None:
    assert parse_json(b"[9007199254740991,-9007199254740991,-0]") == [2**53 - 1, 1 - 2**53, 0]


@pytest.mark.parametrize("raw", [b"01", b"+1", b"1.", b".5", b"0x10", b"1_000", "\u0661".encode()])
def test_number_syntax_is_that_of_json(raw: bytes) -> None:
    refuse(raw)


def nested(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


def test_nesting_is_16_deep_at_most() -> None:
    assert parse_json(nested(16)) is not None
    assert "16 deep" in refuse(nested(17))
    objects = b'{"a":' * 16 + b"0" + b"}" * 16
    assert parse_json(objects) is not None
    assert "16 deep" in refuse(b'{"a":' + objects + b"}")


@pytest.mark.parametrize("depth", [100, 900, 5_000, 1_000_000])
def test_a_depth_bomb_is_invalid_and_crashes_nothing(depth: int) -> None:
    refuse(nested(depth))
    refuse(b"[" * depth)
    refuse(b'{"a":' * depth + b"0" + b"}" * depth)


def test_brackets_in_texts_are_no_nesting() -> None:
    assert parse_json(b'["' + b"[" * 99 + b'"]') == ["[" * 99]


@pytest.mark.parametrize(
    "raw",
    [
        b'"\xff"',
        b'"\xc0\x80"',
        b'"\xed\xa0\x80"',
        b'"\xf4\x90\x80\x80"',
        b'"\xe2\x82',
        '"text"'.encode("utf-16"),
        b"\xef\xbb\xbf{}",
    ],
)
def test_anything_but_utf8_without_a_byte_order_mark_is_invalid(raw: bytes) -> None:
    refuse(raw)


@pytest.mark.parametrize(
    "raw", [b'"\\ud800"', b'["\\uDFFF"]', b'{"\\udead":1}', b'{"a":{"b":["\\ud83d\\ud83d\\ude00"]}}']
)
def test_a_lone_surrogate_is_invalid(raw: bytes) -> None:
    assert "surrogate" in refuse(raw)


def test_a_pair_of_surrogates_is_one_character() -> None:
    assert parse_json(b'"\\ud83d\\ude00 \\\\ud800"') == "\U0001f600 \\ud800"


@pytest.mark.parametrize(
    "raw", [b"", b" ", b"{", b"{}{}", b"{}\0", b"[1,]", b'{"a":1,}', b"{'a':1}", b'"\n"', b"// x\n{}", b"nul"]
)
def test_other_syntax_is_invalid(raw: bytes) -> None:
    refuse(raw)
