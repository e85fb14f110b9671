"""What vectors are made of: tensors with their payloads, deterministic bytes, safetensors files."""

from __future__ import annotations

import builtins
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from container import forge

from ddct_format.backends import get_backend
from ddct_format.codec.dctq import DctqParams, DctqPayload, build_sections
from ddct_format.codec.patches import PatchGrid

__all__ = ["Base", "Case", "Made", "Stream", "Vector", "add", "affine_levels", "archive", "base_record", "chunks_of",
           "forge", "grid", "keep", "make_vector", "random_base", "random_payload", "replace",
           "safetensors"]  # fmt: skip

Base = tuple[str, tuple[int, ...], bytes]
"""Element type, shape, bytes."""

Case = tuple[str, str, bytes]
"""Name of a bad vector, its status, the file."""

_ELEMENT_BYTES = {"BF16": 2, "F16": 2, "F32": 4}


class Stream:
    """Bytes that depend on the seed alone, and on no library's generator."""

    def __init__(self, seed: str) -> None:
        self._seed = seed
        self._block = 0

    def bytes(self, count: int) -> bytes:
        blocks: list[builtins.bytes] = []
        while 32 * len(blocks) < count:
            blocks.append(hashlib.sha256(f"{self._seed}/{self._block}".encode()).digest())
            self._block += 1
        return b"".join(blocks)[:count]

    def below(self, limit: int, count: int) -> np.ndarray[Any, Any]:
        """int64 [count], each in 0 … limit − 1."""
        return np.frombuffer(self.bytes(4 * count), "<u4").astype(np.int64) % limit


@dataclass(frozen=True)
class Made:
    """One tensor: its metadata, the payload of each layer, its base and the bytes that decoding yields."""

    record: dict[str, Any]
    payloads: tuple[bytes, ...]
    base: Base | None
    result: bytes


@dataclass(frozen=True)
class Vector:
    """An archive, and what a reader must make of it: ``status``, or the tensors where that is ``ok``."""

    data: bytes
    description: str
    base: dict[str, Base] = field(default_factory=dict)
    status: str = "ok"
    expected: dict[str, Base] = field(default_factory=dict)
    uses_zstd: bool = False


def grid(shape: Sequence[int], patch: int = 8) -> PatchGrid:
    """Rows are all dimensions but the last."""
    cols = shape[-1] if shape else 1
    return PatchGrid(int(np.prod(shape, dtype=np.int64)) // cols, cols, patch)


def affine_levels(*alphabets: int) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(range(alphabet)) for alphabet in alphabets)


def random_payload(params: DctqParams, seed: str, *, zeros: int = 2, scale: float = 2.0**-12) -> DctqPayload:
    """Random contents; about one symbol in ``zeros`` + 1 is free to differ from 0."""
    stream, cells = Stream(seed), params.grid.patch**2
    class_map = stream.below(len(params.levels), params.grid.count).astype(np.uint8)
    codes = []
    for number, levels in enumerate(params.levels):
        members = int((class_map == number).sum()) if len(levels) > 1 else 0
        symbols = stream.below(len(levels), members * cells) * (stream.below(zeros + 1, members * cells) == 0)
        codes.append(symbols.astype(np.uint8).reshape(-1, params.grid.patch, params.grid.patch))
    affine = params.quantiser == "affine"
    coded = int((np.array(params.alphabets)[class_map] > 1).sum()) if affine else 0
    count = 1 if affine else len(params.levels)
    scales = scale * (1 + stream.below(64, count) / 64)
    if params.rank:
        scales = np.append(scales, 2.0**-30)
    return DctqPayload(
        scales=scales.astype("<f4"),
        class_map=class_map,
        codes=tuple(codes),
        minima=((stream.below(128, coded) - 64) / 256).astype("<f2"),
        steps=(stream.below(64, coded) / 512).astype("<f2"),
        row_keys=stream.below(7, params.grid.rows if params.row_keys else 0).astype(np.uint8),
        col_keys=stream.below(256, params.grid.cols if params.col_keys else 0).astype(np.uint8),
        multipliers=stream.below((2**17 - 1) // max(1, params.rank) % 2**16 + 1, params.rank).astype("<u2"),
        left=(stream.below(256, params.grid.rows * params.rank) - 128).astype("i1").reshape(-1, max(1, params.rank)),
        right=(stream.below(256, params.grid.cols * params.rank) - 128).astype("i1").reshape(-1, max(1, params.rank)),
    )


def random_base(shape: Sequence[int], dtype: str, seed: str) -> Base:
    """Finite values between −1 and 1, many exponents."""
    count = int(np.prod(shape, dtype=np.int64))
    stream = Stream(f"base {seed}")
    values = ((stream.below(4097, count) - 2048) / 2048 / 2.0 ** stream.below(9, count)).astype("<f4")
    if dtype == "BF16":
        return dtype, tuple(shape), (values.view("<u4") >> 16).astype("<u2").tobytes()
    return dtype, tuple(shape), values.astype({"F16": "<f2", "F32": "<f4"}[dtype]).tobytes()


def base_record(base: Base) -> str:
    return forge.digest_of(base[2])


def add(
    name: str,
    params: DctqParams,
    payload: DctqPayload | None = None,
    *,
    base: Base | None = None,
    dtype: str = "BF16",
    shape: Sequence[int] | None = None,
    seed: str | None = None,
    **changes: Any,
) -> Made:
    """A tensor changed by one dctq.v1 layer; the base and the contents are random where not given."""
    seed = seed or name
    shape = tuple(shape if shape is not None else (params.grid.rows, params.grid.cols))
    base = base or random_base(shape, dtype, seed)
    payload = payload or random_payload(params, seed)
    raw = b"".join(section.tobytes() for section in build_sections(params, payload))
    before = np.frombuffer(base[2], np.uint8)
    result = get_backend("reference").apply(params, payload, before, base[0], dtype).tobytes()
    layer = {"codec": "dctq.v1", "params": params.as_json(), "size": len(raw), "digest": forge.digest_of(result)}
    record: dict[str, Any] = {"name": name, "dtype": dtype, "shape": list(shape), "shard": 0, "op": "add",
                              "base": base_record(base)}  # fmt: skip
    if base[0] != dtype:
        record["base_dtype"] = base[0]
    return Made(record | {"layers": [layer]} | changes, (raw,), base, result)


def keep(name: str, base: Base, **changes: Any) -> Made:
    record = {"name": name, "dtype": base[0], "shape": list(base[1]), "shard": 0, "op": "keep"}
    return Made(record | {"base": base_record(base)} | changes, (), base, base[2])


def replace(name: str, dtype: str, shape: Sequence[int], data: bytes, planes: int = 1, **changes: Any) -> Made:
    payload = b"".join(data[plane::planes] for plane in range(planes))
    layer = {"codec": "raw.v1", "params": {"planes": planes}, "size": len(data), "digest": forge.digest_of(data)}
    record = {"name": name, "dtype": dtype, "shape": list(shape), "shard": 0, "op": "replace", "layers": [layer]}
    return Made(record | changes, (payload,), None, data)


def chunks_of(data: bytes, chunk_size: int, compress: bool) -> list[bytes]:
    """The stored bytes of a payload's chunks."""
    pieces = [data[start : start + chunk_size] for start in range(0, len(data), chunk_size)]
    if compress:
        pieces = [min(piece, zstandard.ZstdCompressor(level=3).compress(piece), key=len) for piece in pieces]
    return pieces


def archive(
    tensors: Sequence[Made],
    *,
    files: Sequence[tuple[str, bytes]] = (),
    compress: bool = False,
    metadata: Mapping[str, Any] | None = None,
    **forged: Any,
) -> bytes:
    """The file; ``metadata`` replaces members of the metadata, ``forged`` goes to the forge."""
    document = forge.document(*(made.record for made in tensors), files=[forge.file(*file) for file in files])
    document |= metadata or {}
    payloads = [data for _, data in files]
    for layer in range(4):
        payloads += [made.payloads[layer] for made in tensors if layer < len(made.payloads)]
    chunks = [chunk for data in payloads for chunk in chunks_of(data, document["chunk_size"], compress)]
    raw = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
    if compress:
        forged.setdefault("stored_metadata", zstandard.ZstdCompressor(level=19).compress(raw))
    forged.setdefault("chunks", chunks)
    return forge.archive(raw, **forged)


def make_vector(description: str, tensors: Sequence[Made], **options: Any) -> Vector:
    """A good vector; tensors in the order of their names."""
    tensors = sorted(tensors, key=lambda made: made.record["name"].encode())
    return Vector(
        archive(tensors, **options),
        description,
        {made.record["name"]: made.base for made in tensors if made.base is not None},
        expected={
            made.record["name"]: (made.record["dtype"], tuple(made.record["shape"]), made.result) for made in tensors
        },
        uses_zstd=bool(options.get("compress")),
    )


def safetensors(tensors: Mapping[str, Base]) -> bytes:
    """A safetensors file with its tensors in the order given."""
    header: dict[str, Any] = {}
    end = 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + len(data)]}
        end += len(data)
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + b"".join(data for _, _, data in tensors.values())
