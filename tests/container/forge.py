"""Builds archives byte by byte, valid or not, with checksums that match.

Written from the specification alone: it shares no code with the product, so that both can be wrong only
in different ways.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import google_crc32c

MAGIC = bytes.fromhex("8944444354 0D0A1A")
PREAMBLE = struct.Struct("<8sHHIQQQIIIIII")
PREAMBLE_FIELDS = (
    "magic",
    "major",
    "minor",
    "preamble_size",
    "incompatible",
    "compatible",
    "file_size",
    "metadata_stored_size",
    "metadata_raw_size",
    "metadata_crc32c",
    "table_size",
    "table_crc32c",
    "preamble_crc32c",
)
ZSTD_MAGIC = bytes.fromhex("28B52FFD")


def crc32c(data: bytes) -> int:
    return int(google_crc32c.value(data))


def digest_of(data: bytes) -> str:
    """Section 1.1."""
    leaves = [data[start : start + 65536] for start in range(0, len(data), 65536)]
    outer = struct.pack("<Q", len(data)) + b"".join(hashlib.sha256(leaf).digest() for leaf in leaves)
    return hashlib.sha256(outer).hexdigest()


def layer(data: bytes, *, size: int | None = None, **changes: Any) -> dict[str, Any]:
    """A raw.v1 layer whose payload, and result, is ``data``."""
    members = {
        "codec": "raw.v1",
        "params": {"planes": 1},
        "size": len(data) if size is None else size,
        "digest": digest_of(data),
    }
    return members | changes


def replaced(name: str, *payloads: bytes, **changes: Any) -> dict[str, Any]:
    """A U8 tensor that is replaced, one layer per payload."""
    members = {
        "name": name,
        "dtype": "U8",
        "shape": [len(payloads[0])],
        "shard": 0,
        "op": "replace",
        "layers": [layer(payload) for payload in payloads],
    }
    return members | changes


def file(path: str, data: bytes, **changes: Any) -> dict[str, Any]:
    return {"path": path, "size": len(data), "digest": digest_of(data)} | changes


def model_ids(tensors: Sequence[Mapping[str, Any]]) -> list[str]:
    """Section 5.3, from the objects of well-formed tensors."""
    by_name = {tensor["name"]: tensor for tensor in tensors}
    depth = max([len(tensor.get("layers", ())) for tensor in tensors] + [1])
    ids = []
    for count in range(1, depth + 1):
        lines = []
        for tensor in sorted(tensors, key=lambda tensor: tensor["name"].encode()):
            source = by_name[tensor["of"]] if tensor["op"] == "alias" else tensor
            layers = source.get("layers", ())[:count]
            digest = layers[-1]["digest"] if layers else source["base"]
            shape = ",".join(str(dimension) for dimension in tensor["shape"])
            lines.append(f"{tensor['name']}\t{tensor['dtype']}\t{shape}\t{digest}\n")
        ids.append(hashlib.sha256("".join(lines).encode()).hexdigest())
    return ids


def document(*tensors: Mapping[str, Any], files: Sequence[Mapping[str, Any]] = (), **changes: Any) -> dict[str, Any]:
    """A valid metadata object; ``target.ids`` follow from the tensors where they are well-formed."""
    try:
        ids = model_ids(tensors)
    except (KeyError, TypeError, AttributeError):
        ids = ["0" * 64]
    members = {
        "generator": "forge",
        "digest": "sha256-64k",
        "chunk_size": 4096,
        "base": {"id": "b" * 64},
        "target": {"ids": ids, "exact_id": ids[-1]},
        "shards": [{"path": "model.safetensors", "metadata": {"format": "pt"}}] if tensors else [],
        "files": list(files),
        "tensors": list(tensors),
    }
    return members | changes


def archive(
    metadata: Mapping[str, Any] | bytes,
    chunks: Sequence[bytes] = (),
    *,
    stored_metadata: bytes | None = None,
    table: Sequence[tuple[int, int]] | bytes | None = None,
    tail: bytes = b"",
    **preamble: Any,
) -> bytes:
    """A whole file, all of its checksums right unless they are given.

    Args:
        metadata: the object, or its raw bytes.
        chunks: stored bytes of each chunk.
        stored_metadata: the metadata as stored, where that is not the raw bytes.
        table: (stored_size, crc32c) of each chunk, or the table's bytes, where that does not follow from chunks.
        tail: bytes behind the last chunk, not counted in ``file_size``.
        preamble: fields (see PREAMBLE_FIELDS) whose value does not follow from the rest.
    """
    raw = metadata if isinstance(metadata, bytes) else json.dumps(metadata, ensure_ascii=False).encode()
    stored = raw if stored_metadata is None else stored_metadata
    if table is None:
        table = [(len(chunk), crc32c(chunk)) for chunk in chunks]
    if not isinstance(table, bytes):
        table = b"".join(struct.pack("<II", *entry) for entry in table)
    body = stored + table + b"".join(chunks)
    fields: dict[str, Any] = {
        "magic": MAGIC,
        "major": 1,
        "minor": 0,
        "preamble_size": 64,
        "incompatible": 0,
        "compatible": 0,
        "file_size": 64 + len(body),
        "metadata_stored_size": len(stored),
        "metadata_raw_size": len(raw),
        "metadata_crc32c": crc32c(stored),
        "table_size": len(table),
        "table_crc32c": crc32c(table),
    }
    fields.update(preamble)
    head = PREAMBLE.pack(*(fields.get(name, 0) for name in PREAMBLE_FIELDS))[:60]
    return head + struct.pack("<I", fields.get("preamble_crc32c", crc32c(head))) + body + tail


def block(data: bytes, *, last: bool = True) -> bytes:
    """A raw zstd block (RFC 8878, 3.1.1.2)."""
    return ((len(data) << 3) | last).to_bytes(3, "little") + data


def rle_block(byte: int, count: int, *, last: bool = True) -> bytes:
    """A zstd block that repeats one byte."""
    return ((count << 3) | 2 | last).to_bytes(3, "little") + bytes([byte])


def frame(
    *blocks: bytes,
    content_size: int | None,
    window_byte: int | None = None,
    dictionary: int | None = None,
    reserved_bit: bool = False,
) -> bytes:
    """A zstd frame (RFC 8878, 3.1.1) without a checksum.

    Args:
        content_size: stated in 4 bytes; None to state none, which needs a window.
        window_byte: Window_Descriptor; None for a single segment.
        dictionary: stated in 4 bytes.
    """
    single = window_byte is None
    descriptor = (0 if content_size is None else 2) << 6 | single << 5 | reserved_bit << 3
    descriptor |= 0 if dictionary is None else 3
    header = ZSTD_MAGIC + bytes([descriptor])
    header += b"" if window_byte is None else bytes([window_byte])
    header += b"" if dictionary is None else struct.pack("<I", dictionary)
    header += b"" if content_size is None else struct.pack("<I", content_size)
    return header + b"".join(blocks)
