"""Pictures of a category worth looking at: the best found, the worst, the median, a false alarm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mambaad.data import PictureStore, Sample


@dataclass(frozen=True)
class Example:
    """A picture worth looking at."""

    path: Path
    """Its file."""

    kind: str
    """``best``, ``median`` or ``worst`` of the defective pictures by score, or ``false alarm``:
    the good picture with the highest score."""

    label: int
    """1 if defective."""

    defect: str
    """``good``, or the defect's name."""

    score: float
    """The picture's."""

    picture: NDArray[np.uint8]
    """(H, W, 3), as prepared."""

    map: NDArray[np.float32]
    """(H, W)."""

    mask: NDArray[np.bool_] | None
    """(H, W), or None without one."""


def choose(labels: NDArray[np.int64], scores: NDArray[np.float32]) -> dict[int, str]:
    """Which pictures, by index, and of what kind: see ``Example``.

    Args:
        labels: (N,), 1 if defective.
        scores: (N,).
    """
    ascending = np.argsort(scores, kind="stable")
    bad = [int(i) for i in ascending if labels[i]]
    good = [int(i) for i in ascending if not labels[i]]
    chosen: dict[int, str] = {}
    if bad:
        for kind, index in (("best", bad[-1]), ("worst", bad[0]), ("median", bad[len(bad) // 2])):
            chosen.setdefault(index, kind)
    if good:
        chosen[good[-1]] = "false alarm"
    return chosen


def make_examples(
    samples: Sequence[Sample],
    chosen: Mapping[int, str],
    maps: Mapping[int, NDArray[np.float32]],
    masks: Mapping[int, NDArray[np.bool_] | None],
    scores: NDArray[np.float32],
) -> tuple[Example, ...]:
    """Read the pictures.

    Args:
        samples: Of the category.
        chosen: From ``choose``.
        maps: Of the chosen ones, (H, W) each; not copied.
        masks: Of the chosen ones.
        scores: Of all.

    Raises:
        ImageError: If a picture cannot be read.
    """
    if not chosen:
        return ()
    size = maps[next(iter(chosen))].shape
    pictures = PictureStore([samples[i].image for i in chosen], (size[0], size[1]), "none")
    order = {"best": 0, "median": 1, "worst": 2, "false alarm": 3}
    examples = [
        Example(
            path=samples[i].image,
            kind=kind,
            label=int(samples[i].is_anomalous),
            defect=samples[i].defect,
            score=float(scores[i]),
            picture=picture,
            map=maps[i],
            mask=masks[i],
        )
        for (i, kind), picture in zip(chosen.items(), pictures[range(len(chosen))], strict=True)
    ]
    return tuple(sorted(examples, key=lambda e: order[e.kind]))
