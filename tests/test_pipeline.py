"""Threads that work ahead: order, limits, errors, the end."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mambaad.pipeline import ahead


@given(count=st.integers(0, 30), workers=st.integers(1, 4), limit=st.integers(1, 9))
@settings(max_examples=25, deadline=None)
def test_results_come_in_order(count: int, workers: int, limit: int) -> None:
    def square(n: int) -> int:
        time.sleep(0.001 * (n % 3))
        return n * n

    found = list(ahead(square, range(count), workers=workers, limit=limit))
    assert found == [n * n for n in range(count)]


def test_no_more_is_begun_than_allowed() -> None:
    gate, begun = threading.Event(), []

    def slow(n: int) -> int:
        begun.append(n)
        gate.wait(10)
        return n

    limits = iter([4, 4, 4, 4, *[2] * 20])
    asked: list[int] = []

    def items() -> Iterator[int]:
        for n in range(12):
            asked.append(n)
            yield n

    running = ahead(slow, items(), workers=8, limit=lambda: next(limits))
    threading.Timer(0.05, gate.set).start()
    assert next(running) == 0
    assert asked == [0, 1, 2, 3]
    assert sorted(begun) == [0, 1, 2, 3]
    assert list(running) == list(range(1, 12))


def test_work_is_done_at_once() -> None:
    barrier = threading.Barrier(3, timeout=10)

    def meet(n: int) -> int:
        barrier.wait()
        return n

    assert list(ahead(meet, range(6), workers=3, limit=3)) == list(range(6))


def test_threads_work_on_while_results_are_taken() -> None:
    """Once there are as many as allowed under way, there always are."""
    gate, made = threading.Event(), []

    def make(n: int) -> int:
        gate.wait(10)
        made.append(n)
        return n

    threading.Timer(0.05, gate.set).start()
    for n in ahead(make, range(20), workers=2, limit=4):
        deadline = time.monotonic() + 10
        while len(made) < min(20, n + 4) and time.monotonic() < deadline:
            time.sleep(0.001)
        assert len(made) == min(20, n + 4)


def test_the_first_error_is_raised_in_its_place() -> None:
    def fail(n: int) -> int:
        if n >= 2:
            raise ValueError(f"item {n}")
        return n

    running = ahead(fail, range(9), workers=3, limit=5)
    assert [next(running), next(running)] == [0, 1]
    with pytest.raises(ValueError, match="item 2"):
        next(running)


def test_closing_gives_up_what_has_not_begun() -> None:
    before = threading.active_count()
    done = []

    def work(n: int) -> int:
        time.sleep(0.02)
        done.append(n)
        return n

    running = ahead(work, range(1000), workers=1, limit=100)
    assert next(running) == 0
    running.close()
    assert threading.active_count() == before
    assert len(done) < 10
