"""Defective pictures among the training ones, to see how much of them a training stands.

A share c of each category's n training pictures, round(c n), are replaced by defective pictures of
its test, which then leave the test: no picture is learned from and tested on, as in the setting
without overlap of SoftPatch (Jiang et al., NeurIPS 2022, arXiv 2403.14233). The number of training
pictures, and so of steps, stays the same. The replaced good pictures are used nowhere.

Both are drawn with the run's seed, category by category. The pictures of a smaller share are among
those of a larger one, so results over shares differ by what was added, not by another draw; their
tests still differ by the pictures that left, which should be said beside them. How many pictures a
training has been given so is one of the data set's ``notes``.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from zlib import crc32

import numpy as np

from mambaad.data.samples import Dataset, Sample, path_inside
from mambaad.errors import DatasetError

_STREAM = 1  # of random numbers; the held-out pictures are drawn from the plain seed


def contaminate(dataset: Dataset, share: float, seed: int) -> tuple[Dataset, tuple[str, ...]]:
    """Move defective test pictures into the training.

    Args:
        dataset: Training and test pictures.
        share: Of each category's training pictures, 0 to 1; 0 changes nothing.
        seed: Same seed, same pictures.

    Returns:
        The data set with the moved pictures in the split ``train`` under their defects' names and a
        note of their number, and their paths inside the data set's root, sorted.

    Raises:
        DatasetError: If a category has too few defective test pictures (one must stay), or the
            share is less than one picture in all of them.
    """
    if share == 0:
        return dataset, ()
    moved: set[Sample] = set()
    dropped: set[Sample] = set()
    for category in dataset.categories:
        own = [s for s in dataset if s.category == category]
        good = [s for s in own if s.split == "train"]
        bad = [s for s in own if s.split == "test" and s.is_anomalous]
        count = round(share * len(good))
        if count and count >= len(bad):
            raise DatasetError(
                f"contamination {share:g} of the {len(good)} training pictures of {category} needs "
                f"{count} defective test pictures, and one more to test on; it has {len(bad)}: "
                "lower data.contamination, or leave the category out"
            )
        rng = np.random.default_rng([seed, crc32(category.encode()), _STREAM])
        dropped |= {good[i] for i in rng.permutation(len(good))[:count]}
        moved |= {bad[i] for i in rng.permutation(len(bad))[:count]}
    if not moved:
        raise DatasetError(
            f"contamination {share:g} is less than one training picture in every category of "
            f"{dataset.root}: raise data.contamination, or set it to 0"
        )
    kept = (replace(s, split="train") if s in moved else s for s in dataset if s not in dropped)
    samples = tuple(kept)
    count = sum(s.split == "train" for s in samples)
    note = (
        f"{len(moved)} of {count} training pictures ({100 * len(moved) / count:.1f} %) are "
        f"defective ones of the test, which they leave (data.contamination {share:g})"
    )
    mixed = replace(dataset, samples=samples, notes=(*dataset.notes, note))
    return mixed, tuple(sorted(path_inside(s.image, dataset.root) for s in moved))


def leave_out(dataset: Dataset, paths: Collection[str]) -> Dataset:
    """The data set without the test pictures at these paths inside its root."""
    taken = set(paths)
    kept = (
        s for s in dataset if s.split != "test" or path_inside(s.image, dataset.root) not in taken
    )
    return replace(dataset, samples=tuple(kept))
