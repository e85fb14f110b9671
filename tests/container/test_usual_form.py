"""The one-pass parser of metadata accepts nothing that the rules refuse, and finds what they find."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddct_format.container.metadata import serialise_metadata
from ddct_format.container.records import Metadata
from ddct_format.container.schema import check_metadata_object
from ddct_format.container.strict_json import parse_json
from ddct_format.container.usual_form import parse_usual_form
from ddct_format.errors import ArchiveError

from .strategies import metadata

A, B = "a" * 64, "b" * 64
LAYER = {"codec": "dctq.v1", "params": {"classes": [[0], [0, 18]], "sparse": [1]}, "size": 9, "digest": A}
HEAD = {"dtype": "BF16", "shape": [2, 3], "shard": 0}
DOCUMENT: dict[str, Any] = {
    "generator": "test",
    "digest": "sha256-64k",
    "chunk_size": 65536,
    "base": {"id": A, "hint": {"name": "base"}},
    "target": {"ids": [A], "exact_id": A},
    "shards": [{"path": "model.safetensors", "metadata": {"format": "pt"}}],
    "files": [{"path": "config.json", "size": 2, "digest": A}],
    "tensors": [
        {"name": "added", **HEAD, "op": "add", "base": B, "layers": [LAYER], "error": 0.25},
        {"name": "cast", **HEAD, "op": "add", "base": B, "base_dtype": "F32", "layers": [LAYER, LAYER], "error": 0},
        {"name": "kept", **HEAD, "op": "keep", "base": B},
        {"name": "replaced", **HEAD, "op": "replace", "layers": [LAYER]},
        {"name": "tied", **HEAD, "op": "alias", "of": "replaced"},
    ],
    "quality": {"preset": "balanced", "error": 0.25},
}
VALUES: list[Any] = [
    *(None, True, False, 0, -1, 2**53, 0.5, "", "x", A, [], [[]], {}, [1, [2.5]], {"a": {"b": [1]}}, "\u00e9", "\x07"),
    *("F32", "BF16", "keep", LAYER, [LAYER], [LAYER] * 5, {"x-a": 1.5}, {"name": "n", **HEAD, "op": "keep", "base": A}),
    {"name": "n", **HEAD, "op": "add", "base": A, "layers": [LAYER], "error": 0.5},
]


def compact(document: Any) -> bytes:
    """As ``serialise_metadata`` writes JSON."""
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()


def by_the_rules(raw: bytes) -> Metadata | None:
    try:
        return check_metadata_object(parse_json(raw))
    except ArchiveError:
        return None


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = list(value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ())
    return [path, *(place for key, child in items for place in places(child, (*path, key)))]


PLACES = [place for place in places(DOCUMENT) if place]


def at(document: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        document = document[key]
    return document


@settings(deadline=None)
@given(metadata())
def test_both_read_the_same(written: Metadata) -> None:
    found = parse_usual_form(serialise_metadata(written))
    assert found is None or found == written


def test_what_ddct_writes_is_of_the_usual_form() -> None:
    raw = compact(DOCUMENT)
    found = parse_usual_form(raw)
    assert found is not None
    assert found == by_the_rules(raw)


@pytest.mark.parametrize("place", PLACES, ids=lambda place: ".".join(map(str, place)))
def test_nothing_is_accepted_that_the_rules_refuse(place: tuple[Any, ...]) -> None:
    for value in VALUES:
        document = copy.deepcopy(DOCUMENT)
        at(document, place[:-1])[place[-1]] = value
        check(document)
    document = copy.deepcopy(DOCUMENT)
    del at(document, place[:-1])[place[-1]]
    check(document)
    parent = at(document, place[:-1])
    if isinstance(parent, dict):
        for name in ("x-more", "more", "must_understand"):
            for value in VALUES:
                check_with(DOCUMENT, place[:-1], name, value)


def check_with(document: Any, path: tuple[Any, ...], name: str, value: Any) -> None:
    changed = copy.deepcopy(document)
    at(changed, path)[name] = value
    check(changed)


def check(document: Any) -> None:
    for raw in (compact(document), json.dumps(document).encode()):
        agree(raw)


def agree(raw: bytes) -> None:
    found = parse_usual_form(raw)
    assert found is None or found == by_the_rules(raw)


FRAGMENTS = [bytes([byte]) for byte in b'"{}[],:0123456789aex.-\\u \n\xff'] + [
    *(b'"x":1', b',"x-a":1', b',"error":1e9', b"1e400", b"9007199254740993", b"-0", b"01", b"NaN", b"null", b"[[[]]]"),
    *(
        b'"tensors":[]',
        b',"tensors":[]',
        b"[1,[2]]",
        b'{"a":1}',
        b"\xc3\xa9",
        b"},{",
        b"]",
        b'"}',
        b'\\"',
        b"0.5",
        b"true",
    ),
]


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_damaged_text_is_left_to_the_rules(data: st.DataObject) -> None:
    raw = compact(DOCUMENT)
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(raw)))
        stop = data.draw(st.integers(start, min(len(raw), start + 3)))
        raw = raw[:start] + data.draw(st.sampled_from(FRAGMENTS)) + raw[stop:]
    agree(raw)


TENSOR = compact(DOCUMENT["tensors"][0])


@pytest.mark.parametrize(
    "raw",
    [
        compact({**DOCUMENT, "tensors": []}).replace(b'"tensors":[]', b'"tensors":]'),
        compact({**DOCUMENT, "tensors": []}).replace(b'"tensors":[]', b'"tensors":[' + TENSOR + b",]"),
        compact({**DOCUMENT, "tensors": []}).replace(b'"tensors":[]', b'"tensors":[,' + TENSOR + b"]"),
        compact(DOCUMENT)[:-1],
        compact(DOCUMENT) + b" ",
        compact(DOCUMENT) + b"}",
        b"",
        b"{}",
        b"}",
        compact({"tensors": DOCUMENT["tensors"]}),
        compact(DOCUMENT).replace(b'"error":0.25},{', b'"error":1e400},{'),
        compact(DOCUMENT).replace(b'"shape":[2,3]', b'"shape":[02,3]'),
        compact(DOCUMENT).replace(b'"shape":[2,3]', b'"shape":[2,,3]'),
        compact(DOCUMENT).replace(b'"shape":[2,3]', b'"shape":[16777216,16777217]'),
        compact(DOCUMENT).replace(b'{"classes":[[0],[0,18]],"sparse":[1]}', b'{"classes":[[0],[0,18]],"classes":[1]}'),
        compact(DOCUMENT).replace(b'{"classes":[[0],[0,18]],"sparse":[1]}', b'{"classes":0.5}'),
        compact(DOCUMENT).replace(b'{"classes":[[0],[0,18]],"sparse":[1]}', b'{"classes":"}'),
        compact({"x-a": {"tensors": DOCUMENT["tensors"]}, **DOCUMENT, "tensors": {}}),
    ],
)
def test_what_only_looks_like_the_usual_form(raw: bytes) -> None:
    assert parse_usual_form(raw) is None


def test_tensors_elsewhere_are_not_taken_for_the_tensors() -> None:
    for document in (
        {"x-a": {"tensors": DOCUMENT["tensors"]}, **DOCUMENT},
        {**DOCUMENT, "generator": compact(DOCUMENT).decode()[:200]},
        {**DOCUMENT, "x-a": {"tensors": [1]}},
    ):
        agree(compact(document))


@pytest.mark.parametrize(
    "raw",
    [
        json.dumps(DOCUMENT).encode().replace(b'"size": 9', b'"size": 9, "size": 9'),
        json.dumps(DOCUMENT).encode().replace(b'"generator": "test"', b'"generator": "test", "generator": "test"'),
        json.dumps(DOCUMENT).encode().replace(b'"test"', b'"\\ud800"'),
        json.dumps(DOCUMENT).encode().replace(b'"sparse": [1]', b'"sparse": ' + b"[" * 20 + b"]" * 20),
        b"\xef\xbb\xbf" + json.dumps(DOCUMENT).encode(),
        b"[" * 100_000,
        json.dumps({**DOCUMENT, "x-more": float("inf")}).encode(),
    ],
    ids=["twice in a layer", "twice", "surrogate", "deep", "byte order mark", "very deep", "infinity"],
)
def test_what_json_allows_and_the_format_does_not(raw: bytes) -> None:
    assert parse_usual_form(raw) is None
    assert by_the_rules(raw) is None
