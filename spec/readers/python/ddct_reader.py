"""Reads .ddct archives, version 1. Written from ../../ddct-v1.md; section numbers are of that document.

Plain and slow on purpose: one file, the standard library, numpy and zstandard.
"""
# ruff: noqa: E401, E701, I001, N818, UP014

from __future__ import annotations

import contextlib, hashlib, io, json, math, re, struct, sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import zstandard

# fmt: off
__all__ = ["Archive", "BaseMismatch", "Budget", "Corrupt", "DdctError", "Invalid", "Tensor", "Truncated",
           "Unsupported", "main", "open_archive", "read_safetensors", "tensor_digest"]

class DdctError(Exception):
    """A refusal (section 10); ``tensor`` is the name of the tensor that it is about, if it is about one."""
    tensor: str | None = None

class Corrupt(DdctError): ...
class Truncated(DdctError): ...
class Unsupported(DdctError): ...
class Invalid(DdctError): ...
class BaseMismatch(DdctError): ...
class Budget(DdctError): ...

Tensor = NamedTuple("Tensor", [("dtype", str), ("shape", tuple[int, ...]), ("data", bytes)])  # of the base

Check = Callable[[Any, str], None]
Array = np.ndarray[Any, Any]
MAGIC = bytes.fromhex("89444443540D0A1A")
MIB = 1 << 20
BITS = {"BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "I16": 16, "U16": 16, "F16": 16,
        "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64, "C64": 64}
STORED_AS = {"BF16": "<u2", "F16": "<f2", "F32": "<f4"}
QUIET_NAN = {"BF16": 0x7FC0, "F16": 0x7E00, "F32": 0x7FC00000}
STARTS_FROM_BASE = {"raw.v1": False, "dctq.v1": True}

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
    depth = 0
    try:
        text = raw.decode("utf-8")
        for match in re.finditer(r'"(?:[^"\\]|\\.)*+"?|[\[{]|[]}]', text, re.DOTALL):
            depth += (match[0] in "[{") - (match[0] in "]}")
            need(depth <= 16, "JSON is nested too deep")
        value = json.loads(text, object_pairs_hook=parse_object, parse_int=parse_number, parse_float=parse_number,
                           parse_constant=parse_number)
        json.dumps(value, ensure_ascii=False).encode()
        return value
    except ValueError as error: raise Invalid(f"not strict JSON: {error}") from None  # syntax, UTF-8, lone surrogates

def parse_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    need(len(dict(pairs)) == len(pairs), "duplicate name in a JSON object")
    return dict(pairs)

def parse_number(text: str) -> int | float:
    if re.fullmatch(r"-?\d{1,16}", text) and abs(int(text)) < 2**53: return int(text)
    need(re.search(r"[.eE]", text) and math.isfinite(float(text)), f"number out of range: {text[:40]}")
    return float(text)

def must(condition: Callable[[Any], Any], what: str, error: type[DdctError] = Invalid) -> Check:
    return lambda value, where: need(condition(value), f"{where}: must be {what}", error)

def every(*checks: Check) -> Check:
    def check(value: Any, where: str) -> None:
        for one in checks: one(value, where)
    return check

def obj(required: Mapping[str, Check], optional: Mapping[str, Check] | None = None) -> Check:
    """An object with these members; they are checked in the order of the file, what is missing last."""
    members = {**required, **(optional or {})}
    def check(value: Any, where: str) -> None:
        need(isinstance(value, dict), f"{where}: must be an object")
        for name, member in value.items():
            need(name in members or name.startswith("x-"), f"{where}: unknown name {name!r}")
            members.get(name, EXTENSION)(member, f"{where}.{name}")
        need(required.keys() <= value.keys(), f"{where}: a required name is missing")
    return check

def array(low: int, high: int, element: Check) -> Check:
    def check(value: Any, where: str) -> None:
        need(isinstance(value, list) and low <= len(value) <= high, f"{where}: must be a list of {low} to {high}")
        for index, member in enumerate(value): element(member, f"{where}[{index}]")
    return check

def integer(low: int, high: int) -> Check:
    return must(lambda value: type(value) is int and low <= value <= high, f"an integer in {low} … {high}")

def text(limit: int = 64 * MIB) -> Check:
    return must(lambda value: isinstance(value, str) and len(value.encode()) <= limit, f"a text of {limit} bytes")

def known(values: Iterable[str]) -> Check:
    return every(text(), must(lambda value: value in values, "one that this reader knows", Unsupported))

def one_of(*values: Any) -> Check:
    return must(lambda value: any(type(value) is type(v) and value == v for v in values), f"one of {values}")

def has_fraction(value: Any) -> bool:
    members = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return isinstance(value, float) or any(has_fraction(member) for member in members)

def is_path(value: str) -> bool:
    """Section 5.4, but for the rules that names have too."""
    parts = value.split("/")
    return not re.search(r"[\\:]", value) and all(0 < len(p.encode()) <= 255 and p[-1] not in ". " for p in parts)

EXTENSION = must(lambda value: not has_fraction(value), "without fractions")
OBJECT = must(lambda value: isinstance(value, dict), "an object")
DIGEST = must(lambda value: isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value), "a digest")
NAME = every(text(1024), must(lambda value: re.fullmatch("[^\x00-\x1f\x7f-\x9f]+", value), "of plain characters"))
PATH = every(NAME, must(is_path, "a plain relative path"))
SHARD_PATH = every(PATH, must(lambda value: value.endswith(".safetensors"), "a .safetensors file"))
REAL = must(lambda value: type(value) in (int, float) and value >= 0, "a number of at least 0")
TEXTS = must(lambda v: isinstance(v, dict) and all(isinstance(t, str) for t in v.values()), "an object of texts")
SHAPE = every(array(0, 8, integer(0, 2**53 - 1)),
             must(lambda value: math.prod(max(1, size) for size in value) <= 2**48, "at most 2^48 elements"))
LAYER = obj({"codec": text(), "params": every(OBJECT, EXTENSION), "size": integer(0, 2**48), "digest": DIGEST},
            {"must_understand": one_of(True, False)})
OF_OP = {"add": ({"base", "layers"}, {"base_dtype"}), "replace": ({"layers"}, set()), "keep": ({"base"}, set()),
         "alias": ({"of"}, set())}  # by op: the members that it demands, and those that it allows
MEMBERS = obj({"name": NAME, "dtype": known(BITS), "shape": SHAPE, "shard": integer(0, 2**53 - 1), "op": known(OF_OP)},
              {"base": DIGEST, "base_dtype": known(BITS), "of": NAME, "layers": array(1, 4, LAYER), "error": REAL})

def tensor(value: Any, where: str) -> None:
    """Section 5.1, for one object."""
    MEMBERS(value, where)
    demanded, allowed = OF_OP[value["op"]]
    given = value.keys() & {"base", "base_dtype", "of", "layers"}
    need(demanded <= given <= demanded | allowed, f"{where}: names that do not fit its op")
    need(value.get("base_dtype") != value["dtype"], f"{where}: base_dtype does not differ from dtype")

DOCUMENT = obj(
    {"generator": text(256), "digest": known(["sha256-64k"]), "chunk_size": one_of(*(1 << k for k in range(12, 25))),
     "target": obj({"ids": array(1, 4, DIGEST), "exact_id": DIGEST}),
     "base": obj({"id": DIGEST}, {"hint": obj({}, dict.fromkeys(("repo", "revision", "name"), text(1024)))}),
     "shards": array(0, 65536, obj({"path": SHARD_PATH, "metadata": TEXTS})),
     "files": array(0, 4096, obj({"path": PATH, "size": integer(0, 2**48), "digest": DIGEST})),
     "tensors": array(0, 1 << 20, tensor)},
    {"quality": obj({"preset": text(), "error": REAL})})

def model_id(tensors: list[Any], by_name: Mapping[str, Any], layer: int) -> str:
    """Section 1.2, of the tensors after at most ``layer + 1`` layers (5.2, 5.3)."""
    lines = []
    for record in tensors:
        of = by_name[record.get("of", record["name"])]
        digest = of["base"] if of["op"] == "keep" else of["layers"][: layer + 1][-1]["digest"]
        lines.append(f"{record['name']}\t{record['dtype']}\t{','.join(map(str, record['shape']))}\t{digest}\n")
    return hashlib.sha256("".join(lines).encode()).hexdigest()

def check_relations(meta: Any) -> None:
    """Section 9, step 7."""
    tensors = meta["tensors"]
    need(all(a["name"].encode() < b["name"].encode() for a, b in pairwise(tensors)), "order of the tensors")
    need(all(a["path"].encode() < b["path"].encode() for a, b in pairwise(meta["files"])), "order of the files")
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
    ids = [model_id(tensors, by_name, k) for k in range(depth)]
    need(meta["target"]["ids"] == ids, "target.ids do not follow from the tensors")

# 7. Codecs
def usable_layers(record: Any) -> list[Any]:
    """The layers up to the first that may be skipped because its codec is unknown (section 5.2)."""
    layers: list[Any] = record.get("layers", [])
    unknown = (index for index, layer in enumerate(layers) if layer["codec"] not in STARTS_FROM_BASE)
    return layers[: next((i for i in unknown if i > 0 and not layers[i].get("must_understand", True)), 4)]

def check_codecs(record: Any) -> None:
    """Section 9, step 8, of one tensor."""
    size = math.prod(record["shape"])
    for index, layer in enumerate(usable_layers(record)):
        need(layer["codec"] in STARTS_FROM_BASE, f"codec {layer['codec']!r} is unknown", Unsupported)
        from_base, params = STARTS_FROM_BASE[layer["codec"]], layer["params"]
        need(index == 0 and from_base == (record["op"] == "add"), f"{layer['codec']} as layer {index}")
        if from_base:
            need({record["dtype"], record.get("base_dtype", record["dtype"])} <= STORED_AS.keys(), "element type")
            Delta(params, size).check_size(layer["size"])
        else:
            obj({"planes": one_of(1, 2, 4, 8)})(params, "params")
            nbytes = size * BITS[record["dtype"]] // 8
            need(nbytes % params["planes"] == 0 and layer["size"] == nbytes, "raw.v1: planes or size")

def per_byte(alphabet: int) -> int: return max(n for n in range(1, 9) if alphabet**n <= 256)

def dense(count: int, alphabet: int) -> int: return 0 if alphabet == 1 else -(-count // per_byte(alphabet))

class Delta:
    """Section 7.2: the checked parameters of a dctq.v1 layer on a tensor of ``size`` elements."""

    def __init__(self, params: Any, size: int) -> None:
        self.affine = params.get("quantiser") == "affine"
        class_ = integer(1, 127) if self.affine else array(1, 255, integer(-127, 127))
        obj({"cols": integer(1, 2**48), "patch": one_of(8, 16, 32), "transform": one_of("dct", "hadamard", "none"),
             "quantiser": one_of("levels", "affine"), "classes": array(1, 255, class_)},
            {"sparse": array(1, 255, integer(0, 254)), "rank": integer(1, 256), "row_keys": one_of(True),
             "col_keys": one_of(True)})(params, "params")
        self.p, self.transform = params["patch"], params["transform"]
        self.C, self.K = params["cols"], params.get("rank", 0)
        need(size >= 1 and size % self.C == 0, "cols does not divide the number of elements")
        self.levels = [list(range(c)) for c in params["classes"]] if self.affine else params["classes"]
        need(all(len(levels) > 1 or levels == [0] for levels in self.levels), "a single level other than 0")
        self.sparse = params.get("sparse", [])
        need(all(a < b for a, b in pairwise(self.sparse)), "sparse is not ascending")
        need(all(len(c) > 1 and c[0] == 0 for n in self.sparse for c in self.levels[n : n + 1] or [[]]), "sparse class")
        self.R = size // self.C
        self.row_keys, self.col_keys = self.R * ("row_keys" in params), self.C * ("col_keys" in params)
        self.down, self.across = -(-self.R // self.p), -(-self.C // self.p)
        self.N, self.scales = self.down * self.across, (1 if self.affine else len(self.levels)) + (self.K > 0)

    def check_size(self, size: int) -> None:
        """Section 7.2.2, last paragraph."""
        fixed = 4 * self.scales + 2 * self.K + self.row_keys + self.col_keys + (self.R + self.C) * self.K
        fixed += self.N * (len(self.levels) > 1) + 4 * len(self.sparse)
        m = self.N * self.p**2
        codes = 2 * m if self.sparse else max(dense(m, len(c)) for c in self.levels) + len(self.levels)
        need(fixed <= size <= fixed + 4 * self.N * self.affine + codes, "dctq.v1: size is not possible")

    def decode(self, payload: bytes) -> Array:
        """The delta of each element, float32 (R, C): sections 7.2.2 to 7.2.5."""
        stream = io.BytesIO(payload)

        def take(dtype: str, count: int) -> Array:
            data = stream.read(count * np.dtype(dtype).itemsize)
            need(len(data) == count * np.dtype(dtype).itemsize, "payload is too short")
            return np.frombuffer(data, dtype)

        def take_symbols(count: int, alphabet: int) -> Array:  # 7.2.4
            n = per_byte(max(2, alphabet))
            packed = take("u1", dense(count, alphabet)).astype(np.int64)
            need(np.all(packed < alphabet**n), "a byte that holds no symbols")
            symbols = (packed[:, None] // alphabet ** np.arange(n) % alphabet).reshape(-1)
            need(not symbols[count:].any(), "a digit behind the last symbol")
            return symbols[:count] if alphabet > 1 else np.zeros(count, np.int64)

        def take_sparse(run_bytes: int, count: int, alphabet: int) -> Array:  # 7.2.5
            runs = take("u1", run_bytes).astype(np.int64)
            ends = np.cumsum(np.where(runs < 255, runs + 1, 255))
            need(np.all(ends <= count), "runs reach beyond the last symbol")
            symbols, where = np.zeros(count, np.int64), ends[runs < 255] - 1
            symbols[where] = take_symbols(len(where), alphabet - 1) + 1
            return symbols

        alphabets = np.array([len(levels) for levels in self.levels])
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
            members = np.flatnonzero(class_map == c)
            m = len(members) * self.p**2
            symbols = take_sparse(run_bytes[c], m, len(levels)) if c in run_bytes else take_symbols(m, len(levels))
            if len(levels) == 1: continue
            inverse = basis.T @ np.array(levels)[symbols].reshape(-1, self.p, self.p) @ basis
            if self.affine:
                of_member = np.searchsorted(coded, members)
                step, minimum = (plane[of_member].astype(np.float32)[:, None, None] for plane in (steps, minima))
                flat = basis.T @ np.ones_like(basis) @ basis
                patches[members] = (f32(inverse) * step + f32(flat) * minimum) * scales[0]
            else:
                patches[members] = f32(inverse) * scales[c]
        need(stream.read(1) == b"", "payload is too long")

        tiled = patches.reshape(self.down, self.across, self.p, self.p).swapaxes(1, 2).reshape(self.down * self.p, -1)
        rows, cols = (np.argsort(keys, kind="stable") if len(keys) else np.arange(size)
                      for keys, size in ((row_keys, self.R), (col_keys, self.C)))
        delta = np.empty((self.R, self.C), np.float32)
        delta[rows[:, None], cols] = tiled[: self.R, : self.C]
        return delta + f32((left * multipliers[:, None]).T @ right) * scales[-1] if self.K else delta

    def basis(self) -> Array:
        """B of section 7.2.3, step 2."""
        if self.transform == "none": return np.eye(self.p, dtype=np.int64)
        k, n = np.arange(self.p)[:, None], np.arange(self.p)
        if self.transform == "hadamard":
            return np.array([[(-1) ** (i & j).bit_count() for j in range(self.p)] for i in range(self.p)])
        return np.where(k == 0, 64, np.rint(90 * np.cos(np.pi * (2 * n + 1) * k / (2 * self.p))).astype(np.int64))

def f32(values: Array) -> Array: return values.astype(np.float32)

def rounded(values: Array, dtype: str) -> Array:
    """Bit patterns of f32 ``values``, rounded once to nearest even; every NaN is the quiet NaN."""
    bits = values.view(np.uint32)
    if dtype == "BF16": bits = (bits.astype(np.uint64) + 0x7FFF + (bits >> 16 & 1) >> 16).astype(np.uint16)
    if dtype == "F16": bits = values.astype(np.float16).view(np.uint16)
    return np.where(np.isnan(values), bits.dtype.type(QUIET_NAN[dtype]), bits)

@np.errstate(all="ignore")
def apply_layer(layer: Any, payload: bytes, before: bytes, from_dtype: str, dtype: str) -> bytes:
    """The tensor after one layer; ``before`` holds elements of ``from_dtype``."""
    if layer["codec"] == "raw.v1":
        return np.frombuffer(payload, np.uint8).reshape(layer["params"]["planes"], -1).T.tobytes()
    stored = np.frombuffer(before, STORED_AS[from_dtype])
    base = (stored.astype(np.uint32) << 16).view(np.float32) if from_dtype == "BF16" else f32(stored)
    delta = Delta(layer["params"], len(base)).decode(payload).reshape(-1)
    result = rounded(base + delta, dtype)
    unchanged = stored.view(result.dtype) if from_dtype == dtype else rounded(base, dtype)
    return np.where(delta == 0, unchanged, result).tobytes()

# 3., 6., 9. The file, in the order of refusal
class Archive:
    """An open archive, checked up to step 9."""

    def __init__(self, file: io.BufferedIOBase, budget: int) -> None:
        self._file, self._budget = file, budget
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
        need(actual_size >= file_size, f"{actual_size} of {file_size} bytes", Truncated)
        need(actual_size == file_size, "bytes behind the archive")
        self._afford(stored_size + raw_size + 24 * table_size, "metadata and table")
        stored, table = self._read(64, stored_size), self._read(64 + stored_size, table_size)
        need(crc32c(stored) == metadata_crc, "metadata_crc32c", Corrupt)
        need(crc32c(table) == table_crc, "table_crc32c", Corrupt)
        raw = raw_bytes(stored, raw_size)
        self.metadata: Any = parse_json(raw)
        DOCUMENT(self.metadata, "metadata")
        check_relations(self.metadata)
        self.content_id = hashlib.sha256(raw).hexdigest()
        self.records: dict[str, Any] = {record["name"]: record for record in self.metadata["tensors"]}
        self.names = list(self.records)
        for name, record in self.records.items():
            with about(name): check_codecs(record)
        self._locate_chunks(table, chunks_start, file_size)

    def _locate_chunks(self, table: bytes, at: int, file_size: int) -> None:
        """Section 6, and step 9. Of each payload: position, stored size, raw size and crc32c of its chunks."""
        sizes: list[tuple[Any, int]] = [((None, i), file["size"]) for i, file in enumerate(self.metadata["files"])]
        sizes += [((name, k), record["layers"][k]["size"]) for k in range(4) for name, record in self.records.items()
                  if k < len(record.get("layers", ()))]
        chunk_size, entries = self.metadata["chunk_size"], struct.iter_unpack("<II", table)
        need(8 * sum(-(-size // chunk_size) for _, size in sizes) == len(table), "number of chunks in the table")
        self._chunks: dict[Any, list[tuple[int, int, int, int]]] = {}
        for key, size in sizes:
            self._chunks[key] = []
            for left in range(size, 0, -chunk_size):
                stored_size, crc = next(entries)
                need(0 < stored_size <= min(left, chunk_size), "a chunk's stored_size")
                self._chunks[key].append((at, stored_size, min(left, chunk_size), crc))
                at += stored_size
        need(at == file_size, "the chunks do not fill the file")

    def _read(self, offset: int, size: int) -> bytes:
        self._file.seek(offset)
        data = self._file.read(size)
        need(len(data) == size, "the file became shorter", Truncated)
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

    def skipped(self, name: str) -> int:
        """How many layers of a tensor this reader skips."""
        return len(self.records[name].get("layers", ())) - len(usable_layers(self.records[name]))

    def side_file(self, index: int) -> bytes:
        """The bytes of ``metadata["files"][index]``."""
        data = self._payload((None, index))
        need(tensor_digest(data) == self.metadata["files"][index]["digest"], "digest of a side file", Corrupt)
        return data

    def check_base(self, name: str, tensor: Tensor | None) -> None:
        """Step 10 for one tensor, given the base tensor of its name, if the base has it."""
        record = self.records[name]
        if "base" in record:
            found = tensor and (tensor.dtype, list(tensor.shape), tensor_digest(tensor.data))
            wanted = (record.get("base_dtype", record["dtype"]), record["shape"], record["base"])
            need(found == wanted, f"the base tensor is {found}, not {wanted}", BaseMismatch)

    def decode(self, name: str, base_bytes: bytes | None = None) -> bytes:
        """The bytes of the target tensor ``name``, checked; ``base_bytes`` are those of its base tensor.

        Needed for ``add`` and ``keep``; for an alias, they are those of the base tensor of what it names.
        """
        record = self.records[name]
        if record["op"] == "alias": return self.decode(record["of"], base_bytes)
        with about(name):
            dtype, elements = record.get("base_dtype", record["dtype"]), math.prod(record["shape"])
            self.check_base(name, None if base_bytes is None else Tensor(dtype, record["shape"], base_bytes))
            result = base_bytes or b""
            for index, layer in enumerate(usable_layers(record)):
                self._afford(64 * elements, "a tensor")
                result = apply_layer(layer, self._payload((name, index)), result, dtype, record["dtype"])
                need(tensor_digest(result) == layer["digest"], f"digest after layer {index}", Corrupt)
                dtype = record["dtype"]
            return result

    def verify(self, base_tensors: Mapping[str, Tensor]) -> dict[str, str]:
        """Decodes all side files and tensors (steps 10 to 12); returns the digest of each tensor."""
        for name in self.names:
            with about(name): self.check_base(name, base_tensors.get(name))
        for index in range(len(self.metadata["files"])): self.side_file(index)
        bases = {name: base_tensors.get(record.get("of", name)) for name, record in self.records.items()}
        return {name: tensor_digest(self.decode(name, base and base.data)) for name, base in bases.items()}

@contextlib.contextmanager
def about(name: str) -> Iterator[None]:
    try:
        yield
    except DdctError as error:
        error.tensor = error.tensor or name
        raise

@contextlib.contextmanager
def open_archive(source: str | Path | bytes, budget: int = 1 << 30) -> Iterator[Archive]:
    """Opens an archive (steps 1 to 9) for a ``with`` block; ``budget`` bounds each allocation, in bytes."""
    with io.BytesIO(source) if isinstance(source, bytes) else Path(source).open("rb") as file:
        yield Archive(file, budget)

def read_safetensors(data: bytes) -> dict[str, Tensor]:
    """The tensors of a safetensors file without gaps; ValueError if it is not one."""
    size = int.from_bytes(data[:8], "little")
    header, body, tensors, end = json.loads(data[8 : 8 + size]), data[8 + size :], {}, 0
    header.pop("__metadata__", None)
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        start, stop = entry["data_offsets"]
        if start != end or (stop - start) * 8 != math.prod(entry["shape"]) * BITS[entry["dtype"]]:
            raise ValueError(f"{name}: data_offsets")
        tensors[name], end = Tensor(entry["dtype"], tuple(entry["shape"]), body[start:stop]), stop
    if end != len(body): raise ValueError("bytes that belong to no tensor")
    return tensors

def status_of(error: DdctError) -> str: return re.sub("(?<=[a-z])(?=[A-Z])", "-", type(error).__name__).lower()

def main(arguments: list[str]) -> int:
    """``conform ARCHIVE [BASE.safetensors]``: one line of JSON; every conforming reader prints the same but reasons."""
    if len(arguments) not in (2, 3) or arguments[0] != "conform":
        sys.exit("usage: ddct_reader.py conform ARCHIVE [BASE.safetensors]")
    base = read_safetensors(Path(arguments[2]).read_bytes()) if len(arguments) == 3 else {}
    try:
        with open_archive(arguments[1]) as archive:
            report: dict[str, Any] = {"status": "ok", "tensors": archive.verify(base)}
    except DdctError as error:
        report = {"status": status_of(error), "tensor": error.tensor, "reason": str(error)}
    print(json.dumps(report))
    return 0

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
