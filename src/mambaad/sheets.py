"""Tables of numbers with their spread, as Markdown, CSV, LaTeX or lines of text.

A cell is text, a number, or a ``Spread``: the mean over n seeds and their sample deviation,

    m = sum(x) / n        s = sqrt(sum((x - m)²) / (n - 1))

written as ``m ± s``; s is not written for a single one. Markdown, LaTeX and text for a terminal
are for reading and are rounded. CSV is for programs: full precision, a column of its own for each
deviation, empty where there is no number.
"""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

NONE = "–"
"""What stands where there is no number."""


@dataclass(frozen=True)
class Spread:
    """Mean and sample deviation of ``count`` numbers; NaN where they are not defined."""

    mean: float
    deviation: float
    count: int


Cell: TypeAlias = str | Spread | None


@dataclass(frozen=True)
class Column:
    """A column: its name, and how its numbers are written.

    Args:
        name: Its heading.
        digits: Decimals for reading.
        scale: Factor on the numbers for reading, 100 for percent; CSV leaves them as they are.
        text: Whether its cells are text.
        seeds: Whether its numbers differ from seed to seed, so that a deviation is worth a column.
    """

    name: str
    digits: int = 1
    scale: float = 1.0
    text: bool = False
    seeds: bool = True


@dataclass(frozen=True)
class Sheet:
    """A table: rows as long as ``columns``, and remarks that belong under it."""

    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()


def spread(values: Iterable[float]) -> Spread:
    """Mean and sample deviation; the mean is NaN if a value is, or there is none.

    >>> spread([1.0, 2.0, 3.0])
    Spread(mean=2.0, deviation=1.0, count=3)
    >>> spread([0.5])
    Spread(mean=0.5, deviation=nan, count=1)
    """
    numbers = list(values)
    if not numbers or any(math.isnan(v) for v in numbers):
        return Spread(math.nan, math.nan, len(numbers))
    deviation = statistics.stdev(numbers) if len(numbers) > 1 else math.nan
    return Spread(math.fsum(numbers) / len(numbers), deviation, len(numbers))


def single(value: float | None) -> Spread:
    """A number known once, or not at all."""
    return spread([math.nan if value is None else value])


def to_text(sheet: Sheet) -> list[list[str]]:
    """The cells of each row as they are read."""
    return [
        [_readable(cell, column) for cell, column in zip(row, sheet.columns, strict=True)]
        for row in sheet.rows
    ]


def to_markdown(sheet: Sheet) -> str:
    """A Markdown table; the notes are lines of a list under it. Ends in a line break."""
    rows = [[cell.replace("|", "\\|") for cell in row] for row in to_text(sheet)]
    rule = ["---" if column.text else "---:" for column in sheet.columns]
    table = [[column.name for column in sheet.columns], rule, *rows]
    lines = [f"| {' | '.join(cells)} |" for cells in table]
    notes = [f"- {note}" for note in sheet.notes]
    return "\n".join([*lines, *(["", *notes] if notes else [])]) + "\n"


def to_csv(sheet: Sheet) -> str:
    """Comma-separated values at full precision, ``name ±`` after each column of spreads."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    heads = [[c.name] if c.text or not c.seeds else [c.name, f"{c.name} ±"] for c in sheet.columns]
    writer.writerow([name for names in heads for name in names])
    for row in sheet.rows:
        cells: list[str] = []
        for cell, names in zip(row, heads, strict=True):
            values = _exact(cell)
            cells += [*values, ""][: len(names)]
        writer.writerow(cells)
    return text.getvalue()


def to_latex(sheet: Sheet) -> str:
    """A ``tabular`` for the package booktabs; the notes are comments over it."""
    places = "".join("l" if column.text else "r" for column in sheet.columns)
    rows = [[_latex(cell) for cell in row] for row in to_text(sheet)]
    head = " & ".join(_latex(column.name) for column in sheet.columns)
    lines = [
        *(f"% {note}" for note in sheet.notes),
        rf"\begin{{tabular}}{{{places}}}",
        r"\toprule",
        rf"{head} \\",
        r"\midrule",
        *(rf"{' & '.join(row)} \\" for row in rows),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


WRITERS: Mapping[str, Callable[[Sheet], str]] = {
    "markdown": to_markdown,
    "csv": to_csv,
    "latex": to_latex,
}
"""By the name of the form."""

SUFFIXES = {".md": "markdown", ".csv": "csv", ".tex": "latex"}
"""The form of a file by its suffix."""


def _readable(cell: Cell, column: Column) -> str:
    if isinstance(cell, str):
        return cell
    if cell is None or math.isnan(cell.mean):
        return NONE
    text = f"{column.scale * cell.mean:.{column.digits}f}"
    if column.seeds and not math.isnan(cell.deviation):
        text += f" ± {column.scale * cell.deviation:.{column.digits}f}"
    return text


def _exact(cell: Cell) -> Sequence[str]:
    if isinstance(cell, str):
        return [cell]
    if cell is None:
        return ["", ""]
    return ["" if math.isnan(v) else repr(v) for v in (cell.mean, cell.deviation)]


def _latex(text: str) -> str:
    text = text.replace("\\", r"\textbackslash ")
    for character in "&%$#_{}":
        text = text.replace(character, f"\\{character}")
    for character, written in {"±": r"$\pm$", "–": "--", "~": r"\textasciitilde "}.items():
        text = text.replace(character, written)
    return text.replace("^", r"\textasciicircum ")
