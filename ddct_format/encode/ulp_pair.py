"""A prediction and the tensor that it is corrected to by ``ulp.v1``, counted and written band by band."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import native
from ..backends.encoder import BAND_WEIGHTS
from ..codec import ulp
from ..codec.floats import FLOAT_DTYPES, FLOAT_WIDTHS, float32_from_bytes, float32_to_bytes
from ..codec.ulp import MAX_BOUND, UlpParams
from .pair import Pair, TensorData
from .workspace import Workspace

__all__ = ["UlpPair"]

_SYMBOLS = 256
_LARGEST_SIZE = np.float32(2.0**60)
_BAND_BYTES = 1 << 20

Bytes = npt.NDArray[np.uint8]
Counts = npt.NDArray[np.int64]
Span = tuple[int, int]


class UlpPair:
    """The residuals of a view.

    Attributes:
        plain: parameters without keys and groups.

    Args:
        before: the tensor so far.
        target: the tensor to restore, of the same two dimensions; at least one element.
    """

    def __init__(self, before: TensorData, target: TensorData) -> None:
        self.rows, self.cols = target.shape
        self._target = target
        self._pair = Pair(before, target, (self.rows, self.cols))
        self.plain = UlpParams(target.dtype, self.rows, self.cols, shift=self._common_zeros())

    def sizes(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """|target − prediction| of some rows, float32 [rows, cols]; what is beyond all bounds says nothing."""
        before, after = self._predicted(self._pair.take(rows), (0, rows.size))
        return self._differences(before, after)

    def row_sizes(self, weights: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        """The weighted sum of |target − prediction| of each row."""
        parts = [self._differences(*bytes_) @ weights for _, bytes_ in self._bands()]
        return np.concatenate(parts).astype(np.float64)

    def count(self, row_keys: Bytes, col_keys: Bytes) -> Counts:
        """How often each symbol stands in each context, [contexts, 256]."""
        counts = np.zeros((MAX_BOUND + 1, _SYMBOLS), dtype=np.int64)
        for span, (before, after) in self._bands():
            keys = row_keys[slice(*span)]
            if native.core is not None:
                native.core.ulp_count(before, after, *self._settings(), keys, col_keys, counts)
                continue
            contexts, symbols, _, _ = self._elements(before, after, keys, col_keys)
            joint = contexts.astype(np.int64) * _SYMBOLS + symbols
            counts += np.bincount(joint, minlength=counts.size).reshape(counts.shape)
        return counts

    def scatter(
        self, params: UlpParams, row_keys: Bytes, col_keys: Bytes, counts: Counts, workspace: Workspace
    ) -> tuple[list[Bytes], Bytes]:
        """The symbols of each group, and the extra bits of all."""
        group_of = params.groups(np.arange(MAX_BOUND + 1, dtype=np.int16))
        by_group = np.zeros((_SYMBOLS, _SYMBOLS), dtype=np.int64)
        np.add.at(by_group, group_of, counts)
        codes = (np.arange(_SYMBOLS) + 1) >> 1
        lengths = np.maximum(0, (codes >> params.mantissa) - 1)
        ends, bit_ends = np.cumsum(by_group.sum(axis=1)), np.cumsum(by_group @ lengths)
        symbols = workspace.allocate(int(ends[-1]))
        places, positions = (np.concatenate([[0], last[:-1]]).astype(np.int64) for last in (ends, bit_ends))
        if native.core is not None:
            extra = workspace.allocate(-(-int(bit_ends[-1]) // 8))
            extra[:] = 0
            for span, (before, after) in self._bands():
                native.core.ulp_scatter(
                    before,
                    after,
                    *self._settings(),
                    row_keys[slice(*span)],
                    col_keys,
                    group_of,
                    symbols,
                    places,
                    extra,
                    positions,
                )
                workspace.release()
        else:
            extra = self._scatter_by_numpy(group_of, row_keys, col_keys, symbols)
        starts = [0, *ends.tolist()]
        return [symbols[starts[n] : starts[n + 1]] for n in range(len(params.bounds) + 1)], extra

    def _scatter_by_numpy(self, group_of: Bytes, row_keys: Bytes, col_keys: Bytes, symbols: Bytes) -> Bytes:
        before, after = self._predicted(self._pair, (0, self.rows))
        contexts, found, lengths, values = self._elements(before, after, row_keys, col_keys)
        order = np.argsort(group_of[contexts], kind="stable")
        symbols[:] = found[order]
        return ulp.write_extra_bits(values[order], lengths[order])

    def _elements(
        self, before: Bytes, after: Bytes, row_keys: Bytes, col_keys: Bytes
    ) -> tuple[npt.NDArray[np.int16], Bytes, Bytes, npt.NDArray[np.uint32]]:
        """Context, symbol, number of extra bits and extra bits of each element of a band."""
        dtype = self._target.dtype
        params = UlpParams(
            dtype,
            after.size // (FLOAT_WIDTHS[dtype] * self.cols),
            self.cols,
            shift=self.plain.shift,
            row_keys=row_keys.size > 0,
            col_keys=col_keys.size > 0,
        )
        patterns = ulp.predict(before, dtype, dtype)
        return params.contexts(patterns, row_keys, col_keys), *ulp.residual_symbols(patterns, after, params)

    def _bands(self) -> Iterator[tuple[Span, tuple[Bytes, Bytes]]]:
        for span in self._pair.spans(BAND_WEIGHTS):
            yield span, self._predicted(self._pair, span)
            self._pair.release(span)

    def _predicted(self, pair: Pair, span: Span) -> tuple[Bytes, Bytes]:
        """Bytes of prediction and target, both of the target's type."""
        band = pair.band(span)
        if band.base_dtype == band.dtype:
            return band.base, band.target
        return float32_to_bytes(float32_from_bytes(band.base, band.base_dtype), band.dtype), band.target

    def _differences(self, before: Bytes, after: Bytes) -> npt.NDArray[np.float32]:
        dtype = self._target.dtype
        with np.errstate(over="ignore", invalid="ignore"):
            size = np.abs(float32_from_bytes(after, dtype) - float32_from_bytes(before, dtype))
        finite = np.where(np.isfinite(size), np.minimum(size, _LARGEST_SIZE), np.float32(0))
        return finite.reshape(-1, self.cols)

    def _settings(self) -> tuple[int, int, int]:
        return FLOAT_DTYPES.index(self._target.dtype), self.plain.shift, self.cols

    def _common_zeros(self) -> int:
        """Low bits that are zero in every pattern of the target: a bfloat16 model stored as float32 has sixteen."""
        width = FLOAT_WIDTHS[self._target.dtype]
        most = 8 * width - 8
        used = 0
        for start in range(0, self._target.data.size, _BAND_BYTES):
            piece: npt.NDArray[Any] = np.frombuffer(
                self._target.data[start : start + _BAND_BYTES].tobytes(), dtype=f"<u{width}"
            )
            used |= int(np.bitwise_or.reduce(piece))
            self._target.release(start, start + _BAND_BYTES)
            if used & 1:
                return 0
        return min(most, (used & -used).bit_length() - 1) if used else most
