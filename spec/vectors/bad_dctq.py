"""Layers of dctq.v1 that a reader must refuse: section 7.2."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
from good import TERNARY, params
from pieces import Case, Made, add, affine_levels, archive, random_payload

__all__ = ["dctq_params", "dctq_payloads"]


def dctq_params() -> Iterator[Case]:
    table = params()
    for name, change in [
        ("cols-no-divisor", {"cols": 7}), ("cols-0", {"cols": 0}), ("cols-above", {"cols": 241}),
        ("patch-12", {"patch": 12}), ("patch-64", {"patch": 64}), ("transform", {"transform": "dst"}),
        ("quantiser", {"quantiser": "log"}), ("classes-none", {"classes": []}),
        ("classes-256", {"classes": [[0]] * 256}),
        ("classes-affine", {"classes": [3]}), ("level-128", {"classes": [[0, 128]]}),
        ("level-minus-128", {"classes": [[0, -128]]}), ("levels-256", {"classes": [[0] * 256]}),
        ("levels-none", {"classes": [[]]}), ("level-single", {"classes": [[1]]}),
        ("affine-0", {"quantiser": "affine", "classes": [0]}),
        ("affine-128", {"quantiser": "affine", "classes": [128]}),
        ("affine-list", {"quantiser": "affine", "classes": [[0, 1]]}), ("sparse-none", {"sparse": []}),
        ("sparse-descending", {"sparse": [2, 1]}), ("sparse-twice", {"sparse": [1, 1]}),
        ("sparse-no-class", {"sparse": [3]}), ("sparse-single-level", {"sparse": [0]}),
        ("sparse-first-level", {"sparse": [2]}), ("rank-0", {"rank": 0}), ("rank-257", {"rank": 257}),
        ("row-keys-false", {"row_keys": False}), ("col-keys-1", {"col_keys": 1}), ("unknown", {"gain": 1}),
    ]:  # fmt: skip
        made = add("t", table)
        made.record["layers"][0]["params"].update(change)
        yield f"dctq-params-{name}", "invalid", archive([made])
    for name in table.as_json():
        made = add("t", table)
        del made.record["layers"][0]["params"][name]
        yield f"dctq-params-missing-{name}", "invalid", archive([made])
    for name, member, value in [
        ("dtype", "dtype", "I16"),
        ("base-dtype", "base_dtype", "F64"),
        ("empty", "shape", [0, 20]),
    ]:
        made = add("t", table)
        made.record[member] = value
        yield f"dctq-{name}", "invalid", archive([made])
    low = 4 * 3 + 6  # scales and class map; the least that params() can need
    high = low + 192 + 3
    for name, size in [("below", low - 1), ("above", high + 1)]:
        made = add("t", table)
        made.record["layers"][0]["size"] = size
        yield f"dctq-size-{name}", "invalid", archive([Made(made.record, (bytes(size),), made.base, b"")])


def dctq_payloads() -> Iterator[tuple[str, str, Made]]:
    """Payloads that break section 7.2.2, 7.2.4 or 7.2.5; sizes are possible."""

    def broken(table: Any, offset: int, patch: bytes, *, cut: int = 0, more: bytes = b"") -> Made:
        made = add("t", table, dtype="F32")
        data = bytearray(made.payloads[0])
        data[offset : offset + len(patch)] = patch
        payload = bytes(data[: len(data) - cut]) + more
        made.record["layers"][0]["size"] = len(payload)
        return Made(made.record, (payload,), made.base, made.result)

    one = params((8, 8), levels=(TERNARY,))
    two = params((8, 16), levels=((0,), TERNARY))
    for name, value in [("nan", np.nan), ("inf", np.inf), ("negative", -1.0), ("minus-tiny", -1e-45)]:
        yield f"scale-{name}", "invalid", broken(one, 0, np.float32(value).tobytes())
    low_rank = params((8, 8), levels=(TERNARY,), rank=3)
    yield "scale-low-rank", "invalid", broken(low_rank, 4, np.float32(np.nan).tobytes())
    yield "multipliers", "invalid", broken(low_rank, 8, struct.pack("<3H", 65535, 65535, 2))
    yield "class-map", "invalid", broken(two, 8, b"\2")
    yield "class-map-255", "invalid", broken(two, 9, b"\xff")
    yield "dense-byte", "invalid", broken(one, 4, b"\xf3")  # 3^5 = 243
    yield "dense-last-digit", "invalid", broken(one, 4 + 12, b"\x51")  # the 64th symbol is the last byte's fourth
    sparse = params((8, 8), levels=(TERNARY,), sparse=(0,))
    yield "run-count-large", "invalid", broken(sparse, 4, struct.pack("<I", 2**32 - 1))
    sparse_head = np.float32(1).tobytes()
    for name, runs, values in [
        ("runs-beyond", b"\x3f\0", b"\0"),
        ("runs-255-beyond", b"\xff", b""),
        ("runs-by-one", b"\x40", b"\0"),
        ("values-missing", b"\0\0", b""),
        ("values-too-many", b"\0\0", b"\0\0"),
        ("value-digit", b"\0", b"\4"),
    ]:
        yield (
            f"sparse-{name}",
            "invalid",
            _with_payload(sparse, sparse_head + struct.pack("<I", len(runs)) + runs + values),
        )
    affine = params((8, 8), quantiser="affine", levels=affine_levels(3))
    halves = {"nan": 0x7E00, "inf": 0x7C00, "negative": 0x8001}
    for name, bits in halves.items():
        if name != "negative":
            yield f"minimum-{name}", "invalid", broken(affine, 4, struct.pack("<H", bits))
        yield f"step-{name}", "invalid", broken(affine, 6, struct.pack("<H", bits))
    yield "payload-short", "invalid", broken(two, 0, b"", cut=1)
    random = random_payload(two, "t")
    more = b"\0" if int((random.class_map == 1).sum()) < 2 else b""
    yield "payload-long", "invalid", broken(params((8, 16), levels=((0,), (0, 1, 2))), 8, b"\0\0", more=more)


def _with_payload(table: Any, payload: bytes) -> Made:
    made = add("t", table, dtype="F32")
    made.record["layers"][0]["size"] = len(payload)
    return Made(made.record, (payload,), made.base, made.result)
