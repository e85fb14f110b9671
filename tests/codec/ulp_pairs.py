"""Tensors and changes of them, as hypothesis strategies."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st

from ddct_format.backends.native_encoder import NativeEncoder
from ddct_format.codec.ulp import UlpParams, predict
from ddct_format.encode.exact import encode_exact
from ddct_format.encode.pair import TensorData

from .layers import base_bytes

__all__ = ["encoded", "pairs"]

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
