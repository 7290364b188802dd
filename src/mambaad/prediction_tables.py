"""The tables that ``mambaad predict`` writes, and the heat maps that an earlier one names.

OUT/predictions.csv           a row per picture; there when the last picture is done
OUT/predictions.jsonl         the same as JSON lines
OUT/predictions.partial.csv   the rows so far of a call that was stopped; the next whole one
                              removes it

What else is in OUT is the user's: no file is written over that no earlier call wrote.
"""

from __future__ import annotations

import csv
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any

from mambaad.errors import ConfigError
from mambaad.files import replacing
from mambaad.prediction import COLUMNS

TABLE, LINES, HEATMAPS = "predictions.csv", "predictions.jsonl", "heatmaps"
PARTIAL = "predictions.partial.csv"

MARK = b"written by mambaad predict"
"""In every heat map and raw map, near its beginning or at its end: those of a call that was killed
are in no table."""

HEAD = 1024
"""Bytes at a file's beginning in which a mark is looked for."""

_log = logging.getLogger(__name__)


@contextmanager
def tables(out: Path, total: int) -> Iterator[Callable[[dict[str, Any]], None]]:
    """What adds a row to both tables, which are there when the block has ended well."""
    done = 0

    def add(values: dict[str, Any]) -> None:
        nonlocal done
        plain = {k: escaped(v) if isinstance(v, str) else v for k, v in values.items()}
        rows.writerow(plain)
        jsonl_file.write(json.dumps(plain) + "\n")
        done += 1

    with (
        replacing(out / TABLE) as csv_path,
        replacing(out / LINES) as jsonl_path,
        csv_path.open("w", newline="", encoding="utf-8") as csv_file,
        jsonl_path.open("w", encoding="utf-8") as jsonl_file,
    ):
        rows = csv.DictWriter(csv_file, COLUMNS, lineterminator="\n")
        rows.writeheader()
        try:
            yield add
        except BaseException:  # Ctrl-C, and GeneratorExit of a caller that was stopped
            if done:
                with suppress(OSError):  # a full disk: what was raised says so
                    csv_file.close()
                    csv_path.replace(out / PARTIAL)
                    kept = out / PARTIAL
                    _log.warning("done: %d of %d; their rows are in %s", done, total, kept)
            raise
    (out / PARTIAL).unlink(missing_ok=True)


def escaped(text: str) -> str:
    r"""With ``\udcf6`` for bytes of a file's name that are no UTF-8, as text files are."""
    return text.encode("utf-8", "backslashreplace").decode()


def listed_heatmaps(out: Path) -> list[str]:
    """The heat maps that the tables of earlier calls name."""
    return [*_listed(out / TABLE), *_listed(out / PARTIAL)]


def _listed(table: Path) -> list[str]:
    """The heat maps that a table names, if it is one of ours."""
    try:
        with table.open(newline="", encoding="utf-8") as file:
            rows = csv.DictReader(file)
            if tuple(rows.fieldnames or ()) != COLUMNS:
                return []
            return [row["heatmap"] for row in rows if row["heatmap"]]
    except (OSError, UnicodeDecodeError, csv.Error):
        return []


def heatmap_name(stem: Path) -> str:
    """A picture's heat map, as seen from the folder of the outputs."""
    return Path(HEATMAPS, f"{stem}.jpg").as_posix()


def map_name(stem: Path) -> str:
    """A picture's raw map, as seen from the folder of the outputs."""
    return Path("maps", f"{stem}.npy").as_posix()


def check_ours(out: Path, names: Iterable[str], listed: Iterable[str]) -> None:
    """Whether all files that would be written over are of earlier calls.

    Args:
        out: The folder of the outputs.
        names: What will be written in it, as seen from ``out``.
        listed: From ``listed_heatmaps``.

    Raises:
        ConfigError: With the first one that is neither listed nor marked.
    """
    known = set(listed)
    for name in names:
        path = out / name
        if os.path.lexists(path) and name not in known and not _is_marked(path):
            kind = "heat map" if PurePosixPath(name).parts[0] == HEATMAPS else "raw map"
            raise ConfigError(
                f"{path} is not a {kind} of an earlier call, and would be written over; choose "
                "another --out"
            )


def _is_marked(path: Path) -> bool:
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            head = file.read(HEAD)
            file.seek(max(0, path.stat().st_size - len(MARK)))
            return MARK in head or file.read() == MARK
    except OSError:
        return False


def remove_heatmaps(out: Path, old: Iterable[str], new: Iterable[str]) -> None:
    """Remove files that are in the old table only, and folders that become empty by it."""
    top = out / HEATMAPS
    # "A.jpg" and "a.jpg" are one file on some systems
    kept = {name.casefold() for name in new}
    for name in old:
        path, parts = out / name, PurePosixPath(name).parts
        # the table may have been edited: nothing outside the folder of heat maps is touched
        ours = parts[:1] == (HEATMAPS,) and ".." not in parts and path.suffix == ".jpg"
        if not ours or name.casefold() in kept or not path.is_file() or path.is_symlink():
            continue
        if not path.resolve().is_relative_to(top.resolve()):
            continue
        path.unlink()
        for folder in path.parents:
            if not folder.is_relative_to(top) or any(folder.iterdir()):
                break
            folder.rmdir()
