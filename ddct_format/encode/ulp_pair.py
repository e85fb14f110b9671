"""A prediction and the tensor that it is corrected to by ``ulp.v1``, counted and written band by band."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from ..backends.encoder import Band, Encoder, UlpCoding, UlpStreams
from ..codec.floats import FLOAT_WIDTHS
from ..codec.ulp import MAX_BOUND, UlpParams
from .pair import Pair, TensorData
from .workspace import Workspace

__all__ = ["UlpPair"]

_SYMBOLS = 256
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
        encoder: what does the arithmetic.
    """

    def __init__(self, before: TensorData, target: TensorData, encoder: Encoder) -> None:
        self.rows, self.cols = target.shape
        self._target = target
        self._pair = Pair(before, target, (self.rows, self.cols))
        self._encoder = encoder
        self.plain = UlpParams(target.dtype, self.rows, self.cols, shift=self._common_zeros())

    def sizes(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """|target − prediction| of some rows, float32 [rows, cols]; what is beyond all bounds says nothing."""
        return self._encoder.ulp_sizes(self._pair.take(rows).band((0, rows.size)))

    def row_sizes(self, weights: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        """The weighted sum of |target − prediction| of each row."""
        parts = [self._encoder.ulp_row_sizes(band, weights) for _, band in self._bands()]
        return np.concatenate(parts).astype(np.float64)

    def count(self, row_keys: Bytes, col_keys: Bytes) -> Counts:
        """How often each symbol stands in each context, [contexts, 256]."""
        counts = np.zeros((MAX_BOUND + 1, _SYMBOLS), dtype=np.int64)
        for span, band in self._bands():
            self._encoder.count_ulp(band, self._coding(span, row_keys, col_keys), counts)
        return counts

    def scatter(
        self, params: UlpParams, row_keys: Bytes, col_keys: Bytes, counts: Counts, workspace: Workspace
    ) -> tuple[list[Bytes], Bytes]:
        """The symbols of each group, and the extra bits of all."""
        group_of = params.groups(np.arange(MAX_BOUND + 1, dtype=np.int16))
        by_group = np.zeros((_SYMBOLS, _SYMBOLS), dtype=np.int64)
        by_group[: len(params.bounds) + 1] = np.add.reduceat(counts, [0, *params.bounds], axis=0)
        ends, bit_ends = np.cumsum(by_group.sum(axis=1)), np.cumsum(by_group @ params.extra_bits())
        places, positions = (np.concatenate([[0], last[:-1]]).astype(np.int64) for last in (ends, bit_ends))
        symbols, extra = workspace.allocate(int(ends[-1])), workspace.allocate(-(-int(bit_ends[-1]) // 8))
        extra[:] = 0
        streams = UlpStreams(group_of, symbols, places, extra, positions)
        for span, band in self._bands():
            self._encoder.scatter_ulp(band, self._coding(span, row_keys, col_keys), streams)
            workspace.release()
        starts = [0, *ends.tolist()]
        return [symbols[starts[n] : starts[n + 1]] for n in range(len(params.bounds) + 1)], extra

    def _bands(self) -> Iterator[tuple[Span, Band]]:
        for span in self._pair.spans(self._encoder.band_weights):
            yield span, self._pair.band(span)
            self._pair.release(span)

    def _coding(self, span: Span, row_keys: Bytes, col_keys: Bytes) -> UlpCoding:
        return UlpCoding(self.plain.shift, row_keys[slice(*span)], col_keys)

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
