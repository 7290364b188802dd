"""Eight pixel metrics of one set of pictures, from counts at falling scores.

Beside those of the report (``ranking``, ``regions``):

    IoU-max     max_t TP(t) / (TP(t) + FP(t) + FN(t)) = F1-max / (2 - F1-max)
    AU-PRO 5 %  AUPRO up to a false positive rate of 0.05
    SegF1       F1 of the pixels above one given threshold, all pictures together
    AUPIMO      see ``pimo``

``summarise`` is exact and holds all pixels at once, and so is ``completed``, which begins with what
was computed for the report; ``streaming`` makes the same from bins.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mambaad.metrics.arrays import (
    BoolArray,
    FloatArray,
    UndefinedMetricError,
    as_maps,
    as_masks,
    count_at,
)
from mambaad.metrics.pimo import NO_NORMALS, area_under_pimo, aupimo, picture_weights
from mambaad.metrics.ranking import Crossings, auroc_of, average_precision_of, f1_max_of
from mambaad.metrics.regions import area_under_pro, check_limit, sort_pixels

Exactness: TypeAlias = Literal["exact", "streaming"]

SUMMARY_FIELDS = (
    "pixel_AUROC",
    "pixel_AP",
    "pixel_F1max",
    "pixel_AUPRO",
    "pixel_IoUmax",
    "pixel_AUPRO05",
    "pixel_SegF1",
    "pixel_AUPIMO",
)
"""The metrics of a summary."""

MORE_PIXEL_METRICS = SUMMARY_FIELDS[4:]
"""Those that are not in a report."""

STRICT_LIMIT = 0.05
"""The false positive rate that ``pixel_AUPRO05`` goes up to."""

_NO_THRESHOLD = "no threshold"


@dataclass(frozen=True)
class PixelSummary:
    """Pixel metrics, 0 to 1, higher is better, NaN if undefined."""

    pixel_AUROC: float
    pixel_AP: float
    pixel_F1max: float
    pixel_AUPRO: float
    pixel_IoUmax: float
    pixel_AUPRO05: float
    pixel_SegF1: float
    pixel_AUPIMO: float

    method: Exactness
    """``exact``, or ``streaming``: from bins, within 1e-4 of exact."""

    pro_limit: float
    """The false positive rate that ``pixel_AUPRO`` goes up to."""

    threshold: float | None
    """That of ``pixel_SegF1``; None if there is none, or categories of several are together."""

    pixels: int
    """How many there were."""

    reasons: Mapping[str, str] = field(default_factory=dict, hash=False)
    """Why a metric is NaN."""

    def to_mapping(self) -> dict[str, Any]:
        """The summary as JSON can hold it: NaN as None."""
        values = {name: getattr(self, name) for name in SUMMARY_FIELDS}
        return {
            **{name: None if math.isnan(value) else value for name, value in values.items()},
            "method": self.method,
            "pro_limit": self.pro_limit,
            "threshold": self.threshold,
            "pixels": self.pixels,
            "reasons": dict(self.reasons),
        }


@dataclass(frozen=True)
class Curves:
    """Everything the metrics need, at falling scores; arrays are (K,)."""

    counts: Crossings
    found: NDArray[np.float64]
    """The mean over regions of the share at or above the score."""

    recall: NDArray[np.float64]
    """The mean over anomalous pictures of the share of their defect pixels."""

    normals: int
    """Pixels of normal pictures."""

    normals_above: NDArray[np.int64]
    """Of these, those above the score."""

    normals_from: NDArray[np.int64]
    """Those at or above it."""


@dataclass(frozen=True)
class Segmented:
    """Pixels above one threshold, or above that of their category each."""

    threshold: float | None
    """None if they are several."""

    true: int
    false: int

    def f1(self, positives: int) -> float:
        """2 TP / (TP + FP + P)."""
        return 2 * self.true / (self.true + self.false + positives)


def summary_of(
    curves: Curves | str,
    segmented: Segmented | None,
    *,
    pixels: int,
    pro_limit: float,
    method: Exactness,
    precision: float | None = None,
) -> PixelSummary:
    """Make the summary.

    Args:
        curves: The counts, or why there are none.
        segmented: The pixels above a threshold; None leaves ``pixel_SegF1`` undefined.
        pixels: How many there were.
        pro_limit: Largest false positive rate of ``pixel_AUPRO``.
        method: How the counts were made.
        precision: The average precision, if the counts are too coarse for it.
    """
    values = dict.fromkeys(SUMMARY_FIELDS, math.nan)
    reasons: dict[str, str] = {}
    if isinstance(curves, str):
        reasons = dict.fromkeys(SUMMARY_FIELDS, curves)
    else:
        f1 = f1_max_of(curves.counts)
        values["pixel_AUROC"] = auroc_of(curves.counts)
        values["pixel_AP"] = average_precision_of(curves.counts) if precision is None else precision
        values["pixel_F1max"] = f1
        values["pixel_IoUmax"] = f1 / (2 - f1)
        for name, limit in (("pixel_AUPRO", pro_limit), ("pixel_AUPRO05", STRICT_LIMIT)):
            values[name] = area_under_pro(curves.counts, curves.found, limit)
        if segmented is None:
            reasons["pixel_SegF1"] = _NO_THRESHOLD
        else:
            values["pixel_SegF1"] = segmented.f1(curves.counts.positives)
        if curves.normals:
            values["pixel_AUPIMO"] = area_under_pimo(
                curves.normals_above, curves.normals_from, curves.recall, curves.normals
            )
        else:
            reasons["pixel_AUPIMO"] = NO_NORMALS
    return PixelSummary(
        **values,
        method=method,
        pro_limit=pro_limit,
        threshold=None if segmented is None else segmented.threshold,
        pixels=pixels,
        reasons=reasons,
    )


def summarise(
    maps: ArrayLike,
    masks: ArrayLike,
    *,
    pro_limit: float = 0.3,
    threshold: float | None = None,
) -> PixelSummary:
    """Compute the pixel metrics exactly, ties included.

    Args:
        maps: (N, H, W), finite, higher is more anomalous.
        masks: (N, H, W), bool or whole numbers; anything but 0 is a defect.
        pro_limit: Largest false positive rate of ``pixel_AUPRO``, in (0, 1].
        threshold: That of ``pixel_SegF1``; a pixel above it is called anomalous.

    Raises:
        ValueError: If a shape or type disagrees, a map is not finite, or the limit is out of range.
    """
    check_limit(pro_limit)
    values = as_maps(maps)
    truth = as_masks(masks, values.shape)
    segmented = None if threshold is None else segment(values, truth, threshold)
    curves: Curves | str
    try:
        pixels = sort_pixels(values, truth)
        counts = pixels.crossings()
    except UndefinedMetricError as error:
        curves = str(error)
    else:
        scores = values[truth]
        order = np.argsort(scores)[::-1]
        recall = np.cumsum(picture_weights(truth)[order])[counts.tp_from - 1]
        levels = scores[order][counts.tp_from - 1]
        normal = np.sort(values[~truth.any(axis=(1, 2))], axis=None)
        above, at = count_at([normal], levels)
        curves = Curves(
            counts, pixels.found_from(counts), recall / recall[-1], normal.size, above, at
        )
    return summary_of(curves, segmented, pixels=values.size, pro_limit=pro_limit, method="exact")


def completed(
    outcomes: Mapping[str, float | str],
    maps: FloatArray,
    masks: BoolArray,
    *,
    pro_limit: float,
    threshold: float | None = None,
) -> PixelSummary:
    """Add what needs no sorting to metrics that were computed exactly.

    Args:
        outcomes: Those of ``SUMMARY_FIELDS`` but ``pixel_SegF1`` and ``pixel_AUPIMO``, or why there
            is none. Under the protocol ``ader`` two of them are its own.
        maps: (N, H, W), finite.
        masks: (N, H, W).
        pro_limit: The limit of the ``pixel_AUPRO`` that is there.
        threshold: That of ``pixel_SegF1``; a pixel above it is called anomalous.
    """
    found = dict(outcomes)
    positives = int(np.count_nonzero(masks))
    if positives in (0, masks.size):
        # as for the others, which say which class there is
        found |= dict.fromkeys(("pixel_SegF1", "pixel_AUPIMO"), found["pixel_AUROC"])
    else:
        found["pixel_SegF1"] = (
            _NO_THRESHOLD if threshold is None else segment(maps, masks, threshold).f1(positives)
        )
        try:
            found["pixel_AUPIMO"] = aupimo(maps, masks)
        except UndefinedMetricError as error:
            found["pixel_AUPIMO"] = str(error)
    reasons = {name: why for name in SUMMARY_FIELDS if isinstance(why := found[name], str)}
    values = {name: math.nan if name in reasons else float(found[name]) for name in SUMMARY_FIELDS}
    return PixelSummary(
        **values,
        method="exact",
        pro_limit=pro_limit,
        threshold=threshold,
        pixels=maps.size,
        reasons=reasons,
    )


def segment(
    maps: NDArray[np.floating[Any]], masks: NDArray[np.bool_], threshold: float
) -> Segmented:
    """Count the pixels above a threshold, compared in float64 as a decision is.

    Args:
        maps: (N, H, W).
        masks: (N, H, W).
        threshold: Finite.
    """
    # the nearest number of the maps' type that is not above splits the same pixels
    level = maps.dtype.type(threshold)
    if float(level) > threshold:
        level = np.nextafter(level, maps.dtype.type(-np.inf))
    above = maps > level
    true = int(np.count_nonzero(above & masks))
    return Segmented(threshold, true, int(np.count_nonzero(above)) - true)
