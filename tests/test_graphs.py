"""A step that is captured after a few eager ones, with a capture made by hand."""

from __future__ import annotations

import pytest

from mambaad.graphs import EAGER_STEPS, GraphedStep, Work


def test_the_first_steps_are_eager_then_one_capture_is_replayed() -> None:
    done: list[str] = []

    def capture(work: Work) -> Work:
        assert work == eager
        done.append("capture")
        return lambda: done.append("replay")

    def eager() -> None:
        done.append("eager")

    told: list[str] = []
    step = GraphedStep(eager, capture, told.append)
    for _ in range(6):
        step()
    assert done == ["eager"] * EAGER_STEPS + ["capture"] + ["replay"] * 3
    assert told == []


@pytest.mark.parametrize("error", [RuntimeError("not permitted\nmore"), KeyError()])
def test_what_cannot_be_captured_goes_on_eagerly(error: Exception) -> None:
    done: list[str] = []

    def capture(_: Work) -> Work:
        done.append("capture")
        raise error

    told: list[str] = []
    step = GraphedStep(lambda: done.append("eager"), capture, told.append)
    for _ in range(6):
        step()
    assert done == ["eager"] * EAGER_STEPS + ["capture"] + ["eager"] * 3
    (line,) = told
    assert line.startswith("training goes on without a CUDA graph")
    assert line.endswith(("not permitted", "KeyError"))


def test_a_graph_that_cannot_start_is_dropped() -> None:
    done: list[str] = []

    def replay() -> None:
        raise RuntimeError("out of memory")

    told: list[str] = []
    step = GraphedStep(lambda: done.append("eager"), lambda _: replay, told.append)
    for _ in range(6):
        step()
    assert done == ["eager"] * 6
    (line,) = told
    assert line.endswith("out of memory")


def test_no_capture_is_eager() -> None:
    done: list[str] = []
    step = GraphedStep(lambda: done.append("eager"), None, done.append)
    for _ in range(5):
        step()
    assert done == ["eager"] * 5
