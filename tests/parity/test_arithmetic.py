"""The reference against section 7.2.3, element by element in plain Python integers and rationals."""

from __future__ import annotations

import struct
from fractions import Fraction

from codec.layers import base_bytes, layers
from hypothesis import given, settings
from hypothesis import strategies as st

from ddct_format.backends import get_backend
from ddct_format.codec.dctq import DctqParams, DctqPayload
from ddct_format.codec.floats import float32_from_bytes
from ddct_format.codec.transform import basis_matrix


def to_binary32(value: Fraction) -> Fraction:
    """The nearest binary32 number, ties to even; exact because struct rounds a double, and doubles are checked."""
    double = float(value)
    rounded = Fraction(struct.unpack("<f", struct.pack("<f", double))[0])
    if Fraction(double) != value:  # two roundings: repair ties that the first one made
        step = Fraction(2) ** (max(-149, _exponent(rounded) - 23))
        candidates = [rounded - step, rounded, rounded + step]
        rounded = min(candidates, key=lambda c: (abs(c - value), (c / step).numerator % 2))
    return rounded


def _exponent(value: Fraction) -> int:
    exponent = -149
    while Fraction(2) ** (exponent + 1) <= abs(value):
        exponent += 1
    return exponent


@settings(max_examples=25, deadline=None)
@given(layers(), st.integers(0, 2**32 - 1), st.data())
def test_one_element_by_the_text(layer: tuple[DctqParams, DctqPayload], seed: int, data: st.DataObject) -> None:
    params, payload = layer
    grid, p = params.grid, params.grid.patch
    row = data.draw(st.integers(0, grid.rows - 1), label="row of the view")
    col = data.draw(st.integers(0, grid.cols - 1), label="column of the view")
    i = _place(row, payload.row_keys.tolist()) if params.row_keys else row
    j = _place(col, payload.col_keys.tolist()) if params.col_keys else col
    patch = (i // p) * grid.across + j // p
    number = int(payload.class_map[patch])
    basis = basis_matrix(params.transform, p).tolist()
    delta = Fraction(0)
    if len(params.levels[number]) > 1:
        member = int((payload.class_map[:patch] == number).sum())
        levels = [[params.levels[number][s] for s in line] for line in payload.codes[number][member].tolist()]
        integer = _element(basis, levels, i % p, j % p)
        if params.quantiser == "levels":
            delta = to_binary32(to_binary32(Fraction(integer)) * Fraction(float(payload.scales[number])))
        else:
            coded = sum(len(params.levels[c]) > 1 for c in payload.class_map[:patch].tolist())
            ones = _element(basis, [[1] * p for _ in range(p)], i % p, j % p)
            stepped = to_binary32(to_binary32(Fraction(integer)) * Fraction(float(payload.steps[coded])))
            shifted = to_binary32(Fraction(ones) * Fraction(float(payload.minima[coded])))
            delta = to_binary32(to_binary32(stepped + shifted) * Fraction(float(payload.scales[0])))
    if params.rank:
        terms = zip(payload.multipliers.tolist(), payload.left[row].tolist(), payload.right[col].tolist(), strict=True)
        product = to_binary32(Fraction(sum(m * a * b for m, a, b in terms)))
        delta = to_binary32(delta + to_binary32(product * Fraction(float(payload.scales[-1]))))
    backend = get_backend("reference")
    assert Fraction(float(backend.decode_delta(params, payload)[row, col])) == delta

    base = base_bytes(grid.rows * grid.cols, "F32", seed, finite=True)
    place = row * grid.cols + col
    result = float32_from_bytes(backend.apply(params, payload, base, "F32", "F32"), "F32")[place]
    assert Fraction(float(result)) == to_binary32(Fraction(float(float32_from_bytes(base, "F32")[place])) + delta)


def _place(index: int, keys: list[int]) -> int:
    """Where a row of the view stands among the rows ordered by key, equal keys in ascending order."""
    return sorted(range(len(keys)), key=lambda k: (keys[k], k)).index(index)


def _element(basis: list[list[int]], levels: list[list[int]], n: int, m: int) -> int:
    p = len(basis)
    return sum(basis[i][n] * levels[i][j] * basis[j][m] for i in range(p) for j in range(p))
