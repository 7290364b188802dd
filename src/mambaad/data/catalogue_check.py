"""Whether a copy of a published data set is whole, by its numbers of pictures."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from mambaad.data.catalogue import Counts, PublishedSet
from mambaad.data.samples import Dataset, Sample


def compare(dataset: Dataset, known: PublishedSet, categories: Sequence[str] = ()) -> list[str]:
    """What differs between a copy of a published set and what was published.

    Categories are compared without regard to case, ``_``, ``_AD`` at the end and ``Retina_`` at the
    beginning, in which copies of BMAD differ.

    Args:
        dataset: The copy.
        known: What it should be.
        categories: Categories to compare, by the copy's names; empty means all.

    Returns:
        One line each; none if all numbers agree.
    """
    if known.layout != dataset.layout:
        return [f"read with the layout {dataset.layout}; {known.name} needs {known.layout}"]
    own: dict[str, list[Sample]] = defaultdict(list)
    for sample in dataset:
        own[_plain(sample.category)].append(sample)
    asked = {_plain(name) for name in categories}
    expected = {n: c for n, c in known.categories.items() if not asked or _plain(n) in asked}
    lines: list[str] = []
    for name, counts in expected.items():
        samples = own.pop(_plain(name), [])
        if not samples:
            size = "" if counts is None else f" ({counts.train} + {counts.test} pictures)"
            lines.append(f"{name}: missing{size}")
        elif counts is not None:
            lines += _differences(name, samples, counts, dataset.root)
    if not known.is_part:
        lines += [f"{part[0].category}: not in {known.title}" for part in own.values()]
    if known.total is not None and not known.is_part and not asked:
        lines += _differences("in all", list(dataset), known.total, None)
    return lines


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
            gaps = [] if root is None else _gaps([s.image for s in own], root)
            hint = f"; not there: {', '.join(gaps)}" if gaps and len(own) < number else ""
            yield f"{name}: {len(own)} {what} instead of {number}{hint}"


def _gaps(paths: Sequence[Path], root: Path, most: int = 5) -> list[str]:
    """Files that are missing between others, in folders of numbered ones: ``000.png`` to ..."""
    folders: dict[tuple[Path, str, int], set[int]] = defaultdict(set)
    for path in paths:
        if path.stem.isdecimal():
            folders[path.parent, path.suffix, len(path.stem)].add(int(path.stem))
    lost = [
        (folder / f"{number:0{width}}{suffix}").relative_to(root).as_posix()
        for (folder, suffix, width), numbers in folders.items()
        if folder.is_relative_to(root)
        for number in sorted(set(range(min(numbers), max(numbers))) - numbers)
    ]
    return [*lost[:most], f"and {len(lost) - most} more"] if len(lost) > most else lost


def _plain(category: str) -> str:
    short = category.lower().removesuffix("_ad").removeprefix("retina_")
    return short.replace("_", "").replace("-", "")
