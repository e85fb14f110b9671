"""Pointers are read from hubs that others write to: strict, bounded, and round trips are exact."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddct_format.errors import HubError
from ddct_format.hub.pointer import MAX_POINTER_BYTES, Pointer, parse_pointer, serialise_pointer
from ddct_format.limits import MAX_INTEGER

GOOD = {
    "version": 1,
    "sha256": "1" * 64,
    "size": 10,
    "content_id": "2" * 64,
    "base_id": "3" * 64,
    "target_id": "4" * 64,
}

digests = st.text("0123456789abcdef", min_size=64, max_size=64)


def test_the_literal_form_of_a_pointer() -> None:
    pointer = Pointer("1" * 64, 10, "2" * 64, "3" * 64, "4" * 64)
    assert parse_pointer(json.dumps(GOOD).encode()) == pointer
    assert json.loads(serialise_pointer(pointer)) == GOOD


@settings(deadline=None)
@given(st.builds(Pointer, digests, st.integers(1, MAX_INTEGER), digests, digests, digests))
def test_a_pointer_survives_writing_and_reading(pointer: Pointer) -> None:
    assert parse_pointer(serialise_pointer(pointer)) == pointer


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_refused_and_nothing_else(raw: bytes) -> None:
    with pytest.raises(HubError):
        parse_pointer(raw)


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"version": None},
        {"sha256": "1" * 63},
        {"sha256": "../" + "1" * 61},
        {"sha256": 5},
        {"size": 0},
        {"size": -1},
        {"size": 1.0},
        {"size": True},
        {"size": "10"},
        {"size": MAX_INTEGER + 1},
        {"content_id": "G" * 64},
        {"base_id": None},
        {"target_id": ["4" * 64]},
        {"surprise": 1},
    ],
    ids=str,
)
def test_a_field_out_of_form_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(HubError):
        parse_pointer(json.dumps(GOOD | change).encode())


@pytest.mark.parametrize("field", GOOD)
def test_a_missing_field_is_refused(field: str) -> None:
    with pytest.raises(HubError):
        parse_pointer(json.dumps({key: value for key, value in GOOD.items() if key != field}).encode())


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[]",
        b"null",
        b"1",
        b"[" * 60_000,
        b'{"a":' * 10_000,
        json.dumps(GOOD).encode()[:-1],
        json.dumps(GOOD).encode() + b"x",
        json.dumps(GOOD).encode()[:-1] + b', "size": 11}',
        json.dumps(GOOD).encode().replace(b"10", b"NaN"),
        json.dumps(GOOD).encode().replace(b"10", b"1" * 5000),
        json.dumps(GOOD).encode("utf-16"),
        json.dumps(GOOD).encode() + b" " * MAX_POINTER_BYTES,
    ],
    ids=lambda raw: repr(raw[:12]),
)
def test_hostile_json_is_refused(raw: bytes) -> None:
    with pytest.raises(HubError):
        parse_pointer(raw)
