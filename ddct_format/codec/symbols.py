"""Symbols as bytes, densely or as runs of zeros (spec sections 7.2.4 and 7.2.5).

A byte holds as many base-A digits as fit. zstd's Huffman stage works on bytes: with dense bit packing, three-bit
symbols cross byte borders and nothing is left for it to find. Where nearly all symbols are zero, a byte per run of
zeros comes within a few per cent of their entropy, which no fixed number of symbols per byte does.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt

from .. import native
from ..errors import InvalidError

__all__ = [
    "check_packed",
    "measure_runs",
    "pack_sparse",
    "pack_symbols",
    "packed_size",
    "symbols_per_byte",
    "unpack_sparse",
    "unpack_symbols",
]

_LONG_RUN = 255
"""A run byte that stands for this many zeros and no value."""


@cache
def symbols_per_byte(alphabet: int) -> int:
    """The largest n with ``alphabet**n <= 256``, for 2 ≤ alphabet ≤ 256."""
    count = 1
    while alphabet ** (count + 1) <= 256:
        count += 1
    return count


def packed_size(count: int, alphabet: int) -> int:
    """Bytes that ``count`` symbols of an alphabet take; an alphabet of one takes none."""
    return 0 if alphabet == 1 else -(-count // symbols_per_byte(alphabet))


@cache
def _digits(alphabet: int) -> npt.NDArray[np.uint8]:
    """[256, n]: the digits of every byte, the first symbol being the least significant digit."""
    powers = alphabet ** np.arange(symbols_per_byte(alphabet))
    return ((np.arange(256)[:, None] // powers) % alphabet).astype(np.uint8)


def pack_symbols(symbols: npt.NDArray[np.uint8], alphabet: int) -> npt.NDArray[np.uint8]:
    """1-D symbols below ``alphabet`` -> bytes; digits left over in the last byte are zero."""
    if alphabet == 1:
        return np.empty(0, dtype=np.uint8)
    per_byte = symbols_per_byte(alphabet)
    size = packed_size(symbols.size, alphabet)
    padded = np.zeros(size * per_byte, dtype=np.uint8)
    padded[: symbols.size] = symbols
    digits = padded.reshape(size, per_byte)
    packed = np.zeros(size, dtype=np.uint8)
    for position in reversed(range(per_byte)):  # Horner; a byte never overflows, for alphabet**n <= 256
        packed *= np.uint8(alphabet & 0xFF)
        packed += digits[:, position]
    return packed


def unpack_symbols(packed: npt.NDArray[np.uint8], count: int, alphabet: int) -> npt.NDArray[np.uint8]:
    """Bytes -> ``count`` symbols, each below ``alphabet``.

    Raises:
        InvalidError: a byte is no n-digit number of the base, or a digit after the last symbol is not zero.
    """
    check_packed(packed, count, alphabet)
    if alphabet == 1:
        return np.zeros(count, dtype=np.uint8)
    return _digits(alphabet)[packed].reshape(-1)[:count]


def check_packed(packed: npt.NDArray[np.uint8], count: int, alphabet: int) -> None:
    """Check ``packed_size(count, alphabet)`` bytes without unpacking them.

    Raises:
        InvalidError: a byte is no n-digit number of the base, or a digit after the last symbol is not zero.
    """
    if not packed.size:
        return
    per_byte = symbols_per_byte(alphabet)
    if int(packed.max()) >= alphabet**per_byte:
        raise InvalidError(f"a packed byte is out of range for {alphabet} symbols")
    if int(packed[-1]) >= alphabet ** (count - (packed.size - 1) * per_byte):
        raise InvalidError("digits after the last symbol are not zero")


def pack_sparse(symbols: npt.NDArray[np.uint8], alphabet: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """1-D symbols below ``alphabet`` -> (run bytes, packed values). Zeros after the last value are not stored."""
    places = np.flatnonzero(symbols)
    gaps = np.diff(places, prepend=-1) - 1
    long_runs = gaps // _LONG_RUN
    ends = np.cumsum(long_runs + 1) - 1
    runs = np.full(int(ends[-1]) + 1 if places.size else 0, _LONG_RUN, dtype=np.uint8)
    runs[ends] = gaps % _LONG_RUN
    return runs, pack_symbols(symbols[places] - np.uint8(1), alphabet - 1)


def measure_runs(runs: npt.NDArray[np.uint8], count: int) -> tuple[bool, int]:
    """Whether run bytes stay within ``count`` symbols, and how many values belong to them."""
    if native.core is not None:
        return native.core.measure_runs(runs, count)
    values = int(np.count_nonzero(runs != _LONG_RUN))
    return int(runs.sum(dtype=np.int64)) + values <= count, values


def unpack_sparse(
    runs: npt.NDArray[np.uint8], values: npt.NDArray[np.uint8], count: int, alphabet: int
) -> npt.NDArray[np.uint8]:
    """Run bytes and packed values -> ``count`` symbols, each below ``alphabet``.

    Raises:
        InvalidError: a run leads beyond the last symbol, or the values are not packed as they must be.
    """
    if not measure_runs(runs, count)[0]:
        raise InvalidError("a run of zeros leads beyond the last symbol")
    valued = runs != _LONG_RUN
    places = np.cumsum(runs + valued.astype(np.int64), dtype=np.int64)
    symbols = np.zeros(count, dtype=np.uint8)
    symbols[places[valued] - 1] = unpack_symbols(values, int(np.count_nonzero(valued)), alphabet - 1) + np.uint8(1)
    return symbols
