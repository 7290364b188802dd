"""What the command line shows: tables, and progress (bars on a terminal, lines elsewhere)."""

from __future__ import annotations

import math
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from mambaad.data import CategoryCounts, CheckResult
from mambaad.data.cache import Progress as ProgressCall
from mambaad.errors import ImageError
from mambaad.evaluate import Evaluation
from mambaad.metrics import FIELDS, MORE_PIXEL_METRICS, Report, mean_extras, value_of
from mambaad.predict import Prediction
from mambaad.steps import Step
from mambaad.train import Observer

SHOWN = 20
SMOOTH = 0.95


def show(table: Table) -> None:
    """Print a table, as wide as it needs to be when the output is not a terminal."""
    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, 140)
    console.print(table)


def _bars() -> Progress:
    return Progress(
        TextColumn("{task.description:>12}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )


@contextmanager
def progress_bar(task: str) -> Iterator[ProgressCall]:
    """A bar for one task; yields what to call with the number done and in all.

    Nothing is drawn before the first call: a mistake that comes first is said on a line of its own.
    """
    bars = _bars()
    tasks: list[TaskID] = []

    def report(done: int, total: int) -> None:
        if not tasks:
            bars.start()
            tasks.append(bars.add_task(task, total=total, note=""))
        bars.update(tasks[0], completed=done, total=total)

    try:
        yield report
    finally:
        if tasks:  # where there is no terminal, to stop is to write an empty line
            bars.stop()


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """A number with its noun, in the plural where it is not one.

    >>> counted(1, "picture"), counted(0, "picture"), counted(2, "box", "boxes")
    ('1 picture', '0 pictures', '2 boxes')

    Args:
        number: How many.
        noun: In the singular.
        plural: None puts an s at the noun's end.
    """
    return f"{number} {noun if number == 1 else plural or f'{noun}s'}"


class TrainDisplay(Observer):
    """Training's progress: a bar with epoch, loss by scale, pictures per second and time left.

    Where standard error is not a terminal, one line an epoch instead.
    """

    def __init__(self) -> None:
        self._bars = _bars()
        self._tasks: dict[str, TaskID] = {}
        self._batch = 0
        self._rate = 0.0
        self._total = 0
        self._last: tuple[float, int] = (0.0, 0)
        self._epoch = 0
        self._line = ""
        self._waiting: deque[Step] = deque()

    def __enter__(self) -> TrainDisplay:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self._take_ready()
        if self._line and not self._bars.console.is_terminal:
            self._bars.console.print(self._line, highlight=False)
        if self._tasks:
            self._bars.stop()

    def message(self, text: str) -> None:
        self._bars.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def progress(self, task: str, done: int, total: int) -> None:
        if task not in self._tasks:
            self._bars.start()  # at the first task: a mistake that comes before has a clean line
            self._tasks[task] = self._bars.add_task(task, total=total, note="")
        self._bars.update(self._tasks[task], completed=done, total=total)

    def begin(self, done: int, total: int, batch_size: int) -> None:
        self._batch, self._total = batch_size, total
        self._bars.start()
        self._tasks["training"] = self._bars.add_task(
            "training", total=total, completed=done, note=""
        )
        self._last = (self._bars.get_time(), done)

    def step(self, step: Step) -> None:
        self._waiting.append(step)
        self._take_ready()

    def _take_ready(self) -> None:
        """Show the steps whose numbers are there; a GPU's arrive later, and are not waited for."""
        ready = []
        while self._waiting and self._waiting[0].ready:
            ready.append(self._waiting.popleft())
        if not ready:
            return
        now, newest = self._bars.get_time(), ready[-1].number
        speed = self._batch * (newest - self._last[1]) / max(1e-9, now - self._last[0])
        self._rate = SMOOTH * self._rate + (1 - SMOOTH) * speed if self._rate else speed
        self._last = (now, newest)
        for step, after in zip(ready, [*ready[1:], None], strict=True):
            if after is None or after.epoch != step.epoch:
                self._show(step)

    def _show(self, step: Step) -> None:
        parts = " ".join(f"{value:.3f}" for value in step.parts.values())
        note = f"epoch {step.epoch}  loss {step.loss:.3f} ({parts})  {self._rate:.1f} images/s"
        self._bars.update(self._tasks["training"], completed=step.number, note=note)
        if step.epoch != self._epoch:
            if self._line and not self._bars.console.is_terminal:
                self._bars.console.print(self._line, highlight=False)
            self._epoch = step.epoch
        self._line = f"step {step.number}/{self._total}  {note}"


class PredictDisplay:
    """Counts predictions, keeps the worst for the table, and prints files that cannot be read."""

    def __init__(
        self, run: Path, categories: Iterable[str] = (), lacking: Iterable[str] = ()
    ) -> None:
        """Start with no predictions.

        Args:
            run: Whose they are.
            categories: Its products with thresholds of their own; empty if one threshold was given
                for all.
            lacking: Its products without.
        """
        self.total = self.defective = self.failed = 0
        self._run = run
        self._categories, self._lacking = tuple(categories), tuple(lacking)
        self._unplaced = 0
        self._decides = False
        self._kept: list[Prediction] = []

    def add(self, result: Prediction | ImageError) -> None:
        """Take in one result."""
        if isinstance(result, ImageError):
            self.failed += 1
            print(f"error: {result}", file=sys.stderr)
            return
        self.total += 1
        self.defective += bool(result.pred_label)
        self._unplaced += result.category is None
        self._decides |= result.pred_label is not None
        self._kept = sorted([*self._kept, result], key=lambda p: -p.pred_score)[:SHOWN]

    def finish(self, out: Path) -> None:
        """Print the table, if any picture could be read, and the summary."""
        if self._kept:
            show(self._table())
        for note in self._notes():
            print(f"note: {note}")
        decided = f", {self.defective} defective" if self._decides else ""
        lost = f", {self.failed} could not be read" if self.failed else ""
        print(f"{counted(self.total, 'picture')}{decided}{lost}; wrote {out}")

    def _notes(self) -> Iterator[str]:
        """What a reader of the table may not expect."""
        if self._kept and not self._decides:
            yield (
                f"no thresholds in {self._run}, so nothing is decided: 'mambaad calibrate "
                f"{self._run} DATA' makes them, or give --threshold"
            )
        elif self._unplaced and len(self._categories) + len(self._lacking) > 1:
            names = ", ".join(self._categories)
            yield (
                f"the category of {self._unplaced} of {self.total} pictures is not known, so the "
                "overall threshold of calibration.json decided"
                + (f"; name it with --category ({names})" if names else "")
            )
            if self._lacking:
                yield (
                    f"calibration.json has no threshold for {', '.join(self._lacking)}: "
                    f"'mambaad calibrate {self._run} DATA' makes it"
                )

    def _table(self) -> Table:
        table = Table(title=f"the {len(self._kept)} highest scores" if self.total > SHOWN else None)
        for name in ("picture", "category", "pred_score", "threshold", "decision", "box"):
            table.add_column(
                name, justify="right" if name in ("pred_score", "threshold") else "left"
            )
        for p in self._kept:
            decision = {True: "defective", False: "good", None: "–"}[p.pred_label]
            level = "–" if p.threshold is None else f"{p.threshold:.4f}"
            box = "–" if p.box is None else ",".join(map(str, p.box))
            table.add_row(
                escape(str(p.image_path)),
                escape(p.category or "–"),
                f"{p.pred_score:.4f}",
                level,
                decision,
                box,
            )
        return table


def metrics_table(evaluation: Evaluation) -> Table:
    """The metrics in percent, with false alarms and misses at the run's thresholds.

    Under it stands what else was measured, in short.
    """
    way = evaluation.mean.method
    how = "" if way == "exact" else f", pixel metrics {way}"
    table = Table(title=f"protocol {evaluation.protocol}{how}; percent")
    table.add_column("category")
    for name in FIELDS:
        table.add_column(name, justify="right")
    table.add_column("false alarms", justify="right")
    table.add_column("misses", justify="right")
    for name, result in evaluation.categories.items():
        good = int((result.labels == 0).sum())
        counts = (
            _of(result.false_alarms, good),
            _of(result.misses, len(result.labels) - good),
        )
        table.add_row(escape(name), *_percents(result.report), *counts)
    if len(evaluation.categories) > 1:
        table.add_section()
        table.add_row("mean", *_percents(evaluation.mean), "", "")
    for name, result in evaluation.categories.items():
        undefined = {
            r for f, r in result.report.reasons.items() if math.isnan(getattr(result.report, f))
        }
        if undefined:
            reasons = escape(f"{name}: {'; '.join(sorted(undefined))}\n")
            table.caption = f"{table.caption or ''}{reasons}"
    lines = "\n".join(_extra_lines(evaluation))
    table.caption = f"{table.caption or ''}{escape(lines)}"
    return table


def _extra_lines(evaluation: Evaluation) -> Iterator[str]:
    """The mean of what is measured beside the seven metrics, and every category's sample AUROC."""
    means, _ = mean_extras(evaluation.extras)
    pixels = [f for f in MORE_PIXEL_METRICS if not math.isnan(value_of(means, f))]
    if pixels:
        values = ", ".join(f"{f} {100 * value_of(means, f):.1f}" for f in pixels)
        whose = "mean: " if len(evaluation.categories) > 1 else ""
        yield f"{whose}{values} (evaluation.csv has each category's)"
    objects = {n: r.sample_auroc for n, r in evaluation.categories.items()}
    known = {name: value for name, value in objects.items() if value is not None}
    if known:
        by_name = ", ".join(f"{name} {100 * value:.1f}" for name, value in known.items())
        yield f"sample AUROC: {by_name}; mean {100 * value_of(means, 'sample_AUROC'):.1f}"


def show_check(result: CheckResult) -> None:
    """Print what ``mambaad check`` found."""
    table = Table(title=escape(f"{result.root} (layout {result.layout})"))
    for name in ("category", "train", "test good", "test defective", "masks", "defects"):
        table.add_column(name, justify="left" if name in ("category", "defects") else "right")
    for counts in result.categories:
        row = counts_row(counts)
        table.add_row(*row)
    show(table)
    for note in result.notes:
        print(f"note: {note}")
    for problem in result.problems:
        print(f"{problem.severity}: {problem.count} {problem.message}")
        for case in problem.cases:
            print(f"    {case}")
    if result.ok:
        print(
            "training can start" if not result.problems else "training can start, see the warnings"
        )
    else:
        print("training would fail")


def counts_row(counts: CategoryCounts) -> tuple[str, ...]:
    """One category's cells of the table of ``show_check``."""
    defects = ", ".join(f"{name} {n}" for name, n in counts.defects.items())
    return (
        escape(counts.category),
        str(counts.train_good),
        str(counts.test_good),
        str(sum(counts.defects.values())),
        str(counts.masks),
        escape(defects) or "–",
    )


def _percents(report: Report) -> list[str]:
    values = [getattr(report, name) for name in FIELDS]
    return ["–" if math.isnan(v) else f"{100 * v:.1f}" for v in values]


def _of(count: int | None, total: int) -> str:
    return "–" if count is None else f"{count} of {total}"
