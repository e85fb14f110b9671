"""The exact layer: choices of ``ulp.v1`` by the bytes they cost (spec section 7.3)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ..backends.encoder import Encoder
from ..codec.floats import FLOAT_WIDTHS
from ..codec.symbols import pack_sparse
from ..codec.ulp import KEYS_PER_OCTAVE, UlpParams
from ..container.zstd_frame import compress
from .packing import pack_runs
from .pair import Release, TensorData, keep
from .sampling import spread_rows
from .ulp_pair import UlpPair
from .workspace import Workspace

__all__ = ["Kinds", "encode_exact"]

_TABLE_BITS = 250
_SYMBOL_BITS = 6
"""What a group costs beside the entropy of its symbols: a block, and each symbol that its Huffman table names."""
_LEAST_ZEROS = 0.35
"""Below this share of zeros, runs never pay."""
_KEY_ROUNDS = 3
_MAX_GROUPS = 64
_SAMPLE = 1 << 20
_PIECE = 8 << 20
_SCALE_WEIGHTS = 1 << 18

Histogram = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]
Keys = npt.NDArray[np.uint8]
Bytes = npt.NDArray[np.uint8]
Kinds = tuple[bool, bool]


def encode_exact(
    before: Bytes,
    before_dtype: str,
    target: Bytes,
    dtype: str,
    cols: int,
    encoder: Encoder,
    *,
    release: Release = keep,
    release_before: Release = keep,
    workspace: Workspace | None = None,
    kinds: Kinds | None = None,
) -> tuple[UlpParams, list[Bytes], float]:
    """Choose keys, groups and the way each group is written.

    Args:
        before: bytes of the tensor so far, of type ``before_dtype``.
        target: bytes of the tensor to restore, of type ``dtype``; at least one element.
        cols: columns of the view.
        encoder: what does the arithmetic.
        release, release_before: see :class:`TensorData`, of the target and of the tensor so far.
        kinds: whether rows and columns have keys, if a sample has decided that.

    Returns:
        The layer's parameters, the sections of its payload, and an estimate of its stored size in bytes.
    """
    workspace = workspace or Workspace()
    view = (target.size // (FLOAT_WIDTHS[dtype] * cols), cols)
    tensors = TensorData(before_dtype, view, before, release_before), TensorData(dtype, view, target, release)
    pair = UlpPair(*tensors, encoder)
    candidates = [kinds] if kinds is not None else _candidates(pair.rows, cols)
    scales = _scales(pair) if any(any(kind) for kind in candidates) else None
    chosen: tuple[float, UlpParams, Keys, Keys, Counts] | None = None
    for kind in candidates:
        row_keys, col_keys = _keys(scales, kind)
        counts = pair.count(row_keys, col_keys)
        bounds, cost = _group(counts)
        cost += _entropy_bits(np.bincount(row_keys)) + _entropy_bits(np.bincount(col_keys))
        cost += _TABLE_BITS * (bool(row_keys.size) + bool(col_keys.size))
        if chosen is None or cost < chosen[0]:
            params = replace(pair.plain, bounds=bounds, row_keys=kind[0], col_keys=kind[1])
            chosen = (cost, params, row_keys, col_keys, counts)
    assert chosen is not None
    cost, params, row_keys, col_keys, counts = chosen
    groups, extra = pair.scatter(params, row_keys, col_keys, counts, workspace)
    written = list(workspace.spread(lambda symbols: _write_group(symbols, workspace), groups))
    sparse = tuple(number for number, (runs, _) in enumerate(written) if runs is not None)
    run_counts = np.array([runs.size for runs, _ in written if runs is not None], dtype="<u4")
    sections = [row_keys, col_keys, run_counts.view(np.uint8)]
    for runs, stored in written:
        sections.extend([stored] if runs is None else [runs, stored])
    return replace(params, sparse=sparse), [*sections, extra], cost / 8 + extra.size


def _candidates(rows: int, cols: int) -> list[Kinds]:
    """Whether rows and columns have keys."""
    if min(rows, cols) == 1:
        return [(False, False)]
    return [(False, False), (True, False), (False, True), (True, True)]


def _scales(pair: UlpPair) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The sizes of the residuals of each row and column: a rank-one model."""
    sampled = pair.sizes(spread_rows(pair.rows, max(1, _SCALE_WEIGHTS // pair.cols), 1))
    floor = max(float(sampled.mean()) * 2.0**-20, 1e-30)
    cols = np.ones(pair.cols, dtype=np.float32)
    for _ in range(_KEY_ROUNDS):
        rows = np.maximum((sampled @ (1 / cols)) / pair.cols, floor)
        cols = np.maximum(((1 / rows) @ sampled) / len(rows), np.float32(2.0**-20))
    return np.maximum(pair.row_sizes((1 / cols).astype(np.float32)) / pair.cols, floor), cols.astype(np.float64)


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


def _group(counts: Counts) -> tuple[tuple[int, ...], float]:
    """Merge neighbouring contexts while that saves bits; the bounds between the groups left, and the bits they cost.

    Args:
        counts: [contexts, symbols].
    """
    present = np.flatnonzero(counts.any(axis=1))
    matrix = counts[np.ix_(present, counts.any(axis=0))].astype(np.float64)
    parts: list[Histogram] = list(matrix)
    firsts = [int(context) for context in present]
    costs = _table_costs(matrix).tolist()
    gains = (np.array(costs[:-1]) + np.array(costs[1:]) - _table_costs(matrix[:-1] + matrix[1:])).tolist()
    while gains and (max(gains) > 0 or len(parts) > _MAX_GROUPS):
        best = int(np.argmax(gains))
        parts[best] = parts[best] + parts[best + 1]
        costs[best] = _table_cost(parts[best])
        del parts[best + 1], costs[best + 1], firsts[best + 1], gains[best]
        for i in (best - 1, best):
            if 0 <= i < len(gains):
                gains[i] = costs[i] + costs[i + 1] - _table_cost(parts[i] + parts[i + 1])
    return tuple(firsts[1:]), sum(costs)


def _table_costs(counts: Histogram) -> Histogram:
    """Bits of each group, from its row of counts."""
    totals = counts.sum(axis=1)
    logarithms = np.log2(counts, out=np.zeros_like(counts), where=counts > 0)
    bits = totals * np.log2(np.maximum(totals, 1)) - (counts * logarithms).sum(axis=1)
    costs: Histogram = bits + _TABLE_BITS + _SYMBOL_BITS * np.count_nonzero(counts, axis=1)
    return costs


def _table_cost(counts: Histogram) -> float:
    return float(_table_costs(counts[None])[0])


def _entropy_bits(counts: npt.NDArray[Any]) -> float:
    used = counts[counts > 0].astype(np.float64)
    total = used.sum()
    return float(total * np.log2(total) - (used * np.log2(used)).sum()) if used.size else 0.0


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
    runs, values = pack_sparse(sample, 256)
    if len(compress(runs)) + len(compress(values)) + 4 >= len(compress(sample)):
        return None, symbols
    if sample.size < symbols.size:
        runs, values = pack_runs(symbols, symbols.size - zeros, workspace)
    return (runs, values) if runs.size < 2**32 else (None, symbols)
