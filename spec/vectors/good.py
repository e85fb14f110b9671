"""The archives that a reader must accept: every option of the specification at least once."""

from __future__ import annotations

import itertools
from dataclasses import replace as changed
from typing import Any

import numpy as np
from pieces import (
    Base,
    Made,
    Stream,
    Vector,
    add,
    affine_levels,
    forge,
    grid,
    keep,
    make_vector,
    random_payload,
    replace,
)

from ddct_format.codec.dctq import DctqParams, DctqPayload

__all__ = ["good_vectors"]

ALPHABETS = (1, 2, 3, 5, 16, 17, 100)
TERNARY = (0, -1, 1)
WIDTHS = {"BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "F8_E8M0": 1, "I16": 2, "U16": 2, "F16": 2,
          "BF16": 2, "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8, "C64": 8}  # fmt: skip


def levels_of(alphabet: int) -> tuple[int, ...]:
    """0, −1, 1, −2, 2, … : so many levels."""
    return tuple((index + 1) // 2 * (-1 if index % 2 else 1) for index in range(alphabet))


def params(shape: tuple[int, ...] = (12, 20), patch: int = 8, **options: Any) -> DctqParams:
    given = {"transform": "dct", "quantiser": "levels", "levels": ((0,), TERNARY, (-9, -3, 3, 9))} | options
    return DctqParams(grid(shape, patch), **given)


def _transforms() -> dict[str, Vector]:
    vectors = {}
    for transform, patch, quantiser in itertools.product(
        ("dct", "hadamard", "none"), (8, 16, 32), ("levels", "affine")
    ):
        tables = (TERNARY, (0,), (0, 127, -127, 50)) if quantiser == "levels" else affine_levels(3, 1, 16)
        shape = (patch + 3, 2 * patch - 1)
        options = {"transform": transform, "quantiser": quantiser, "levels": tables}
        seed = f"{transform} {patch} {quantiser}"
        vectors[f"dctq-{transform}-{patch}-{quantiser}"] = make_vector(
            f"{transform}, {patch} × {patch}, {quantiser}: dense classes, then two sparse ones and one without symbols",
            [
                add("dense", params(shape, patch, **options), seed=seed + "d"),
                add("sparse", params(shape, patch, **options, sparse=(0, 2)), seed=seed + "s"),
            ],
        )
    return vectors


def _alphabets() -> dict[str, Vector]:
    vectors = {}
    for alphabet in ALPHABETS:
        made = [
            add("affine", params(quantiser="affine", levels=affine_levels(alphabet))),
            add("levels", params(levels=(levels_of(alphabet),))),
            add("two", params(levels=(levels_of(alphabet), TERNARY))),
        ]
        if alphabet > 1:
            made.append(add("sparse", params(levels=(levels_of(alphabet),), sparse=(0,))))
            made.append(add("sparse-affine", params(quantiser="affine", levels=affine_levels(alphabet), sparse=(0,))))
        vectors[f"dctq-alphabet-{alphabet}"] = make_vector(f"classes of {alphabet} symbols", made)
    largest = [
        add("127", params(quantiser="affine", levels=affine_levels(127))),
        add("255", params(levels=(tuple(range(-127, 128)),))),
        add("255-sparse", params(levels=((0, *range(-127, 127)),), sparse=(0,))),
        add("repeated", params(levels=((0, 5, 5, 0, -5),))),
    ]
    vectors["dctq-alphabet-largest"] = make_vector("the largest alphabets; a table that repeats levels", largest)
    many = params((64, 96), levels=((0,), *((0, k % 127 + 1) for k in range(254))), sparse=(1, 77, 254))
    vectors["dctq-classes-255"] = make_vector("255 classes, fewer patches", [add("many", many)])
    return vectors


def _keys_and_rank() -> dict[str, Vector]:
    made = {
        "rows": params(row_keys=True),
        "cols": params(col_keys=True),
        "both": params(row_keys=True, col_keys=True),
    }
    ranks = {
        "rank-1": params(rank=1),
        "rank-3-keys": params(rank=3, row_keys=True, col_keys=True),
        "rank-256": params((5, 7), rank=256),
        "rank-affine": params(rank=2, quantiser="affine", levels=affine_levels(4)),
    }
    alone = params((9, 11), levels=((0,),), rank=2)
    at_limit = params((3, 4), levels=((0,),), rank=3)
    extreme = DctqPayload(
        scales=np.array([0, 2.0**-31], "<f4"),
        class_map=np.zeros(1, np.uint8),
        codes=(np.zeros((0, 8, 8), np.uint8),),
        multipliers=np.array([65535, 65535, 1], "<u2"),
        left=np.full((3, 3), -128, np.int8),
        right=np.array([[-128] * 3, [127] * 3, [-128, 127, 1], [0, 0, 0]], np.int8),
    )
    return {
        "dctq-keys": make_vector("row keys, column keys, both", [add(name, p) for name, p in made.items()]),
        "dctq-low-rank": make_vector(
            "low-rank parts: with patches, with keys, alone, and with the largest sum of multipliers",
            [
                *(add(name, p) for name, p in ranks.items()),
                add("alone", alone),
                add("extreme", at_limit, extreme),
            ],
        ),
    }


def _shapes() -> dict[str, Vector]:
    made = []
    shapes: list[tuple[int, ...]] = [(1, 1), (15, 17), (16, 40), (16, 1), (1, 33), (32, 32)]
    for shape in shapes:
        made.append(add("x".join(map(str, shape)), params(shape, 16)))
    for shape in [(37,), (3, 4, 5), (2, 3, 4, 5), (1, 1, 1, 1, 1, 1, 2, 9)]:
        made.append(add(f"rank-{len(shape)}", params(shape), shape=shape))
    made.append(add("scalar", params((1, 1)), shape=()))
    made.append(add("other-view", params((10, 24)), shape=(12, 20)))
    made.append(add("one-column", params((24, 1)), shape=(4, 6)))
    empty = [
        replace("empty", "F32", (0, 5), b"", planes=8),
        replace("empty-huge", "U8", (0, 2**40), b""),
        keep("empty-kept", ("BF16", (3, 0), b"")),
        replace("scalar", "I64", (), bytes(range(8)), planes=8),
    ]
    return {
        "shapes": make_vector("edge shapes: one element, partial patches, ranks 0 to 8, other views", made),
        "shapes-empty": make_vector("tensors without elements, and a scalar", empty),
    }


def _special_values() -> dict[str, Vector]:
    """Every pair of types over special base elements; deltas of 0, tiny, normal, huge, and −0."""
    patterns = {
        "BF16": [0, 0x8000, 1, 0x8001, 0x7F, 0x80, 0x3F80, 0x7F7F, 0xFF7F, 0x7F80, 0xFF80, 0x7FC0, 0x7F81,
            0xFFFF, 0x4049],
        "F16": [0, 0x8000, 1, 0x8001, 0x3FF, 0x400, 0x3C00, 0x7BFF, 0xFBFF, 0x7C00, 0xFC00, 0x7E00, 0x7C01,
            0xFFFF, 0x4248],
        "F32": [0, 0x80000000, 1, 0x80000001, 0x7FFFFF, 0x800000, 0x3F800000, 0x7F7FFFFF, 0xFF7FFFFF, 0x7F800000,
                0xFF800000, 0x7FC00000, 0x7F800001, 0xFFFFFFFF, 0x477FF000],
    }  # fmt: skip
    scales = {"zero": 0.0, "tiny": 2.0**-140, "small": 2.0**-20, "one": 1.0, "huge": 3.0e38}
    table = params((5, 15), levels=((0, 1, -1, 2, -127),), transform="none")
    vectors = {}
    for base_dtype, bits in patterns.items():
        data = np.array(bits * 5, "<u4" if base_dtype == "F32" else "<u2").tobytes()
        base: Base = (base_dtype, (5, 15), data)
        made = []
        for dtype, (label, scale) in itertools.product(patterns, scales.items()):
            payload = random_payload(table, "special", zeros=0)
            payload = changed(payload, scales=np.array([scale], "<f4"))
            made.append(add(f"{label}-to-{dtype}", table, payload, base=base, dtype=dtype))
        vectors[f"special-{base_dtype}"] = make_vector(
            f"{base_dtype} base elements ±0, subnormal, largest, ±Inf, NaN under deltas of 0 and otherwise", made
        )
    minus_zero = changed(random_payload(table, "special", zeros=0), scales=np.array([-0.0], "<f4"))
    step = params((5, 15), quantiser="affine", levels=affine_levels(3))
    nan = changed(random_payload(step, "nan", zeros=0), scales=np.array([3e38], "<f4"))
    nan = changed(nan, minima=np.full(2, -65504, "<f2"), steps=np.full(2, 65504, "<f2"))
    quarter = [0x3E80, 0xBE80, 0x3C00]  # halves of an ulp, ties to even
    ties = params((1, 3), levels=((0, 1),), transform="none")
    tied = DctqPayload(np.array([2.0**-8], "<f4"), np.zeros(1, np.uint8), (np.ones((1, 8, 8), np.uint8),))
    vectors["special-arithmetic"] = make_vector(
        "a scale of −0, an affine delta that overflows, sums halfway between two numbers",
        [
            add("minus-zero", table, minus_zero),
            add("overflow", step, nan, dtype="F32"),
            add("ties", ties, tied, base=("BF16", (1, 3), np.array([0x3F80, 0x3F81, 0xBF81], "<u2").tobytes())),
            add("ties-f16", ties, tied, base=("F16", (1, 3), np.array(quarter, "<u2").tobytes()), dtype="F16"),
        ],
    )
    return vectors


def _raw() -> dict[str, Vector]:
    types = [
        replace(dtype, dtype, (3, 4), Stream(dtype).bytes(12 * width), planes=width) for dtype, width in WIDTHS.items()
    ]
    planes = [replace(f"planes-{n}", "F32", (2, 4), Stream("planes").bytes(32), planes=n) for n in (1, 2, 4, 8)]
    kept = [keep(dtype, (dtype, (2, 3), Stream(dtype).bytes(6 * width))) for dtype, width in WIDTHS.items()]
    return {
        "raw-planes": make_vector("each number of byte planes", planes),
        "raw-types": make_vector("each element type, replaced", types),
        "keep-types": make_vector("each element type, kept", kept),
    }


def _container() -> dict[str, Vector]:
    small = [add("a", params()), replace("b", "U8", (5,), b"hello")]
    kept = keep("k", ("F16", (2,), b"\1\2\3\4"))
    source = add("m", params(), seed="source")
    alias_record = {"name": "a", "dtype": "BF16", "shape": [12, 20], "shard": 0, "op": "alias", "of": "m"}
    of_kept = {"name": "z", "dtype": "F16", "shape": [2], "shard": 0, "op": "alias", "of": "k"}
    aliases = [Made(alias_record, (), None, source.result), Made(of_kept, (), None, kept.result)]
    long = replace("long", "U8", (10000,), Stream("long").bytes(10000))
    even = replace("even", "U8", (8192,), b"\0" * 8192)
    text = replace("text", "U8", (9000,), b"compressible " * 692 + b"!!!!")
    sparse = params((70, 90), levels=((0, 1, -1, 2),), sparse=(0,))
    shards = {"shards": [{"path": f"model-{i}-of-2.safetensors", "metadata": {}} for i in (1, 2)]}
    files = [("config.json", b"{}\n"), ("empty", b""), ("sub/dir/vocab.txt", b"word\n" * 1000)]
    quality = {"preset": "default", "error": 0.25, "x-more": [1, {"x": None}]}
    extended = {"x-top": {"any": [True, None, "text", 9007199254740991, -9007199254740991, -0]}, "quality": quality}
    extended["base"] = {"id": "b" * 64, "x-b": 1, "hint": {"repo": "a/b", "revision": "", "name": "n", "x-h": "t"}}
    hinted = replace("n", "U8", (1,), b"n", error=1.5e-3)
    hinted.record["x-note"] = "tensor"
    hinted.record["layers"][0]["x-note"] = "layer"
    unknown = {"codec": "future.v9", "params": {"deep": [[1], {"a": "b"}]}, "size": 5000, "digest": "e" * 64,
               "must_understand": False}  # fmt: skip
    skipping = add("s", params())
    skipping.record["layers"].append(unknown)
    skipped = changed(skipping, payloads=(skipping.payloads[0], b"?" * 5000))
    names = ["'\"\\", " ", "ä", "layer.0/weight", "n" * 1024, "…", "\U0001f600", "\uffff"]
    wide = forge.frame(forge.rle_block(7, 4000), content_size=4000, window_byte=13 << 3)
    single = forge.frame(forge.block(b"abc", last=False), forge.rle_block(0, 4093), content_size=4096)
    frames = [replace("a", "U8", (4000,), b"\7" * 4000), replace("b", "U8", (4096,), b"abc" + bytes(4093))]
    return {
        "ops": make_vector("add, replace, keep, and aliases of two of them", [*aliases, kept, source, small[1]]),
        "no-tensors": make_vector("no tensors, no shards", []),
        "no-tensors-one-shard": make_vector(
            "a shard without tensors", [], metadata={"shards": [{"path": "m.safetensors", "metadata": {}}]}
        ),
        "shards": make_vector(
            "two shards", [small[0], replace("b", "U8", (5,), b"hello", shard=1)], metadata=shards
        ),
        "files": make_vector(
            "side files, one of them empty, one of two chunks", [*small, replace("file", "U8", (1,), b"f")], files=files
        ),
        "files-compressed": make_vector("the same, compressed", small, files=files, compress=True),
        "chunks-raw": make_vector("payloads of several chunks, stored raw", [long, even, text]),
        "chunks-compressed": make_vector(
            "payloads of several chunks, compressed where that is smaller",
            [long, even, text, add("sparse", sparse)], compress=True,
        ),
        "frames": make_vector("frames with a window of 8 MiB, and with several blocks", frames, chunks=[wide, single]),
        "chunk-size-16-mib": make_vector("the largest chunk size", [long], metadata={"chunk_size": 16 << 20}),
        "metadata-compressed": make_vector("the metadata compressed", small, compress=True),
        "extensions": make_vector("names that begin with x-, a hint, a quality", [hinted], metadata=extended),
        "layer-skipped": make_vector("a second layer of an unknown codec that may be skipped", [skipped]),
        "compatible-features": make_vector("all compatible feature bits", small, compatible=2**64 - 1),
        "minor-version": make_vector("minor version 7", small, minor=7),
        "names": make_vector(
            "names of tensors that need care", [replace(name, "U8", (1,), b"x") for name in names]
        ),
        "lossy": make_vector(
            "an archive that is not lossless",
            small,
            metadata={"target": {"ids": forge.model_ids([m.record for m in small]), "exact_id": "e" * 64}},
        ),
    }  # fmt: skip


def good_vectors() -> dict[str, Vector]:
    """By name."""
    parts = (
        _transforms(),
        _alphabets(),
        _keys_and_rank(),
        _shapes(),
        _special_values(),
        _raw(),
        _container(),
    )
    return {name: vector for part in parts for name, vector in part.items()}
