"""Ordered parallel map whose results and inputs in flight are bounded, in number and in bytes.

``Executor.map`` submits everything at once, so a slow consumer would hold a whole model in memory.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Final, TypeVar

__all__ = ["DEFAULT_MEMORY", "default_threads", "map_finished", "map_ordered"]

DEFAULT_MEMORY: Final = 1 << 30
"""Bytes of working set for pack, unpack and verify unless the caller says otherwise."""

Item = TypeVar("Item")
Result = TypeVar("Result")


def default_threads(most: int = 8) -> int:
    """Cores that this process may use, at most eight: beyond that the disk is the limit."""
    return min(most, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def map_ordered(
    work: Callable[[Item], Result],
    items: Iterable[Item],
    threads: int,
    *,
    cost: Callable[[Item], int] | None = None,
    budget: int = DEFAULT_MEMORY,
    ahead: int = 1,
) -> Iterator[Result]:
    """Yield ``work(item)`` in the order of ``items``; at most ``threads + ahead`` results exist at a time.

    The threads share numpy, zlib-like and hash work, all of which release the interpreter's lock. The first exception
    in item order is raised; what was not started is dropped.

    Args:
        cost: bytes that an item takes from the moment it is handed to a thread until the caller comes back for the
            next result. Items are handed out while their costs fit ``budget`` together; one that does not fit it at
            all runs alone.
        budget: in bytes.
        ahead: how many items may be finished before their turn, while a large one keeps the others waiting.
    """
    with ThreadPoolExecutor(max_workers=threads) as pool:
        waiting: deque[tuple[Future[Result], int]] = deque()
        used = 0
        try:
            for item in items:
                need = 0 if cost is None else cost(item)
                while waiting and (len(waiting) >= threads + ahead or used + need > budget):
                    future, taken = waiting.popleft()
                    yield future.result()
                    used -= taken
                waiting.append((pool.submit(work, item), need))
                used += need
            while waiting:
                yield waiting.popleft()[0].result()
        finally:
            for future, _ in waiting:
                future.cancel()


def map_finished(
    work: Callable[[Item], Result],
    items: Iterable[Item],
    threads: int,
    *,
    cost: Callable[[Item], int],
    budget: int,
) -> Iterator[Result]:
    """Yield ``work(item)`` as each is finished, in any order, so that a large item does not keep the others waiting.

    The first exception is raised, and what was not started is dropped.

    Args:
        cost: bytes that an item takes until it is finished. Items are started in order, while the costs of those that
            run fit ``budget`` together; one that does not fit it at all runs alone.
        budget: in bytes.
    """
    with ThreadPoolExecutor(max_workers=threads) as pool:
        running: dict[Future[Result], int] = {}
        try:
            for item in items:
                need = cost(item)
                while running and (len(running) >= 2 * threads or sum(running.values()) + need > budget):
                    yield from _finished(running)
                running[pool.submit(work, item)] = need
            while running:
                yield from _finished(running)
        finally:
            for future in running:
                future.cancel()


def _finished(running: dict[Future[Result], int]) -> Iterator[Result]:
    done, _ = wait(running, return_when=FIRST_COMPLETED)
    for future in done:
        del running[future]
        yield future.result()
