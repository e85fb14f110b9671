"""Parallel maps whose results and inputs in flight are bounded, in number and in bytes.

``Executor.map`` submits everything at once, so a slow consumer would hold a whole model in memory.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, ThreadPoolExecutor, wait
from typing import Any, Final, Generic, Self, TypeVar

__all__ = ["DEFAULT_MEMORY", "Crew", "default_threads", "map_finished", "map_ordered"]

DEFAULT_MEMORY: Final = 1 << 30
"""Bytes of working set for pack, unpack and verify unless the caller says otherwise."""

_NEXT_PART: Final = 0.005
"""Seconds in which the next part of a large thing is ready, for it takes about as long to work on one."""

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
) -> Iterator[Result]:
    """Yield ``work(item)`` in the order of ``items``; at most ``threads + 1`` results exist at a time.

    The threads share numpy, zlib-like and hash work, all of which release the interpreter's lock. The first exception
    in item order is raised; what was not started is dropped.

    Args:
        cost: bytes that an item takes from the moment it is handed to a thread until the caller comes back for the
            next result. Items are handed out while their costs fit ``budget`` together; one that does not fit it at
            all runs alone.
        budget: in bytes.
    """
    with ThreadPoolExecutor(max_workers=threads) as pool:
        waiting: deque[tuple[Future[Result], int]] = deque()
        used = 0
        try:
            for item in items:
                need = 0 if cost is None else cost(item)
                while waiting and (len(waiting) > threads or used + need > budget):
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
    cost: Callable[[Item], int] | None = None,
    budget: int = DEFAULT_MEMORY,
) -> Iterator[Result]:
    """:meth:`Crew.finished` by threads of its own."""
    with Crew(threads) as crew:
        yield from crew.finished(work, items, cost=cost, budget=budget)


class _Job(Generic[Item, Result]):
    """A piece of work, done by whoever takes it off its queue."""

    __slots__ = ("future", "item", "work")

    def __init__(self, work: Callable[[Item], Result], item: Item) -> None:
        self.work = work
        self.item = item
        self.future: Future[Result] = Future()

    def run(self) -> None:
        try:
            self.future.set_result(self.work(self.item))
        except BaseException as error:  # it is raised where the result is asked for
            self.future.set_exception(error)


class Crew:
    """Threads that work on things, several at a time, and together on the parts of a large one.

    Whoever spreads a thing's parts works on them, too. The others help as soon as they come free: with parts that are
    urgent before they begin with another thing, with others when there is nothing else to do. So no thread waits for
    the parts of a large thing that only one can work on, nor for the last thing of all. A context manager; at its end
    what was not begun is dropped, and things that are worked on end at their next part.

    Args:
        threads: at least 1.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._changed = threading.Condition()
        self._urgent: deque[_Job[Any, Any]] = deque()
        self._things: deque[_Job[Any, Any]] = deque()
        self._parts: deque[_Job[Any, Any]] = deque()
        self._idle = 0
        self._spreading = 0  # urgent parts
        self._closed = False
        self._members = [threading.Thread(target=self._work, daemon=True) for _ in range(threads)]
        for member in self._members:
            member.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        with self._changed:
            self._closed = True
            for queue in self._queues():
                queue.clear()
            self._changed.notify_all()
        for member in self._members:
            member.join()

    def finished(
        self,
        work: Callable[[Item], Result],
        items: Iterable[Item],
        *,
        cost: Callable[[Item], int] | None = None,
        budget: int = DEFAULT_MEMORY,
    ) -> Iterator[Result]:
        """Yield ``work(item)`` as each is finished, in any order: a large item does not keep the others waiting.

        The first exception is raised; then the crew is of no use any more.

        Args:
            cost: bytes that an item takes until it is finished. Items are started in order, while the costs of those
                that run fit ``budget`` together; one that does not fit it at all runs alone.
            budget: in bytes.
        """
        running: dict[Future[Result], int] = {}
        for item in items:
            need = 0 if cost is None else cost(item)
            while running and (len(running) >= 2 * self.threads or sum(running.values()) + need > budget):
                yield from _finished(running)
            running[self._put(self._things, work, item).future] = need
        while running:
            yield from _finished(running)

    def spread(self, work: Callable[[Item], Result], items: Iterable[Item], *, urgent: bool = True) -> Iterator[Result]:
        """The results of ``work`` for the parts of one thing, in their order, by this thread and by those that help.

        Three parts for each thread are handed out or wait for the caller: whoever comes free finds one to help with.

        Args:
            urgent: help is asked for before anything else is begun; else only if a thread is idle now.
        """
        if not urgent and not self._idle:
            yield from map(work, items)
            return
        queue = self._urgent if urgent else self._parts
        waiting: deque[_Job[Item, Result]] = deque()
        with self._changed:
            self._spreading += urgent
        try:
            for item in items:
                while len(waiting) >= 3 * self.threads:
                    yield self._next_result(queue, waiting)
                waiting.append(self._put(queue, work, item))
            while waiting:
                yield self._next_result(queue, waiting)
        finally:
            with self._changed:
                self._spreading -= urgent
            for job in waiting:
                self._take(queue, job)

    def _next_result(self, queue: deque[_Job[Any, Any]], waiting: deque[_Job[Item, Result]]) -> Result:
        """That of the first job, which this thread does itself, or others while somebody else does that one."""
        first = waiting.popleft()
        while not first.future.done():
            mine = next((job for job in (first, *waiting) if self._take(queue, job)), None)
            if mine is None:
                break
            mine.run()
        return first.future.result()

    def _put(self, queue: deque[_Job[Any, Any]], work: Callable[[Item], Result], item: Item) -> _Job[Item, Result]:
        job = _Job(work, item)
        with self._changed:
            if self._closed:
                raise CancelledError
            queue.append(job)
            self._changed.notify()
        return job

    def _take(self, queue: deque[_Job[Any, Any]], job: _Job[Item, Result]) -> bool:
        """Whether nobody has begun with a job; now nobody will."""
        with self._changed:
            try:
                queue.remove(job)
            except ValueError:
                return False
            return True

    def _work(self) -> None:
        while True:
            with self._changed:
                self._idle += 1
                if self._spreading and not self._urgent and not self._closed:
                    self._changed.wait(_NEXT_PART)
                while not any(self._queues()) and not self._closed:
                    self._changed.wait()
                self._idle -= 1
                if self._closed:
                    return
                job = next(queue for queue in self._queues() if queue).popleft()
            job.run()
            del job  # while this thread waits, nothing of it need stay in memory

    def _queues(self) -> tuple[deque[_Job[Any, Any]], ...]:
        return self._urgent, self._things, self._parts


def _finished(running: dict[Future[Result], int]) -> Iterator[Result]:
    done, _ = wait(running, return_when=FIRST_COMPLETED)
    for future in done:
        del running[future]
        yield future.result()
