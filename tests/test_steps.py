"""Steps whose numbers arrive later: the ring, with marks that a test passes by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from training import Marks

from mambaad.errors import TrainingError
from mambaad.steps import LaterStep, Numbers, Pending, Ring, Step

NAMES = ("stride4", "stride8")


def failure(step: int, numbers: Numbers) -> TrainingError:
    return TrainingError(f"step {step} has {numbers.loss}")


def values(step: int, loss: float | None = None) -> torch.Tensor:
    return torch.tensor([float(step) if loss is None else loss, 0.5, 0.25, step - 0.25])


def make(slots: int = 4) -> tuple[Ring, Marks]:
    marks = Marks()
    return Ring(failure, slots=slots, make_event=marks.make), marks


def push(ring: Ring, step: int, loss: float | None = None) -> Pending:
    return ring.push(step, values(step, loss), NAMES)


def test_numbers_are_not_ready_before_the_device_is_there() -> None:
    ring, marks = make()
    first, second = push(ring, 1), push(ring, 2)
    assert not first.ready()
    marks.reach(1)
    assert (first.ready(), second.ready()) == (True, False)
    assert first.read() == Numbers(1.0, 0.5, {"stride4": 0.25, "stride8": 0.75})
    assert marks.waits == []


def test_reading_waits_for_the_step_and_those_before_it_only() -> None:
    ring, marks = make()
    pending = [push(ring, n) for n in (1, 2, 3)]
    step = LaterStep(7, 0.1, pending[1])
    assert (step.number, step.epoch, step.learning_rate) == (2, 7, 0.1)
    assert not step.ready
    assert (step.loss, step.gradient_norm, step.parts["stride8"]) == (2.0, 0.5, 1.75)
    assert marks.waits == [0, 1]
    assert step.ready
    assert pending[0].ready()
    assert not pending[2].ready()


def test_values_may_be_overwritten_and_rows_are_used_again() -> None:
    ring, marks = make(slots=2)
    buffer = torch.full((4,), float("nan"))
    pending = []
    for step in range(1, 8):
        buffer.copy_(values(step))
        pending.append(ring.push(step, buffer, NAMES))
    assert marks.waits == [0, 1, 0, 1, 0]
    assert [p.read().loss for p in pending] == [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize("late", [Pending.read, lambda pending: LaterStep(1, 0.1, pending).wait()])
def test_what_comes_after_a_failed_step_fails_too(late: Callable[[Pending], object]) -> None:
    ring, _ = make()
    good, bad, after = push(ring, 1), push(ring, 2, float("nan")), push(ring, 3)
    assert good.read().loss == 1
    with pytest.raises(TrainingError, match="step 2 has nan"):
        late(after)
    with pytest.raises(TrainingError, match="step 2"):
        bad.read()
    with pytest.raises(TrainingError, match="step 2"):
        push(ring, 4)
    with pytest.raises(TrainingError, match="step 2"):
        ring.drain()


def test_a_failed_step_is_found_when_its_row_is_needed() -> None:
    ring, _ = make(slots=4)
    push(ring, 1, float("inf"))
    for step in (2, 3, 4):
        push(ring, step)
    with pytest.raises(TrainingError, match="step 1 has inf"):
        push(ring, 5)


def test_a_failed_step_is_found_at_once_when_it_has_arrived() -> None:
    ring, marks = make()
    push(ring, 1, float("inf"))
    marks.reach(1)
    with pytest.raises(TrainingError, match="step 1"):
        push(ring, 2)


def test_a_step_on_the_cpu_is_ready() -> None:
    step = Step(1, 1, 2.0, {"stride4": 2.0}, 0.5, 0.1)
    assert step.ready
    step.wait()
    assert (step.loss, step.gradient_norm) == (2.0, 0.5)
