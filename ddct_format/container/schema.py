"""The objects of the metadata: the rules of spec section 5 that need one object at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from ddct_format.container.digest import DIGEST_NAME
from ddct_format.container.dtypes import DTYPE_BITS
from ddct_format.container.records import FileRecord, Layer, Metadata, Quality, ShardRecord, TensorRecord
from ddct_format.container.rules import (
    ArrayRule,
    ObjectRule,
    Rule,
    boolean,
    digest,
    integer,
    measure,
    one_of,
    params,
    relative_path,
    tensor_name,
    text,
    texts,
)
from ddct_format.errors import ArchiveError, InvalidError
from ddct_format.limits import (
    MAX_CHUNK_SIZE,
    MAX_ELEMENTS,
    MAX_FILES,
    MAX_GENERATOR_BYTES,
    MAX_HINT_BYTES,
    MAX_INTEGER,
    MAX_LAYERS,
    MAX_NAME_BYTES,
    MAX_PAYLOAD_SIZE,
    MAX_RANK,
    MAX_SHARDS,
    MAX_TENSORS,
    MIN_CHUNK_SIZE,
)

__all__ = ["check_metadata_object"]


def _chunk_size(value: Any) -> int:
    size = integer(MIN_CHUNK_SIZE, MAX_CHUNK_SIZE)(value)
    if size & (size - 1):
        raise InvalidError("must be a power of two")
    return size


def _shard_path(value: Any) -> str:
    path = relative_path(value)
    if not path.endswith(".safetensors"):
        raise InvalidError("must end in .safetensors")
    return path


def _shape(value: Any) -> tuple[int, ...]:
    if type(value) is not list or len(value) > MAX_RANK:
        raise InvalidError(f"must be an array of at most {MAX_RANK} dimensions")
    elements = 1
    for dimension in value:
        if type(dimension) is not int or dimension < 0:
            raise InvalidError("has a dimension that is negative or no integer")
        elements *= dimension or 1
    if elements > MAX_ELEMENTS:
        raise InvalidError(f"has more than {MAX_ELEMENTS} elements")
    return tuple(value)


_MEMBERS_OF: Final[Mapping[str, tuple[frozenset[str], frozenset[str]]]] = {
    "add": (frozenset({"base", "layers"}), frozenset({"of"})),
    "replace": (frozenset({"layers"}), frozenset({"base", "base_dtype", "of"})),
    "keep": (frozenset({"base"}), frozenset({"base_dtype", "of", "layers"})),
    "alias": (frozenset({"of"}), frozenset({"base", "base_dtype", "layers"})),
}
"""By operation: the members that it must have, and those that it must not have."""


def _build_tensor(members: dict[str, Any]) -> TensorRecord:
    op = members["op"]
    required, forbidden = _MEMBERS_OF[op]
    if not required <= members.keys():
        raise InvalidError(f"{min(required - members.keys())!r} is missing, which {op!r} needs")
    if not forbidden.isdisjoint(members):
        raise InvalidError(f"{min(forbidden & members.keys())!r} does not belong to {op!r}")
    if members.get("base_dtype") == members["dtype"]:
        raise InvalidError("'base_dtype' is only for a type that differs from 'dtype'")
    return TensorRecord(**members)


def _tensor(value: Any) -> TensorRecord:
    try:
        return _tensor_object(value)
    except ArchiveError as error:
        name = value.get("name") if type(value) is dict else None
        error.at(tensor=name[:MAX_NAME_BYTES] if type(name) is str else None)
        raise


def _build_metadata(members: dict[str, Any]) -> Metadata:
    base_id, base_hint = members["base"]
    ids, exact_id = members["target"]
    return Metadata(
        generator=members["generator"],
        chunk_size=members["chunk_size"],
        base_id=base_id,
        base_hint=base_hint,
        target_ids=ids,
        exact_id=exact_id,
        shards=members["shards"],
        files=members["files"],
        tensors=members["tensors"],
        quality=members.get("quality"),
    )


_dtype = one_of(frozenset(DTYPE_BITS))
_size = integer(0, MAX_PAYLOAD_SIZE)
_hint_text = text(MAX_HINT_BYTES)

_layer = ObjectRule(
    lambda members: Layer(**members),
    required={"codec": text(), "params": params, "size": _size, "digest": digest},
    optional={"must_understand": boolean},
)
_tensor_object = ObjectRule(
    _build_tensor,
    required={
        "name": tensor_name,
        "dtype": _dtype,
        "shape": _shape,
        "shard": integer(0, MAX_INTEGER),
        "op": one_of(frozenset(_MEMBERS_OF)),
    },
    optional={
        "base": digest,
        "base_dtype": _dtype,
        "of": tensor_name,
        "layers": ArrayRule(_layer, 1, MAX_LAYERS),
        "error": measure,
    },
)
_hint = ObjectRule(
    lambda members: members,
    required={},
    optional={"repo": _hint_text, "revision": _hint_text, "name": _hint_text},
)
_base = ObjectRule(
    lambda members: (members["id"], members.get("hint", {})),
    required={"id": digest},
    optional={"hint": _hint},
)
_target = ObjectRule(
    lambda members: (members["ids"], members["exact_id"]),
    required={"ids": ArrayRule(digest, 1, MAX_LAYERS), "exact_id": digest},
)
_shard = ObjectRule(lambda members: ShardRecord(**members), required={"path": _shard_path, "metadata": texts})
_file = ObjectRule(
    lambda members: FileRecord(**members), required={"path": relative_path, "size": _size, "digest": digest}
)
_quality = ObjectRule(lambda members: Quality(**members), required={"preset": text(), "error": measure})

check_metadata_object: Final[Rule[Metadata]] = ObjectRule(
    _build_metadata,
    required={
        "generator": text(MAX_GENERATOR_BYTES),
        "digest": one_of(frozenset({DIGEST_NAME})),
        "chunk_size": _chunk_size,
        "base": _base,
        "target": _target,
        "shards": ArrayRule(_shard, 0, MAX_SHARDS),
        "files": ArrayRule(_file, 0, MAX_FILES),
        "tensors": ArrayRule(_tensor, 0, MAX_TENSORS),
    },
    optional={"quality": _quality},
)
"""The metadata as records, from what :func:`~ddct_format.container.strict_json.parse_json` returns.

Raises InvalidError, or UnsupportedError for an unknown digest, element type or operation.
"""
