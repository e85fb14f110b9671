"""Memory and threads for encoding one tensor within a budget."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from ..checkpoint import Region, releasing, temporary_region
from ..encode.workspace import Workspace
from .parallel import Crew

__all__ = ["BudgetWorkspace"]

Item = TypeVar("Item")
Result = TypeVar("Result")


class BudgetWorkspace(Workspace):
    """Arrays for which there is no room lie in temporary files, whose pages leave the memory; a crew works on bands.

    Args:
        largest: bytes of an array that is always in ordinary memory, and of what is read of files at a time.
        room: bytes of all arrays that may be in ordinary memory together, but for small ones.
        crew: who works on bands, with the calling thread, which may be one of it.
        scratch: directory of temporary files.
        urgent: bands go before other tensors.
    """

    def __init__(self, largest: int, room: int, crew: Crew, scratch: Path, *, urgent: bool) -> None:
        self.largest = largest
        self._room = room
        self._lock = threading.RLock()  # what is let go of may be let go of in the middle of taking
        self._crew = crew
        self._scratch = scratch
        self._urgent = urgent
        self._regions: list[Region] = []

    def allocate(self, nbytes: int) -> npt.NDArray[np.uint8]:
        if nbytes <= max(self._room, self.largest):
            array = super().allocate(nbytes)
            self._take(nbytes)
            weakref.finalize(array, self._take, -nbytes)  # views keep the array
            return array
        region = temporary_region(self._scratch, nbytes)
        self._regions.append(region)
        return region.array

    def _take(self, nbytes: int) -> None:
        with self._lock:
            self._room -= nbytes

    def release(self) -> None:
        for region in self._regions:
            region.release()

    def releasing(self) -> AbstractContextManager[None]:
        return releasing(self.release) if self._regions else nullcontext()

    def spread(self, work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        return self._crew.spread(work, items, urgent=self._urgent)
