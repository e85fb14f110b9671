"""Tensors and changes of them, as hypothesis strategies."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st

from ddct_format.backends.native_encoder import NativeEncoder
from ddct_format.codec.symbols import pack_sparse
from ddct_format.codec.ulp import MAX_BOUND, UlpParams, predict, residual_symbols, write_extra_bits
from ddct_format.encode.exact import encode_exact
from ddct_format.encode.pair import TensorData

from .layers import base_bytes

__all__ = ["encoded", "layer_of", "layers_of_pairs", "pairs"]

WIDTH = {"BF16": 2, "F16": 2, "F32": 4}
DTYPES = sorted(WIDTH)
Bytes = npt.NDArray[np.uint8]


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Bytes, str, Bytes, str, int]:
    """A tensor and a change of it: any patterns, or small moves, dense or sparse."""
    rows, cols = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    before_dtype, dtype = draw(st.sampled_from(DTYPES)), draw(st.sampled_from(DTYPES))
    seed = draw(st.integers(0, 2**32 - 1))
    random = np.random.default_rng(seed)
    before = base_bytes(rows * cols, before_dtype, seed, finite=draw(st.booleans()))
    if draw(st.booleans()):
        return before, before_dtype, base_bytes(rows * cols, dtype, seed + 1, finite=False), dtype, cols
    patterns = predict(before, before_dtype, dtype).astype(f"<u{WIDTH[dtype]}")
    moves = random.normal(scale=10.0 ** draw(st.integers(-1, 4)), size=rows * cols).astype(np.int64)
    moves[random.random(rows * cols) > draw(st.floats(0, 1))] = 0
    return before, before_dtype, (patterns + moves.astype(patterns.dtype)).view(np.uint8), dtype, cols


def encoded(before: Bytes, before_dtype: str, target: Bytes, dtype: str, cols: int) -> tuple[UlpParams, list[Bytes]]:
    """The layer that leads from one to the other: its parameters and the sections of its payload."""
    tensors = (
        TensorData(kind, (data.size // WIDTH[kind],), data) for data, kind in ((before, before_dtype), (target, dtype))
    )
    return encode_exact(*tensors, cols, NativeEncoder())


def layer_of(params: UlpParams, before: Bytes, before_dtype: str, target: Bytes, seed: int) -> Bytes:
    """The payload that leads from one tensor to the other by these parameters, with random keys."""
    random = np.random.default_rng(seed)
    row_keys = random.integers(0, 256, params.rows if params.row_keys else 0).astype(np.uint8)
    col_keys = random.integers(0, 256, params.cols if params.col_keys else 0).astype(np.uint8)
    predicted = predict(before, before_dtype, params.dtype)
    symbols, lengths, values = residual_symbols(predicted, target, params)
    groups = params.groups(params.contexts(predicted, row_keys, col_keys))
    counts, parts = [], []
    for number in range(len(params.bounds) + 1):
        members = symbols[groups == number]
        if number in params.sparse:
            runs, packed = pack_sparse(members, params.alphabet)
            counts.append(runs.size)
            parts += [runs, packed]
        else:
            parts.append(members)
    order = np.argsort(groups, kind="stable")
    run_counts = np.array(counts, dtype="<u4").view(np.uint8)
    return np.concatenate([row_keys, col_keys, run_counts, *parts, write_extra_bits(values[order], lengths[order])])


@st.composite
def layers_of_pairs(draw: st.DrawFn) -> tuple[UlpParams, Bytes, Bytes, str, Bytes]:
    """Parameters that no encoder would choose, payload, tensor so far and its type, target."""
    before, before_dtype, target, dtype, cols = draw(pairs())
    shift = draw(st.sampled_from([0, 0, 1, 8 * WIDTH[dtype] - 8, 16 if dtype == "F32" else 3]))
    patterns = target.view(f"<u{WIDTH[dtype]}")
    target = (patterns >> shift << shift).view(np.uint8)
    bounds = sorted(draw(st.sets(st.integers(1, MAX_BOUND), max_size=draw(st.sampled_from([0, 3, 254])))))
    params = UlpParams(
        dtype=dtype,
        rows=patterns.size // cols,
        cols=cols,
        bounds=tuple(bounds),
        shift=shift,
        sparse=tuple(sorted(draw(st.sets(st.integers(0, len(bounds)), max_size=4)))),
        row_keys=draw(st.booleans()),
        col_keys=draw(st.booleans()),
    )
    return (
        params,
        layer_of(params, before, before_dtype, target, draw(st.integers(0, 99))),
        before,
        before_dtype,
        target,
    )
