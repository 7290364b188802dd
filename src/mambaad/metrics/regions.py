"""AUPRO: how much of every defect region is found, whatever its size, at a low false positive rate.

    PRO(t)  = mean over the regions r of  |{pixels of r with score >= t}| / |r|
    FPR(t)  = |{normal pixels with score >= t}| / |{normal pixels}|
    AUPRO   = 1/limit · ∫ PRO d FPR   from 0 to limit

A region is an 8-connected set of mask pixels of one picture; normal pixels are all pixels outside
every region, of all pictures. The curve takes every distinct score as a threshold and is joined by
straight lines, also at the limit, so the integral is exact, ties included.

Only scores that a region's pixel has need a look: between two of them PRO is constant. At such a
score v the curve has two corners, (FPR, PRO) of the pixels above v and of those from v up.

Source: Bergmann et al., "The MVTec Anomaly Detection Dataset", IJCV 2021, limit 0.3.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mambaad.metrics.arrays import (
    BoolArray,
    FloatArray,
    UndefinedMetricError,
    as_maps,
    as_masks,
    side_by_side,
    split,
)
from mambaad.metrics.ranking import Crossings, crossings

_TOUCHING = np.ones((3, 3), dtype=np.bool_)  # pixels that meet at a corner are one region


@dataclass(frozen=True)
class SortedPixels:
    """The pixels of a category, sorted once for every pixel metric."""

    positives: FloatArray
    """(P,), scores of the pixels in regions, ascending."""

    weights: NDArray[np.float64]
    """(P,), one over the area of the region that the pixel is in; they sum to ``regions``."""

    regions: int
    """How many regions there are."""

    negatives: list[FloatArray]
    """Scores of all other pixels, in parts that are each ascending."""

    def crossings(self) -> Crossings:
        """Counts at every distinct score in a region.

        Raises:
            ValueError: If there is no region, or no pixel outside the regions.
        """
        try:
            return crossings(self.positives, self.negatives)
        except UndefinedMetricError:
            only = "anomalous" if self.positives.size else "normal"
            raise UndefinedMetricError(f"one class only: every pixel is {only}") from None

    def found_from(self, counts: Crossings) -> NDArray[np.float64]:
        """PRO at every score of ``self.crossings()``, pixels of that score included."""
        found: NDArray[np.float64] = np.cumsum(self.weights[::-1])[counts.tp_from - 1]
        found /= self.regions
        return found


def sort_pixels(maps: FloatArray, masks: BoolArray) -> SortedPixels:
    """Divide the pixels into those in regions and the rest, and sort both.

    Args:
        maps: (N, H, W), finite.
        masks: (N, H, W).
    """
    weights, regions = region_weights(masks)
    positives = maps[masks]
    negatives = split(maps[~masks])
    tasks: list[Callable[[], NDArray[Any]]] = [partial(np.argsort, positives)]
    tasks += [partial(_sort, part) for part in negatives]
    order = side_by_side(tasks, maps.size)[0]
    positives = positives[order]
    return SortedPixels(positives, weights[order], regions, negatives)


def _sort(part: FloatArray) -> NDArray[Any]:
    part.sort()
    return part


def region_weights(masks: BoolArray) -> tuple[NDArray[np.float64], int]:
    """One over the area of its region, for every mask pixel.

    Args:
        masks: (N, H, W).

    Returns:
        The weights, (P,), in the order of ``maps[masks]``; and the number of regions.
    """
    from scipy import ndimage  # slow to import, and training does without

    weights = [np.zeros(0)]
    regions = 0
    for picture in np.flatnonzero(masks.any(axis=(1, 2))):
        rows = np.flatnonzero(masks[picture].any(axis=1))
        mask = masks[picture, rows[0] : rows[-1] + 1]
        numbers, count = ndimage.label(mask, _TOUCHING)
        inside = numbers[mask]
        weights.append(1.0 / np.bincount(inside)[inside])
        regions += count
    return np.concatenate(weights), regions


def area_under_pro(counts: Crossings, found_from: NDArray[np.float64], limit: float) -> float:
    """Integrate PRO over FPR up to ``limit`` and divide by ``limit``.

    Args:
        counts: From ``SortedPixels.crossings``.
        found_from: (K,), from ``SortedPixels.found_from``.
        limit: In (0, 1].

    Returns:
        0 to 1.
    """
    allowed = limit * counts.negatives
    # corners up to the first at or after the limit; those beyond cannot matter
    stop = int(np.searchsorted(counts.fp_from, math.ceil(allowed), side="left")) + 1
    above, found = counts.fp_above[:stop], found_from[:stop]
    # (0, 0), two corners for every score, and (M, PRO of the lowest score in a region)
    false = np.zeros(2 * len(above) + 2)
    false[1:-1:2], false[2:-1:2], false[-1] = above, counts.fp_from[:stop], counts.negatives
    pro = np.zeros_like(false)
    pro[3:-1:2], pro[2:-1:2], pro[-1] = found[:-1], found, found[-1]
    end = int(np.searchsorted(false, allowed, side="right"))
    height = np.interp(allowed, false[end - 1 : end + 1], pro[end - 1 : end + 1])
    x = np.append(false[:end], allowed)
    y = np.append(pro[:end], height)
    return float(np.diff(x) @ (y[1:] + y[:-1])) / (2.0 * allowed)


def aupro(maps: ArrayLike, masks: ArrayLike, limit: float = 0.3) -> float:
    """Area under the per-region overlap curve, exact. Higher is better.

    Args:
        maps: (N, H, W), finite, higher is more anomalous.
        masks: (N, H, W), bool or whole numbers; anything but 0 is a defect.
        limit: Largest false positive rate, in (0, 1]; the area is divided by it.

    Returns:
        0 to 1; random maps have about ``limit / 2``.

    Raises:
        ValueError: If the masks have no region or nothing else, shapes differ, a map is not
            finite, or ``limit`` is out of range.

    >>> aupro([[[3.0, 2.0, 1.0, 0.0]]], [[[0, 1, 1, 0]]], limit=0.5)
    0.0
    >>> aupro([[[3.0, 2.0, 1.0, 0.0]]], [[[1, 0, 1, 0]]], limit=0.5)
    0.5
    """
    check_limit(limit)
    values = as_maps(maps)
    pixels = sort_pixels(values, as_masks(masks, values.shape))
    counts = pixels.crossings()
    return area_under_pro(counts, pixels.found_from(counts), limit)


def check_limit(limit: float) -> None:
    """Refuse a false positive rate to integrate to that is not in (0, 1].

    Raises:
        ValueError: If it is not.
    """
    if not 0.0 < limit <= 1.0:
        raise ValueError(f"the limit of AUPRO must be in (0, 1], got {limit!r}")
