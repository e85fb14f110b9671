"""The metadata region: bytes to records and back (spec section 5)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from ddct_format.container.collector import collector_paused
from ddct_format.container.digest import DIGEST_NAME
from ddct_format.container.records import (
    FileRecord,
    Layer,
    Metadata,
    Quality,
    ShardRecord,
    TensorRecord,
    target_ids,
)
from ddct_format.container.schema import check_metadata_object
from ddct_format.container.strict_json import parse_json
from ddct_format.container.usual_form import parse_usual_form
from ddct_format.container.zstd_frame import compress
from ddct_format.errors import InvalidError

__all__ = [
    "FileRecord",
    "Layer",
    "Metadata",
    "Quality",
    "ShardRecord",
    "TensorRecord",
    "compress_metadata",
    "parse_metadata",
    "serialise_metadata",
    "target_ids",
]

_MOST_EFFORT_UP_TO = 1 << 20
"""Bytes: the metadata of thousands of tensors. Beyond, the weights are so many that a few bytes do not count."""


def parse_metadata(raw: bytes) -> Metadata:
    """Check and read the raw metadata: spec section 9, steps 6 and 7.

    Raises:
        InvalidError, UnsupportedError: as sections 5 and 9 say.
    """
    with collector_paused():
        metadata = parse_usual_form(raw) or check_metadata_object(parse_json(raw))
        _check_paths(metadata)
        _check_tensors(metadata)
        if target_ids(metadata.tensors) != metadata.target_ids:
            raise InvalidError("target.ids do not follow from the digests of the tensors")
    return metadata


def compress_metadata(raw: bytes) -> bytes:
    """Stored bytes of the raw metadata (spec section 4): in small archives each one is a weight's."""
    return compress(raw, effort="max" if len(raw) <= _MOST_EFFORT_UP_TO else "default")


def serialise_metadata(metadata: Metadata) -> bytes:
    """Compact UTF-8 JSON with a fixed order of names; optional members only where they say something.

    Raises:
        InvalidError: a text has a lone surrogate, or a number is not finite.
    """
    base: dict[str, Any] = {"id": metadata.base_id}
    if metadata.base_hint:
        base["hint"] = dict(metadata.base_hint)
    document: dict[str, Any] = {
        "generator": metadata.generator,
        "digest": DIGEST_NAME,
        "chunk_size": metadata.chunk_size,
        "base": base,
        "target": {"ids": metadata.target_ids, "exact_id": metadata.exact_id},
        "shards": [{"path": shard.path, "metadata": dict(shard.metadata)} for shard in metadata.shards],
        "files": [{"path": file.path, "size": file.size, "digest": file.digest} for file in metadata.files],
        "tensors": [_tensor_object(tensor) for tensor in metadata.tensors],
    }
    if metadata.quality is not None:
        document["quality"] = {"preset": metadata.quality.preset, "error": metadata.quality.error}
    try:
        text = json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return text.encode("utf-8")
    except ValueError as error:
        raise InvalidError(f"metadata cannot be written: {error}") from None


def _check_paths(metadata: Metadata) -> None:
    for before, file in pairwise(metadata.files):
        if before.path >= file.path:
            raise InvalidError(f"files are not in ascending order of path: {file.path!r}")
    # bytes.lower() folds ASCII alone, as the specification does. With the separator as the smallest
    # byte, whatever lies below a path sorts right behind it.
    paths = [shard.path for shard in metadata.shards] + [file.path for file in metadata.files]
    keys = sorted((path.encode().lower().replace(b"/", b"\0"), path) for path in paths)
    for (key, path), (next_key, next_path) in pairwise(keys):
        if key == next_key:
            raise InvalidError(f"{path!r} and {next_path!r} are the same path, compared without case")
        if next_key.startswith(key + b"\0"):
            raise InvalidError(f"{path!r} is a file, and {next_path!r} lies below it")


def _check_tensors(metadata: Metadata) -> None:
    shard_count = len(metadata.shards)
    before = ""
    for tensor in metadata.tensors:
        # Code points sort as their UTF-8 bytes do.
        if tensor.name <= before:
            raise InvalidError("tensors are not in strictly ascending order of name", tensor=tensor.name)
        before = tensor.name
        if tensor.shard >= shard_count:
            raise InvalidError(f"shard {tensor.shard} is not one of {shard_count}", tensor=tensor.name)


def _tensor_object(tensor: TensorRecord) -> Mapping[str, Any]:
    members: dict[str, Any] = {
        "name": tensor.name,
        "dtype": tensor.dtype,
        "shape": tensor.shape,
        "shard": tensor.shard,
        "op": tensor.op,
    }
    if tensor.base is not None:
        members["base"] = tensor.base
    if tensor.base_dtype is not None:
        members["base_dtype"] = tensor.base_dtype
    if tensor.of is not None:
        members["of"] = tensor.of
    if tensor.layers:
        members["layers"] = [_layer_object(layer) for layer in tensor.layers]
    if tensor.error is not None:
        members["error"] = tensor.error
    return members


def _layer_object(layer: Layer) -> Mapping[str, Any]:
    members: dict[str, Any] = {
        "codec": layer.codec,
        "params": dict(layer.params),
        "size": layer.size,
        "digest": layer.digest,
    }
    if not layer.must_understand:
        members["must_understand"] = False
    return members
