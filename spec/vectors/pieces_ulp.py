"""What vectors of ulp.v1 are made of: targets, and layers that lead to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace as changed
from typing import Any

import numpy as np
from pieces import Base, Made, Stream, base_record, forge

from ddct_format.codec.symbols import pack_sparse
from ddct_format.codec.ulp import UlpParams, predict, residual_symbols, write_extra_bits

__all__ = ["any_patterns", "exact", "near", "then_exact", "ulp_payload"]

_BYTES = {"BF16": 2, "F16": 2, "F32": 4}


def any_patterns(shape: Sequence[int], dtype: str, seed: str, shift: int = 0) -> bytes:
    """All bit patterns alike, NaN and Inf included; the low ``shift`` bits are 0."""
    count = int(np.prod(shape, dtype=np.int64))
    patterns = np.frombuffer(Stream(f"patterns {seed}").bytes(count * _BYTES[dtype]), f"<u{_BYTES[dtype]}")
    return (patterns >> shift << shift).astype(patterns.dtype).tobytes()


def near(before: Base, dtype: str, seed: str, *, shift: int = 0, reach: int = 40, zeros: int = 1) -> bytes:
    """Patterns that lie up to ``reach`` from those of ``before``; about one in ``zeros`` + 1 differs at all."""
    patterns = predict(np.frombuffer(before[2], np.uint8), before[0], dtype) >> shift
    stream = Stream(f"near {seed}")
    moves = (stream.below(2 * reach + 1, patterns.size) - reach) * (stream.below(zeros + 1, patterns.size) == 0)
    return ((patterns + moves) << shift).astype(f"<u{_BYTES[dtype]}").tobytes()


def ulp_payload(params: UlpParams, before: Base, target: bytes, keys: tuple[Any, Any]) -> bytes:
    """The payload whose row and column keys are ``keys``: of a size that section 7.3.2 gives."""
    predicted = predict(np.frombuffer(before[2], np.uint8), before[0], params.dtype)
    symbols, lengths, values = residual_symbols(predicted, np.frombuffer(target, np.uint8), params)
    groups = params.groups(params.contexts(predicted, *keys))
    order = np.argsort(groups, kind="stable")
    counts, parts = [], []
    for number in range(len(params.bounds) + 1):
        members = symbols[groups == number]
        if number in params.sparse:
            runs, others = pack_sparse(members, params.alphabet)
            counts.append(runs.size)
            parts += [runs, others]
        else:
            parts.append(members)
    sections = [keys[0], keys[1], np.array(counts, "<u4"), *parts, write_extra_bits(values[order], lengths[order])]
    return b"".join(section.tobytes() for section in sections)


def _layer(name: str, before: Base, dtype: str, target: bytes, options: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    elements = len(target) // _BYTES[dtype]
    cols = options.pop("cols", before[1][-1] if before[1] else 1)
    params = changed(UlpParams(dtype, elements // cols, cols), **options)
    stream = Stream(f"keys {name}")
    keys = (
        stream.below(256, params.rows if params.row_keys else 0).astype(np.uint8),
        stream.below(256, params.cols if params.col_keys else 0).astype(np.uint8),
    )
    payload = ulp_payload(params, before, target, keys)
    layer = {"codec": "ulp.v1", "params": params.as_json(), "size": len(payload), "digest": forge.digest_of(target)}
    return layer, payload


def exact(name: str, base: Base, target: bytes, dtype: str | None = None, **options: Any) -> Made:
    """A tensor changed by one layer of ulp.v1; ``options`` are those of ``UlpParams``."""
    dtype = dtype or base[0]
    layer, payload = _layer(name, base, dtype, target, options)
    record: dict[str, Any] = {"name": name, "dtype": dtype, "shape": list(base[1]), "shard": 0, "op": "add",
                              "base": base_record(base)}  # fmt: skip
    if base[0] != dtype:
        record["base_dtype"] = base[0]
    return Made(record | {"layers": [layer]}, (payload,), base, target)


def then_exact(made: Made, target: bytes | None = None, **options: Any) -> Made:
    """``made`` with one more layer, of ulp.v1; without a target, to somewhere near."""
    name, dtype = made.record["name"], made.record["dtype"]
    before: Base = (dtype, tuple(made.record["shape"]), made.result)
    target = target or near(before, dtype, f"then {name}", shift=options.get("shift", 0))
    layer, payload = _layer(name, before, dtype, target, options)
    record = made.record | {"layers": [*made.record["layers"], layer]}
    return Made(record, (*made.payloads, payload), made.base, target)
