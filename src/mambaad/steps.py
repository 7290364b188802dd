"""What a training step did: its numbers, known at once on the CPU, some steps later on a GPU.

To ask a GPU for a number stops the host until the GPU has done all that came before. Training does
not ask. Each step copies its numbers into a row of pinned memory as the GPU comes to it; the host
looks when they are there, and waits for the oldest row when all ``SLOTS`` are in use. So a loss
that is not finite is found at most that many steps late, and reading any later step raises too.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from mambaad.errors import TrainingError

SLOTS = 32
"""Steps whose numbers may be on their way."""


@dataclass(frozen=True)
class Step:
    """What one training step did.

    On a GPU its numbers arrive later: ``ready`` says whether they are there, and reading one
    waits for this step and no other work. Reading raises ``TrainingError`` if the loss or gradient
    of this step or of one before it was not finite.
    """

    number: int
    """1 for the first."""

    epoch: int
    """1 for the first."""

    loss: float
    """The loss before the update."""

    parts: dict[str, float]
    """The loss by scale."""

    gradient_norm: float
    """L2 norm of the gradient before clipping."""

    learning_rate: float
    """The rate of this step."""

    @property
    def ready(self) -> bool:
        """Whether reading the numbers would not wait."""
        return True

    def wait(self) -> None:
        """Wait until the step is done.

        Raises:
            TrainingError: If a loss or gradient up to this step was not finite.
        """


class LaterStep(Step):
    """A step whose numbers are on their way."""

    def __init__(self, epoch: int, learning_rate: float, pending: Pending) -> None:
        values = {"number": pending.number, "epoch": epoch, "learning_rate": learning_rate}
        for name, value in {**values, "_pending": pending}.items():
            object.__setattr__(self, name, value)  # the base class is frozen

    _pending: Pending

    @property
    def loss(self) -> float:
        """The loss before the update."""
        return self._pending.read().loss

    @property
    def parts(self) -> dict[str, float]:
        """The loss by scale."""
        return self._pending.read().parts

    @property
    def gradient_norm(self) -> float:
        """L2 norm of the gradient before clipping."""
        return self._pending.read().gradient_norm

    @property
    def ready(self) -> bool:
        return self._pending.ready()

    def wait(self) -> None:
        self._pending.read()


@dataclass(frozen=True)
class Numbers:
    """The numbers that a step computes."""

    loss: float
    gradient_norm: float
    parts: dict[str, float]

    @classmethod
    def of(cls, values: Tensor, names: Sequence[str]) -> Numbers:
        """Args: values (2 + parts,), loss and norm first; names of the parts."""
        loss, norm, *parts = values.tolist()
        return cls(loss, norm, dict(zip(names, parts, strict=True)))

    @property
    def finite(self) -> bool:
        """Whether the step's update may be made."""
        return math.isfinite(self.loss) and math.isfinite(self.gradient_norm)


class Event(Protocol):
    """A mark in the device's queue, as ``torch.cuda.Event`` is."""

    def record(self) -> None:
        """Put it at the end of the current queue."""

    def query(self) -> bool:
        """Whether the device has passed it."""
        ...

    def synchronize(self) -> None:
        """Wait until the device has passed it."""


def cuda_event() -> Event:
    """An event that lets the processor sleep while it waits."""
    event: Event = torch.cuda.Event(blocking=True)
    return event


class Pending:
    """One step's numbers on their way; made by ``Ring.push``."""

    def __init__(
        self, ring: Ring, number: int, names: Sequence[str], row: Tensor, event: Event
    ) -> None:
        self.number, self.names, self.row, self.event = number, names, row, event
        self.numbers: Numbers | None = None
        self.error: TrainingError | None = None
        self._ring = ring

    def ready(self) -> bool:
        """Whether ``read`` would not wait."""
        self._ring.poll()
        return self.numbers is not None

    def read(self) -> Numbers:
        """Wait for the numbers.

        Raises:
            TrainingError: If this step's or an earlier one's are not finite.
        """
        while self.numbers is None:
            self._ring.settle_oldest()
        if self.error is not None:
            raise self.error
        return self.numbers


class Ring:
    """Rows of host memory that steps' numbers are copied into, used one after the other.

    Args:
        fail: Makes the error for a step, by number, whose numbers are not finite.
        slots: How many rows there are.
        make_event: Makes the mark after each copy.
    """

    def __init__(
        self,
        fail: Callable[[int, Numbers], TrainingError],
        *,
        slots: int = SLOTS,
        make_event: Callable[[], Event] = cuda_event,
    ) -> None:
        self._fail = fail
        self._events = [make_event() for _ in range(slots)]
        self._rows: Tensor | None = None
        self._open: deque[Pending] = deque()
        self._count = 0
        self._error: TrainingError | None = None

    def push(self, number: int, values: Tensor, names: Sequence[str]) -> Pending:
        """Copy a step's values once the device has them; they may be overwritten after that.

        Args:
            number: The step's.
            values: (2 + parts,): loss, norm of the gradient, and the parts.
            names: Of the parts.

        Raises:
            TrainingError: If an earlier step is known to have failed.
        """
        if len(self._open) == len(self._events):
            self.settle_oldest()
        self.poll()
        if self._error is not None:
            raise self._error
        if self._rows is None:
            self._rows = torch.empty(
                (len(self._events), *values.shape), dtype=values.dtype, pin_memory=values.is_cuda
            )
        slot = self._count % len(self._events)
        pending = Pending(self, number, names, self._rows[slot], self._events[slot])
        pending.row.copy_(values, non_blocking=True)
        pending.event.record()
        self._count += 1
        self._open.append(pending)
        return pending

    def poll(self) -> None:
        """Take in what has arrived, in order."""
        while self._open and self._open[0].event.query():
            self.settle_oldest()

    def settle_oldest(self) -> None:
        """Wait for the oldest step that is on its way."""
        pending = self._open[0]
        pending.event.synchronize()
        numbers = Numbers.of(pending.row, pending.names)
        if self._error is None and not numbers.finite:
            self._error = self._fail(pending.number, numbers)
        pending.numbers, pending.error = numbers, self._error
        self._open.popleft()

    def drain(self) -> None:
        """Wait for all.

        Raises:
            TrainingError: If any step failed.
        """
        while self._open:
            self.settle_oldest()
        if self._error is not None:
            raise self._error
