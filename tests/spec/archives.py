"""Random archives, and mutations of their structure with checksums that match again."""

from __future__ import annotations

import contextlib
import copy
import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import zstandard
from codec.layers import base_bytes, layers
from container import forge
from hypothesis import strategies as st

from spec.readers import SPEC, load_module

__all__ = ["Parts", "archives", "mutations"]

load_module(SPEC / "vectors" / "pieces.py")
pieces = sys.modules["pieces"]
pieces_ulp = load_module(SPEC / "vectors" / "pieces_ulp.py")

FLOATS = ("BF16", "F16", "F32")
ODD_VALUES: list[Any] = [None, True, False, -1, 0, 1, 2, 7, 255, 256, 4096, 2**32, 2**48, 2**53 - 1, 2**53, 0.5, 1e400,
                         "", "x", "raw.v1", "dctq.v1", "ulp.v1", "future", "F32", "BF16", "F4", "U8", "keep", "alias",
                         "add", "replace", "../a", "a/b", "A", "\x7f", "levels", "affine", "none", "hadamard", [], {},
                         [0], [[0, 1]], {"x-a": 1}, "0" * 64]  # fmt: skip


@dataclass
class Parts:
    """What an archive is made of, and the base that it needs."""

    document: dict[str, Any]
    payloads: list[bytes]
    base: dict[str, Any]
    compress: bool
    raw: bytes | None = None
    chunks: list[bytes] | None = None
    damaged: bool = False
    """Whether the stored bytes of a chunk were changed behind its checksum's back."""
    table: list[tuple[int, int]] | None = None
    preamble: dict[str, int] = field(default_factory=dict)

    def stored_chunks(self) -> list[bytes]:
        size = self.document.get("chunk_size")
        if type(size) is not int or size < 1:
            size = 4096
        if self.chunks is None:
            self.chunks = [chunk for data in self.payloads for chunk in pieces.chunks_of(data, size, self.compress)]
        return self.chunks

    def build(self) -> bytes:
        raw = (
            self.raw
            if self.raw is not None
            else json.dumps(self.document, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")
        )
        stored = None
        if self.compress:
            stored = min(raw, zstandard.ZstdCompressor().compress(raw), key=len)
        return forge.archive(raw, self.stored_chunks(), stored_metadata=stored, table=self.table, **self.preamble)

    def base_file(self) -> bytes:
        data: bytes = pieces.safetensors(self.base)
        return data


def _ulp_options(draw: st.DrawFn, elements: int, dtype: str) -> dict[str, Any]:
    """Of a layer of ulp.v1."""
    common = {"BF16": 512, "F16": 60, "F32": 512}[dtype]
    near = st.integers(common - 40, common + 300) | st.integers(1, 1526)
    bounds = tuple(sorted(draw(st.sets(near, max_size=5))))
    shift = draw(st.sampled_from((0, 0, 1, 4, 8) + ((15, 16, 24) if dtype == "F32" else ())))
    return {
        "cols": draw(st.sampled_from([cols for cols in range(1, elements + 1) if elements % cols == 0])),
        "bounds": bounds,
        "shift": shift,
        "sparse": tuple(sorted(draw(st.sets(st.integers(0, len(bounds)), max_size=3)))),
        "row_keys": draw(st.booleans()),
        "col_keys": draw(st.booleans()),
    }


def _ulp_target(draw: st.DrawFn, before: Any, dtype: str, shift: int) -> bytes:
    seed = str(draw(st.integers(0, 2**32 - 1)))
    if draw(st.booleans()):
        target: bytes = pieces_ulp.any_patterns(before[1], dtype, seed, shift)
    else:
        reach, zeros = draw(st.sampled_from((1, 40, 5000))), draw(st.sampled_from((0, 1, 30)))
        target = pieces_ulp.near(before, dtype, seed, shift=shift, reach=reach, zeros=zeros)
    return target


def _with_ulp(draw: st.DrawFn, made: Any) -> Any:
    """``made``, mostly as it is, or with up to three more layers."""
    dtype = made.record["dtype"]
    if dtype not in FLOATS or not made.result or "layers" not in made.record:
        return made
    for _ in range(draw(st.sampled_from((0, 0, 1, 1, 3)))):
        options = _ulp_options(draw, len(made.result) // (4 if dtype == "F32" else 2), dtype)
        before = (dtype, tuple(made.record["shape"]), made.result)
        made = pieces_ulp.then_exact(made, _ulp_target(draw, before, dtype, options["shift"]), **options)
    return made


@st.composite
def archives(draw: st.DrawFn) -> Parts:
    """Valid archives of one to three tensors of any op, of one to four layers."""
    made: list[Any] = []
    base: Any
    for index in range(draw(st.integers(1, 3))):
        name, kind = f"t{index}", draw(st.sampled_from(("add", "add", "ulp", "ulp", "replace", "keep", "alias")))
        seed = draw(st.integers(0, 2**32 - 1))
        if kind == "add":
            params, payload = draw(layers())
            base_dtype, dtype = draw(st.sampled_from(FLOATS)), draw(st.sampled_from(FLOATS))
            grid = params.grid
            data = base_bytes(grid.rows * grid.cols, base_dtype, seed, finite=draw(st.booleans())).tobytes()
            base = (base_dtype, (grid.rows, grid.cols), data)
            with np.errstate(all="ignore"):
                made.append(_with_ulp(draw, pieces.add(name, params, payload, base=base, dtype=dtype)))
        elif kind == "ulp":
            base_dtype, dtype = draw(st.sampled_from(FLOATS)), draw(st.sampled_from(FLOATS))
            shape = draw(st.sampled_from(((), (1,), (7,), (2, 3, 4), (24, 30), (600,))))
            elements = math.prod(shape)
            base = (base_dtype, shape, base_bytes(elements, base_dtype, seed, finite=draw(st.booleans())).tobytes())
            options = _ulp_options(draw, elements, dtype)
            with np.errstate(all="ignore"):
                target = _ulp_target(draw, base, dtype, options["shift"])
                made.append(_with_ulp(draw, pieces_ulp.exact(name, base, target, dtype, **options)))
        elif kind == "replace":
            data = pieces.Stream(str(seed)).bytes(8 * draw(st.integers(0, 300)))
            dtype, width = draw(st.sampled_from((("I64", 8), ("BF16", 2), ("F32", 4))))
            planes = draw(st.sampled_from((1, 2, 4, 8)))
            made.append(_with_ulp(draw, pieces.replace(name, dtype, (len(data) // width,), data, planes=planes)))
        elif kind == "keep" or not made:
            made.append(pieces.keep(name, ("U8", (5,), pieces.Stream(str(seed)).bytes(5))))
        else:
            of = next(one for one in made if one.record["op"] != "alias")
            record = {key: of.record[key] for key in ("dtype", "shape", "shard")} | {"op": "alias"}
            record |= {"name": name, "of": of.record["name"]}
            made.append(pieces.Made(record, (), None, of.result))
    files = [("config.json", b"{}" * draw(st.integers(0, 3000)))] if draw(st.booleans()) else []
    document = forge.document(*(one.record for one in made), files=[forge.file(*file) for file in files])
    payloads = [data for _, data in files]
    for layer in range(4):
        payloads += [one.payloads[layer] for one in made if layer < len(one.payloads)]
    base = {one.record["name"]: one.base for one in made if one.base is not None}
    return Parts(document, payloads, base, draw(st.booleans()))


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) below a JSON value."""
    if not isinstance(value, dict | list):
        return []
    here = list(value) if isinstance(value, dict) else list(range(len(value)))
    return [(value, key) for key in here] + [place for key in here for place in _places(value[key])]


def _mutate_document(draw: st.DrawFn, parts: Parts) -> None:
    container, key = draw(st.sampled_from(_places(parts.document)))
    action = draw(st.sampled_from(("replace", "nudge", "delete", "rename", "copy")))
    value = container[key]
    if action == "delete":
        del container[key]
    elif action == "rename" and isinstance(container, dict):
        items = list(container.items())
        container.clear()
        new = draw(st.sampled_from(("x-new", "new", "of", "base", "layers", "rank", "sparse", "row_keys")))
        container.update((new if name == key else name, member) for name, member in items)
    elif action == "copy":
        other, other_key = draw(st.sampled_from(_places(parts.document)))
        container[key] = copy.deepcopy(other[other_key])
    elif action == "nudge" and type(value) is int:
        container[key] = value + draw(st.sampled_from((-1, 1)))
    else:
        container[key] = draw(st.sampled_from(ODD_VALUES))
    if draw(st.booleans()):
        try:
            ids = forge.model_ids(parts.document["tensors"])
        except (KeyError, TypeError, AttributeError, IndexError, ValueError):
            return
        parts.document["target"] = {"ids": ids, "exact_id": ids[-1]}


def _mutate_text(draw: st.DrawFn, parts: Parts) -> None:
    raw = bytearray(json.dumps(parts.document, separators=(",", ":")).encode())
    at = draw(st.integers(0, len(raw) - 1))
    piece = draw(st.sampled_from((b"", b'"', b"0", b"-", b"e5", b".5", b"{", b"]", b"\\ud800", b"\\u0041", b"\0",
                                  b"\xff", b",", b"NaN", b'"x-y":1,', b"\xc3\xa9", b" ", b"\t")))  # fmt: skip
    raw[at : at + draw(st.integers(0, 2))] = piece
    parts.raw = bytes(raw)


def _mutate_payload(draw: st.DrawFn, parts: Parts) -> None:
    """A payload changed; its size and the digests of its results follow where there are any."""
    records = [one for one in parts.document["tensors"] if "layers" in one]
    places = [(one["name"], layer) for layer in range(4) for one in records if layer < len(one["layers"])]
    if not places:
        return
    first = len(parts.document["files"])
    number = draw(st.integers(0, len(places) - 1))
    data = bytearray(parts.payloads[first + number])
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        action = draw(st.sampled_from(("set", "cut", "insert", "number")))
        if action == "cut":
            del data[at : at + 1]
        elif action == "insert":
            data[at:at] = draw(st.binary(min_size=1, max_size=2))
        elif action == "number":
            data[at & ~3 : (at & ~3) + 4] = draw(
                st.sampled_from((b"\0\0\x80\x7f", b"\0\0\xc0\x7f", b"\0\0\0\x80", b"\xff" * 4))
            )
        else:
            data[at : at + 1] = bytes([draw(st.integers(0, 255))])
    name, changed = places[number]
    record = next(one for one in records if one["name"] == name)
    parts.payloads[first + number] = bytes(data)
    record["layers"][changed]["size"] = len(data)
    reader = sys.modules["ddct_reader"]
    dtype, _, result = parts.base.get(name, (record["dtype"], None, b""))
    with contextlib.suppress(reader.DdctError):
        reader.check_codecs(record)
        for index, layer in enumerate(record["layers"]):
            payload = parts.payloads[first + places.index((name, index))]
            result = reader.CODECS[layer["codec"]](layer, record, dtype).apply(payload, result)
            layer["digest"], dtype = forge.digest_of(result), record["dtype"]
    ids = forge.model_ids(parts.document["tensors"])
    parts.document["target"] = {"ids": ids, "exact_id": ids[-1]}


def _mutate_chunk(draw: st.DrawFn, parts: Parts) -> None:
    """Stored bytes changed; the checksum follows."""
    chunks = parts.stored_chunks()
    if chunks:
        number = draw(st.integers(0, len(chunks) - 1))
        data = bytearray(chunks[number])
        at = draw(st.integers(0, min(len(data) - 1, 20)) | st.integers(0, len(data) - 1))
        data[at : at + draw(st.integers(0, 2))] = draw(st.binary(max_size=2))
        chunks[number] = bytes(data)
        parts.damaged = True


def _mutate_table(draw: st.DrawFn, parts: Parts) -> None:
    table = [(len(chunk), forge.crc32c(chunk)) for chunk in parts.stored_chunks()]
    action = draw(st.sampled_from(("size", "crc", "add", "remove")))
    if action == "add" or not table:
        table.append((draw(st.integers(0, 10)), 0))
    elif action == "remove":
        table.pop()
    else:
        number = draw(st.integers(0, len(table) - 1))
        size, crc = table[number]
        table[number] = (size, crc ^ 1) if action == "crc" else (draw(st.sampled_from((0, size + 1, 2**32 - 1))), crc)
    parts.table = table


def _mutate_preamble(draw: st.DrawFn, parts: Parts) -> None:
    name = draw(st.sampled_from(forge.PREAMBLE_FIELDS[1:]))
    width = {"major": 16, "minor": 16, "incompatible": 64, "compatible": 64, "file_size": 64}.get(name, 32)
    odd = st.sampled_from((0, 1, 7, 8, 63, 64, 65, 2**16 - 1))
    parts.preamble[name] = draw(odd | st.integers(0, 2**width - 1))


_MUTATIONS: list[Callable[[st.DrawFn, Parts], None]] = [
    _mutate_document, _mutate_document, _mutate_document, _mutate_text, _mutate_payload, _mutate_payload, _mutate_chunk,
    _mutate_table, _mutate_preamble,
]  # fmt: skip


@st.composite
def mutations(draw: st.DrawFn) -> Parts:
    """Archives that are valid but for one mutation, which may also leave them valid."""
    parts = draw(archives())
    draw(st.sampled_from(_MUTATIONS))(draw, parts)
    return parts
