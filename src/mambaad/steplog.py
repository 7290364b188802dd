"""The log of a training: ``metrics.jsonl``, one JSON line a step, and TensorBoard if asked for."""

from __future__ import annotations

import json
import math
import time
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from mambaad import checkpoint
from mambaad.errors import ConfigError, TrainingError
from mambaad.files import write_text
from mambaad.steps import Step


class StepLog:
    """A context manager; ``write`` takes each step. Lines after ``start`` are cut off first.

    A step whose numbers are on their way from a GPU is written once they are there, in order.
    """

    def __init__(
        self, run: Path, start: int, seconds: float, batch_size: int, tensorboard: bool
    ) -> None:
        self.path = run / checkpoint.METRICS
        self.batch_size = batch_size
        self.seconds = seconds
        self._file: TextIO | None = None
        self._clock = time.monotonic()
        self._waiting: deque[Step] = deque()
        self._board = _tensorboard(run, start) if tensorboard else None
        kept = []
        if start and self.path.is_file():
            lines = self.path.read_text("utf-8", errors="replace").splitlines()
            kept = [line for line in lines if _step_of(line) <= start]
        write_text(self.path, "".join(line + "\n" for line in kept))

    def __enter__(self) -> StepLog:
        self._file = self.path.open("a", encoding="utf-8")
        self._clock = time.monotonic()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                self.flush()
            else:  # what failed is on its way up already; a GPU that failed cannot be asked
                with suppress(TrainingError, RuntimeError):
                    self.flush()
        finally:
            if self._file is not None:
                self._file.close()
            if self._board is not None:
                self._board.close()

    def write(self, step: Step) -> None:
        """Take in a step, and write those that are ready.

        Raises:
            TrainingError: If the numbers of one are not finite.
        """
        self._waiting.append(step)
        ready = []
        while self._waiting and self._waiting[0].ready:
            ready.append(self._waiting.popleft())
        if ready:  # several at once share the time since the last ones
            share = (time.monotonic() - self._clock) / len(ready)
            for each in ready:
                self._line(each, share)

    def flush(self) -> None:
        """Wait for all steps taken in, and write them.

        Raises:
            TrainingError: If the numbers of one are not finite.
        """
        while self._waiting:
            step = self._waiting.popleft()
            step.wait()
            self._line(step, time.monotonic() - self._clock)

    def _line(self, step: Step, took: float) -> None:
        self._clock += took
        self.seconds += took
        values = {
            "step": step.number,
            "epoch": step.epoch,
            "loss": step.loss,
            **{f"loss_{name}": value for name, value in step.parts.items()},
            "gradient_norm": step.gradient_norm,
            "learning_rate": step.learning_rate,
            "images_per_second": self.batch_size / max(took, 1e-9),
            "seconds": self.seconds,
        }
        if self._file is not None:
            self._file.write(json.dumps(values) + "\n")
            self._file.flush()
        if self._board is not None:
            for name, value in values.items():
                if name not in ("step", "epoch"):
                    self._board.add_scalar(f"train/{name}", value, step.number)


def _step_of(line: str) -> float:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf  # half a line, from the moment of the interruption, or a damaged one


def require_tensorboard() -> Any:
    """TensorBoard's writer.

    Raises:
        ConfigError: If it is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError(
            "TensorBoard is not installed: pip install 'mambaad[tensorboard]'"
        ) from error
    return SummaryWriter


def _tensorboard(run: Path, start: int) -> Any:
    return require_tensorboard()(str(run / "tensorboard"), purge_step=start + 1 if start else None)
