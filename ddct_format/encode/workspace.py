"""Where an encoder's large arrays lie, and who does the work on bands."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import numpy as np
import numpy.typing as npt

__all__ = ["Workspace"]

_PIECE = 8 << 20

Item = TypeVar("Item")
Result = TypeVar("Result")


class Workspace:
    """Ordinary memory and the calling thread; a pipeline offers more.

    Attributes:
        largest: bytes of one thing that may be in memory at a time.
    """

    largest = sys.maxsize

    def allocate(self, nbytes: int) -> npt.NDArray[np.uint8]:
        """Memory for ``nbytes`` bytes, 1-D, of undefined content."""
        return np.empty(nbytes, dtype=np.uint8)

    def join(self, parts: Sequence[npt.NDArray[np.uint8]]) -> npt.NDArray[np.uint8]:
        """A copy of 1-D parts, one after the other."""
        joined, position = self.allocate(sum(part.size for part in parts)), 0
        for part in parts:
            for start in range(0, part.size, _PIECE):
                piece = part[start : start + _PIECE]
                joined[position : position + piece.size] = piece
                position += piece.size
                self.release()
        return joined

    def release(self) -> None:
        """Nothing of what was allocated is needed at once: it may leave the memory until it is touched again."""

    def releasing(self) -> AbstractContextManager[None]:
        """For a block that reads what was allocated from end to end without a pause: it is let go meanwhile."""
        return nullcontext()

    def spread(self, work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """The results of ``work``, in the order of ``items``; several items may be worked on at a time."""
        return map(work, items)
