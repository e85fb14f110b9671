"""A tensor and its base, as the bytes that lie in two checkpoints, read band by band."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ..backends.encoder import Band
from ..codec.mapped import LARGEST_PAGE, brought_in
from ..container.dtypes import DTYPE_BITS

__all__ = ["Pair", "Release", "TensorData", "keep"]

_SCATTERED_ROWS = 16
"""Each may bring a large page into memory."""
_NEAR = 4
"""Large pages; rows that touch no more are read where they lie."""

Span = tuple[int, int]
Release = Callable[[int, int], None]


def keep(start: int, stop: int) -> None:
    """Memory that belongs to this process alone is let go with its array."""


@dataclass(frozen=True, slots=True)
class TensorData:
    """A tensor as it lies in a checkpoint.

    Attributes:
        data: its bytes, uint8, 1-D; perhaps a mapped file.
        release: told which bytes, start and stop, will not be read soon again.
    """

    dtype: str
    shape: tuple[int, ...]
    data: npt.NDArray[np.uint8]
    release: Release = field(default=keep, compare=False)


class Pair:
    """A view of a tensor and of its base as matrices of the same shape.

    Args:
        view: [rows, cols], with as many elements as the tensors have.
        order: which row of the view stands in which place; None for the identity.
    """

    def __init__(
        self,
        base: TensorData,
        target: TensorData,
        view: tuple[int, int],
        order: npt.NDArray[np.int64] | None = None,
    ) -> None:
        self.base = base
        self.target = target
        self.rows, self.cols = view
        self._order = order

    @property
    def elements(self) -> int:
        return self.rows * self.cols

    def spans(self, weights: int, patch: int = 1) -> list[Span]:
        """First and last row (exclusive) of bands of whole rows of patches, of about so many weights."""
        step = max(patch, weights // self.cols // patch * patch)
        return [(start, min(start + step, self.rows)) for start in range(0, self.rows, step)]

    def band(self, span: Span, *, picked: bool = False) -> Band:
        """The rows of a span: a copy if rows have an order.

        Args:
            picked: instead, all rows of the tensors, and which of them are meant, where these do not bring too much of
                the files into memory.
        """
        if picked and self._order is not None and self._are_near(self._order[slice(*span)]):
            whole = self.base.data, self.base.dtype, self.target.data, self.target.dtype
            return Band(*whole, self.cols, np.ascontiguousarray(self._order[slice(*span)]))
        parts = []
        for tensor in (self.base, self.target):
            if self._order is None:
                width = self._row_bytes(tensor)
                parts.append(tensor.data[span[0] * width : span[1] * width])
            else:
                parts.append(self._gather(tensor, self._order[slice(*span)]))
        return Band(parts[0], self.base.dtype, parts[1], self.target.dtype, self.cols)

    def release(self, span: Span) -> None:
        """The rows of a span will not be read soon again."""
        for tensor in (self.base, self.target):
            width = self._row_bytes(tensor)
            if self._order is None:
                tensor.release(span[0] * width, span[1] * width)
            elif span[1] == self.rows or self._is_large(tensor):  # in an order, a small one is read until the last
                tensor.release(0, tensor.data.size)

    def take(self, rows: npt.NDArray[np.int64]) -> Pair:
        """Some rows, copied to memory."""
        parts = [
            TensorData(tensor.dtype, (rows.size, self.cols), self._gather(tensor, rows))
            for tensor in (self.base, self.target)
        ]
        return Pair(parts[0], parts[1], (rows.size, self.cols))

    def ordered(self, order: npt.NDArray[np.int64]) -> Pair:
        return Pair(self.base, self.target, (self.rows, self.cols), order)

    def _gather(self, tensor: TensorData, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        """A copy of some rows; of a large tensor a few at a time are in memory."""
        data = tensor.data.reshape(self.rows, -1)
        step = _SCATTERED_ROWS if self._is_large(tensor) else max(rows.size, 1)
        out = np.empty((rows.size, data.shape[1]), dtype=np.uint8)
        for start in range(0, rows.size, step):
            out[start : start + step] = data[rows[start : start + step]]
            tensor.release(0, tensor.data.size)
        return out.reshape(-1)

    def _are_near(self, rows: npt.NDArray[np.int64]) -> bool:
        """Whether rows can be read where they lie."""
        large = [self._row_bytes(tensor) for tensor in (self.base, self.target) if self._is_large(tensor)]
        return all(brought_in(rows, width)[-1] <= _NEAR * LARGEST_PAGE for width in large)

    def _is_large(self, tensor: TensorData) -> bool:
        """Whether scattered rows must be read a few at a time."""
        return tensor.data.size > _SCATTERED_ROWS * LARGEST_PAGE

    def _row_bytes(self, tensor: TensorData) -> int:
        return self.cols * DTYPE_BITS[tensor.dtype] // 8
