"""The ordered map keeps the order, and holds no more than it may."""

from __future__ import annotations

import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddct_format.pipeline.parallel import map_ordered


@given(st.lists(st.integers(0, 50), max_size=30), st.integers(1, 4), st.integers(1, 60))
def test_costs_in_flight_fit_the_budget(costs: list[int], threads: int, budget: int) -> None:
    lock = threading.Lock()
    held: dict[int, int] = {}
    worst = 0

    def work(item: tuple[int, int]) -> int:
        nonlocal worst
        with lock:
            held[item[0]] = item[1]
            worst = max(worst, sum(held.values()) if len(held) > 1 else 0)
        return item[0]

    order = []
    for number in map_ordered(work, list(enumerate(costs)), threads, cost=lambda item: item[1], budget=budget):
        order.append(number)
        with lock:
            del held[number]
    assert order == list(range(len(costs)))
    assert worst <= budget


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
