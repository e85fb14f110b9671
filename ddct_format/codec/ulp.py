"""``ulp.v1``: the exact difference to a prediction, in units in the last place (spec section 7.3).

Bit patterns are numbered in the order of the values they stand for, so that a small change of a weight is a small
integer. How small depends on the size of one unit, which the prediction's exponent tells the decoder for nothing:
weights are grouped by it, and each group is nearly stationary, which is all that zstd's Huffman stage needs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import InvalidError
from .floats import FLOAT_DTYPES, float32_from_bytes, float32_to_bytes
from .symbols import measure_runs, unpack_sparse

__all__ = [
    "KEYS_PER_OCTAVE",
    "MAX_BOUND",
    "NAME",
    "UlpParams",
    "apply_ulp",
    "predict",
    "residual_symbols",
    "write_extra_bits",
]

NAME = "ulp.v1"
KEYS_PER_OCTAVE = 4
"""A step of a key, or a quarter of a step of the exponent, is a quarter of an octave of the residual's scale."""
MAX_BOUND = 255 + 255 + KEYS_PER_OCTAVE * 254
"""The largest context that keys and an exponent can give."""
_MAX_BOUNDS = 254
_SMALLEST_WIDTH = 8
_TILE = 1 << 18
_PATTERN_BITS = {"BF16": 16, "F16": 16, "F32": 32}
_FRACTION_BITS = {"BF16": 7, "F16": 10, "F32": 23}
_REQUIRED = {"cols", "bounds"}
_OPTIONAL = {"shift", "sparse", "row_keys", "col_keys"}

Integers = npt.NDArray[np.signedinteger[Any]]


@dataclass(frozen=True, slots=True)
class UlpParams:
    """The parameters of a layer, checked.

    Attributes:
        dtype: the target's element type.
        rows, cols: the view, for the keys.
        bounds: where one group of contexts ends and the next begins; the groups are one more.
        shift: low bits of every target pattern that are zero and not coded.
        sparse: the groups whose symbols are stored as runs of zeros and values.
        row_keys, col_keys: whether each row (column) has a key: the scale of its residuals.
    """

    dtype: str
    rows: int
    cols: int
    bounds: tuple[int, ...] = ()
    shift: int = 0
    sparse: tuple[int, ...] = ()
    row_keys: bool = False
    col_keys: bool = False

    @classmethod
    def parse(cls, params: Mapping[str, object], elements: int, dtype: str) -> UlpParams:
        """Check the JSON parameters of a tensor of ``elements`` elements of type ``dtype``.

        Raises:
            InvalidError: they are not as section 7.3 demands.
        """
        if dtype not in FLOAT_DTYPES:
            raise InvalidError(f"ulp.v1 works on {', '.join(FLOAT_DTYPES)} only")
        if not _REQUIRED <= set(params) <= _REQUIRED | _OPTIONAL:
            raise InvalidError(f"ulp.v1 takes the parameters {sorted(_REQUIRED)}, and may have {sorted(_OPTIONAL)}")
        cols = params["cols"]
        if type(cols) is not int or cols < 1 or elements < 1 or elements % cols:
            raise InvalidError(f"ulp.v1: {elements} elements cannot be rows of 'cols'")
        bounds = _ascending(params, "bounds", 1, MAX_BOUND, 0)
        if len(bounds) > _MAX_BOUNDS:
            raise InvalidError(f"ulp.v1: there are more than {_MAX_BOUNDS} bounds")
        shift = params.get("shift", 0)
        if type(shift) is not int or not 0 <= shift <= _PATTERN_BITS[dtype] - _SMALLEST_WIDTH:
            raise InvalidError(f"ulp.v1: 'shift' must leave {_SMALLEST_WIDTH} bits or more")
        return cls(
            dtype=dtype,
            rows=elements // cols,
            cols=cols,
            bounds=bounds,
            shift=shift,
            sparse=_ascending(params, "sparse", 0, len(bounds), 1) if "sparse" in params else (),
            row_keys=_flag(params, "row_keys"),
            col_keys=_flag(params, "col_keys"),
        )

    def as_json(self) -> dict[str, object]:
        """The inverse of :meth:`parse`."""
        params: dict[str, object] = {"cols": self.cols, "bounds": list(self.bounds)}
        if self.shift:
            params["shift"] = self.shift
        if self.sparse:
            params["sparse"] = list(self.sparse)
        if self.row_keys:
            params["row_keys"] = True
        if self.col_keys:
            params["col_keys"] = True
        return params

    @property
    def width(self) -> int:
        """W: bits of a pattern that are coded, the sign included."""
        return _PATTERN_BITS[self.dtype] - self.shift

    @property
    def mantissa(self) -> int:
        """m: bits after the leading one of a magnitude that its symbol tells; a symbol then fits a byte."""
        return 3 if self.width <= 16 else 2

    @property
    def alphabet(self) -> int:
        """A: the number of symbols."""
        magnitude, _ = _split_magnitude(np.array([2**self.width - 1]), self.mantissa)
        return 2 * int(magnitude[0]) + 1

    def extra_bits(self) -> npt.NDArray[np.int64]:
        """k: how many extra bits follow each symbol, int64 [256]."""
        codes = (np.arange(256, dtype=np.int64) + 1) >> 1
        extra: npt.NDArray[np.int64] = np.maximum(0, (codes >> self.mantissa) - 1)
        return extra

    @property
    def fixed_size(self) -> int:
        """Bytes of keys and run counts."""
        return (self.rows if self.row_keys else 0) + (self.cols if self.col_keys else 0) + 4 * len(self.sparse)

    def size_bounds(self) -> tuple[int, int]:
        """The smallest and the largest payload, in bytes (section 7.3.2)."""
        elements = self.rows * self.cols
        largest = (2 if self.sparse else 1) * elements + -(-elements * (self.width - 1 - self.mantissa) // 8)
        return self.fixed_size + (0 if self.sparse else elements), self.fixed_size + largest

    def contexts(
        self, patterns: Integers, row_keys: npt.NDArray[np.uint8], col_keys: npt.NDArray[np.uint8]
    ) -> npt.NDArray[np.int16]:
        """The context of each element, 1-D, from the predictions' whole patterns (section 7.3.1, step 3)."""
        fraction = _FRACTION_BITS[self.dtype]
        largest = 2 ** (_PATTERN_BITS[self.dtype] - 1 - fraction) - 1
        exponent = ((patterns >> fraction) & largest).astype(np.int16)
        contexts = (KEYS_PER_OCTAVE * (largest - np.maximum(exponent, 1))).reshape(self.rows, self.cols)
        if self.row_keys:
            contexts += row_keys.astype(np.int16)[:, None]
        if self.col_keys:
            contexts += col_keys.astype(np.int16)[None, :]
        flat: npt.NDArray[np.int16] = contexts.reshape(-1)
        return flat

    def groups(self, contexts: npt.NDArray[np.int16]) -> npt.NDArray[np.uint8]:
        """The group of each context."""
        return self.group_table()[contexts]

    def group_table(self) -> npt.NDArray[np.uint8]:
        """The group of every context there is, uint8 [MAX_BOUND + 1]."""
        return np.searchsorted(np.array(self.bounds), np.arange(MAX_BOUND + 1), side="right").astype(np.uint8)


def predict(before: npt.NDArray[np.uint8], before_dtype: str, dtype: str) -> Integers:
    """The tensor so far, rounded to the target's type where its own differs, as bit patterns in signed integers."""
    if before_dtype != dtype:
        before = float32_to_bytes(float32_from_bytes(before, before_dtype), dtype)
    return _patterns(before, dtype)


def apply_ulp(
    params: UlpParams, payload: npt.NDArray[np.uint8], before: npt.NDArray[np.uint8], before_dtype: str
) -> npt.NDArray[np.uint8]:
    """The target's bytes, uint8 1-D (section 7.3.3).

    Args:
        payload: of a size within :meth:`UlpParams.size_bounds`.
        before: bytes of the tensor so far, of type ``before_dtype``.

    Raises:
        InvalidError: the payload is not as section 7.3 demands.
    """
    patterns = predict(before, before_dtype, params.dtype)
    sections = _Sections(payload)
    row_keys = sections.take(params.rows if params.row_keys else 0)
    col_keys = sections.take(params.cols if params.col_keys else 0)
    run_counts = dict(zip(params.sparse, sections.take(4 * len(params.sparse)).view("<u4").tolist(), strict=True))
    groups = params.groups(params.contexts(patterns, row_keys, col_keys))

    symbols = np.empty(patterns.size, dtype=np.uint8)
    for number, members in _members(groups, len(params.bounds) + 1):
        if number in run_counts:
            runs = sections.take(run_counts[number])
            values = sections.take(measure_runs(runs, members.size)[1])
            symbols[members] = unpack_sparse(runs, values, members.size, params.alphabet)
        else:
            symbols[members] = sections.take(members.size)
    if symbols.max() >= params.alphabet:
        raise InvalidError(f"ulp.v1: a symbol is {int(symbols.max())}, not below {params.alphabet}")

    bits = _BitReader(sections.rest())
    target = np.empty_like(patterns)
    for _, members in _members(groups, len(params.bounds) + 1):
        predicted = patterns[members] >> params.shift
        residual = _residuals(symbols[members], bits, params).astype(patterns.dtype)
        negative = predicted >> (params.width - 1) != 0
        ordered = _ordered(predicted, params.width) + np.where(negative, -residual, residual)
        limit = 1 << (params.width - 1)
        if ordered.size and not -limit <= int(ordered.min()) <= int(ordered.max()) < limit:
            raise InvalidError("ulp.v1: a residual leads beyond the element type's patterns")
        target[members] = np.where(ordered < 0, limit | (-1 - ordered), ordered) << params.shift
    bits.finish()
    return target.astype(f"<u{_PATTERN_BITS[params.dtype] // 8}").view(np.uint8)


def residual_symbols(
    predicted: Integers, target: npt.NDArray[np.uint8], params: UlpParams
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8], npt.NDArray[np.uint32]]:
    """For the encoder: symbol, number of extra bits and extra bits of each element, all 1-D in element order.

    Args:
        predicted: whole patterns, as :func:`predict` gives them.
        target: bytes of the target; the low ``shift`` bits of every pattern are zero.
    """
    wanted = np.frombuffer(target, dtype=f"<u{_PATTERN_BITS[params.dtype] // 8}")
    symbols = np.empty(predicted.size, dtype=np.uint8)
    lengths = np.empty(predicted.size, dtype=np.uint8)
    values = np.empty(predicted.size, dtype=np.uint32)
    for start in range(0, predicted.size, _TILE):  # bounds the memory, and stays in the cache
        tile = slice(start, start + _TILE)
        low, high = predicted[tile] >> params.shift, wanted[tile].astype(predicted.dtype) >> params.shift
        residual = _ordered(high, params.width) - _ordered(low, params.width)
        residual = np.where(low >> (params.width - 1) != 0, -residual, residual)
        magnitude = np.abs(residual)
        code, extra = _split_magnitude(magnitude, params.mantissa)
        symbols[tile] = 2 * code - (residual < 0)
        lengths[tile] = extra
        values[tile] = magnitude & ((np.int64(1) << extra) - 1)
    return symbols, lengths, values


def write_extra_bits(
    values: npt.NDArray[np.uint32], lengths: npt.NDArray[np.uint8], skipped: int = 0
) -> npt.NDArray[np.uint8]:
    """The bits of all values, one after another, the lowest first, after ``skipped``; all others are zero."""
    used = lengths > 0
    values, lengths = values[used], lengths[used]
    ends = skipped + np.cumsum(lengths, dtype=np.int64)
    starts = ends - lengths
    size = -(-int(ends[-1]) // 8) if ends.size else 0
    shifted = values.astype(np.uint64) << (starts & 7).astype(np.uint64)
    packed = np.zeros(size + 8, dtype=np.uint8)
    for place in range(5):  # at most 29 bits, and 7 before them
        part = ((shifted >> np.uint64(8 * place)) & np.uint64(255)).astype(np.float64)
        packed += np.bincount((starts >> 3) + place, part, size + 8).astype(np.uint8)
    return packed[:size]


class _Sections:
    """The payload, taken piece by piece."""

    def __init__(self, payload: npt.NDArray[np.uint8]) -> None:
        self._payload = payload
        self._position = 0

    def take(self, size: int) -> npt.NDArray[np.uint8]:
        part = self._payload[self._position : self._position + size]
        if part.size != size:
            raise InvalidError(f"ulp.v1: the payload has {self._payload.size} bytes, its contents take more")
        self._position += size
        return part

    def rest(self) -> npt.NDArray[np.uint8]:
        return self._payload[self._position :]


class _BitReader:
    """Bit fields of different lengths, one after another, the lowest bit of a byte first."""

    def __init__(self, data: npt.NDArray[np.uint8]) -> None:
        self._size = data.size
        self._padded = np.concatenate([data, np.zeros(8, dtype=np.uint8)])
        self._position = 0

    def read(self, lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The next fields, each of at most 29 bits."""
        ends = self._position + np.cumsum(lengths)
        starts = ends - lengths
        self._position = int(ends[-1]) if ends.size else self._position
        if self._position > 8 * self._size:
            raise InvalidError("ulp.v1: there are fewer extra bits than the symbols need")
        first, inside = starts >> 3, starts & 7
        fields = np.zeros(lengths.size, dtype=np.int64)
        for place in range(-(-(int(lengths.max(initial=0)) + 7) // 8)):
            fields |= self._padded[first + place].astype(np.int64) << (8 * place)
        return (fields >> inside) & ((np.int64(1) << lengths) - 1)

    def finish(self) -> None:
        """All bytes must have been used, and the bits left over be zero."""
        if -(-self._position // 8) != self._size:
            raise InvalidError("ulp.v1: the payload is longer than its contents")
        if self._position & 7 and self._padded[self._position >> 3] >> (self._position & 7):
            raise InvalidError("ulp.v1: bits after the last extra bit are not zero")


def _residuals(symbols: npt.NDArray[np.uint8], bits: _BitReader, params: UlpParams) -> npt.NDArray[np.int64]:
    """Symbols and their extra bits -> residuals, positive where the magnitude of the prediction grows."""
    code = (symbols.astype(np.int64) + 1) >> 1
    extra = np.maximum(0, (code >> params.mantissa) - 1)
    magnitude = (code - (extra << params.mantissa)) << extra
    used = np.flatnonzero(extra)
    magnitude[used] |= bits.read(extra[used])
    residuals: npt.NDArray[np.int64] = np.where(symbols & 1, -magnitude, magnitude)
    return residuals


def _split_magnitude(magnitude: Integers, mantissa: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Magnitudes -> codes and numbers of extra bits."""
    magnitude = magnitude.astype(np.int64)
    exponent = np.frexp(magnitude.astype(np.float64))[1].astype(np.int64) - 1
    extra = np.maximum(0, exponent - mantissa)
    return (magnitude >> extra) + (extra << mantissa), extra


def _ordered(patterns: Integers, width: int) -> Integers:
    """Patterns of ``width`` bits -> integers in the order of the values; −0 is just below +0."""
    magnitude = patterns & ((1 << (width - 1)) - 1)
    ordered: Integers = np.where(patterns >> (width - 1) != 0, -1 - magnitude, magnitude)
    return ordered


def _patterns(data: npt.NDArray[np.uint8], dtype: str) -> Integers:
    """Bytes -> patterns in a signed integer type that holds differences of them."""
    bits = _PATTERN_BITS[dtype]
    return np.frombuffer(data, dtype=f"<u{bits // 8}").astype(np.int32 if bits == 16 else np.int64)


def _members(groups: npt.NDArray[np.uint8], count: int) -> Iterator[tuple[int, npt.NDArray[np.intp]]]:
    for number in range(count):
        yield number, np.flatnonzero(groups == number)


def _ascending(params: Mapping[str, object], name: str, low: int, high: int, least: int) -> tuple[int, ...]:
    numbers = params[name]
    if not isinstance(numbers, list) or any(type(number) is not int for number in numbers):
        raise InvalidError(f"ulp.v1: {name!r} must be a list of integers")
    if len(numbers) < least or numbers != sorted(set(numbers)):
        raise InvalidError(f"ulp.v1: {name!r} must be strictly ascending, {least} numbers or more")
    if numbers and not low <= numbers[0] <= numbers[-1] <= high:
        raise InvalidError(f"ulp.v1: {name!r} must lie in {low} … {high}")
    return tuple(numbers)


def _flag(params: Mapping[str, object], name: str) -> bool:
    if params.get(name, True) is not True:
        raise InvalidError(f"ulp.v1: {name!r} must be true where it is present")
    return name in params
