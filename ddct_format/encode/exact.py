"""The exact layer: choices of ``ulp.v1`` by the bytes they cost (spec section 7.3)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from ..backends.encoder import Encoder
from ..codec.floats import FLOAT_WIDTHS
from ..codec.ulp import KEYS_PER_OCTAVE, UlpParams
from ..container.zstd_frame import compress
from .packing import pack_runs, pack_sparse_bytes
from .pair import TensorData
from .sampling import spread_rows
from .ulp_pair import UlpPair
from .workspace import Workspace

__all__ = ["ExactPlan", "Kinds", "encode_exact", "plan_exact", "price_kinds"]

_TABLE_BITS = 250
_SYMBOL_BITS = 6
"""What a group costs beside the entropy of its symbols: a block, and each symbol that its Huffman table names."""
_SEEMING_BITS = 0.72
"""A sample looks more orderly than the whole, by half a nat for each symbol that it names (Miller and Madow 1955)."""
_LEAST_ZEROS = 0.35
"""Below this share of zeros, runs never pay."""
_KEY_ROUNDS = 3
_MAX_GROUPS = 32
"""More would save a tenth of a per cent of the largest tensors, and take every reader time."""
_SAMPLE = 1 << 16
_PIECE = 8 << 20
_SCALE_WEIGHTS = 1 << 18
_COUNTED_WEIGHTS = 1 << 20
"""Tell where groups of contexts begin and end."""

Histogram = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]
Keys = npt.NDArray[np.uint8]
Bytes = npt.NDArray[np.uint8]
Kinds = tuple[bool, bool]


@dataclass(frozen=True, slots=True)
class ExactPlan:
    """The choices for a layer, but for the way each group is written.

    Attributes:
        row_keys, col_keys: uint8, empty without.
        size: about how many bytes the layer takes.
    """

    params: UlpParams
    row_keys: Keys
    col_keys: Keys
    size: float

    @property
    def kinds(self) -> Kinds:
        return self.params.row_keys, self.params.col_keys


def encode_exact(
    before: TensorData,
    target: TensorData,
    cols: int,
    encoder: Encoder,
    workspace: Workspace | None = None,
    *,
    plan: ExactPlan | None = None,
) -> tuple[UlpParams, list[Bytes]]:
    """The exact layer's parameters, and the sections of its payload.

    Args:
        before: the tensor so far.
        target: the tensor to restore; at least one element.
        cols: columns of the view.
        encoder: what does the arithmetic.
        plan: what :func:`plan_exact` gave for the same tensors.
    """
    workspace = workspace or Workspace()
    plan = plan or plan_exact(before, target, cols, encoder, workspace)
    pair = _pair(before, target, cols, encoder)
    groups, extra = pair.scatter(plan.params, plan.row_keys, plan.col_keys, workspace)
    written = list(workspace.spread(lambda symbols: _write_group(symbols, workspace), groups))
    sparse = tuple(number for number, (runs, _) in enumerate(written) if runs is not None)
    run_counts = np.array([runs.size for runs, _ in written if runs is not None], dtype="<u4")
    sections = [plan.row_keys, plan.col_keys, run_counts.view(np.uint8)]
    for runs, stored in written:
        sections.extend([stored] if runs is None else [runs, stored])
    return replace(plan.params, sparse=sparse), [*sections, extra]


def plan_exact(
    before: TensorData,
    target: TensorData,
    cols: int,
    encoder: Encoder,
    workspace: Workspace,
    *,
    kinds: Kinds | None = None,
) -> ExactPlan:
    """Choose keys and groups.

    Args:
        before, target, cols, encoder, workspace: see :func:`encode_exact`.
        kinds: whether rows and columns have keys, if a sample has decided that.
    """
    pair = _pair(before, target, cols, encoder)
    candidates = [kinds] if kinds is not None else _candidates(pair.rows, cols)
    scales = _scales(pair, workspace) if any(any(kind) for kind in candidates) else None
    counted, weight, rows = pair, 1.0, None
    if pair.rows * cols > 2 * _COUNTED_WEIGHTS:
        rows = spread_rows(pair.rows, max(1, _COUNTED_WEIGHTS // cols), 1)
        counted, weight = pair.take(rows), pair.rows / rows.size
    best: ExactPlan | None = None
    for kind in candidates:
        row_keys, col_keys = _keys(scales, kind)
        contexts, counts = counted.count(row_keys if rows is None or not kind[0] else row_keys[rows], col_keys)
        bounds, bits = _group(contexts, counts, weight)
        bits += _key_bits(row_keys) + _key_bits(col_keys)
        params = replace(pair.plain, bounds=bounds, row_keys=kind[0], col_keys=kind[1])
        bits += weight * float(counts.sum(axis=0) @ params.extra_bits())
        if best is None or bits / 8 < best.size:
            best = ExactPlan(params, row_keys, col_keys, bits / 8)
    assert best is not None
    return best


def price_kinds(
    before: TensorData, target: TensorData, cols: int, encoder: Encoder, workspace: Workspace, weight: float
) -> tuple[Kinds, float]:
    """Which keys a tensor should have, and about how many bytes its layer then takes, from a sample of its rows.

    Args:
        before, target, cols, encoder, workspace: see :func:`encode_exact`, of the sample.
        weight: how many times as many rows there are in all.
    """
    pair = _pair(before, target, cols, encoder)
    scales = _scales(pair, workspace)
    prices = {}
    for kind in _candidates(pair.rows, cols):
        row_keys, col_keys = _keys(scales, kind)
        _, counts = pair.count(row_keys, col_keys)
        of_symbols = counts[:, counts.any(axis=0)].astype(np.float64)
        # Every context by itself: in a large tensor, what merging them saves is little, and the same for all kinds.
        bits = float(_entropies(of_symbols).sum()) + _SEEMING_BITS * np.count_nonzero(of_symbols)
        bits += float(counts.sum(axis=0) @ pair.plain.extra_bits()) + _key_bits(row_keys)
        prices[kind] = (bits * weight + _key_bits(col_keys)) / 8
    best = min(prices, key=lambda kind: prices[kind])
    return best, prices[best]


def _pair(before: TensorData, target: TensorData, cols: int, encoder: Encoder) -> UlpPair:
    view = (target.data.size // (FLOAT_WIDTHS[target.dtype] * cols), cols)
    return UlpPair(replace(before, shape=view), replace(target, shape=view), encoder)


def _candidates(rows: int, cols: int) -> list[Kinds]:
    """Whether rows and columns have keys."""
    if min(rows, cols) == 1:
        return [(False, False)]
    return [(False, False), (True, False), (False, True), (True, True)]


def _scales(pair: UlpPair, workspace: Workspace) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The sizes of the residuals of each row and column: a rank-one model."""
    sampled = pair.sizes(spread_rows(pair.rows, max(1, _SCALE_WEIGHTS // pair.cols), 1))
    floor = max(float(sampled.mean()) * 2.0**-20, 1e-30)
    cols = np.ones(pair.cols, dtype=np.float32)
    for _ in range(_KEY_ROUNDS):
        rows = np.maximum((sampled @ (1 / cols)) / pair.cols, floor)
        cols = np.maximum(((1 / rows) @ sampled) / len(rows), np.float32(2.0**-20))
    sizes = pair.row_sizes((1 / cols).astype(np.float32), workspace)
    return np.maximum(sizes / pair.cols, floor), cols.astype(np.float64)


def _keys(scales: tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]] | None, kind: Kinds) -> tuple[Keys, Keys]:
    none = np.empty(0, dtype=np.uint8)
    if scales is None or not any(kind):
        return none, none
    rows, cols = (_as_keys(scale) for scale in scales)
    if all(kind):
        return rows - rows.min(), cols - cols.min()
    return (rows, none) if kind[0] else (none, cols)


def _as_keys(scales: npt.NDArray[np.float64]) -> Keys:
    keys = np.rint(KEYS_PER_OCTAVE * np.log2(scales))
    clipped: Keys = np.clip(keys - keys.max() + 255, 0, 255).astype(np.uint8)
    return clipped


def _group(present: npt.NDArray[np.intp], counts: Counts, weight: float) -> tuple[tuple[int, ...], float]:
    """Merge neighbouring contexts while that saves bits; the bounds between the groups left, and the bits they cost.

    Args:
        present: the contexts, ascending.
        counts: [contexts, symbols], of a sample.
        weight: how many times as many elements there are in all.
    """
    matrix: Histogram = counts[:, counts.any(axis=0)].astype(np.float64) * weight
    symbol_bits = _SYMBOL_BITS + _SEEMING_BITS * (weight - 1)
    firsts, costs = present, _table_costs(matrix, symbol_bits)
    gains = _gains(matrix, costs, np.arange(len(matrix) - 1), symbol_bits)
    while gains.size and (gains.max() > 0 or firsts.size > _MAX_GROUPS):
        # All pairs that gain more than those beside them, at a time.
        merged = (gains > 0) & (gains > np.append(-np.inf, gains[:-1])) & (gains >= np.append(gains[1:], -np.inf))
        if not merged.any():
            merged[gains.argmax()] = True
        places = np.flatnonzero(merged)
        matrix[places] += matrix[places + 1]
        costs[places] += costs[places + 1] - gains[places]
        stays, changed = np.append(True, ~merged), np.append(merged, False)
        matrix, costs, firsts, changed = matrix[stays], costs[stays], firsts[stays], changed[stays]
        gains = gains[~merged]
        beside = np.flatnonzero(changed[:-1] | changed[1:])
        gains[beside] = _gains(matrix, costs, beside, symbol_bits)
    return tuple(firsts[1:].tolist()), float(costs.sum())


def _gains(matrix: Histogram, costs: Histogram, firsts: npt.NDArray[np.intp], symbol_bits: float) -> Histogram:
    """Bits that merging each of these groups with the next one saves."""
    gains: Histogram = (
        costs[firsts] + costs[firsts + 1] - _table_costs(matrix[firsts] + matrix[firsts + 1], symbol_bits)
    )
    return gains


def _table_costs(counts: Histogram, symbol_bits: float) -> Histogram:
    """Bits of each group, from its row of counts."""
    costs: Histogram = _entropies(counts) + _TABLE_BITS + symbol_bits * np.count_nonzero(counts, axis=1)
    return costs


def _entropies(counts: Histogram) -> Histogram:
    """Bits of the symbols that each row counts."""
    totals = counts.sum(axis=1)
    bits: Histogram = totals * np.log2(np.maximum(totals, 1)) - (counts * np.log2(np.maximum(counts, 1))).sum(axis=1)
    return bits


def _key_bits(keys: Keys) -> float:
    """Of the keys of all rows, or columns."""
    return float(_entropies(np.bincount(keys)[None].astype(np.float64))[0]) + _TABLE_BITS if keys.size else 0.0


def _write_group(symbols: Bytes, workspace: Workspace) -> tuple[Bytes | None, Bytes]:
    """(run bytes, values), or (None, one byte per symbol) where that is smaller: zstd itself is asked."""
    zeros = 0
    for start in range(0, symbols.size, _PIECE):
        piece = symbols[start : start + _PIECE]
        zeros += piece.size - int(np.count_nonzero(piece))
        workspace.release()
    if not symbols.size or zeros < _LEAST_ZEROS * symbols.size:
        return None, symbols
    sample = symbols[:_SAMPLE]
    runs, values = pack_sparse_bytes(sample)
    sizes = [len(compress(part, effort="entropy")) for part in (runs, values, sample)]
    if sizes[0] + sizes[1] + 4 >= sizes[2]:
        return None, symbols
    if sample.size < symbols.size:
        runs, values = pack_runs(symbols, symbols.size - zeros, workspace)
    return (runs, values) if runs.size < 2**32 else (None, symbols)
