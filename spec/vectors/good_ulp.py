"""The archives with ulp.v1 that a reader must accept: section 7.3."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from good import SPECIAL_PATTERNS, TERNARY, params
from pieces import Base, Made, Vector, add, affine_levels, keep, make_vector, random_base, replace
from pieces_ulp import any_patterns, exact, near, then_exact

__all__ = ["ulp_vectors"]

BOUNDS = {"BF16": (480, 512, 530), "F16": (40, 60, 80), "F32": (480, 512, 530)}


def _options() -> dict[str, Vector]:
    vectors = {}
    for dtype, bounds in BOUNDS.items():
        base = random_base((12, 20), dtype, f"ulp {dtype}")

        def made(name: str, base: Base = base, dtype: str = dtype, zeros: int = 1, **options: Any) -> Made:
            target = near(base, dtype, name, shift=options.get("shift", 0), reach=3000, zeros=zeros)
            return exact(name, base, target, **options)

        most = 24 if dtype == "F32" else 8
        vectors[f"ulp-{dtype}"] = make_vector(
            f"ulp.v1 on {dtype}: bounds, keys, sparse groups, shifts",
            [
                made("plain"),
                made("bounds", bounds=bounds),
                made("empty-groups", bounds=(1, 2, 3, *bounds, 1526)),
                made("rows", bounds=bounds, row_keys=True),
                made("cols", bounds=bounds, col_keys=True),
                made("keys-sparse", bounds=bounds, row_keys=True, col_keys=True, sparse=(1, 3), zeros=5),
                made("sparse", sparse=(0,), zeros=7),
                made("long-runs", sparse=(0,), zeros=150),
                exact("equal", base, base[2], sparse=(0,)),
                made("other-view", cols=60, bounds=bounds, row_keys=True, col_keys=True),
                *(made(f"shift-{s}", shift=s, bounds=bounds) for s in (1, 3, most)),
                *((made("shift-15", shift=15), made("shift-16", shift=16)) if dtype == "F32" else ()),
            ],
        )
    many = random_base((20, 30), "BF16", "many groups")
    every = tuple(range(476, 476 + 254))
    vectors["ulp-groups-255"] = make_vector(
        "254 bounds, and the groups that have elements sparse or not",
        [
            exact("many", many, near(many, "BF16", "many"), bounds=every, row_keys=True),
            exact("sparse", many, near(many, "BF16", "many"), bounds=every, row_keys=True, sparse=(0, 7, 254)),
        ],
    )
    return vectors


def _patterns() -> dict[str, Vector]:
    """Every pair of special patterns, and patterns of all kinds."""
    vectors = {}
    for dtype, bits in SPECIAL_PATTERNS.items():
        width = "<u4" if dtype == "F32" else "<u2"
        pairs = np.array(list(itertools.product(bits, bits)), width)
        base: Base = (dtype, (len(bits), len(bits)), np.ascontiguousarray(pairs[:, 0]).tobytes())
        target = np.ascontiguousarray(pairs[:, 1]).tobytes()
        made = [
            exact("pairs", base, target),
            exact("pairs-sparse", base, target, sparse=(0,), bounds=(4, 120)),
            exact("shifted", base, (pairs[:, 1] >> 4 << 4).astype(width).tobytes(), shift=4),
        ]
        shape = (16, 24)
        random: Base = (dtype, shape, any_patterns(shape, dtype, "before"))
        made.append(exact("any", random, any_patterns(shape, dtype, "after"), bounds=BOUNDS[dtype], row_keys=True))
        for other in BOUNDS:
            if other != dtype:
                made.append(exact(f"to-{other}", base, any_patterns(base[1], other, "to"), other))
                made.append(exact(f"near-{other}", base, near(base, other, "to"), other, sparse=(0,)))
        vectors[f"ulp-special-{dtype}"] = make_vector(
            f"{dtype} patterns ±0, subnormal, largest, ±Inf, NaN, from each to each, and to other types", made
        )
    return vectors


def _layers() -> dict[str, Vector]:
    start = [
        add("dctq", params((12, 20))),
        add("dctq-other-type", params((12, 20)), base=random_base((12, 20), "F32", "o"), dtype="BF16"),
        add("dctq-keys", params((12, 20), row_keys=True, col_keys=True, rank=2)),
        add("dctq-f16", params((12, 20), quantiser="affine", levels=affine_levels(4)), dtype="F16"),
        replace("raw", "F32", (6, 10), any_patterns((6, 10), "F32", "raw"), planes=4),
    ]
    kept = keep("kept", ("U8", (5,), b"bytes"))
    alone = replace("short", "I16", (3,), b"abcdef", planes=2)
    base = random_base((12, 20), "BF16", "exact only")
    only = exact("exact-only", base, near(base, "BF16", "exact only"), bounds=(500,))
    two = [*(then_exact(made, bounds=(500, 520), row_keys=True) for made in start), kept, alone, only]
    twice = then_exact(then_exact(then_exact(start[0]), shift=4), sparse=(0,))
    unknown = {"codec": "future.v9", "params": {}, "size": 3, "digest": "e" * 64, "must_understand": False}
    after = then_exact(add("skipped-after", params((8, 8), levels=(TERNARY,))))
    after = Made(after.record | {"layers": [*after.record["layers"], unknown]}, (*after.payloads, b"???"), after.base,
                 after.result)  # fmt: skip
    lossless = {"files": [("config.json", b"{}\n")], "compress": True}
    shapes: list[Base] = [random_base(shape, "BF16", f"{shape}") for shape in [(), (1,), (7,), (2, 3, 4), (1, 1025)]]
    return {
        "ulp-layers": make_vector("ulp.v1 above dctq.v1 and above raw.v1, as first layer, and tensors without it", two),
        "ulp-layers-lossless": make_vector("the same, compressed, with a side file", two, **lossless),
        "ulp-layers-four": make_vector("four layers, and tensors of fewer", [twice, only, kept]),
        "ulp-layers-skipped": make_vector("a layer of an unknown codec above dctq.v1 and ulp.v1 is skipped", [after]),
        "ulp-shapes": make_vector(
            "edge shapes", [exact(f"rank-{len(b[1])}-{n}", b, near(b, "BF16", f"{b[1]}")) for n, b in enumerate(shapes)]
        ),
        "ulp-x-names": make_vector("a private parameter", [_private(only)]),
    }


def _private(made: Made) -> Made:
    layer = dict(made.record["layers"][0])
    layer["params"] = layer["params"] | {"x-seed": 7}
    return Made(made.record | {"layers": [layer]}, made.payloads, made.base, made.result)


def ulp_vectors() -> dict[str, Vector]:
    """By name."""
    return _options() | _patterns() | _layers()
