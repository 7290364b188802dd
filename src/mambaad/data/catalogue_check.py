"""Whether a copy of a published data set is whole, by its numbers of pictures."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mambaad.data.catalogue import Counts, PublishedSet
from mambaad.data.layouts import LAYOUTS
from mambaad.data.samples import Dataset, Sample, path_inside

IN_ALL = "in all"
"""Stands for all pictures together among the names of categories."""


@dataclass(frozen=True)
class Comparison:
    """A copy beside what was published."""

    differences: tuple[str, ...]
    """What differs, one line each; none if all that is known agrees."""

    compared: tuple[str, ...] = ()
    """Categories whose numbers of pictures are known and were compared, and ``IN_ALL``."""

    agreement: str = ""
    """What agrees and what could not be compared, in one line; empty if something differs."""


def compare(dataset: Dataset, known: PublishedSet, categories: Sequence[str] = ()) -> Comparison:
    """What differs between a copy of a published set and what was published.

    Categories are compared without regard to case, ``_``, ``_AD`` at the end and ``Retina_`` at the
    beginning, in which copies of BMAD differ. Of some sets only the categories' names are known, or
    the numbers of pictures in all; the result says which were compared.

    Args:
        dataset: The copy.
        known: What it should be.
        categories: Categories to compare, by the copy's names; empty means all.
    """
    if known.layout != dataset.layout:
        return Comparison(
            (f"read with the layout {dataset.layout}; {known.name} needs {known.layout}",)
        )
    own: dict[str, list[Sample]] = defaultdict(list)
    for sample in dataset:
        own[_plain(sample.category)].append(sample)
    asked = {_plain(name) for name in categories}
    expected = {n: c for n, c in known.categories.items() if not asked or _plain(n) in asked}
    # where a list says what belongs to a set, the other files were left out on purpose
    root = None if LAYOUTS[dataset.layout].is_listed else dataset.root
    lines: list[str] = []
    for name, counts in expected.items():
        samples = own.pop(_plain(name), [])
        if not samples:
            size = "" if counts is None else f" ({counts.train} + {counts.test} pictures)"
            lines.append(f"{name}: missing{size}")
        elif counts is not None:
            lines += _differences(name, samples, counts, root)
    others = [part[0].category for part in own.values()]
    if not known.is_part:
        lines += [f"{name}: not in {known.title}" for name in others]
    is_whole = not known.is_part and len(expected) == len(known.categories)
    total = known.total if is_whole else None
    if total is not None:
        lines += _differences(IN_ALL, list(dataset), total, None)
    counted = {n: c for n, c in (*expected.items(), (IN_ALL, total)) if c is not None}
    agreement = "" if lines else _agreement(known, list(expected), counted, others)
    return Comparison(tuple(lines), tuple(counted), agreement)


def _agreement(
    known: PublishedSet,
    expected: Sequence[str],
    counted: Mapping[str, Counts],
    others: Sequence[str],
) -> str:
    """What a copy without differences has been compared in.

    Args:
        known: What it should be.
        expected: Those of the set's categories that the copy should have, and has.
        counted: The numbers that were compared, by category and ``IN_ALL``.
        others: The copy's categories of which nothing is known.
    """
    size = len(known.categories)
    if not expected:
        return f"{known.name}: nothing is known of {_shown(others)}, and nothing was compared"
    if not counted:
        return (
            f"{known.name}: the names of {len(expected)} of {size} categories agree; how many "
            "pictures they should have is not known, so their numbers were not compared"
        )
    known_of = len(counted.keys() - {IN_ALL})
    places = [f"of {known_of} of {size} categories"] if known_of else []
    places += [IN_ALL] if IN_ALL in counted else []
    line = f"as published: {known.name}: the numbers of pictures {' and '.join(places)}"
    not_known = [*(name for name in expected if name not in counted), *others]
    if not_known:
        line += f"; of {_shown(not_known)} they are not known, and were not compared"
    if any(counts.defective is None for counts in counted.values()):
        line += "; how many should be defective is not known"
    return line


def _shown(names: Sequence[str], most: int = 3) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{', '.join(names[:most])}{more}"


def _differences(
    name: str, samples: Sequence[Sample], counts: Counts, root: Path | None
) -> Iterator[str]:
    """Numbers that differ, with the gaps in the files' numbers where ``root`` is given."""
    found = {
        "training pictures": (counts.train, [s for s in samples if s.split == "train"]),
        "test pictures": (counts.test, [s for s in samples if s.split == "test"]),
        "defective pictures": (counts.defective, [s for s in samples if s.is_anomalous]),
    }
    for what, (number, own) in found.items():
        if number is not None and len(own) != number:
            lost = number - len(own)
            gaps = [] if root is None else _gaps([s.image for s in own], root, lost)
            hint = f"; not there: {', '.join(gaps)}" if gaps else ""
            yield f"{name}: {len(own)} {what} instead of {number}{hint}"


def _gaps(paths: Sequence[Path], root: Path, lost: int, most: int = 5) -> list[str]:
    """Files that do not exist between others, in folders of numbered ones: ``000.png`` to ...

    A folder with more gaps than pictures are lost is not numbered one by one: its gaps say nothing.
    """
    folders: dict[tuple[Path, int], dict[int, str]] = defaultdict(dict)
    for path in paths:
        if path.stem.isdecimal():
            folders[path.parent, len(path.stem)][int(path.stem)] = path.suffix
    gaps: list[str] = []
    for (folder, width), suffixes in folders.items():
        first, last = min(suffixes), max(suffixes)
        if last - first + 1 - len(suffixes) > lost:
            continue
        numbers = (number for number in range(first, last) if number not in suffixes)
        wanted = [folder / f"{number:0{width}}{suffixes[first]}" for number in numbers]
        gaps += [path_inside(path, root) for path in wanted if not path.exists()]
    return [*gaps[:most], f"and {len(gaps) - most} more"] if len(gaps) > most else gaps


def _plain(category: str) -> str:
    short = category.lower().removesuffix("_ad").removeprefix("retina_")
    return short.replace("_", "").replace("-", "")
