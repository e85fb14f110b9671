"""Reads .ddct archives, version 1: ../../ddct-v1.md, whose section numbers are given. Plain, and not fast."""
# ruff: noqa: E701, N806, N818

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import re
import struct
from collections.abc import Iterator, Mapping
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

# fmt: off
__all__ = ["BITS", "Archive", "BaseMismatch", "Budget", "Corrupt", "DdctError", "Invalid", "Tensor", "Truncated",
           "Unsupported", "open_archive", "tensor_digest"]

class DdctError(Exception):
    """A refusal (section 10); ``tensor`` is the name of the tensor that it is about, if it is about one."""
    tensor: str | None = None

class Corrupt(DdctError): ...
class Truncated(DdctError): ...
class Unsupported(DdctError): ...
class Invalid(DdctError): ...
class BaseMismatch(DdctError): ...
class Budget(DdctError): ...

Tensor = tuple[str, tuple[int, ...], bytes]  # element type, shape, bytes
Array = np.ndarray[Any, Any]
MAGIC = bytes.fromhex("89444443540D0A1A")
MIB = 1 << 20
BITS = {"BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "I16": 16, "U16": 16, "F16": 16,
        "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64, "C64": 64}
STORED_AS = {"BF16": "<u2", "F16": "<f2", "F32": "<f4"}
QUIET_NAN = {"BF16": 0x7FC0, "F16": 0x7E00, "F32": 0x7FC00000}
EXPONENT = {"BF16": (7, 255), "F16": (10, 31), "F32": (23, 255)}  # fraction bits, largest exponent field

def need(condition: Any, reason: str, error: type[DdctError] = Invalid) -> None:
    if not condition: raise error(reason)

# 1. Conventions
CRC_TABLE = list(range(256))
for _ in range(8): CRC_TABLE = [entry >> 1 ^ (0x82F63B78 if entry & 1 else 0) for entry in CRC_TABLE]

def crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data: crc = CRC_TABLE[(crc ^ byte) & 255] ^ crc >> 8
    return crc ^ 0xFFFFFFFF

def tensor_digest(data: bytes) -> str:
    """Section 1.1."""
    leaves = (hashlib.sha256(data[start : start + 65536]).digest() for start in range(0, len(data), 65536))
    return hashlib.sha256(struct.pack("<Q", len(data)) + b"".join(leaves)).hexdigest()

# 4. Stored bytes
def raw_bytes(stored: bytes, raw_size: int) -> bytes:
    """The ``raw_size`` bytes that ``stored`` stands for: itself, or one bounded zstd frame (RFC 8878, 3.1.1)."""
    if len(stored) == raw_size: return stored
    need(6 <= len(stored) < raw_size and stored[:4] == b"\x28\xb5\x2f\xfd", "not a zstd frame")
    single = stored[4] >> 5 & 1
    content = 5 + (1 - single) + (0, 1, 2, 4)[stored[4] & 3]  # where the content size begins, and the blocks
    blocks = content + (single, 2, 4, 8)[stored[4] >> 6]
    need(not stored[4] & 8 and content < blocks <= len(stored), "zstd frame header, or it states no content size")
    need(single or (128 << (stored[5] >> 3)) * (8 + (stored[5] & 7)) <= 8 * MIB, "zstd window above 8 MiB")
    need(not any(stored[6 - single : content]), "zstd frame names a dictionary")
    content_size = int.from_bytes(stored[content:blocks], "little") + 256 * (blocks - content == 2)
    need(content_size == raw_size, "zstd content size differs from the raw size")
    end, last = blocks, 0
    while not last:
        need(end + 3 <= len(stored), "zstd frame is cut off", Corrupt)
        header = int.from_bytes(stored[end : end + 3], "little")
        last, kind, size = header & 1, header >> 1 & 3, header >> 3
        need(kind != 3, "reserved zstd block", Corrupt)
        end += 3 + (1 if kind == 1 else size)
    end += stored[4] & 4  # the checksum
    need(end <= len(stored), "zstd frame is cut off", Corrupt)
    need(end == len(stored), "bytes behind the zstd frame")
    try: raw: bytes = zstandard.ZstdDecompressor().decompress(stored, max_output_size=raw_size)
    except zstandard.ZstdError as error: raise Corrupt(f"zstd frame does not decompress: {error}") from None
    need(len(raw) == raw_size, "zstd frame yields another size", Corrupt)
    return raw

# 5. Metadata
def parse_json(raw: bytes) -> Any:
    """I-JSON; every deviation is Invalid."""
    try:
        text = raw.decode("utf-8")
        brackets = re.sub(r'"(?:[^"\\]|\\.)*+"?|[^][{}"]+', "", text, flags=re.DOTALL)
        need(max(accumulate((1 if c in "[{" else -1 for c in brackets), initial=0)) <= 16, "JSON is nested too deep")
        value = json.loads(text, object_pairs_hook=parse_object, parse_int=parse_number, parse_float=parse_number,
                           parse_constant=parse_number)
        json.dumps(value, ensure_ascii=False).encode()
        return value
    except ValueError as error: raise Invalid(f"not strict JSON: {error}") from None  # syntax, UTF-8, lone surrogates

def parse_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    need(len(value := dict(pairs)) == len(pairs), "duplicate name in a JSON object")
    return value

def parse_number(text: str) -> int | float:
    if len(text) <= 17 and text.removeprefix("-").isdecimal() and abs(int(text)) < 2**53: return int(text)
    need(re.search(r"[.eE]", text) and math.isfinite(float(text)), f"number out of range: {text[:40]}")
    return float(text)

def check(value: Any, rule: Any, where: str) -> None:
    """``rule`` is a type; a function that tells whether ``value`` is good; a range of integers; a set of texts, others
    being Unsupported; (least, most, rule) for a list; {name: rule} for an object, where "?" marks a name that may be
    missing; or a list of rules. An object's members are checked in the order of the file, what is missing last."""
    good = True
    if isinstance(rule, list):
        for one in rule: check(value, one, where)
    elif isinstance(rule, range): good = type(value) is int and value in rule
    elif isinstance(rule, type): good = isinstance(value, rule)
    elif callable(rule): good = rule(value)
    elif isinstance(rule, set):
        need(isinstance(value, str), f"{where} is no text")
        need(value in rule, f"{where} is {value:.80}, which this reader does not know", Unsupported)
    elif isinstance(rule, tuple):
        need(isinstance(value, list) and rule[0] <= len(value) <= rule[1], f"{where} is no list of {rule[:2]}")
        for index, member in enumerate(value): check(member, rule[2], f"{where}[{index}]")
    else:
        need(isinstance(value, dict), f"{where} is no object")
        for name, member in value.items():
            known = name[-1:] != "?" and (rule.get(name) or rule.get(name + "?"))
            if not known: need(name.startswith("x-"), f"{where} has an unknown name {name!r}")
            check(member, known or has_no_fraction, f"{where}.{name}")
        need(all(name in value or name[-1] == "?" for name in rule), f"{where}: a required name is missing")
    if not good: raise Invalid(f"{where} is {value!r:.80}")

def has_no_fraction(value: Any) -> bool:
    if isinstance(value, dict): value = list(value.values())
    return all(map(has_no_fraction, value)) if isinstance(value, list) else not isinstance(value, float)

def is_path(value: str) -> bool:
    """Section 5.4, but for the rules that names have too."""
    parts = value.split("/")
    return re.search(r"[\\:]", value) is None and all(0 < len(p.encode()) <= 255 and p[-1] not in ". " for p in parts)

def text(limit: int) -> Any: return lambda value: isinstance(value, str) and len(value.encode()) <= limit

def one_of(*values: Any) -> Any: return lambda value: any(type(value) is type(one) and value == one for one in values)
def is_digest(value: Any) -> bool: return isinstance(value, str) and bool(re.fullmatch("[0-9a-f]{64}", value))
def is_real(value: Any) -> bool: return type(value) in (int, float) and value >= 0
def are_texts(value: Any) -> bool: return isinstance(value, dict) and {*map(type, value.values())} <= {str}
def is_elements(value: Any) -> bool: return bool(math.prod(max(1, size) for size in value) <= 2**48)

SIZE, INDEX = range(2**48 + 1), range(2**53)
NAME = [text(1024), lambda value: re.fullmatch("[^\x00-\x1f\x7f-\x9f]+", value)]
PATH = [*NAME, is_path]
LAYER = {"codec": str, "params": [dict, has_no_fraction], "size": SIZE, "digest": is_digest,
         "must_understand?": bool}
MEMBERS = {"name": NAME, "dtype": {*BITS}, "shape": [(0, 8, INDEX), is_elements], "shard": INDEX,
           "op": {"add", "replace", "keep", "alias"}, "base?": is_digest, "base_dtype?": {*BITS}, "of?": NAME,
           "layers?": (1, 4, LAYER), "error?": is_real}
OF_OP = {"add": {"base", "layers"}, "replace": {"layers"}, "keep": {"base"}, "alias": {"of"}}

def is_tensor(value: Any) -> bool:
    """Section 5.1: what joins several members."""
    given = value.keys() & {"base", "base_dtype", "of", "layers"} - ({"base_dtype"} if value["op"] == "add" else set())
    return given == OF_OP[value["op"]] and bool(value.get("base_dtype") != value["dtype"])

DOCUMENT = {
    "generator": text(256), "digest": {"sha256-64k"}, "chunk_size": one_of(*(1 << k for k in range(12, 25))),
    "base": {"id": is_digest, "hint?": dict.fromkeys(("repo?", "revision?", "name?"), text(1024))},
    "target": {"ids": (1, 4, is_digest), "exact_id": is_digest},
    "shards": (0, 65536, {"path": [*PATH, lambda value: value.endswith(".safetensors")], "metadata": are_texts}),
    "files": (0, 4096, {"path": PATH, "size": SIZE, "digest": is_digest}),
    "tensors": (0, 1 << 20, [MEMBERS, is_tensor]), "quality?": {"preset": str, "error": is_real}}

def model_id(tensors: list[Any], by_name: Mapping[str, Any], layer: int) -> str:
    """Section 1.2, of the tensors after at most ``layer + 1`` layers (5.2, 5.3)."""
    lines = []
    for record in tensors:
        of = by_name[record.get("of", record["name"])]
        digest = of["base"] if of["op"] == "keep" else of["layers"][: layer + 1][-1]["digest"]
        lines.append(f"{record['name']}\t{record['dtype']}\t{','.join(map(str, record['shape']))}\t{digest}\n")
    return hashlib.sha256("".join(lines).encode()).hexdigest()

def ascending(values: list[Any]) -> bool: return all(a < b for a, b in pairwise(values))

def check_relations(meta: Any) -> None:
    """Section 9, step 7."""
    tensors = meta["tensors"]
    need(ascending([record["name"].encode() for record in tensors]), "order of the tensors")
    need(ascending([file["path"].encode() for file in meta["files"]]), "order of the files")
    paths = [item["path"].encode().lower() for item in meta["shards"] + meta["files"]]
    need(len(set(paths)) == len(paths), "two shards or files have the same path")
    parents = {path[: match.start()] for path in paths for match in re.finditer(b"/", path)}
    need(parents.isdisjoint(paths), "a shard or file is a directory of another")
    by_name = {record["name"]: record for record in tensors}
    for record in tensors:
        need(record["shard"] < len(meta["shards"]), f"{record['name']}: no such shard")
        of = by_name.get(record.get("of", record["name"]), {"op": "alias"})
        need(of["op"] != "alias", f"{record['name']}: alias of none, or of an alias")
        need((of["dtype"], of["shape"]) == (record["dtype"], record["shape"]), f"{record['name']}: another kind")
    depth = max([len(record.get("layers", ())) for record in tensors] + [1])
    need(meta["target"]["ids"] == [model_id(tensors, by_name, k) for k in range(depth)], "target.ids")

# 7. Codecs
def usable_layers(record: Any) -> list[Any]:
    """The layers up to the first that may be skipped because its codec is unknown (section 5.2)."""
    layers: list[Any] = record.get("layers", [])
    may_skip = (k for k, layer in enumerate(layers) if k and layer["codec"] not in STARTS
                and not layer.get("must_understand", True))
    return layers[: next(may_skip, 4)]

def check_codecs(record: Any) -> None:
    """Section 9, step 8, of one tensor."""
    for index, layer in enumerate(usable_layers(record)):
        need(layer["codec"] in STARTS, f"codec {layer['codec']!r} is unknown", Unsupported)
        need((record["op"] if index == 0 else "layer") in STARTS[layer["codec"]], f"{layer['codec']} as layer {index}")
        CODECS[layer["codec"]](layer, record, record.get("base_dtype" if index == 0 else "dtype", record["dtype"]))

class Raw:
    """Section 7.1."""
    def __init__(self, layer: Any, record: Any, _: str) -> None:
        check(layer["params"], {"planes": one_of(1, 2, 4, 8)}, "params")
        self.planes, size = layer["params"]["planes"], math.prod(record["shape"]) * BITS[record["dtype"]] // 8
        need(size % self.planes == 0 and layer["size"] == size, "raw.v1: planes or size")

    def apply(self, payload: bytes, _: bytes) -> bytes:
        return np.frombuffer(payload, np.uint8).reshape(self.planes, -1).T.tobytes()

class OfFloats:
    """What dctq.v1 and ulp.v1 share: types, the view of R x C elements, keys, sparse symbols."""
    def __init__(self, layer: Any, record: Any, base_dtype: str, rules: Any) -> None:
        params, size = layer["params"], math.prod(record["shape"])
        self.dtype, self.base_dtype = record["dtype"], base_dtype
        need({self.dtype, base_dtype} <= STORED_AS.keys(), "element type")
        check(params, {"cols": range(1, 2**48 + 1), "sparse?": (1, 255, range(255)), "row_keys?": one_of(True),
                       "col_keys?": one_of(True), **rules}, "params")
        self.C, self.sparse = params["cols"], params.get("sparse", [])
        need(size >= 1 and size % self.C == 0, "cols does not divide the number of elements")
        need(ascending(self.sparse), "sparse is not ascending")
        self.R = size // self.C
        self.row_keys, self.col_keys = self.R * ("row_keys" in params), self.C * ("col_keys" in params)

    def prediction(self, before: bytes) -> tuple[Array, Array]:
        """The elements as f32, and as bit patterns of the target's type (7.2.3, step 5)."""
        stored = np.frombuffer(before, STORED_AS[self.base_dtype])
        as_f32 = (stored.astype(np.uint32) << 16).view(np.float32) if self.base_dtype == "BF16" else f32(stored)
        same = self.dtype == self.base_dtype
        return as_f32, stored.view(f"<u{stored.itemsize}") if same else rounded(as_f32, self.dtype)

class Payload(io.BytesIO):
    """The sections of a payload, one after the other."""
    def take(self, dtype: str, count: int) -> Array:
        data = self.read(count * np.dtype(dtype).itemsize)
        need(len(data) == count * np.dtype(dtype).itemsize, "payload is too short")
        return np.frombuffer(data, dtype)
    def take_symbols(self, count: int, alphabet: int) -> Array:
        """Section 7.2.4."""
        n = per_byte(max(2, alphabet))
        packed = self.take("u1", dense(count, alphabet)).astype(np.int64)
        need(np.all(packed < alphabet**n), "a byte that holds no symbols")
        symbols = (packed[:, None] // alphabet ** np.arange(n) % alphabet).reshape(-1)
        need(not symbols[count:].any(), "a digit behind the last symbol")
        return symbols[:count] if alphabet > 1 else np.zeros(count, np.int64)
    def take_sparse(self, run_bytes: int, count: int, alphabet: int) -> Array:
        """Section 7.2.5."""
        runs = self.take("u1", run_bytes).astype(np.int64)
        ends = np.cumsum(np.where(runs < 255, runs + 1, 255))
        need(np.all(ends <= count), "runs reach beyond the last symbol")
        symbols, where = np.zeros(count, np.int64), ends[runs < 255] - 1
        symbols[where] = self.take_symbols(len(where), alphabet - 1) + 1
        return symbols

def per_byte(alphabet: int) -> int: return max(n for n in range(1, 9) if alphabet**n <= 256)
def dense(count: int, alphabet: int) -> int: return 0 if alphabet == 1 else -(-count // per_byte(alphabet))

class Dctq(OfFloats):
    """Section 7.2."""
    def __init__(self, layer: Any, record: Any, base_dtype: str) -> None:
        params = layer["params"]
        self.affine = params.get("quantiser") == "affine"
        super().__init__(layer, record, base_dtype, {
            "patch": one_of(8, 16, 32), "transform": one_of("dct", "hadamard", "none"), "rank?": range(1, 257),
            "quantiser": one_of("levels", "affine"),
            "classes": (1, 255, range(1, 128) if self.affine else (1, 255, range(-127, 128)))})
        self.p, self.transform, self.K = params["patch"], params["transform"], params.get("rank", 0)
        self.levels = [list(range(c)) for c in params["classes"]] if self.affine else params["classes"]
        need(all(len(levels) > 1 or levels == [0] for levels in self.levels), "a single level other than 0")
        need(all(len(c) > 1 and c[0] == 0 for n in self.sparse for c in self.levels[n : n + 1] or [[]]), "sparse class")
        self.down, self.across = -(-self.R // self.p), -(-self.C // self.p)
        self.N, self.scales = self.down * self.across, (1 if self.affine else len(self.levels)) + (self.K > 0)
        fixed = 4 * self.scales + 2 * self.K + self.row_keys + self.col_keys + (self.R + self.C) * self.K
        fixed += self.N * (len(self.levels) > 1) + 4 * len(self.sparse)
        m = self.N * self.p**2
        codes = 2 * m if self.sparse else max(dense(m, len(c)) for c in self.levels) + len(self.levels)
        need(fixed <= layer["size"] <= fixed + 4 * self.N * self.affine + codes, "dctq.v1: size is not possible")

    def delta(self, payload: Payload) -> Array:
        """The delta of each element, float32 (R, C): sections 7.2.2 and 7.2.3."""
        take, alphabets = payload.take, np.array([len(levels) for levels in self.levels])
        scales = take("<f4", self.scales)
        need(np.all(np.isfinite(scales) & (scales >= 0)), "a scale")
        multipliers = take("<u2", self.K).astype(np.int64)
        need(multipliers.sum() < 2**17, "sum of the multipliers")
        row_keys, col_keys = take("u1", self.row_keys), take("u1", self.col_keys)
        left, right = (take("i1", n * self.K).reshape(self.K, n).astype(np.int64) for n in (self.R, self.C))
        class_map = take("u1", self.N) if len(alphabets) > 1 else np.zeros(self.N, np.uint8)
        need(np.all(class_map < len(alphabets)), "the class map names no class")
        run_bytes = dict(zip(self.sparse, take("<u4", len(self.sparse)).tolist(), strict=True))
        coded = np.flatnonzero(alphabets[class_map] > 1)
        planes = take("u1", 4 * len(coded) * self.affine).reshape(4, -1).astype(np.uint16)
        minima, steps = ((planes[i] | planes[i + 1] << 8).view(np.float16) for i in (0, 2))
        need(np.all(np.isfinite(minima) & np.isfinite(steps) & (steps >= 0)), "a minimum or a step")

        patches, basis = np.zeros((self.N, self.p, self.p), np.float32), self.basis()
        for c, levels in enumerate(self.levels):
            members, A = np.flatnonzero(class_map == c), len(levels)
            m = len(members) * self.p**2
            symbols = payload.take_sparse(run_bytes[c], m, A) if c in run_bytes else payload.take_symbols(m, A)
            if A == 1: continue
            inverse = basis.T @ np.array(levels)[symbols].reshape(-1, self.p, self.p) @ basis
            if self.affine:
                of_member = np.searchsorted(coded, members)
                step, minimum = (f32(plane[of_member])[:, None, None] for plane in (steps, minima))
                flat = basis.T @ np.ones_like(basis) @ basis
                patches[members] = (f32(inverse) * step + f32(flat) * minimum) * scales[0]
            else:
                patches[members] = f32(inverse) * scales[c]
        need(payload.read(1) == b"", "payload is too long")
        tiled = patches.reshape(self.down, self.across, self.p, self.p).swapaxes(1, 2).reshape(self.down * self.p, -1)
        rows, cols = (np.argsort(keys, kind="stable") if len(keys) else np.arange(size)
                      for keys, size in ((row_keys, self.R), (col_keys, self.C)))
        delta = np.empty((self.R, self.C), np.float32)
        delta[rows[:, None], cols] = tiled[: self.R, : self.C]
        if self.K: delta += f32((left * multipliers[:, None]).T @ right) * scales[-1]
        return delta

    def basis(self) -> Array:
        """B of section 7.2.3, step 2."""
        k, n = np.arange(self.p)[:, None], np.arange(self.p)
        if self.transform == "none": return np.eye(self.p, dtype=np.int64)
        if self.transform == "hadamard": return np.array([[(-1) ** (i & j).bit_count() for j in n] for i in n])
        return np.where(k == 0, 64, np.rint(90 * np.cos(np.pi * (2 * n + 1) * k / (2 * self.p))).astype(np.int64))

    @np.errstate(all="ignore")

    def apply(self, payload: bytes, before: bytes) -> bytes:
        base, unchanged = self.prediction(before)
        delta = self.delta(Payload(payload)).reshape(-1)
        return np.where(delta == 0, unchanged, rounded(base + delta, self.dtype)).tobytes()

def f32(values: Array) -> Array: return values.astype(np.float32)

@np.errstate(all="ignore")
def rounded(values: Array, dtype: str) -> Array:
    """Bit patterns of f32 ``values``, rounded once to nearest even; every NaN is the quiet NaN."""
    bits = values.view(np.uint32)
    if dtype == "BF16": bits = (bits.astype(np.uint64) + 0x7FFF + (bits >> 16 & 1) >> 16).astype(np.uint16)
    if dtype == "F16": bits = values.astype(np.float16).view(np.uint16)
    return np.where(np.isnan(values), bits.dtype.type(QUIET_NAN[dtype]), bits)

class Ulp(OfFloats):
    """Section 7.3."""
    def __init__(self, layer: Any, record: Any, base_dtype: str) -> None:
        params, bits = layer["params"], BITS[record["dtype"]]
        super().__init__(layer, record, base_dtype, {"bounds": (0, 254, range(1, 1527)), "shift?": range(bits - 7)})
        self.bounds, self.s = params["bounds"], params.get("shift", 0)
        need(ascending(self.bounds) and max(self.sparse, default=0) <= len(self.bounds), "bounds, or a sparse group")
        self.W = bits - self.s
        self.m = 3 if self.W <= 16 else 2
        self.A = 2 * (2 ** (self.m + 1) - 1 + (self.W - 1 - self.m) * 2**self.m) + 1  # k = W - 1 - m for 2^W - 1
        fixed, E = self.row_keys + self.col_keys + 4 * len(self.sparse), self.R * self.C
        least, most = (0, 2 * E) if self.sparse else (E, E)
        most -= -E * (self.W - 1 - self.m) // 8  # rounded up
        need(fixed + least <= layer["size"] <= fixed + most, "ulp.v1: size is not possible")

    def apply(self, payload: bytes, before: bytes) -> bytes:
        sections, patterns = Payload(payload), self.prediction(before)[1]
        row_keys, col_keys = sections.take("u1", self.row_keys), sections.take("u1", self.col_keys)
        run_bytes = dict(zip(self.sparse, sections.take("<u4", len(self.sparse)).tolist(), strict=True))
        (F, X), P = EXPONENT[self.dtype], patterns.astype(np.int64)
        context = 4 * (X - np.maximum(1, P >> F & X)).reshape(self.R, self.C)
        if self.row_keys: context += row_keys[:, None]
        if self.col_keys: context += col_keys
        group = np.searchsorted(self.bounds, context.reshape(-1), side="right")
        order = np.argsort(group, kind="stable")  # from here on, arrays are in the order of the payload
        counts = np.bincount(group, minlength=len(self.bounds) + 1).tolist()
        z = np.concatenate([sections.take_sparse(run_bytes[g], count, self.A) if g in run_bytes
                            else sections.take("u1", count).astype(np.int64) for g, count in enumerate(counts)])
        need(z.max() < self.A, "a symbol that is none")
        f = (z + 1) // 2
        k = np.maximum(0, (f >> self.m) - 1)
        bits, b = np.unpackbits(np.frombuffer(sections.read(), np.uint8), bitorder="little").astype(np.int64), k.sum()
        need(len(bits) == -(-b // 8) * 8 and not bits[b:].any(), "number of extra bits, or bits left over")
        x, first = np.zeros_like(k), np.cumsum(k) - k
        for bit in range(k.max()): x[k > bit] += bits[first[k > bit] + bit] << bit
        v = (f - (k << self.m) << k) + x

        p, H = P[order] >> self.s, 2 ** (self.W - 1)  # section 7.3.3
        t = np.where(p < H, p, -1 - (p - H)) + np.where((z % 2 == 1) != (p >= H), -v, v)
        need(np.all((t >= -H) & (t < H)), "a residual leads beyond the patterns")
        target = np.empty_like(patterns)
        target[order] = np.where(t >= 0, t, H + (-1 - t)) << self.s
        return target.tobytes()

CODECS: dict[str, type[Raw | Dctq | Ulp]] = {"raw.v1": Raw, "dctq.v1": Dctq, "ulp.v1": Ulp}
STARTS = {"raw.v1": {"replace"}, "dctq.v1": {"add"}, "ulp.v1": {"add", "layer"}}  # where a codec may stand

# 3., 6., 9. The file, in the order of refusal
class Archive:
    """An open archive, checked up to step 9."""
    def __init__(self, file: io.BufferedIOBase, budget: int, lossy: bool) -> None:
        self._file, self._budget, self._lossy = file, budget, lossy
        actual_size = file.seek(0, io.SEEK_END)
        start = self._read(0, min(64, actual_size))
        damage = ", damaged by a transfer in text mode" if start[:1] == b"\x09" or start[1:4] == b"DDC" else ""
        need(start[:8] == MAGIC[: len(start)], "not a ddct file" + damage)
        need(len(start) == 64, "shorter than its preamble", Truncated)
        (major, _, preamble_size, incompatible, _, file_size, stored_size, raw_size, metadata_crc, table_size,
         table_crc, preamble_crc) = struct.unpack("<8xHHIQQQIIIIII", start)
        need(crc32c(start[:60]) == preamble_crc, "preamble_crc32c", Corrupt)
        need(major == 1, f"major version {major}", Unsupported)
        need(incompatible == 0, f"feature bit {(incompatible & -incompatible).bit_length() - 1}", Unsupported)
        need(preamble_size == 64, "preamble_size")
        need(1 <= stored_size <= raw_size <= 64 * MIB, "sizes of the metadata")
        need(table_size % 8 == 0 and table_size <= 1 << 28, "table_size")
        chunks_start = 64 + stored_size + table_size
        need(chunks_start <= file_size, "metadata and table do not fit in file_size")
        need(actual_size >= (chunks_start if lossy else file_size), f"{actual_size} of {file_size} bytes", Truncated)
        need(actual_size <= file_size, "bytes behind the archive")
        self._afford(stored_size + raw_size + 24 * table_size, "metadata and table")
        stored, table = self._read(64, stored_size), self._read(64 + stored_size, table_size)
        need(crc32c(stored) == metadata_crc, "metadata_crc32c", Corrupt)
        need(crc32c(table) == table_crc, "table_crc32c", Corrupt)
        raw = raw_bytes(stored, raw_size)
        self.metadata: Any = parse_json(raw)
        check(self.metadata, DOCUMENT, "metadata")
        check_relations(self.metadata)
        self.content_id = hashlib.sha256(raw).hexdigest()
        self.records: dict[str, Any] = {record["name"]: record for record in self.metadata["tensors"]}
        for name, record in self.records.items():
            with about(name): check_codecs(record)
        self._locate_chunks(table, chunks_start, file_size)

    def _locate_chunks(self, table: bytes, at: int, file_size: int) -> None:
        """Section 6, and step 9. Of each payload: position, stored size, raw size and crc32c of its chunks."""
        sizes: dict[Any, int] = {(None, i): file["size"] for i, file in enumerate(self.metadata["files"])}
        for k in range(4):
            sizes |= {(n, k): r["layers"][k]["size"] for n, r in self.records.items() if k < len(r.get("layers", ()))}
        chunk_size, entries = self.metadata["chunk_size"], struct.iter_unpack("<II", table)
        need(8 * sum(-(-size // chunk_size) for size in sizes.values()) == len(table), "number of chunks in the table")
        self._chunks: dict[Any, list[tuple[int, int, int, int]]] = {key: [] for key in sizes}
        for key, size in sizes.items():
            for left in range(size, 0, -chunk_size):
                (stored_size, crc), raw_size = next(entries), min(left, chunk_size)
                need(0 < stored_size <= raw_size, "a chunk's stored_size")
                self._chunks[key].append((at, stored_size, raw_size, crc))
                at += stored_size
        need(at == file_size, "the chunks do not fill the file")

    def _read(self, offset: int, size: int) -> bytes:
        self._file.seek(offset)
        data = self._file.read(size)
        need(len(data) == size, f"the file ends within the {size} bytes at {offset}", Truncated)
        return data

    def _afford(self, size: int, what: str) -> None: need(size <= self._budget, f"{size} bytes for {what}", Budget)

    def _payload(self, key: tuple[str | None, int]) -> bytes:
        """Step 11, but for the codec."""
        self._afford(2 * sum(raw_size for _, _, raw_size, _ in self._chunks[key]), "a payload")
        parts = []
        for at, stored_size, raw_size, crc in self._chunks[key]:
            stored = self._read(at, stored_size)
            need(crc32c(stored) == crc, f"chunk at byte {at}: crc32c", Corrupt)
            parts.append(raw_bytes(stored, raw_size))
        return b"".join(parts)

    def layers(self, name: str) -> list[Any]:
        """Those layers of a tensor that are decoded; of the others not even the chunks are read."""
        return usable_layers(self.records[name])[: 1 if self._lossy else 4]

    def side_file(self, index: int) -> bytes:
        """The bytes of ``metadata["files"][index]``."""
        data = self._payload((None, index))
        need(tensor_digest(data) == self.metadata["files"][index]["digest"], "digest of a side file", Corrupt)
        return data

    def check_base(self, name: str, tensor: Tensor | None) -> None:
        """Step 10 for one tensor, given the base tensor of its name, if the base has it."""
        record = self.records[name]
        if "base" in record:
            found = tensor and (tensor[0], list(tensor[1]), tensor_digest(tensor[2]))
            wanted = (record.get("base_dtype", record["dtype"]), record["shape"], record["base"])
            with about(name): need(found == wanted, f"the base tensor is {found}, not {wanted}", BaseMismatch)

    def decode(self, name: str, base: bytes | None = None) -> bytes:
        """The bytes of the target tensor ``name``; ``base`` are those of its base tensor (of what an alias names)."""
        record = self.records[name]
        if record["op"] == "alias": return self.decode(record["of"], base)
        dtype, result = record.get("base_dtype", record["dtype"]), base or b""
        self.check_base(name, None if base is None else (dtype, record["shape"], base))
        with about(name):
            for index, layer in enumerate(self.layers(name)):
                self._afford(64 * math.prod(record["shape"]), "a tensor")
                codec = CODECS[layer["codec"]](layer, record, dtype)
                result, dtype = codec.apply(self._payload((name, index)), result), record["dtype"]
                need(tensor_digest(result) == layer["digest"], f"digest after layer {index}", Corrupt)
        return result

@contextlib.contextmanager
def about(name: str) -> Iterator[None]:
    try: yield
    except DdctError as error:
        error.tensor = error.tensor or name
        raise

@contextlib.contextmanager
def open_archive(source: str | Path | bytes, budget: int = 1 << 30, lossy: bool = False) -> Iterator[Archive]:
    """Opens an archive (steps 1 to 9) for a ``with`` block; ``budget`` bounds each allocation, in bytes. ``lossy``: at
    most the first layer of each tensor, also of a file that ends behind those (section 9)."""
    with io.BytesIO(source) if isinstance(source, bytes) else Path(source).open("rb") as file:
        yield Archive(file, budget, lossy)
