"""An observer for tests of training."""

from __future__ import annotations

import signal

from mambaad.fit import Step
from mambaad.train import Observer


class StopAt(Observer):
    """Presses Ctrl-C after a step; remembers all steps."""

    def __init__(self, step: int | None = None) -> None:
        self.stop = step
        self.steps: list[Step] = []

    def step(self, step: Step) -> None:
        self.steps.append(step)
        if step.number == self.stop:
            signal.raise_signal(signal.SIGINT)
