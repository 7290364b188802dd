"""Pixel metrics in one pass and constant memory, from bins that grow finer (see ``bins``).

Within a bin of several numbers the pixels of both classes are taken as evenly mixed; a bin of one
number is a tie, which is counted exactly. With the limits of ``bins``, the errors are at most

    AUROC  1e-5 / 2             F1-max, IoU-max  2 · 5e-5
    AUPRO  1e-5 / (2 limit)     AUPIMO  4e-4 / (2 ln 10)

and about a hundredth of these on common maps. AP has no such limit that is as short, and is as
near. SegF1 is exact. Scores are rounded to float32, as all maps of this package are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mambaad.metrics.arrays import BoolArray, as_maps, as_masks
from mambaad.metrics.bins import ScoreBins
from mambaad.metrics.ranking import Crossings
from mambaad.metrics.regions import check_limit
from mambaad.metrics.summary import Curves, PixelSummary, Segmented, segment, summary_of

CHUNK = 1 << 23
"""Pixels that are counted at once, or one picture."""


class PixelBins:
    """The pixels seen so far, counted."""

    def __init__(self, *, threshold: float | None = None) -> None:
        """Start with no pixels.

        Args:
            threshold: That of ``pixel_SegF1``; a pixel above it is called anomalous.
        """
        self._threshold = threshold
        self._above = np.zeros(2, np.int64)  # true and false ones
        self._undecided = 0  # pixels that came without a threshold
        self._bins = ScoreBins()
        self._maps = np.empty((0, 0, 0), np.float32)
        self._masks = np.empty((0, 0, 0), np.bool_)
        self._waiting = 0

    def update(self, maps: ArrayLike, masks: ArrayLike) -> None:
        """Count the pixels of some pictures.

        Args:
            maps: (N, H, W), finite, higher is more anomalous. Rounded to float32. May be
                overwritten afterwards.
            masks: (N, H, W), bool or whole numbers; anything but 0 is a defect.

        Raises:
            ValueError: If a shape or type disagrees, or a map is not finite as float32.
        """
        values = as_maps(maps)
        if values.dtype != np.float32:
            with np.errstate(over="ignore"):  # as_maps says which picture became infinite
                values = as_maps(values.astype(np.float32))
        truth = as_masks(masks, values.shape)
        if self._threshold is not None:
            found = segment(values, truth, self._threshold)
            self._above += (found.true, found.false)
        else:
            self._undecided += values.size
        step = max(1, CHUNK // values[0].size)
        if len(values) >= step:
            self._flush()
            whole = len(values) // step * step
            for start in range(0, whole, step):
                self._bins.count(values[start : start + step], truth[start : start + step])
            values, truth = values[whole:], truth[whole:]
        if len(values):
            self._wait(values, truth, step)

    def merge(self, other: PixelBins) -> None:
        """Add what another one has counted, which keeps its own.

        One without a threshold keeps, of each other one, the pixels that were above its threshold,
        so that it has a ``pixel_SegF1`` if all it has counted came so.

        Raises:
            ValueError: If this one has a threshold, and the other one not the same.
        """
        if self._threshold not in (None, other._threshold):
            raise ValueError(
                f"other must have the threshold {self._threshold}, got {other._threshold}"
            )
        self._flush()
        other._flush()
        self._bins.merge(other._bins)
        self._above += other._above
        self._undecided += other._undecided

    def totals(self) -> NDArray[np.int64]:
        """(5,), what has been counted so far: see the channels of ``bins``."""
        self._flush()
        return self._bins.totals

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Everything as arrays, to be sent to another process or kept in a file."""
        self._flush()
        threshold = np.nan if self._threshold is None else self._threshold
        own = {
            "above": self._above.copy(),
            "undecided": np.array(self._undecided),
            "threshold": np.array(threshold),
        }
        return {**self._bins.to_arrays(), **own}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> PixelBins:
        """What ``to_arrays`` was called on."""
        threshold = float(arrays["threshold"])
        bins = cls(threshold=None if np.isnan(threshold) else threshold)
        bins._above = np.array(arrays["above"])
        bins._undecided = int(arrays["undecided"])
        bins._bins = ScoreBins.from_arrays(arrays)
        return bins

    def summary(self, *, pro_limit: float = 0.3) -> PixelSummary:
        """The metrics of all pixels so far.

        Args:
            pro_limit: Largest false positive rate of ``pixel_AUPRO``, in (0, 1].

        Raises:
            ValueError: If the limit is out of range.
        """
        check_limit(pro_limit)
        totals = self.totals()
        pixels, positives = int(totals[:3].sum()), int(totals[2])
        found = None
        if self._threshold is not None or (pixels and not self._undecided):
            found = Segmented(self._threshold, int(self._above[0]), int(self._above[1]))
        curves: Curves | str
        precision = None
        if not pixels:
            curves = "no pictures"
        elif positives in (0, pixels):
            curves = f"one class only: every pixel is {'anomalous' if positives else 'normal'}"
        else:
            curves, precision = _curves(*self._bins.ordered(), totals)
        return summary_of(
            curves,
            found,
            pixels=pixels,
            pro_limit=pro_limit,
            method="streaming",
            precision=precision,
        )

    def _wait(self, maps: NDArray[np.float32], masks: BoolArray, step: int) -> None:
        """Keep a few pictures until there are enough of them to count."""
        if self._maps.shape[1:] != maps.shape[1:]:
            self._flush()
            self._maps = np.empty((step, *maps.shape[1:]), np.float32)
            self._masks = np.empty(self._maps.shape, np.bool_)
        while len(maps):
            taken = min(len(maps), step - self._waiting)
            end = self._waiting + taken
            self._maps[self._waiting : end] = maps[:taken]
            self._masks[self._waiting : end] = masks[:taken]
            self._waiting = end
            maps, masks = maps[taken:], masks[taken:]
            if end == step:
                self._flush()

    def _flush(self) -> None:
        if self._waiting:
            waiting, self._waiting = self._waiting, 0
            self._bins.count(self._maps[:waiting], self._masks[:waiting])


def _curves(
    counts: NDArray[np.float64], single: BoolArray, totals: NDArray[np.int64]
) -> tuple[Curves, float]:
    """Cumulative counts at the bins that hold pixels of regions, and the average precision.

    ``counts`` are overwritten.
    """
    np.cumsum(counts, axis=0, out=counts)
    # whole again; a sum of fractions may end half a unit too high
    ends = np.minimum(np.rint(counts, out=counts).astype(np.int64), totals)
    kept = np.flatnonzero(np.diff(ends[:, 2], prepend=0))
    starts = np.where(kept[:, None] > 0, ends[kept - 1], 0)
    ends, single = ends[kept], single[kept]
    crossings = Crossings(
        int(totals[2]),
        int(totals[0] + totals[1]),
        ends[:, 2],
        starts[:, 0] + starts[:, 1],
        ends[:, 0] + ends[:, 1],
    )
    curves = Curves(
        crossings,
        ends[:, 3] / totals[3],
        ends[:, 4] / totals[4],
        int(totals[1]),
        starts[:, 1],
        ends[:, 1],
    )
    return curves, _average_precision(crossings, single)


def _average_precision(counts: Crossings, single: BoolArray) -> float:
    """Average precision of bins; those of several numbers have their classes evenly mixed.

    The k-th of p positives then lies behind k - 1/2 of p parts of the bin's negatives. The sum of
    their precisions (a + k) / (u + v k) is taken as the integral over k from 1/2 to p + 1/2.
    """
    here = np.diff(counts.tp_from, prepend=0)
    negatives = counts.fp_from - counts.fp_above
    tied = here @ np.where(single, counts.tp_from / (counts.tp_from + counts.fp_from), 0.0)
    mixed = ~single
    p, n, fp = here[mixed], negatives[mixed], counts.fp_above[mixed]
    a = counts.tp_from[mixed] - p
    v = 1.0 + n / p
    u = a + fp - n / (2.0 * p)
    spread = p / v + (a - u / v) / v * np.log1p(v * p / (u + v / 2.0))
    return float(tied + spread.sum()) / counts.positives
