"""Layers of ulp.v1 that a reader must refuse: section 7.3, and where 5.2 allows it."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
from good import params
from pieces import Base, Case, Made, add, archive, forge, random_base, replace
from pieces_ulp import exact, near, then_exact

__all__ = ["ulp_params", "ulp_payloads", "ulp_places", "ulp_results"]

ELEMENTS = 60


def _made(**options: Any) -> Made:
    base = random_base((6, 10), "BF16", "ulp")
    return exact("t", base, near(base, "BF16", "ulp"), **options)


def ulp_params() -> Iterator[Case]:
    for name, change in [
        ("cols-no-divisor", {"cols": 7}), ("cols-0", {"cols": 0}), ("cols-above", {"cols": 61}),
        ("cols-text", {"cols": "10"}), ("bounds-0", {"bounds": [0, 5]}), ("bounds-1527", {"bounds": [1527]}),
        ("bounds-255", {"bounds": list(range(1, 256))}), ("bounds-descending", {"bounds": [5, 4]}),
        ("bounds-twice", {"bounds": [5, 5]}), ("bounds-number", {"bounds": 5}), ("shift-9", {"shift": 9}),
        ("shift-negative", {"shift": -1}), ("shift-true", {"shift": True}), ("sparse-none", {"sparse": []}),
        ("sparse-no-group", {"sparse": [2]}), ("sparse-descending", {"sparse": [1, 0]}),
        ("sparse-twice", {"sparse": [1, 1]}), ("row-keys-false", {"row_keys": False}), ("col-keys-1", {"col_keys": 1}),
        ("unknown", {"groups": 2}),
    ]:  # fmt: skip
        made = _made(bounds=(500,))
        made.record["layers"][0]["params"].update(change)
        yield f"ulp-params-{name}", "invalid", archive([made])
    for name in ("cols", "bounds"):
        made = _made()
        del made.record["layers"][0]["params"][name]
        yield f"ulp-params-missing-{name}", "invalid", archive([made])
    for name, member, value in [
        ("dtype", "dtype", "I16"),
        ("base-dtype", "base_dtype", "F64"),
        ("empty", "shape", [0, 10]),
    ]:
        made = _made()
        made.record[member] = value
        yield f"ulp-{name}", "invalid", archive([made])
    most = 12 * ELEMENTS // 8  # of the extra bits: W − 1 − m = 12 each
    for name, size, options in [
        ("below", ELEMENTS + 6 - 1, {"row_keys": True}),
        ("above", ELEMENTS + 6 + most + 1, {"row_keys": True}),
        ("below-sparse", 4 - 1, {"sparse": (0,)}),
        ("above-sparse", 4 + 2 * ELEMENTS + most + 1, {"sparse": (0,)}),
    ]:
        made = _made(**options)
        made.record["layers"][0]["size"] = size
        yield f"ulp-size-{name}", "invalid", archive([Made(made.record, (bytes(size),), made.base, b"")])


def ulp_places() -> Iterator[Case]:
    """Section 5.2: which codec may stand where."""
    first, replaced = _made(), replace("t", "BF16", (6, 10), bytes(2 * ELEMENTS))
    delta = add("t", params((6, 10)))
    layer = first.record["layers"][0]
    yield "ulp-of-replace", "invalid", archive([Made(replaced.record | {"layers": [layer]}, first.payloads, None, b"")])
    integers = replace("t", "I16", (6, 10), bytes(2 * ELEMENTS))
    for name, below, above in [
        ("raw-above-dctq", delta, replaced), ("raw-above-raw", replaced, replaced), ("dctq-above-dctq", delta, delta),
        ("dctq-above-raw", replaced, delta), ("dctq-above-ulp", first, delta), ("ulp-above-integers", integers, first),
    ]:  # fmt: skip
        record = below.record | {"layers": [*below.record["layers"], above.record["layers"][0]]}
        yield f"layer-{name}", "invalid", archive([Made(record, (*below.payloads, *above.payloads), None, b"")])
    future = {"codec": "future.v9", "params": {}, "size": 0, "digest": "e" * 64}
    record = first.record | {"layers": [layer, future]}
    yield "layer-unknown-above-ulp", "unsupported", archive([Made(record, first.payloads, None, b"")])


def ulp_payloads() -> Iterator[tuple[str, str, Made]]:
    """Payloads that break section 7.3.2 or 7.3.3; sizes are possible."""

    def broken(payload: bytes, patterns: list[int], dtype: str = "BF16", **options: Any) -> Made:
        width = "<u4" if dtype == "F32" else "<u2"
        base: Base = (dtype, (len(patterns),), np.array(patterns, width).tobytes())
        made = exact("t", base, base[2], **options)
        made.record["layers"][0]["size"] = len(payload)
        return Made(made.record, (payload,), base, b"")

    ones = [0x3F80] * 4
    two_groups: dict[str, Any] = {"bounds": (513,)}  # 1.0 has the context 512
    yield "symbol", "invalid", broken(bytes([0, 223, 0, 0]) + b"\0\0", ones)
    yield "symbol-255", "invalid", broken(b"\0\0\0\xff" + b"\0\0", ones)
    yield "symbol-f32", "invalid", broken(bytes([247, 0, 0, 0]) + bytes(4), [0x3F800000] * 4, "F32")
    yield "symbol-shift-8", "invalid", broken(bytes([95, 0, 0, 0]) + b"\0", ones, shift=8)
    run = struct.pack("<I", 1)
    yield "sparse-symbol", "invalid", broken(run + b"\0" + bytes([222]), ones, sparse=(0,))
    yield "sparse-runs-beyond", "invalid", broken(run + b"\4" + b"\0", ones, sparse=(0,))
    yield "sparse-run-255-beyond", "invalid", broken(run + b"\xff", ones, sparse=(0,))
    yield "sparse-run-count", "invalid", broken(struct.pack("<I", 2**32 - 1) + b"\0", ones, sparse=(0,))
    yield "sparse-values-missing", "invalid", broken(struct.pack("<I", 2) + b"\0\0" + b"\0", ones, sparse=(0,))
    yield "sparse-empty-group", "invalid", broken(run + b"\0" + bytes(4), ones, sparse=(1,), **two_groups)
    yield "extra-missing", "invalid", broken(bytes([32, 32, 32, 32]), ones)
    yield "extra-cut", "invalid", broken(bytes([72, 72, 72, 72]) + b"\0", ones)
    yield "extra-too-many", "invalid", broken(bytes([32, 0, 0, 0]) + b"\0\0", ones)
    yield "extra-none-needed", "invalid", broken(bytes([2, 1, 0, 0]) + b"\0", ones)
    yield "extra-bit-left-over", "invalid", broken(bytes([32, 0, 0, 0]) + b"\2", ones)
    yield "extra-high-bit-left-over", "invalid", broken(bytes([72, 72, 0, 0]) + b"\x80", ones)
    yield "beyond-largest", "invalid", broken(bytes([2, 0, 0, 0]), [0x7FFF, 0, 0, 0])
    yield "beyond-smallest", "invalid", broken(bytes([0, 0, 0, 2]), [0, 0, 0, 0xFFFF])
    yield "beyond-across-zero", "invalid", broken(bytes([222, 0, 0, 0]) + b"\xff\x0f", ones)
    yield "beyond-down", "invalid", broken(bytes([221, 0, 0, 0]) + b"\xff\x0f", [0x0000, 0, 0, 0])
    yield "beyond-with-shift", "invalid", broken(bytes([2, 0, 0, 0]), [0x7FFF, 0, 0, 0], shift=8)
    largest = [0x7FFFFFFF, 0, 0, 0]
    yield "beyond-f32", "invalid", broken(bytes([2, 0, 0, 0]), largest, "F32")
    yield "keys-short", "invalid", broken(bytes([7, 0, 0, 0, 0]) + b"\1", ones, row_keys=True, cols=1)


def ulp_results() -> Iterator[tuple[str, str, bytes, dict[str, Base]]]:
    made = then_exact(add("t", params((6, 10))), bounds=(500,))
    assert made.base is not None
    base = {"t": made.base}
    for index in (0, 1):
        layers = [dict(layer) for layer in made.record["layers"]]
        layers[index]["digest"] = "d" * 64
        wrong = Made(made.record | {"layers": layers}, made.payloads, made.base, made.result)
        yield f"result-digest-layer-{index}", "corrupt", archive([wrong]), base
    yield "base-missing-ulp", "base-mismatch", archive([_made()]), {}
    whole = archive([made])
    yield "truncated-behind-lossy", "truncated", whole[: -len(made.payloads[1])], base
    yield "truncated-in-exact", "truncated", whole[:-1], base
    table = [(len(made.payloads[0]), forge.crc32c(made.payloads[0])), (len(made.payloads[1]), 0)]
    yield "chunk-crc-of-exact", "corrupt", archive([made], table=table), base
