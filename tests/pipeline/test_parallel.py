"""The ordered map keeps the order, all hold no more than they may, and threads of a crew help one another."""

from __future__ import annotations

import threading
import time
import weakref

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddct_format.pipeline.parallel import Crew, map_ordered


class Held:
    """The costs of what is held, by number, and the most that they came to while there were several."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._costs: dict[int, int] = {}
        self.worst = 0

    def add(self, item: tuple[int, int]) -> int:
        number, cost = item
        with self._lock:
            self._costs[number] = cost
            self.worst = max(self.worst, sum(self._costs.values()) if len(self._costs) > 1 else 0)
        return number

    def remove(self, number: int) -> None:
        with self._lock:
            del self._costs[number]


@given(st.lists(st.integers(0, 50), max_size=30), st.integers(1, 4), st.integers(1, 60))
def test_costs_in_flight_fit_the_budget(costs: list[int], threads: int, budget: int) -> None:
    held, order = Held(), []
    for number in map_ordered(held.add, list(enumerate(costs)), threads, cost=lambda item: item[1], budget=budget):
        order.append(number)
        held.remove(number)
    assert order == list(range(len(costs)))
    assert held.worst <= budget


def test_no_more_results_than_threads_and_one_wait_for_the_caller() -> None:
    started = []
    results = map_ordered(lambda item: started.append(item) or item, range(100), 2)
    assert next(results) == 0
    time.sleep(0.05)
    assert len(started) <= 4
    assert list(results) == list(range(1, 100))


def test_the_first_error_in_order_is_raised_and_the_rest_dropped() -> None:
    def work(item: int) -> int:
        if item in (3, 5):
            raise ValueError(item)
        return item

    results = map_ordered(work, range(1000), 2)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="3"):
        next(results)


@given(st.lists(st.integers(0, 50), max_size=30), st.integers(1, 4), st.integers(1, 60))
def test_costs_of_what_a_crew_works_on_fit_the_budget(costs: list[int], threads: int, budget: int) -> None:
    held = Held()

    def work(item: tuple[int, int]) -> int:
        number = held.add(item)
        time.sleep(0)
        held.remove(number)
        return number

    with Crew(threads) as crew:
        found = list(crew.finished(work, list(enumerate(costs)), cost=lambda item: item[1], budget=budget))
    assert sorted(found) == list(range(len(costs)))
    assert held.worst <= budget


@given(st.integers(0, 40), st.integers(1, 4), st.booleans())
def test_parts_are_done_once_and_come_in_their_order(count: int, threads: int, urgent: bool) -> None:
    done: list[int] = []

    def work(part: int) -> int:
        done.append(part)
        return part

    with Crew(threads) as crew:
        assert list(crew.spread(work, range(count), urgent=urgent)) == list(range(count))
    assert sorted(done) == list(range(count))


def test_a_crew_helps_with_urgent_parts_before_it_begins_with_something_else() -> None:
    begun, large_began = [], threading.Event()

    def part(number: int) -> int:
        begun.append(f"part {number}")
        time.sleep(0.02)
        return threading.get_ident()

    def work(item: str) -> int:
        begun.append(item)
        if item != "large":
            large_began.wait()
            time.sleep(0.01)
            return 0
        large_began.set()
        return len(set(crew.spread(part, range(8))))

    with Crew(2) as crew:
        found = list(crew.finished(work, ["large", "first", "second", "third"], cost=lambda item: 1, budget=100))
    assert sorted(found) == [0, 0, 0, 2], "both threads worked on the parts"
    assert begun.index("second") > begun.index("part 5")


def test_an_idle_member_of_a_crew_helps_with_parts_that_are_not_urgent() -> None:
    def part(number: int) -> int:
        time.sleep(0.02)
        return threading.get_ident()

    with Crew(2) as crew:
        time.sleep(0.05)
        work = crew.finished(
            lambda item: len(set(crew.spread(part, range(8), urgent=False))), ["only"], cost=lambda item: 1, budget=1
        )
        assert list(work) == [2]


def test_an_error_ends_a_crew_also_in_the_middle_of_something_large() -> None:
    parts: list[int] = []
    second = threading.Event()

    def part(number: int) -> None:
        parts.append(number)
        if number:
            second.set()
        time.sleep(0.01)

    def work(item: str) -> None:
        if item == "wrong":
            second.wait()
            raise ValueError(item)
        for _ in crew.spread(part, range(10_000)):
            pass

    with pytest.raises(ValueError, match="wrong"), Crew(2) as crew:
        list(crew.finished(work, ["wrong", "large", "never"], cost=lambda item: 1, budget=10))
    assert len(parts) < 100


def test_a_crew_that_waits_keeps_nothing_in_memory() -> None:
    class Thing:
        pass

    with Crew(2) as crew:
        things = [Thing() for _ in range(8)]
        known = [weakref.ref(thing) for thing in things]

        def work(thing: Thing) -> Thing:
            time.sleep(0.005)
            return thing

        assert len(list(crew.spread(work, things))) == 8
        del things
        time.sleep(0.05)
        assert all(thing() is None for thing in known)


def test_an_error_of_a_part_is_raised_where_its_result_is_due() -> None:
    def part(number: int) -> int:
        if number in (3, 5):
            raise ValueError(number)
        return number

    with Crew(2) as crew:
        results = crew.spread(part, range(100))
        assert [next(results) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(ValueError, match="3"):
            next(results)
