"""What a layout is: how to see one, how to read it, and what in it is left alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mambaad.data.samples import Sample

Finder = Callable[[Path], dict[str, Path]]
"""Name and folder of each category that is seen in a root; empty if the layout is another one."""

Reader = Callable[[Path, Sequence[str]], list[Sample]]
"""The pictures of a root, of the named categories or of all."""

TEST_EVERY = 5
"""Where a layout has no split of its own, every fifth good picture is for testing."""


def _no_notes(_root: Path) -> list[str]:
    return []


@dataclass(frozen=True)
class Layout:
    """One way in which a data set lies on disk."""

    name: str
    """What ``data.layout`` calls it."""

    tree: tuple[str, ...]
    """The expected files and folders, one line each."""

    find: Finder
    read: Reader
    """May raise DatasetError."""

    notes: Callable[[Path], list[str]] = _no_notes
    """What the reader decides that a user should know, one line each."""

    masks: Callable[[Path], list[Path]] | None = None
    """All masks in a category's folder. None: a list in the data set says what belongs to it."""

    left_alone: frozenset[str] = frozenset()
    """Names, in lower case, of folders in a category whose pictures are not read on purpose."""

    @property
    def is_listed(self) -> bool:
        """Whether a list in the data set, and not the tree of folders, says what belongs to it."""
        return self.masks is None


def chosen(known: Mapping[str, Path], categories: Sequence[str]) -> list[tuple[str, Path]]:
    """The categories that were asked for; all if none was named."""
    return [
        (name, folder) for name, folder in known.items() if not categories or name in categories
    ]


def in_order(samples: Sequence[Sample]) -> list[Sample]:
    """Sorted by category, split, defect and file."""
    return sorted(samples, key=lambda s: (s.category, s.split, s.defect, s.image.as_posix()))


def split_good(category: str, good: Sequence[Path], *, has_defects: bool) -> list[Sample]:
    """Good pictures of a category without a split: every fifth is for testing.

    A test needs good pictures too; but a category without defects has nothing to test, and all of
    its pictures go to training.
    """
    tested = set(good[TEST_EVERY - 1 :: TEST_EVERY] if has_defects else ())
    return [Sample(p, category, "test" if p in tested else "train") for p in good]


def name_of(root: Path) -> str:
    """The folder's name, also of ``.``."""
    return root.resolve().name if root.name in ("", "..") else root.name
