"""What tests of training share: an observer, and marks in a device's queue that a test moves."""

from __future__ import annotations

import signal

from mambaad.steps import Step
from mambaad.train import Observer


class StopAt(Observer):
    """Presses Ctrl-C after a step; remembers all steps."""

    def __init__(self, step: int | None = None) -> None:
        self.stop = step
        self.steps: list[Step] = []
        self.messages: list[str] = []

    def message(self, text: str) -> None:
        self.messages.append(text)

    def step(self, step: Step) -> None:
        self.steps.append(step)
        if step.number == self.stop:
            signal.raise_signal(signal.SIGINT)


class Marks:
    """Stands for a GPU's queue: marks are passed when ``reach`` says so, or when waited for."""

    def __init__(self) -> None:
        self.recorded = self.passed = 0
        self.made = 0
        self.waits: list[int] = []

    def make(self) -> Mark:
        self.made += 1
        return Mark(self, self.made - 1)

    def reach(self, count: int) -> None:
        """Pass the first ``count`` marks that were recorded."""
        self.passed = max(self.passed, count)


class Mark:
    """One mark; counts itself in ``waits`` when it is waited for before it was passed."""

    def __init__(self, marks: Marks, number: int) -> None:
        self._marks, self._number, self._place = marks, number, 1

    def record(self) -> None:
        self._marks.recorded += 1
        self._place = self._marks.recorded

    def query(self) -> bool:
        return self._marks.passed >= self._place

    def synchronize(self) -> None:
        if not self.query():
            self._marks.waits.append(self._number)
            self._marks.reach(self._place)
