"""``Sample`` is one picture, ``Dataset`` is what a layout reader makes of a folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mambaad.errors import DatasetError

Split = Literal["train", "test"]

RESERVED_NAMES = {
    "mean": "the mean of all categories",
    "pooled": "the pixels of all categories together",
}
"""What results call their own rows beside those of categories, and what is in them."""


@dataclass(frozen=True)
class Sample:
    """One picture and what is known of it."""

    image: Path
    """The picture's file."""

    category: str
    """The product, such as ``bottle``."""

    split: Split
    """``train`` pictures are all good; ``test`` pictures are good or not."""

    defect: str = "good"
    """``good``, or the name of the defect (the folder's)."""

    mask: Path | None = None
    """File of the defect's pixels, or a folder of several that count together; None for a good
    picture, and where a set has no mask for it."""

    group: str = ""
    """What the pictures of one object share: Real-IAD's five views. Sample-level metrics take the
    maximum over it. Empty: the picture stands alone."""

    @property
    def is_anomalous(self) -> bool:
        """Whether the data set calls the picture defective."""
        return self.defect != "good"


@dataclass(frozen=True)
class Dataset:
    """All pictures of a data set, in a fixed order (category, split, defect, file name)."""

    root: Path
    """The folder it was read from."""

    layout: str
    """Name of the reader that read it."""

    samples: tuple[Sample, ...]
    """Every picture."""

    notes: tuple[str, ...] = ()
    """What the reader decided that a user should know, one line each."""

    def __len__(self) -> int:
        return len(self.samples)

    def __iter__(self) -> Iterator[Sample]:
        return iter(self.samples)

    @property
    def categories(self) -> tuple[str, ...]:
        """The categories, sorted."""
        return tuple(sorted({sample.category for sample in self.samples}))

    def select(
        self, *, split: Split | None = None, categories: Sequence[str] | None = None
    ) -> Dataset:
        """The pictures of one split and of the named categories; None or empty takes all.

        Raises:
            DatasetError: If a named category is not in the data set.
        """
        wanted = set(categories or self.categories)
        unknown = sorted(wanted - set(self.categories))
        if unknown:
            raise DatasetError(
                f"no category {unknown} in {self.root}; it has {list(self.categories)}"
            )
        kept = tuple(
            s for s in self.samples if s.category in wanted and (split is None or s.split == split)
        )
        return Dataset(self.root, self.layout, kept, self.notes)


def path_inside(path: Path, root: Path) -> str:
    """A file by its path inside a data set's root, with ``/``; a list may name files elsewhere."""
    return (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()
