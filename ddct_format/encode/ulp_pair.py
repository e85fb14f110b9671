"""A prediction and the tensor that it is corrected to by ``ulp.v1``, counted and written band by band."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..backends.encoder import Encoder, UlpCoding, UlpStreams
from ..codec.floats import FLOAT_WIDTHS
from ..codec.ulp import MAX_BOUND, UlpParams
from .pair import Pair, TensorData
from .workspace import Workspace

__all__ = ["UlpPair"]

_SYMBOLS = 256
_BAND_BYTES = 1 << 20
_PART_WEIGHTS, _MOST_PARTS = 1 << 23, 16

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
        shift: low bits that are zero in every pattern of the target, if that is known.
    """

    def __init__(self, before: TensorData, target: TensorData, encoder: Encoder, shift: int | None = None) -> None:
        self.rows, self.cols = target.shape
        self._target = target
        self._pair = Pair(before, target, (self.rows, self.cols))
        self._encoder = encoder
        shift = self._common_zeros() if shift is None else shift
        self.plain = UlpParams(target.dtype, self.rows, self.cols, shift=shift)

    def sizes(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """|target − prediction| of some rows, float32 [rows, cols]; what is beyond all bounds says nothing."""
        return self._encoder.ulp_sizes(self._pair.take(rows).band((0, rows.size)))

    def row_sizes(self, weights: npt.NDArray[np.float32], workspace: Workspace) -> npt.NDArray[np.float64]:
        """The weighted sum of |target − prediction| of each row."""

        def measure(span: Span) -> npt.NDArray[np.float32]:
            sizes = self._encoder.ulp_row_sizes(self._pair.band(span), weights)
            self._pair.release(span)
            return sizes

        spans = self._pair.spans(self._encoder.band_weights)
        return np.concatenate(list(workspace.spread(measure, spans))).astype(np.float64)

    def take(self, rows: npt.NDArray[np.int64]) -> UlpPair:
        """Some rows, copied to memory."""
        pair = self._pair.take(rows)
        return UlpPair(pair.base, pair.target, self._encoder, self.plain.shift)

    def count(self, row_keys: Bytes, col_keys: Bytes) -> tuple[npt.NDArray[np.intp], Counts]:
        """The contexts that there are, ascending, and how often each symbol stands in each of them, [contexts, 256]."""
        counts = _table()
        try:
            for span in self._pair.spans(self._encoder.band_weights):
                self._encoder.count_ulp(self._pair.band(span), self._coding(span, row_keys, col_keys), counts)
                self._pair.release(span)
        except BaseException:
            del _tables.counts
            raise
        contexts = np.flatnonzero(counts.sum(axis=1))  # several times as fast as any()
        found = counts[contexts]
        counts[contexts] = 0
        return contexts, found

    def scatter(
        self, params: UlpParams, row_keys: Bytes, col_keys: Bytes, workspace: Workspace
    ) -> tuple[list[Bytes], Bytes]:
        """The symbols of each group, and the extra bits of all."""
        groups = len(params.bounds) + 1
        group_of = params.group_table()
        parts = self._parts()

        def measure(spans: Sequence[Span]) -> Counts:
            totals = np.zeros((2, _SYMBOLS), dtype=np.int64)
            for span in spans:
                band = self._pair.band(span)
                totals += self._encoder.measure_ulp(band, self._coding(span, row_keys, col_keys), group_of)
                self._pair.release(span)
            return totals

        measured = np.stack(list(workspace.spread(measure, parts)))
        sizes, bits = measured[:, 0], measured[:, 1]
        places, positions = _starts(sizes), _starts(bits)
        symbols, extra = workspace.allocate(int(sizes.sum())), workspace.allocate(-(-int(bits.sum()) // 8))
        extra[:] = 0

        def write(part: int) -> tuple[Bytes, npt.NDArray[np.int64]]:
            """The extra bits of a part, each group beginning with a byte of its own: parts share those between them."""
            ahead = positions[part] & 7
            begins = np.concatenate([[0], np.cumsum((ahead + bits[part] + 7) // 8)])
            own = workspace.allocate(int(begins[-1]))
            own[:] = 0
            streams = UlpStreams(group_of, symbols, places[part].copy(), own, 8 * begins[:-1] + ahead)
            for span in parts[part]:
                self._encoder.scatter_ulp(self._pair.band(span), self._coding(span, row_keys, col_keys), streams)
                self._pair.release(span)
                workspace.release()
            return own, begins

        for part, (own, begins) in enumerate(workspace.spread(write, range(len(parts)))):
            for group in range(groups):
                bytes_ = own[begins[group] : begins[group + 1]]
                start = int(positions[part, group]) >> 3
                extra[start : start + bytes_.size] |= bytes_
        ends = np.cumsum(sizes.sum(axis=0))[:groups]
        return np.split(symbols, ends[:-1]), extra

    def _parts(self) -> list[list[Span]]:
        """Bands for one thread after another: not so many that their counts take much memory."""
        spans = self._pair.spans(self._encoder.band_weights)
        size = max(_PART_WEIGHTS // self._encoder.band_weights, -(-len(spans) // _MOST_PARTS), 1)
        return [spans[start : start + size] for start in range(0, len(spans), size)]

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


_tables = threading.local()


def _table() -> Counts:
    """Zeros, [contexts, 256], one for each thread, which gives it back as it was: new pages cost more than counting."""
    counts: Counts | None = getattr(_tables, "counts", None)
    if counts is None:
        counts = _tables.counts = np.zeros((MAX_BOUND + 1, _SYMBOLS), dtype=np.int64)
    return counts


def _starts(counts: Counts) -> Counts:
    """Where each part of each group begins, [parts, groups]: group after group, and in each part after part."""
    ends: Counts = np.cumsum(counts.T.reshape(-1)).reshape(counts.T.shape).T
    return np.ascontiguousarray(ends - counts)
