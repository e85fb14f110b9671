"""The exact layer: choices of ``ulp.v1`` by the bytes they cost (spec section 7.3)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ..codec import ulp
from ..codec.symbols import pack_sparse
from ..codec.ulp import KEYS_PER_OCTAVE, MAX_BOUND, UlpParams
from ..container.zstd_frame import compress

__all__ = ["encode_exact"]

_TABLE_BITS = 250
_SYMBOL_BITS = 6
"""What a group costs beside the entropy of its symbols: a block, and each symbol that its Huffman table names."""
_LEAST_ZEROS = 0.35
"""Below this share of zeros, runs never pay."""
_KEY_ROUNDS = 3
_MAX_GROUPS = 64
_SAMPLE = 1 << 22

Histogram = npt.NDArray[np.float64]
Keys = npt.NDArray[np.uint8]


def encode_exact(
    before: npt.NDArray[np.uint8], before_dtype: str, target: npt.NDArray[np.uint8], dtype: str, cols: int
) -> tuple[UlpParams, list[npt.NDArray[np.uint8]], float]:
    """Choose keys, groups and the way each group is written.

    Args:
        before: bytes of the tensor so far, of type ``before_dtype``.
        target: bytes of the tensor to restore, of type ``dtype``; at least one element.
        cols: columns of the view.

    Returns:
        The layer's parameters, the sections of its payload, and an estimate of its stored size in bytes.
    """
    patterns = ulp.predict(before, before_dtype, dtype)
    rows = patterns.size // cols
    plain = UlpParams(dtype, rows, cols, shift=_common_zeros(target, dtype))
    symbols, lengths, values = ulp.residual_symbols(patterns, target, plain)

    none = np.empty(0, dtype=np.uint8)
    row_keys, col_keys = _keys(patterns, symbols, lengths, plain)
    candidates = [(plain, none, none)]
    if rows > 1 and cols > 1:
        both = replace(plain, row_keys=True, col_keys=True)
        candidates += [
            (replace(plain, row_keys=True), row_keys, none),
            (replace(plain, col_keys=True), none, col_keys),
            (both, *_shared_range(row_keys, col_keys)),
        ]
    chosen: tuple[float, UlpParams, Keys, Keys, npt.NDArray[np.int16]] | None = None
    for params, rows_sent, cols_sent in candidates:
        contexts = params.contexts(patterns, rows_sent, cols_sent)
        bounds, cost = _group(contexts, symbols, params.alphabet)
        cost += _entropy_bits(np.bincount(rows_sent)) + _entropy_bits(np.bincount(cols_sent))
        cost += _TABLE_BITS * (bool(rows_sent.size) + bool(cols_sent.size))
        if chosen is None or cost < chosen[0]:
            chosen = (cost, replace(params, bounds=bounds), rows_sent, cols_sent, contexts)
    assert chosen is not None
    cost, params, rows_sent, cols_sent, contexts = chosen
    groups = params.groups(contexts)
    members = [np.flatnonzero(groups == number) for number in range(len(params.bounds) + 1)]
    written = [_write_group(symbols[places]) for places in members]
    sparse = tuple(number for number, (runs, _) in enumerate(written) if runs is not None)
    run_counts = np.array([written[number][0].size for number in sparse], dtype="<u4")  # type: ignore[union-attr]
    order = np.concatenate(members)
    extra = ulp.write_extra_bits(values[order], lengths[order])
    sections = [rows_sent, cols_sent, run_counts.view(np.uint8)]
    for runs, stored in written:
        sections.extend([stored] if runs is None else [runs, stored])
    return replace(params, sparse=sparse), [*sections, extra], cost / 8 + extra.size


def _common_zeros(target: npt.NDArray[np.uint8], dtype: str) -> int:
    """Low bits that are zero in every pattern of the target: a bfloat16 model stored as float32 has sixteen."""
    width = 4 if dtype == "F32" else 2
    used = int(np.bitwise_or.reduce(target.view(f"<u{width}")))
    most = 8 * width - 8
    return min(most, (used & -used).bit_length() - 1) if used else most


def _keys(
    patterns: npt.NDArray[np.signedinteger[Any]],
    symbols: npt.NDArray[np.uint8],
    lengths: npt.NDArray[np.uint8],
    params: UlpParams,
) -> tuple[Keys, Keys]:
    """The scale of the residuals of each row and column, as keys: a rank-one model of their size."""
    none = np.empty(0, dtype=np.uint8)
    code = ((symbols.astype(np.int32) + 1) >> 1) - (lengths.astype(np.int32) << params.mantissa)
    exponents = params.contexts(patterns, none, none).astype(np.float32) / -KEYS_PER_OCTAVE
    # A residual in ulps, times the size of one ulp: the size of the change itself. A large residual is a jump over
    # many exponents, of which the change says nothing more.
    size = np.ldexp(code.astype(np.float32), np.minimum(lengths, 8))
    size *= np.exp2(np.clip(exponents - np.median(exponents), -60, 60))
    size = size.reshape(params.rows, params.cols)
    floor = max(float(size.mean()) * 2.0**-20, 1e-30)
    rows = np.ones(params.rows, dtype=np.float32)
    cols = np.ones(params.cols, dtype=np.float32)
    for _ in range(_KEY_ROUNDS):
        rows = np.maximum((size @ (1 / cols)) / params.cols, floor)
        cols = np.maximum(((1 / rows) @ size) / params.rows, np.float32(2.0**-20))
    return _as_keys(rows), _as_keys(cols)


def _as_keys(scales: npt.NDArray[np.float32]) -> Keys:
    keys = np.rint(KEYS_PER_OCTAVE * np.log2(scales))
    clipped: Keys = np.clip(keys - keys.max() + 255, 0, 255).astype(np.uint8)
    return clipped


def _shared_range(row_keys: Keys, col_keys: Keys) -> tuple[Keys, Keys]:
    return row_keys - row_keys.min(), col_keys - col_keys.min()


def _group(
    contexts: npt.NDArray[np.int16], symbols: npt.NDArray[np.uint8], alphabet: int
) -> tuple[tuple[int, ...], float]:
    """Merge neighbouring contexts while that saves bits; the bounds between the groups left, and the bits they cost."""
    joint = contexts.astype(np.int32) * alphabet + symbols
    counts = np.bincount(joint, minlength=(MAX_BOUND + 1) * alphabet).reshape(MAX_BOUND + 1, alphabet)
    present = np.flatnonzero(counts.any(axis=1))
    matrix: Histogram = counts[np.ix_(present, counts.any(axis=0))].astype(np.float64)
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


def _write_group(symbols: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.uint8] | None, npt.NDArray[np.uint8]]:
    """(run bytes, values), or (None, one byte per symbol) where that is smaller: zstd itself is asked."""
    if not symbols.size or np.count_nonzero(symbols == 0) < _LEAST_ZEROS * symbols.size:
        return None, symbols
    runs, values = pack_sparse(symbols, 256)
    sample = symbols[:_SAMPLE]
    sample_runs, sample_values = (runs, values) if sample.size == symbols.size else pack_sparse(sample, 256)
    in_runs = len(compress(sample_runs)) + len(compress(sample_values)) + 4
    return (runs, values) if in_runs < len(compress(sample)) and runs.size < 2**32 else (None, symbols)
