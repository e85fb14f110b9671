"""Ordered parallel map with a bounded number of results in flight.

``Executor.map`` submits everything at once, so a slow consumer would hold a whole model in memory.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

__all__ = ["default_threads", "map_ordered"]

Item = TypeVar("Item")
Result = TypeVar("Result")


def default_threads() -> int:
    """Cores that this process may use, at most eight: beyond that the disk is the limit."""
    return min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def map_ordered(work: Callable[[Item], Result], items: Iterable[Item], threads: int) -> Iterator[Result]:
    """Yield ``work(item)`` in the order of ``items``; at most ``threads + 1`` results exist at a time.

    The threads share numpy, zlib-like and hash work, all of which release the interpreter's lock. The first exception
    in item order is raised; what was not started is dropped.
    """
    with ThreadPoolExecutor(max_workers=threads) as pool:
        waiting: deque[Future[Result]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
