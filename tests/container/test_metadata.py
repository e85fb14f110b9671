"""Spec section 5, and section 9, step 6: each rule with what breaks it."""

from __future__ import annotations

import copy
import gc
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddct_format.container.metadata import parse_metadata, serialise_metadata
from ddct_format.container.records import FileRecord, Layer, Metadata, TensorRecord
from ddct_format.errors import ArchiveError, InvalidError, UnsupportedError

from . import forge
from .strategies import metadata

A = "a" * 64


def added(name: str = "t", **changes: Any) -> dict[str, Any]:
    members = forge.replaced(name, b"payload", op="add", base=A)
    return {**members, "dtype": "BF16", "shape": [2, 2]} | changes


def parse(document: Any) -> Metadata:
    return parse_metadata(json.dumps(document).encode())


def refusal(document: Any) -> ArchiveError:
    with pytest.raises(ArchiveError) as caught:
        parse(document)
    return caught.value


def refused_tensor(**changes: Any) -> ArchiveError:
    return refusal(forge.document(added(**changes)))


def without(members: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in members.items() if name not in names}


@settings(deadline=None)
@given(metadata())
def test_what_is_written_is_read_back(written: Metadata) -> None:
    raw = serialise_metadata(written)
    assert parse_metadata(raw) == written
    assert serialise_metadata(parse_metadata(raw)) == raw


@settings(deadline=None)
@given(metadata(), st.data())
def test_metadata_with_a_value_replaced_are_read_or_refused_but_never_crash(
    written: Metadata, data: st.DataObject
) -> None:
    document = json.loads(serialise_metadata(written))
    parent, key = data.draw(st.sampled_from(list(slots(document))))
    parent[key] = data.draw(
        st.sampled_from([None, True, 0, 1, 2**53 - 1, 0.5, "", "add", "x-", [], {}, [[]], {"x-a": 1}])
    )
    try:
        assert isinstance(parse(document), Metadata)
    except ArchiveError as error:
        assert type(error) in (InvalidError, UnsupportedError)


def slots(value: Any) -> Any:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in items:
        yield value, key
        yield from slots(child)


def test_a_document_written_by_hand_is_read() -> None:
    payload = b"0123456789"
    document = forge.document(
        added("a", base_dtype="F32", error=0.25),
        {"name": "b", "dtype": "BF16", "shape": [2, 2], "shard": 0, "op": "alias", "of": "a"},
        {"name": "c", "dtype": "F64", "shape": [], "shard": 0, "op": "keep", "base": A},
        forge.replaced("d", payload, payload),
        files=[forge.file("config.json", b"{}")],
        quality={"preset": "paper", "error": 1},
        base={"id": A, "hint": {"repo": "org/model"}},
    )
    parsed = parse(document)
    assert parsed.tensors[0] == TensorRecord(
        "a",
        "BF16",
        (2, 2),
        0,
        "add",
        base=A,
        base_dtype="F32",
        layers=(Layer("raw.v1", {"planes": 1}, 7, forge.digest_of(b"payload")),),
        error=0.25,
    )
    assert [tensor.op for tensor in parsed.tensors] == ["add", "alias", "keep", "replace"]
    assert [tensor.nbytes for tensor in parsed.tensors] == [8, 8, 8, 10]
    assert parsed.files == (FileRecord("config.json", 2, forge.digest_of(b"{}")),)
    assert parsed.base_hint == {"repo": "org/model"}
    assert parsed.quality is not None
    assert parsed.quality.error == 1.0
    assert len(parsed.target_ids) == 2
    assert parsed.lossless


def test_an_archive_is_lossless_only_if_the_last_id_is_the_exact_one() -> None:
    document = forge.document(forge.replaced("t", b"a", b"b"))
    ids = document["target"]["ids"]
    assert parse(document).lossless
    assert not parse({**document, "target": {"ids": ids, "exact_id": ids[0]}}).lossless


def test_serialised_metadata_are_compact_and_in_a_fixed_order() -> None:
    document = forge.document(forge.replaced("é", b"abc"), files=[forge.file("a", b"")])
    raw = serialise_metadata(parse(document))
    assert raw == json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()


def test_a_text_that_is_not_unicode_cannot_be_written() -> None:
    record = TensorRecord("\ud800", "U8", (), 0, "keep", base=A)
    with pytest.raises(InvalidError, match="cannot be written"):
        serialise_metadata(Metadata("g", 4096, A, {}, (A,), A, (), (), (record,)))


def test_the_collector_runs_on_after_a_refusal() -> None:
    assert gc.isenabled()
    refusal(forge.document(digest="md5"))
    assert gc.isenabled()


@pytest.mark.parametrize("document", [[], 1, "text", None, {}])
def test_the_top_level_is_an_object_with_all_its_names(document: Any) -> None:
    assert type(refusal(document)) is InvalidError


@pytest.mark.parametrize("name", ["generator", "digest", "chunk_size", "base", "target", "shards", "files", "tensors"])
def test_each_top_level_name_is_required(name: str) -> None:
    assert repr(name) in refusal(without(forge.document(added()), name)).reason


def objects_of(document: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    tensor = document["tensors"][0]
    return [
        ("top", document),
        ("base", document["base"]),
        ("hint", document["base"]["hint"]),
        ("target", document["target"]),
        ("shard", document["shards"][0]),
        ("file", document["files"][0]),
        ("quality", document["quality"]),
        ("tensor", tensor),
        ("layer", tensor["layers"][0]),
    ]


def full_document() -> dict[str, Any]:
    return forge.document(
        added(error=0.5),
        files=[forge.file("config.json", b"{}")],
        base={"id": A, "hint": {"repo": "org/model"}},
        quality={"preset": "paper", "error": 0.5},
    )


@pytest.mark.parametrize("index", range(9))
def test_an_unknown_name_is_invalid_in_every_object_unless_it_begins_with_x(index: int) -> None:
    document = full_document()
    what, members = objects_of(document)[index]
    members["x-note"] = {"any": [True, None, 7, "text"]}
    assert parse(document) == parse(full_document())
    members["note"] = 1
    assert "'note'" in refusal(document).reason, what


@pytest.mark.parametrize("index", range(9))
def test_every_object_must_be_one(index: int) -> None:
    document = full_document()
    name = ["", "base", "hint", "target", "shards", "files", "quality", "tensors", "layers"][index]
    parent = objects_of(document)[{2: 1, 8: 7}.get(index, 0)][1]
    if index:
        parent[name] = [[]] if isinstance(parent[name], list) else []
        assert type(refusal(document)) is InvalidError


def test_texts_of_a_shard_may_have_any_names_but_must_be_texts() -> None:
    def document(texts: Any) -> dict[str, Any]:
        return forge.document(added(), shards=[{"path": "m.safetensors", "metadata": texts}])

    assert parse(document({"": "a", "x-b": "c"})).shards[0].metadata == {"": "a", "x-b": "c"}
    wrong: list[Any] = [{"x-b": 1}, {"a": None}, [], "a", None]
    for texts in wrong:
        assert type(refusal(document(texts))) is InvalidError


@pytest.mark.parametrize("value", ["", 1, None])
def test_another_digest_is_unsupported_if_it_is_a_text(value: Any) -> None:
    expected = UnsupportedError if isinstance(value, str) else InvalidError
    assert type(refusal(forge.document(digest=value))) is expected


@pytest.mark.parametrize("size", [4096, 8192, 16 << 20])
def test_a_chunk_size_is_a_power_of_two(size: int) -> None:
    assert parse(forge.document(chunk_size=size)).chunk_size == size


@pytest.mark.parametrize("size", [0, 1, 2048, 4095, 4097, 12288, 32 << 20, 4096.0, True, "4096", None])
def test_any_other_chunk_size_is_invalid(size: Any) -> None:
    assert type(refusal(forge.document(chunk_size=size))) is InvalidError


def test_a_generator_has_256_bytes_at_most() -> None:
    assert parse(forge.document(generator="é" * 128)).generator == "é" * 128
    assert type(refusal(forge.document(generator="é" * 128 + "x"))) is InvalidError
    assert type(refusal(forge.document(generator=1))) is InvalidError


def test_a_hint_has_texts_of_1024_bytes_at_most() -> None:
    assert parse(forge.document(base={"id": A, "hint": {}})).base_hint == {}
    assert type(refusal(forge.document(base={"id": A, "hint": {"name": "x" * 1025}}))) is InvalidError
    assert type(refusal(forge.document(base={"id": A, "hint": {"name": 1}}))) is InvalidError


@pytest.mark.parametrize("digest", ["", "a" * 63, "a" * 65, "A" * 64, "g" * 64, "a" * 63 + "\n", 0, None])
def test_a_digest_is_64_lower_case_hexadecimal_digits(digest: Any) -> None:
    assert type(refusal(forge.document(base={"id": digest}))) is InvalidError
    assert type(refusal(forge.document(target={"ids": [digest], "exact_id": A}))) is InvalidError
    assert type(refused_tensor(base=digest)) is InvalidError


@pytest.mark.parametrize("ids", [[], [A] * 5, A, None])
def test_target_ids_are_1_to_4(ids: Any) -> None:
    assert type(refusal(forge.document(target={"ids": ids, "exact_id": A}))) is InvalidError


@pytest.mark.parametrize("name", ["a", "x" * 1024, "é" * 512, " ", "\u00a0", "\u200b", "\U0001f600", "..", "a/b"])
def test_a_tensor_name_may_have_any_printable_text(name: str) -> None:
    assert parse(forge.document(added(name))).tensors[0].name == name


@pytest.mark.parametrize(
    "name", ["", "x" * 1025, "é" * 513, "a\tb", "\x00", "\x1f", "\x7f", "\x80", "\x9f", 7, None, []]
)
def test_any_other_tensor_name_is_invalid(name: Any) -> None:
    assert type(refused_tensor(name=name)) is InvalidError


@pytest.mark.parametrize("dtype", ["F4", "bf16", ""])
def test_an_unknown_element_type_is_unsupported(dtype: str) -> None:
    assert type(refused_tensor(dtype=dtype)) is UnsupportedError
    assert type(refused_tensor(base_dtype=dtype)) is UnsupportedError


def test_an_unknown_operation_is_unsupported() -> None:
    error = refused_tensor(op="drop")
    assert type(error) is UnsupportedError
    assert error.tensor == "t"
    assert type(refused_tensor(op=1)) is InvalidError
    assert type(refused_tensor(dtype=1)) is InvalidError


@pytest.mark.parametrize("shape", [[], [0], [1] * 8, [1 << 48], [1 << 24, 1 << 24], [0, 1 << 48]])
def test_a_shape_has_8_dimensions_and_2_to_the_48_elements_at_most(shape: list[int]) -> None:
    assert parse(forge.document(added(shape=shape))).tensors[0].shape == tuple(shape)


@pytest.mark.parametrize(
    "shape",
    [
        [1] * 9,
        [(1 << 48) + 1],
        [1 << 25, 1 << 24],
        [1 << 53 - 1] * 8,
        [0, 1 << 49],
        [0, 1 << 25, 1 << 25],
        [-1],
        [1.0],
        [True],
        ["1"],
        [None],
        4,
        None,
        {},
    ],
)
def test_any_other_shape_is_invalid(shape: Any) -> None:
    assert type(refused_tensor(shape=shape)) is InvalidError


REQUIRED = {"add": {"base", "layers"}, "replace": {"layers"}, "keep": {"base"}, "alias": {"of"}}
OPTIONAL = {"add": {"base_dtype"}, "replace": set(), "keep": set(), "alias": set()}
ALL = {"base": A, "base_dtype": "F32", "of": "0", "layers": [forge.layer(b"payload")]}


@pytest.mark.parametrize("op", sorted(REQUIRED))
def test_each_operation_has_its_own_members(op: str) -> None:
    other = {"name": "0", "dtype": "BF16", "shape": [2, 2], "shard": 0, "op": "keep", "base": A}
    plain = {"name": "t", "dtype": "BF16", "shape": [2, 2], "shard": 0, "op": op}
    valid = plain | {name: ALL[name] for name in REQUIRED[op]}
    assert parse(forge.document(other, valid)).tensors[1].op == op
    for name in REQUIRED[op]:
        assert repr(name) in refusal(forge.document(other, without(valid, name))).reason
    for name in OPTIONAL[op]:
        assert parse(forge.document(other, valid | {name: ALL[name]}))
    for name in ALL.keys() - REQUIRED[op] - OPTIONAL[op]:
        assert repr(name) in refusal(forge.document(other, valid | {name: ALL[name]})).reason


def test_a_base_type_that_does_not_differ_is_invalid() -> None:
    assert type(refused_tensor(base_dtype="BF16")) is InvalidError


@pytest.mark.parametrize("count", [0, 5])
def test_a_tensor_has_1_to_4_layers(count: int) -> None:
    assert type(refused_tensor(layers=[forge.layer(b"")] * count)) is InvalidError
    assert len(parse(forge.document(added(layers=[forge.layer(b"")] * 4))).target_ids) == 4


@pytest.mark.parametrize(
    "change",
    [
        {"size": -1},
        {"size": 1.5},
        {"size": True},
        {"size": (1 << 48) + 1},
        {"codec": 1},
        {"params": []},
        {"params": {"scale": 1.5}},
        {"params": {"a": [{"b": 1e3}]}},
        {"digest": "?"},
        {"must_understand": 1},
        {"must_understand": None},
    ],
)
def test_a_layer_that_breaks_a_rule_is_invalid(change: dict[str, Any]) -> None:
    assert type(refused_tensor(layers=[forge.layer(b"") | change])) is InvalidError


@pytest.mark.parametrize("name", ["codec", "params", "size", "digest"])
def test_each_name_of_a_layer_is_required(name: str) -> None:
    assert repr(name) in refused_tensor(layers=[without(forge.layer(b""), name)]).reason


def test_a_layer_may_be_optional() -> None:
    layers = [forge.layer(b""), forge.layer(b"", must_understand=False)]
    parsed = parse(forge.document(added(layers=layers)))
    assert [layer.must_understand for layer in parsed.tensors[0].layers] == [True, False]


@pytest.mark.parametrize("raw", [b"0", b"1", b"0.5", b"1e-9", b"2E+3"])
def test_a_measured_error_is_a_number_that_is_not_negative(raw: bytes) -> None:
    text = json.dumps(forge.document(added(error=77))).encode()
    assert parse_metadata(text.replace(b"77", raw)).tensors[0].error == float(raw)


@pytest.mark.parametrize("raw", [b"-1", b"-0.5", b"NaN", b"1e999", b'"1"', b"true", b"null", b"[1]"])
def test_any_other_measured_error_is_invalid(raw: bytes) -> None:
    text = json.dumps(forge.document(added(error=77))).encode()
    with pytest.raises(InvalidError):
        parse_metadata(text.replace(b"77", raw))
    text = json.dumps(forge.document(quality={"preset": "", "error": 77})).encode()
    with pytest.raises(InvalidError):
        parse_metadata(text.replace(b"77", raw))


@pytest.mark.parametrize("value", [1.5, 1e0, [1.5], {"a": [{"b": 0.5}]}])
def test_a_fraction_is_invalid_in_any_other_place(value: Any) -> None:
    extended = forge.document(added()) | {"x-note": value}
    assert "fraction" in refusal(extended).reason
    assert type(refused_tensor(**{"x-note": value})) is InvalidError


@pytest.mark.parametrize("path", ["a", "a/b", ".hidden", "a b", "...a", "é" * 127, "/".join(["x" * 255] * 4)])
def test_a_path_has_plain_components(path: str) -> None:
    assert parse(forge.document(files=[forge.file(path, b"")])).files[0].path == path


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/etc/passwd",
        "../up",
        "a/../b",
        "a/..",
        ".",
        "./a",
        "a//b",
        "a/",
        "/",
        "a\\b",
        "C:evil",
        "a:stream",
        "a.",
        "a./b",
        "a ",
        "a /b",
        "...",
        "nul\x00",
        "a\nb",
        "a\x7f",
        "a\x85b",
        "x" * 256,
        "é" * 128,
        "/".join(["x" * 205] * 5),
        7,
        None,
    ],
)
def test_any_other_path_is_invalid(path: Any) -> None:
    assert type(refusal(forge.document(files=[forge.file(path, b"")]))) is InvalidError
    shard = f"{path}/m.safetensors" if isinstance(path, str) else path
    assert path in ("",) or type(refusal(forge.document(shards=[{"path": shard, "metadata": {}}]))) is InvalidError


@pytest.mark.parametrize("path", ["model.bin", "safetensors", "m.SAFETENSORS", "m.safetensors/x"])
def test_a_shard_ends_in_safetensors(path: str) -> None:
    assert type(refusal(forge.document(shards=[{"path": path, "metadata": {}}]))) is InvalidError


@pytest.mark.parametrize("change", [{"size": -1}, {"size": (1 << 48) + 1}, {"size": "1"}, {"digest": "a"}])
def test_a_file_that_breaks_a_rule_is_invalid(change: dict[str, Any]) -> None:
    assert type(refusal(forge.document(files=[forge.file("a", b"") | change]))) is InvalidError


def test_there_are_4096_files_at_most() -> None:
    files = [forge.file(f"{index:05}", b"") for index in range(4097)]
    assert len(parse(forge.document(files=files[:4096])).files) == 4096
    assert type(refusal(forge.document(files=files))) is InvalidError


def test_there_are_65536_shards_at_most() -> None:
    shards = [{"path": f"{index}.safetensors", "metadata": {}} for index in range(65537)]
    assert len(parse(forge.document(shards=shards[:65536])).shards) == 65536
    assert type(refusal(forge.document(shards=shards))) is InvalidError


def test_there_are_2_to_the_20_tensors_at_most() -> None:
    document = json.dumps(forge.document()).encode()
    many = b"[" + b"0," * (1 << 20) + b"0]"
    with pytest.raises(InvalidError, match="1048577 elements"):
        parse_metadata(document.replace(b'"tensors": []', b'"tensors": ' + many))


def test_the_first_breach_in_file_order_decides() -> None:
    unsupported, invalid = added("a", op="drop"), added("b", shape=[-1])
    assert type(refusal(forge.document(unsupported, invalid))) is UnsupportedError
    assert type(refusal(forge.document(invalid, unsupported))) is InvalidError
    assert type(refusal({"digest": "md5", "generator": 1})) is UnsupportedError
    assert type(refusal({"generator": 1, "digest": "md5"})) is InvalidError


def test_syntax_comes_before_everything_else() -> None:
    raw = json.dumps(forge.document(digest="md5")).encode()
    with pytest.raises(UnsupportedError):
        parse_metadata(raw)
    with pytest.raises(InvalidError):
        parse_metadata(raw[:-1] + b',"x-a":1,"x-a":2}')


@pytest.mark.parametrize("change", [lambda document: document["tensors"][0].update(op="drop")])
def test_a_refusal_names_the_tensor_and_the_place(change: Callable[[dict[str, Any]], None]) -> None:
    document = copy.deepcopy(full_document())
    change(document)
    error = refusal(document)
    assert error.tensor == "t"
    assert error.reason == "'tensors': element 0: 'op': 'drop' is not known"
