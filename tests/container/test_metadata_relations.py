"""Spec section 9, step 7: objects of the metadata in relation to one another."""

from __future__ import annotations

from typing import Any

import pytest

from ddct_format.container.records import target_ids
from ddct_format.errors import InvalidError, UnsupportedError

from . import forge
from .test_metadata import A, added, parse, refusal, refused_tensor


@pytest.mark.parametrize("names", [("b", "a"), ("a", "a"), ("z", "é", "é"), ("\U00010000", "\uffff")])
def test_tensors_are_in_strictly_ascending_order_of_utf8(names: tuple[str, ...]) -> None:
    assert "ascending" in refusal(forge.document(*[added(name) for name in names])).reason


def test_the_order_of_names_is_that_of_their_bytes() -> None:
    names = ("Z", "a", "é", "\uffff", "\U00010000")
    assert [tensor.name for tensor in parse(forge.document(*map(added, names))).tensors] == list(names)


@pytest.mark.parametrize("paths", [("b", "a"), ("a", "a")])
def test_files_are_in_ascending_order_of_path(paths: tuple[str, str]) -> None:
    assert "ascending" in refusal(forge.document(files=[forge.file(path, b"") for path in paths])).reason


def test_paths_are_distinct_without_regard_to_ascii_case() -> None:
    files = [forge.file("A", b""), forge.file("a", b"")]
    assert "same path" in refusal(forge.document(files=files)).reason
    assert parse(forge.document(files=[forge.file("É", b""), forge.file("é", b"")]))
    files = [forge.file("Model.safetensors", b"")]
    assert "same path" in refusal(forge.document(added(), files=files)).reason
    shards = [{"path": path, "metadata": {}} for path in ("m.safetensors", "m.safetensors")]
    assert "same path" in refusal(forge.document(shards=shards)).reason


def test_a_file_is_not_the_directory_of_another() -> None:
    files = [forge.file(path, b"") for path in ("A", "a b", "a/b")]
    assert "below it" in refusal(forge.document(files=files)).reason
    assert parse(forge.document(files=[forge.file(path, b"") for path in ("a b", "a/b", "a/c")]))


@pytest.mark.parametrize("shard", [1, 65536, 2**53 - 1])
def test_a_shard_index_is_that_of_a_shard(shard: int) -> None:
    assert "shard" in refused_tensor(shard=shard).reason
    assert "not one of 0" in refusal(forge.document(added(), shards=[])).reason


def test_an_alias_names_another_tensor_of_the_same_type_and_shape() -> None:
    def alias(name: str = "t", **changes: Any) -> dict[str, Any]:
        return {"name": name, "dtype": "BF16", "shape": [2, 2], "shard": 0, "op": "alias", "of": "s"} | changes

    assert parse(forge.document(added("s"), alias()))
    assert "not in the archive" in refusal(forge.document(alias())).reason
    assert "alias itself" in refusal(forge.document(alias(of="t"))).reason
    assert "alias itself" in refusal(forge.document(alias("a", of="b"), alias("b", of="a"))).reason
    assert "alias itself" in refusal(forge.document(alias("a", of="b"), alias("b", of="s"), added("s"))).reason
    assert "type or shape" in refusal(forge.document(added("s"), alias(dtype="F16"))).reason
    assert "type or shape" in refusal(forge.document(added("s"), alias(shape=[4]))).reason


def test_target_ids_follow_from_the_tensors() -> None:
    document = forge.document(forge.replaced("t", b"a", b"b"))
    ids = document["target"]["ids"]
    for wrong in ([ids[0]], [*ids, ids[1]], [ids[1], ids[0]], [ids[0], A]):
        error = refusal({**document, "target": {"ids": wrong, "exact_id": A}})
        assert type(error) is InvalidError
        assert "target.ids" in error.reason


def test_a_tensor_with_fewer_layers_keeps_its_last_digest() -> None:
    deep, shallow = forge.replaced("a", b"1", b"2", b"3"), forge.replaced("b", b"4")
    kept = {"name": "c", "dtype": "U8", "shape": [1], "shard": 0, "op": "keep", "base": A}
    alias = {"name": "d", "dtype": "U8", "shape": [1], "shard": 0, "op": "alias", "of": "a"}
    document = forge.document(deep, shallow, kept, alias)
    parsed = parse(document)
    assert parsed.target_ids == tuple(document["target"]["ids"]) == target_ids(parsed.tensors)
    assert [parsed.tensors[1].digest_after(layer) for layer in range(3)] == [forge.digest_of(b"4")] * 3
    assert parsed.tensors[2].digest_after(0) == A
    with pytest.raises(ValueError, match="alias"):
        parsed.tensors[3].digest_after(0)


def test_step_6_comes_before_step_7() -> None:
    broken_relation = added("a", shard=9)
    assert type(refusal(forge.document(broken_relation, added("b", op="drop")))) is UnsupportedError
