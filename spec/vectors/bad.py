"""The archives that a reader must refuse: one per line of the rules of sections 3 to 7, checksums matching."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from typing import Any

from bad_dctq import dctq_params, dctq_payloads
from good import params
from pieces import Base, Case, Made, Stream, Vector, add, archive, forge, keep, replace

__all__ = ["bad_vectors"]

MIB = 1 << 20


def _raw(document: Any) -> bytes:
    return json.dumps(document, ensure_ascii=False).encode()


def _hello() -> Made:
    return replace("t", "U8", (5,), b"hello")


def _valid() -> bytes:
    return archive([_hello()])


def _preamble() -> Iterator[Case]:
    good = _valid()
    yield "empty", "truncated", b""
    yield "short-7", "truncated", good[:7]
    yield "short-63", "truncated", good[:63]
    yield "short-other-magic", "invalid", b"PK\3\4"
    yield "magic", "invalid", b"\x88" + good[1:]
    yield "magic-7-bit", "invalid", bytes(byte & 127 for byte in good)
    yield "magic-crlf-to-lf", "invalid", good.replace(b"\r\n", b"\n")
    yield "magic-lf-to-crlf", "invalid", good.replace(b"\n", b"\r\n")
    yield "preamble-crc", "corrupt", good[:50] + bytes([good[50] ^ 1]) + good[51:]
    yield "preamble-crc-before-major", "corrupt", good[:8] + b"\2" + good[9:]
    yield "truncated-by-1", "truncated", good[:-1]
    yield "truncated-to-64", "truncated", good[:64]
    yield "byte-appended", "invalid", good + b"\0"
    yield "zip-appended", "invalid", good + b"PK\5\6" + bytes(18)
    cases: list[tuple[str, str, dict[str, Any]]] = [
        ("major-0", "unsupported", {"major": 0}),
        ("major-2", "unsupported", {"major": 2}),
        ("major-2-and-all-else-wrong", "unsupported", {"major": 2, "preamble_size": 80, "metadata_raw_size": 0}),
        ("feature-0", "unsupported", {"incompatible": 1}),
        ("feature-63", "unsupported", {"incompatible": 1 << 63, "preamble_size": 80}),
        ("preamble-size", "invalid", {"preamble_size": 128}),
        ("metadata-stored-size-0", "invalid", {"metadata_stored_size": 0}),
        ("metadata-raw-size-0", "invalid", {"metadata_raw_size": 0}),
        ("metadata-raw-below-stored", "invalid", {"metadata_raw_size": 100}),
        ("metadata-stored-size-large", "invalid", {"metadata_stored_size": 64 * MIB + 1, "file_size": 1 << 30}),
        ("metadata-raw-size-large", "invalid", {"metadata_raw_size": 64 * MIB + 1}),
        ("table-size-7", "invalid", {"table_size": 7}),
        ("table-size-large", "invalid", {"table_size": 2**28 + 8, "file_size": 1 << 30}),
        ("table-size-beyond-file", "invalid", {"table_size": 2**20}),
        ("file-size-small", "invalid", {"file_size": 65}),
        ("file-size-2-64", "truncated", {"file_size": 2**64 - 1}),
        ("metadata-crc", "corrupt", {"metadata_crc32c": 1}),
        ("table-crc", "corrupt", {"table_crc32c": 1}),
    ]
    for name, status, fields in cases:
        yield name, status, archive([_hello()], **fields)
    yield "metadata-crc-before-json", "corrupt", forge.archive(b"nonsense", metadata_crc32c=1)


def _frames() -> Iterator[Case]:
    """Stored bytes that do not stand for 100 zero bytes, as a chunk and as the metadata's."""
    block, frame = forge.rle_block, forge.frame
    fine = frame(block(0, 100), content_size=100)
    for name, status, stored in [
        ("zeros", "invalid", bytes(99)),
        ("one-byte", "invalid", b"\x28"),
        ("header-cut", "invalid", fine[:7]),
        ("two-frames", "invalid", fine + fine),
        ("byte-behind", "invalid", fine + b"\0"),
        ("skippable", "invalid", b"\x50\x2a\x4d\x18\4\0\0\0abcd"),
        ("skippable-before", "invalid", b"\x50\x2a\x4d\x18\0\0\0\0" + fine),
        ("skippable-behind", "invalid", fine + b"\x50\x2a\x4d\x18\0\0\0\0"),
        ("dictionary", "invalid", frame(block(0, 100), content_size=100, dictionary=7)),
        ("window", "invalid", frame(block(0, 100), content_size=100, window_byte=13 << 3 | 1)),
        ("window-largest", "invalid", frame(block(0, 100), content_size=100, window_byte=255)),
        ("no-content-size", "invalid", frame(block(0, 100), content_size=None, window_byte=0)),
        ("content-size-below", "invalid", frame(block(0, 100), content_size=99)),
        ("bomb", "invalid", frame(block(0, 2**17), content_size=2**31)),
        ("reserved-bit", "invalid", frame(block(0, 100), content_size=100, reserved_bit=True)),
        ("yields-less", "corrupt", frame(block(0, 99), content_size=100)),
        ("yields-more", "corrupt", frame(block(0, 101), content_size=100)),
        ("no-last-block", "corrupt", frame(block(0, 100, last=False), content_size=100)),
        ("cut-in-block", "corrupt", fine[:-1]),
        ("reserved-block", "corrupt", frame(b"\x27\3\0", content_size=100)),
        ("damaged", "corrupt", frame(b"\x2d\0\0\xff\xff\xff\xff\xff", content_size=100)),
    ]:
        yield f"chunk-{name}", status, archive([replace("t", "U8", (100,), bytes(100))], chunks=[stored])
        yield f"metadata-frame-{name}", status, forge.archive(bytes(100), stored_metadata=stored)
    yield "chunk-crc", "corrupt", _valid()[:-1] + b"?"


def _json() -> Iterator[Case]:
    text = _raw(forge.document(_hello().record)).decode()
    for name, old, new in [
        ("duplicate-top", '"digest"', '"digest": "sha256-64k", "digest"'),
        ("duplicate-deep", '"path"', '"path": "model.safetensors", "path"'),
        ("duplicate-escaped", '"digest"', '"dig\\u0065st": "sha256-64k", "digest"'),
        ("duplicate-in-extension", '"digest"', '"x-a": {"b": 1, "b": 1}, "digest"'),
        ("duplicate-extension", '"digest"', '"x-a": 1, "x-a": 1, "digest"'),
        ("duplicate-in-params", '"planes": 1', '"planes": 1, "planes": 1'),
        ("nan", '"size": 5', '"size": NaN'),
        ("infinity", '"planes": 1', '"planes": 1, "x-a": Infinity'),
        ("nan-in-extension", '"digest"', '"x-a": [NaN], "digest"'),
        ("fraction", '"size": 5', '"size": 5.0'),
        ("exponent", '"size": 5', '"size": 5e0'),
        ("fraction-in-extension", '"digest"', '"x-a": 0.5, "digest"'),
        ("integer-minus-2-53", '"digest"', '"x-a": -9007199254740992, "digest"'),
        ("error-infinite", '"shard": 0', '"shard": 0, "error": 1e400'),
        ("fraction-in-params", '"planes": 1', '"planes": 1.0'),
        ("bool-for-integer", '"shard": 0', '"shard": false'),
        ("text-for-integer", '"size": 5', '"size": "5"'),
        ("integer-30-digits", '"size": 5', '"size": 500000000000000000000000000000'),
        ("integer-5000-digits", '"size": 5', '"size": 5' + "0" * 5000),
        ("integer-2-53", '"digest"', '"x-a": 9007199254740992, "digest"'),
        ("negative", '"shard": 0', '"shard": -1'),
        ("leading-zero", '"size": 5', '"size": 05'),
        ("plus", '"size": 5', '"size": +5'),
        ("hexadecimal", '"size": 5', '"size": 0x5'),
        ("error-negative-exponent", '"shard": 0', '"shard": 0, "error": -1e-2'),
        ("lone-surrogate", '"forge"', '"\\ud800"'),
        ("lone-low-surrogate", '"forge"', '"\\udc00x"'),
        ("surrogates-reversed", '"forge"', '"\\udc00\\ud800"'),
        ("lone-surrogate-name", '"digest"', '"x-\\ud800": 1, "digest"'),
        ("control-character", '"forge"', '"for\nge"'),
        ("bad-escape", '"forge"', '"\\x41"'),
        ("comma", '"pt"}', '"pt",}'),
        ("comment", '"digest"', '/* */ "digest"'),
        ("single-quotes", '"forge"', "'forge'"),
        ("depth-17", '"digest"', '"x-a": ' + "[" * 16 + "]" * 16 + ', "digest"'),
    ]:
        assert old in text, old
        raw = text.replace(old, new, 1).encode()
        yield f"json-{name}", "invalid", forge.archive(raw, [b"hello"])
    for name, raw in [
        ("depth-bomb", b"[" * 20_000),
        ("depth-bomb-objects", b'{"x-":' * 4_000),
        ("string-bomb", b'"' + b'\\"' * 10_000),
        ("byte-order-mark", b"\xef\xbb\xbf" + text.encode()),
        ("utf-16", text.encode("utf-16-le")),
        ("utf-8-overlong", text.encode().replace(b"forge", b"for\xc0\xaf")),
        ("utf-8-cut", text.encode().replace(b"forge", b"forg\xc3")),
        ("utf-8-surrogate", text.encode().replace(b"forge", b"\xed\xa0\x80")),
        ("nul", text.encode() + b"\0"),
        ("two-values", text.encode() * 2),
        ("cut", text.encode()[:-1]),
        ("space-only", b" "),
        ("array", b"[]"),
        ("null", b"null"),
    ]:
        yield f"json-{name}", "invalid", forge.archive(raw, [b"hello"])


def _document() -> Iterator[Case]:
    """Documents changed in one place: every name missing, unknown or of a wrong kind, and every rule broken."""
    hello, kept = _hello(), keep("k", ("U8", (2,), b"ab"))
    added, alias = add("a", params()), {"name": "z", "dtype": "U8", "shape": [5], "shard": 0, "op": "alias", "of": "t"}
    extra = {"quality": {"preset": "p", "error": 0.5}}
    start = forge.document(
        added.record, kept.record, hello.record, alias, files=[forge.file("c", b"c"), forge.file("d", b"d")], **extra
    )
    start["base"]["hint"] = {"repo": "r"}
    chunks = [b"c", b"d", added.payloads[0], b"hello"]
    places: dict[str, Callable[[Any], Any]] = {
        "top": lambda d: d,
        "base": lambda d: d["base"],
        "hint": lambda d: d["base"]["hint"],
        "target": lambda d: d["target"],
        "shard": lambda d: d["shards"][0],
        "file": lambda d: d["files"][0],
        "quality": lambda d: d["quality"],
        "add": lambda d: d["tensors"][0],
        "keep": lambda d: d["tensors"][1],
        "replace": lambda d: d["tensors"][2],
        "alias": lambda d: d["tensors"][3],
        "layer": lambda d: d["tensors"][2]["layers"][0],
        "params": lambda d: d["tensors"][2]["layers"][0]["params"],
    }

    def changed(place: str, name: str, value: Any) -> bytes:
        document = copy.deepcopy(start)
        places[place](document)[name] = value
        if name == "layers" and value:
            ids = forge.model_ids(document["tensors"])[:4]
            document["target"] = {"ids": ids, "exact_id": ids[-1]}
        return forge.archive(document, chunks)

    def without(place: str, name: str) -> bytes:
        document = copy.deepcopy(start)
        del places[place](document)[name]
        return forge.archive(document, chunks)

    optional = {"quality", "hint", "repo"}
    for place, find in places.items():
        yield f"unknown-name-{place}", "invalid", changed(place, "y-unknown", 1)
        for name in find(start):
            if name not in optional:
                yield f"missing-{place}-{name}", "invalid", without(place, name)
            if place in ("top", "target", "shard", "file", "replace", "layer"):
                yield f"null-{place}-{name}", "invalid", changed(place, name, None)
    f64 = "f" * 64
    changes: list[tuple[str, str, str, Any]] = [
        ("generator-long", "top", "generator", "g" * 257),
        ("chunk-size-odd", "top", "chunk_size", 5000),
        ("chunk-size-small", "top", "chunk_size", 2048),
        ("chunk-size-large", "top", "chunk_size", 32 * MIB),
        ("base-id-upper-case", "base", "id", "B" * 64),
        ("base-id-short", "base", "id", "b" * 63),
        ("hint-long", "hint", "repo", "r" * 1025),
        ("ids-empty", "target", "ids", []),
        ("ids-wrong", "target", "ids", [f64]),
        ("ids-too-many", "target", "ids", start["target"]["ids"] * 2),
        ("ids-five", "target", "ids", [f64] * 5),
        ("shards-none", "top", "shards", []),
        ("shards-duplicate", "top", "shards", start["shards"] * 2),
        ("shard-metadata-number", "shard", "metadata", {"x-a": 1}),
        ("shard-suffix", "shard", "path", "model.bin"),
        ("files-unsorted", "top", "files", start["files"][::-1]),
        ("files-duplicate", "top", "files", start["files"][:1] * 2),
        ("files-case", "top", "files", [forge.file("D", b"c"), forge.file("d", b"d")]),
        ("file-below-file", "top", "files", [forge.file("d", b"c"), forge.file("d/e", b"d")]),
        ("file-below-file-case", "top", "files", [forge.file("D", b"c"), forge.file("d/e", b"d")]),
        ("file-below-shard", "file", "path", "Model.safetensors/a"),
        ("base-dtype-same", "add", "base_dtype", "BF16"),
        ("path-of-file-and-shard", "file", "path", "MODEL.safetensors"),
        ("file-size-large", "file", "size", 2**48 + 1),
        ("quality-negative", "quality", "error", -0.5),
        ("name-empty", "replace", "name", ""),
        ("name-long", "replace", "name", "t" * 1025),
        ("name-long-utf8", "replace", "name", "ä" * 513),
        ("name-nul", "replace", "name", "t\0"),
        ("name-delete", "replace", "name", "t\x7f"),
        ("name-c1-control", "replace", "name", "t\x85"),
        ("name-duplicate", "replace", "name", "k"),
        ("name-unsorted", "replace", "name", "b"),
        ("rank-9", "replace", "shape", [1] * 8 + [5]),
        ("shape-overflow", "replace", "shape", [2**32, 2**32]),
        ("shape-2-48", "keep", "shape", [2**47, 3]),
        ("shape-zero-beside-huge", "keep", "shape", [0, 2**48, 2]),
        ("shape-negative", "replace", "shape", [-5]),
        ("shard-index", "replace", "shard", 1),
        ("shard-index-2-32", "replace", "shard", 2**32),
        ("error-negative", "replace", "error", -1),
        ("error-text", "replace", "error", "0"),
        ("add-with-of", "add", "of", "t"),
        ("replace-with-base", "replace", "base", f64),
        ("replace-with-base-dtype", "replace", "base_dtype", "F32"),
        ("keep-with-layers", "keep", "layers", start["tensors"][2]["layers"]),
        ("keep-with-base-dtype", "keep", "base_dtype", "F32"),
        ("alias-with-base", "alias", "base", f64),
        ("alias-missing", "alias", "of", "nobody"),
        ("alias-self", "alias", "of", "z"),
        ("alias-of-other-shape", "alias", "of", "k"),
        ("alias-dtype", "alias", "dtype", "I8"),
        ("alias-shape", "alias", "shape", [1, 5]),
        ("layers-none", "replace", "layers", []),
        ("layers-five", "replace", "layers", start["tensors"][2]["layers"] * 5),
        ("layer-size-large", "layer", "size", 2**48 + 1),
        ("layer-size-other", "layer", "size", 6),
        ("must-understand-number", "layer", "must_understand", 0),
        ("codec-of-add", "add", "layers", start["tensors"][2]["layers"]),
        ("codec-of-replace", "replace", "layers", start["tensors"][0]["layers"]),
        ("planes-3", "params", "planes", 3),
        ("planes-16", "params", "planes", 16),
        ("planes-no-divisor", "params", "planes", 2),
        ("planes-true", "params", "planes", True),
    ]
    for name, place, member, value in changes:
        yield name, "invalid", changed(place, member, value)
    for name, place, member, value in [
        ("digest-name", "top", "digest", "blake3"),
        ("dtype", "replace", "dtype", "F4"),
        ("base-dtype", "add", "base_dtype", "F4"),
        ("op", "replace", "op", "drop"),
    ]:
        yield f"unknown-{name}", "unsupported", changed(place, member, value)
    document = copy.deepcopy(start)
    document["tensors"][1] = {"layers": [hello.record["layers"][0]]} | kept.record | {"dtype": "F4"}
    yield "order-members-of-op-last", "unsupported", forge.archive(document, chunks)
    document["tensors"][1] = {"unknown": 1} | kept.record | {"dtype": "F4"}
    yield "order-unknown-name-first", "invalid", forge.archive(document, chunks)
    document["tensors"][1] = {"name": "k", "dtype": "F4"}
    yield "order-missing-name-last", "unsupported", forge.archive(document, chunks)
    document["tensors"][1] = kept.record | {"dtype": "F4"}
    document["shards"] = document["shards"] * 2
    yield "order-objects-before-relations", "unsupported", forge.archive(document, chunks)
    for name, path in [
        ("parent", "../a"), ("parent-inside", "a/../b"), ("absolute", "/a"), ("double-slash", "a//b"),
        ("slash-at-end", "a/"), ("dot", "./a"), ("dot-alone", "."), ("backslash", "a\\b"), ("drive", "C:a"),
        ("dot-at-end", "a./b"), ("space-at-end", "a "), ("nul", "a\0b"), ("newline", "a\n"), ("c1", "a\x9fb"),
        ("component-256", "a" * 256), ("long", "/".join(["a" * 200] * 6)), ("empty", ""),
    ]:  # fmt: skip
        yield f"path-{name}", "invalid", changed("file", "path", path)
    cycle = [
        {"name": one, "dtype": "U8", "shape": [5], "shard": 0, "op": "alias", "of": other}
        for one, other in [("p", "q"), ("q", "p")]
    ]
    yield "alias-cycle", "invalid", forge.archive(forge.document(*cycle, target={"ids": [f64], "exact_id": f64}))


def _layers() -> Iterator[Case]:
    def layered(**changes: Any) -> bytes:
        made = _hello()
        made.record["layers"][0].update(changes)
        return archive([made])

    def second(layer: dict[str, Any]) -> bytes:
        made = add("t", params())
        made.record["layers"].append(layer)
        return archive([Made(made.record, (*made.payloads, b"?" * layer["size"]), None, b"")])

    future: dict[str, Any] = {"codec": "future.v9", "params": {}, "size": 3, "digest": "e" * 64}
    yield "codec-unknown", "unsupported", layered(codec="raw.v2")
    yield "codec-unknown-first-may-be-skipped", "unsupported", layered(codec="raw.v2", must_understand=False)
    yield "codec-unknown-second", "unsupported", second(future)
    yield "codec-unknown-second-explicit", "unsupported", second(future | {"must_understand": True})
    yield "codec-unknown-params-fraction", "invalid", second(future | {"params": {"a": 0.5}, "must_understand": False})
    yield "codec-before-table", "unsupported", archive([_with_codec()], chunks=[])


def _with_codec() -> Made:
    made = _hello()
    made.record["layers"][0]["codec"] = "raw.v2"
    return made


def _table() -> Iterator[Case]:
    long = replace("t", "U8", (5000,), Stream("t").bytes(5000))
    chunks = [long.result[:4096], long.result[4096:]]
    good = [(len(chunk), forge.crc32c(chunk)) for chunk in chunks]
    for name, table in [
        ("none", []),
        ("one-too-few", good[:1]),
        ("one-too-many", [*good, (0, 0)]),
        ("stored-size-0", [(0, 0), (5000, good[1][1])]),
        ("stored-size-above-raw", [(4097, good[0][1]), (903, good[1][1])]),
        ("stored-size-above-raw-last", [(4000, good[0][1]), (1000, good[1][1])]),
        ("sum-below", [(4096, good[0][1]), (903, good[1][1])]),
        ("sum-wraps", [(2**32 - 1, good[0][1]), (905, good[1][1])]),
    ]:
        yield f"table-{name}", "invalid", archive([long], chunks=chunks, table=table)
    crc = forge.crc32c(b"hello")
    yield "chunk-crc-of-file", "corrupt", archive([_hello()], files=[("f", b"fine")], table=[(4, 0), (5, crc)])


def _results() -> Iterator[tuple[str, str, bytes, dict[str, Base]]]:
    added = add("t", params())
    assert added.base is not None
    dtype, shape, data = added.base
    good = archive([added])
    yield "base-missing", "base-mismatch", good, {}
    yield "base-other-name", "base-mismatch", good, {"u": added.base}
    yield "base-dtype", "base-mismatch", good, {"t": ("F16", shape, data)}
    yield "base-shape", "base-mismatch", good, {"t": (dtype, shape[::-1], data)}
    yield "base-digest", "base-mismatch", good, {"t": (dtype, shape, b"\1" + data[1:])}
    kept = keep("t", added.base)
    yield "base-digest-keep", "base-mismatch", archive([kept]), {"t": (dtype, shape, data[:-1] + b"?")}
    damaged = archive([added], chunks=[b"?" + added.payloads[0][1:]], table=[(len(added.payloads[0]), 0)])
    yield "base-before-chunks", "base-mismatch", damaged, {}
    wrong = add("t", params())
    wrong.record["layers"][0]["digest"] = "d" * 64
    yield "result-digest", "corrupt", archive([wrong]), {"t": added.base}
    hello = _hello()
    hello.record["layers"][0]["digest"] = "d" * 64
    yield "result-digest-replace", "corrupt", archive([hello]), {}
    files = {"files": [{"path": "f", "size": 4, "digest": "d" * 64}]}
    yield "result-digest-file", "corrupt", archive([_hello()], metadata=files, chunks=[b"file", b"hello"]), {}


SECTIONS: dict[Callable[[], Iterator[Case]], str] = {
    _preamble: "section 3: preamble",
    _frames: "section 4: stored bytes of a chunk or of the metadata",
    _json: "section 5: JSON",
    _document: "section 5: members of the metadata",
    _layers: "section 5.2: layers",
    _table: "section 6: chunk table and chunks",
    dctq_params: "section 7.2: params and size",
}


def bad_vectors() -> dict[str, Vector]:
    """By name."""
    vectors: dict[str, Vector] = {}
    for part in SECTIONS:
        for name, status, data in part():
            assert name not in vectors, name
            vectors[name] = Vector(data, SECTIONS[part], status=status)
    for name, status, made in dctq_payloads():
        base = {"t": made.base} if made.base else {}
        vectors[f"dctq-payload-{name}"] = Vector(archive([made]), "section 7.2.2: payload", base, status)
    for name, status, data, bases in _results():
        vectors[name] = Vector(data, "section 9, steps 10 and 12", bases, status)
    return vectors
