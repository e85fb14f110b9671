"""Random dctq.v1 layers, as hypothesis strategies: every option of section 7.2 of the specification."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st

from ddct_format.codec.dctq import DctqParams, DctqPayload
from ddct_format.codec.patches import PatchGrid

__all__ = ["base_bytes", "layers", "random_payload"]

_WIDTH = {"BF16": 2, "F16": 2, "F32": 4}


def _pick(random: np.random.Generator, high: int, shape: Any, dtype: str) -> npt.NDArray[Any]:
    return random.integers(0, high, shape).astype(dtype)


@st.composite
def layers(draw: st.DrawFn, patches: tuple[int, ...] = (8, 16, 32)) -> tuple[DctqParams, DctqPayload]:
    """A layer with valid parameters and random contents."""
    rows, cols = draw(st.integers(1, 70)), draw(st.integers(1, 70))
    grid = PatchGrid(rows, cols, draw(st.sampled_from(patches)))
    quantiser = draw(st.sampled_from(("levels", "affine")))
    if quantiser == "affine":
        one_class = st.integers(1, 17).map(lambda alphabet: tuple(range(alphabet)))
    else:
        values = st.lists(st.integers(-127, 127), min_size=1, max_size=6).map(lambda rest: (0, *rest))
        one_class = st.one_of(st.just((0,)), values)
    levels = tuple(draw(st.lists(one_class, min_size=1, max_size=4)))
    sparse = tuple(number for number, table in enumerate(levels) if len(table) > 1 and draw(st.booleans()))
    rank = draw(st.integers(0, 4) | st.sampled_from([12, 17, 64, 65, 150, 256]))
    params = DctqParams(
        grid,
        draw(st.sampled_from(("dct", "hadamard", "none"))),
        quantiser,
        levels,
        sparse,
        rank,
        draw(st.booleans()),
        draw(st.booleans()),
    )
    return params, random_payload(params, np.random.default_rng(draw(st.integers(0, 2**32 - 1))), draw(st.floats(0, 1)))


def random_payload(params: DctqParams, random: np.random.Generator, density: float) -> DctqPayload:
    """Contents that are valid for a layer; ``density`` is the share of symbols that are not zero, about."""
    grid = params.grid
    class_map = _pick(random, len(params.levels), grid.count, "u1")
    codes = []
    for number, table in enumerate(params.levels):
        members = int((class_map == number).sum()) if len(table) > 1 else 0
        symbols = _pick(random, len(table), (members, grid.patch, grid.patch), "u1")
        codes.append(np.where(random.random(symbols.shape) < density, symbols, 0).astype(np.uint8))
    coded = int((np.array(params.alphabets)[class_map] > 1).sum()) if params.quantiser == "affine" else 0
    scales = (1 if params.quantiser == "affine" else len(params.levels)) + (params.rank > 0)
    return DctqPayload(
        scales=(10.0 ** random.uniform(-8, 2, scales)).astype("f4"),
        class_map=class_map,
        codes=tuple(codes),
        minima=random.normal(size=coded).astype("<f2"),
        steps=np.abs(random.normal(size=coded)).astype("<f2"),
        row_keys=_pick(random, 5, grid.rows if params.row_keys else 0, "u1"),
        col_keys=_pick(random, 256, grid.cols if params.col_keys else 0, "u1"),
        multipliers=random.integers(0, (2**17 - 1) // max(1, params.rank) % 2**16 + 1, params.rank).astype("<u2"),
        left=random.integers(-128, 128, (grid.rows, params.rank)).astype(np.int8),
        right=random.integers(-128, 128, (grid.cols, params.rank)).astype(np.int8),
    )


def base_bytes(elements: int, dtype: str, seed: int, *, finite: bool) -> npt.NDArray[np.uint8]:
    """Random base elements: small normal numbers, or any bit pattern (NaN, Inf and subnormals among them)."""
    random = np.random.default_rng(seed)
    if not finite:
        return _pick(random, 256, elements * _WIDTH[dtype], "u1")
    values = random.normal(scale=0.05, size=elements).astype("<f4")
    if dtype == "F32":
        return values.view(np.uint8)
    if dtype == "F16":
        return values.astype("<f2").view(np.uint8)
    return (values.view("<u4") >> 16).astype("<u2").view(np.uint8)
