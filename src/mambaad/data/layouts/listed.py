"""What the readers of lists share: a list must name files that exist, and train on good ones."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, wraps
from pathlib import Path
from typing import Any, TypeVar

from mambaad.data.layouts.base import in_order
from mambaad.data.samples import Sample
from mambaad.errors import DatasetError

UNNAMED_DEFECT = "defective"
"""Name of a defect of which a list says only that there is one."""

T = TypeVar("T")
_PARSED: ContextVar[dict[Any, Any] | None] = ContextVar("parsed lists", default=None)


class Row(dict[str, str]):
    """A row of a CSV file, its cells by column."""

    line = 0
    """Of the file, where the row ends; the header is line 1."""


@contextmanager
def parsed_once() -> Iterator[None]:
    """Inside of it, what :func:`once` decorates parses a list once; nothing is kept afterwards."""
    token = _PARSED.set({})
    try:
        yield
    finally:
        _PARSED.reset(token)


def once(parse: Callable[[Path], T]) -> Callable[[Path], T]:
    """Parse a list once within :func:`parsed_once`, and at every call outside of it.

    A reader's ``find``, ``read`` and ``notes`` all need the list. They must not change what they
    are given.
    """

    @wraps(parse)
    def parse_or_recall(source: Path) -> T:
        parsed = _PARSED.get()
        if parsed is None:
            return parse(source)
        if (parse, source) not in parsed:
            parsed[parse, source] = parse(source)
        found: T = parsed[parse, source]
        return found

    return parse_or_recall


def checked(samples: Sequence[Sample], source: Path) -> list[Sample]:
    """The samples of a list in their order, after a look at what it says.

    Args:
        samples: What the list names.
        source: The list, for messages.

    Raises:
        DatasetError: If a file is not there, a training picture is defective, or a category has a
            picture twice.
    """
    names = cache(_names)  # one look per folder, not one per file: 150 000 of them on a network
    for what, paths in (
        ("pictures", [s.image for s in samples]),
        ("masks", [s.mask for s in samples if s.mask is not None]),
    ):
        lost = [path for path in paths if path.name not in names(path.parent)]
        if lost:
            raise DatasetError(
                f"{len(lost)} of {len(paths)} {what} that {source} lists are not there; the first "
                f"is {lost[0]}. Is everything unpacked?"
            )
    bad = [s.image for s in samples if s.split == "train" and s.is_anomalous]
    if bad:
        raise DatasetError(
            f"{len(bad)} training pictures in {source} are defective; training takes good ones "
            f"only. The first is {bad[0]}"
        )
    seen: set[tuple[str, Path]] = set()
    for sample in samples:
        if (sample.category, sample.image) in seen:
            raise DatasetError(f"{source} lists {sample.image} twice")
        seen.add((sample.category, sample.image))
    return in_order(samples)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Raises:
        DatasetError: If it cannot be read, or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DatasetError(f"cannot read {path}: {error}") from error
    if not isinstance(content, dict):
        raise DatasetError(f"{path} must hold a JSON object, got {type(content).__name__}")
    return content


def read_table(path: Path, needed: Sequence[str]) -> list[Row]:
    """Read a CSV file with a header, as rows by column; cells without blanks around them.

    Args:
        path: The file, in UTF-8.
        needed: Columns that must be there.

    Raises:
        DatasetError: If it cannot be read, lacks a column, or a row lacks cells.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file)
            columns = [name.strip() for name in rows.fieldnames or ()]
            rows.fieldnames = columns
            table = [(rows.line_num, row) for row in rows]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"cannot read {path}: {error}") from error
    missing = [name for name in needed if name not in columns]
    if missing:
        other = next((mark for mark in ";\t|" if any(mark in name for name in columns)), None)
        hint = f"; its cells are separated by {other!r}: save it with commas" if other else ""
        raise DatasetError(f"{path} lacks the columns {missing}; it has {columns}{hint}")
    return [_row(cells, number, path, len(columns)) for number, cells in table]


def _row(cells: dict[Any, Any], number: int, path: Path, columns: int) -> Row:
    if None in cells or None in cells.values():
        raise DatasetError(f"line {number} of {path} does not have {columns} cells")
    row = Row((name, cell.strip()) for name, cell in cells.items())
    row.line = number
    return row


def field(record: Any, key: str, source: Path) -> str:
    """A text in a record of a JSON list; empty if it is null.

    Raises:
        DatasetError: If the record is no object, or the key is missing or no text.
    """
    value = record.get(key, 0) if isinstance(record, dict) else 0
    if value is not None and not isinstance(value, str):
        raise DatasetError(f"a record in {source} must have the text {key!r}; got {record!r:.200}")
    return value or ""


def records(content: dict[str, Any], split: str, source: Path) -> list[Any]:
    """The list of a split; empty if there is none.

    Raises:
        DatasetError: If it is no list.
    """
    found = content.get(split, [])
    if not isinstance(found, list):
        raise DatasetError(f"{split!r} in {source} must be a list, got {type(found).__name__}")
    return found


def _names(folder: Path) -> frozenset[str]:
    try:
        return frozenset(os.listdir(folder))  # noqa: PTH208 - names alone, of very many files
    except OSError:
        return frozenset()
