"""Memory and threads for encoding one tensor within a budget."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from ..checkpoint import Region, releasing, temporary_region
from ..encode.workspace import Workspace
from .parallel import map_ordered

__all__ = ["BudgetWorkspace"]

Item = TypeVar("Item")
Result = TypeVar("Result")


class BudgetWorkspace(Workspace):
    """Large arrays lie in temporary files, whose pages leave the memory; bands are worked on by several threads.

    Args:
        largest: bytes of an array that may stay in ordinary memory.
        threads: for bands.
        scratch: directory of temporary files.
    """

    def __init__(self, largest: int, threads: int, scratch: Path) -> None:
        self.largest = largest
        self._threads = threads
        self._scratch = scratch
        self._regions: list[Region] = []

    def allocate(self, nbytes: int) -> npt.NDArray[np.uint8]:
        if nbytes <= self.largest:
            return super().allocate(nbytes)
        region = temporary_region(self._scratch, nbytes)
        self._regions.append(region)
        return region.array

    def release(self) -> None:
        for region in self._regions:
            region.release()

    def releasing(self) -> AbstractContextManager[None]:
        return releasing(self.release) if self._regions else nullcontext()

    def spread(self, work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        return map_ordered(work, items, self._threads) if self._threads > 1 else map(work, items)
