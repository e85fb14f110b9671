"""Where an encoder's large arrays lie, and who does the work on bands."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import numpy as np
import numpy.typing as npt

__all__ = ["Workspace"]

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

    def release(self) -> None:
        """Nothing of what was allocated is needed at once: it may leave the memory until it is touched again."""

    def spread(self, work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """The results of ``work``, in the order of ``items``; several items may be worked on at a time."""
        return map(work, items)
