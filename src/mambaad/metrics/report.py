"""One category's seven metrics and their mean, mAD; and the mean over categories.

    mAD = (image_AUROC + image_AP + image_F1max
           + pixel_AUROC + pixel_AP + pixel_F1max + pixel_AUPRO) / 7

Two protocols: ``exact`` (modules ``ranking`` and ``regions``) and ``ader`` (what the tables of the
MambaAD paper used; module ``ader`` says how it differs). A metric that the data do not define is
NaN, with a reason.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import ArrayLike

from mambaad.metrics import ranking
from mambaad.metrics.ader import ader_aupro, ader_f1_max
from mambaad.metrics.arrays import (
    BoolArray,
    FloatArray,
    UndefinedMetricError,
    as_labels,
    as_maps,
    as_masks,
    as_scores,
)
from mambaad.metrics.regions import area_under_pro, check_limit, sort_pixels
from mambaad.metrics.summary import STRICT_LIMIT, Exactness, PixelSummary, completed

Protocol: TypeAlias = Literal["exact", "ader"]
Masks: TypeAlias = ArrayLike | Sequence[ArrayLike | None] | None

IMAGE_METRICS = ("image_AUROC", "image_AP", "image_F1max")
PIXEL_METRICS = ("pixel_AUROC", "pixel_AP", "pixel_F1max", "pixel_AUPRO")
METRICS = (*IMAGE_METRICS, *PIXEL_METRICS)
"""The seven metrics of mAD, in the order of the paper's tables."""

SORTED_METRICS = (*PIXEL_METRICS, "pixel_IoUmax", "pixel_AUPRO05")
"""What one sorting of all pixels gives."""

FIELDS = (*METRICS, "mAD")
"""Every number of a report, mAD last."""

Outcome: TypeAlias = float | str
"""A metric's value, or why it has none."""

PixelMetrics: TypeAlias = Callable[[FloatArray, BoolArray, Protocol, float], Mapping[str, Outcome]]
"""Computes ``SORTED_METRICS`` from checked maps and masks, both (N, H, W), protocol and limit."""


@dataclass(frozen=True)
class Report:
    """The metrics of one category, or their mean; 0 to 1, higher is better, NaN if undefined."""

    image_AUROC: float
    image_AP: float
    image_F1max: float
    pixel_AUROC: float
    pixel_AP: float
    pixel_F1max: float
    pixel_AUPRO: float
    mAD: float
    """Mean of the seven above; NaN if one of them is."""

    protocol: Protocol
    """How they were computed."""

    pro_limit: float
    """The false positive rate that ``pixel_AUPRO`` goes up to."""

    images: int
    """Number of pictures."""

    anomalous_images: int | None
    """How many of them are anomalous; None if neither labels nor masks tell."""

    reasons: Mapping[str, str] = field(default_factory=dict, hash=False)
    """Why a field is NaN; in a mean, also which categories a field leaves out."""

    method: str = "exact"
    """``exact``, or ``streaming``: pixel metrics from bins, within 1e-4 of exact (see
    ``streaming``); in a mean, all that occur."""

    def to_mapping(self) -> dict[str, Any]:
        """The report as JSON can hold it: NaN as None."""
        values = {name: _none_if_nan(getattr(self, name)) for name in FIELDS}
        return {
            **values,
            "protocol": self.protocol,
            "pro_limit": self.pro_limit,
            "images": self.images,
            "anomalous_images": self.anomalous_images,
            "method": self.method,
            "reasons": dict(self.reasons),
        }


def pixel_metrics(
    maps: FloatArray, masks: BoolArray, protocol: Protocol, limit: float
) -> Mapping[str, Outcome]:
    """``SORTED_METRICS`` with numpy.

    Args:
        maps: (N, H, W), finite.
        masks: (N, H, W).
        protocol: ``exact``, or ``ader``, which has an F1-max and an AUPRO of its own.
        limit: Largest false positive rate of AUPRO, in (0, 1].
    """
    pixels = sort_pixels(maps, masks)
    try:
        counts = pixels.crossings()
    except UndefinedMetricError as error:
        return dict.fromkeys(SORTED_METRICS, str(error))
    f1, found = ranking.f1_max_of(counts), pixels.found_from(counts)
    outcomes: dict[str, Outcome] = {
        "pixel_AUROC": ranking.auroc_of(counts),
        "pixel_AP": ranking.average_precision_of(counts),
    }
    if protocol == "ader":
        outcomes["pixel_F1max"] = outcome(lambda: ader_f1_max(pixels))
        outcomes["pixel_AUPRO"] = outcome(lambda: ader_aupro(pixels, limit))
    else:
        outcomes["pixel_F1max"] = f1
        outcomes["pixel_AUPRO"] = area_under_pro(counts, found, limit)
    outcomes["pixel_IoUmax"] = f1 / (2 - f1)
    outcomes["pixel_AUPRO05"] = area_under_pro(counts, found, STRICT_LIMIT)
    return outcomes


def outcomes_of(summary: PixelSummary | str) -> dict[str, Outcome]:
    """``PIXEL_METRICS`` of a summary, or why there is none."""
    if isinstance(summary, str):
        return dict.fromkeys(PIXEL_METRICS, summary)
    return {n: summary.reasons.get(n, getattr(summary, n)) for n in PIXEL_METRICS}


def outcome(compute: Callable[[], float]) -> Outcome:
    """What a metric returns, or its reason for being undefined."""
    try:
        return compute()
    except UndefinedMetricError as error:
        return str(error)


def score(
    maps: ArrayLike,
    masks: Masks,
    labels: ArrayLike | None = None,
    *,
    protocol: Protocol = "exact",
    scores: ArrayLike | None = None,
    pro_limit: float = 0.3,
    pixels: PixelMetrics = pixel_metrics,
) -> Report:
    """Compute one category's metrics.

    Args:
        maps: (N, H, W), finite, higher is more anomalous. float32 and float64 are kept as they are.
        masks: (N, H, W), bool or whole numbers, anything but 0 is a defect. None, or a sequence
            with None for a picture, leaves the pixel metrics undefined.
        labels: (N,), True or 1 for anomalous. By default a picture is anomalous if its mask holds
            a defect. ``ader`` always takes that and does not look at ``labels``.
        protocol: ``exact``, or ``ader`` to compare with published tables.
        scores: (N,), finite, one per picture; by default the maximum of its map, which is the only
            one that published tables know.
        pro_limit: Largest false positive rate of ``pixel_AUPRO``, in (0, 1].
        pixels: What computes the pixel metrics, if not numpy.

    Raises:
        ValueError: If a shape or type disagrees, a map or score is not finite (the picture is
            named), or ``protocol`` or ``pro_limit`` is not one of the above.
    """
    return _score(maps, masks, labels, protocol, scores, pro_limit, pixels)[0]


def score_with_summary(
    maps: ArrayLike,
    masks: Masks,
    labels: ArrayLike | None = None,
    *,
    protocol: Protocol = "exact",
    scores: ArrayLike | None = None,
    pro_limit: float = 0.3,
    pixels: PixelMetrics = pixel_metrics,
    threshold: float | None = None,
) -> tuple[Report, PixelSummary | None]:
    """``score``, and all pixel metrics, of which those in the report are the same numbers.

    What is not in the report is defined alike under both protocols.

    Args:
        maps: As for ``score``, like all that follow.
        masks: The summary is None where they leave the pixel metrics undefined.
        labels: (N,).
        protocol: ``exact`` or ``ader``.
        scores: (N,).
        pro_limit: In (0, 1].
        pixels: What computes the pixel metrics.
        threshold: That of ``pixel_SegF1``; a pixel above it is called anomalous.

    Raises:
        ValueError: As ``score``.
    """
    report, outcomes, values, truth = _score(
        maps, masks, labels, protocol, scores, pro_limit, pixels
    )
    if isinstance(truth, str):
        return report, None
    return report, completed(outcomes, values, truth, pro_limit=pro_limit, threshold=threshold)


def _score(
    maps: ArrayLike,
    masks: Masks,
    labels: ArrayLike | None,
    protocol: Protocol,
    scores: ArrayLike | None,
    pro_limit: float,
    pixels: PixelMetrics,
) -> tuple[Report, Mapping[str, Outcome], FloatArray, BoolArray | str]:
    """The report, and what it was made of: outcomes, maps and masks, or why there are none."""
    if protocol not in get_args(Protocol):
        raise ValueError(f"protocol must be one of {list(get_args(Protocol))}, got {protocol!r}")
    check_limit(pro_limit)
    values = as_maps(maps)
    count = len(values)
    image_scores = values.max(axis=(1, 2)) if scores is None else as_scores(scores, count)
    truth = _read_masks(masks, values.shape)
    anomalous = _read_labels(labels, truth, count, protocol)
    found: Mapping[str, Outcome] = (
        dict.fromkeys(SORTED_METRICS, truth)
        if isinstance(truth, str)
        else pixels(values, truth, protocol, pro_limit)
    )
    report = _report(
        {**_image_outcomes(image_scores, anomalous), **{n: found[n] for n in PIXEL_METRICS}},
        protocol=protocol,
        pro_limit=pro_limit,
        images=count,
        anomalous_images=None if isinstance(anomalous, str) else int(anomalous.sum()),
    )
    return report, found, values, truth


def report_of(
    labels: ArrayLike,
    scores: ArrayLike,
    pixels: Mapping[str, Outcome],
    *,
    pro_limit: float = 0.3,
    method: Exactness = "streaming",
) -> Report:
    """Make the report of one category whose pixel metrics were computed elsewhere.

    Args:
        labels: (N,), True or 1 for anomalous.
        scores: (N,), finite, one per picture.
        pixels: Values of ``PIXEL_METRICS``, or why there is none.
        pro_limit: The false positive rate that its ``pixel_AUPRO`` goes up to.
        method: How they were computed.

    Raises:
        ValueError: If labels and scores disagree, or one of the pixel metrics is missing.
    """
    missing = [name for name in PIXEL_METRICS if name not in pixels]
    if missing:
        raise ValueError(f"pixels must hold {list(PIXEL_METRICS)}, without {missing}")
    values = as_scores(scores)
    anomalous = as_labels(labels, len(values))
    return _report(
        {**_image_outcomes(values, anomalous), **{name: pixels[name] for name in PIXEL_METRICS}},
        protocol="exact",
        pro_limit=pro_limit,
        images=len(values),
        anomalous_images=int(anomalous.sum()),
        method=method,
    )


def mean_report(reports: Mapping[str, Report]) -> Report:
    """The unweighted mean over categories, field by field.

    A field's mean is over the categories that define it; ``reasons`` says how many, and which are
    left out. It is NaN where none defines it. ``mAD`` is averaged like the others. ``images`` and
    ``anomalous_images`` are sums.

    Raises:
        ValueError: If there is no report, or two differ in protocol or limit.
    """
    if not reports:
        raise ValueError("reports must hold at least one category, got none")
    conventions = sorted({(r.protocol, r.pro_limit) for r in reports.values()})
    if len(conventions) > 1:
        raise ValueError(f"reports must share one protocol and pro_limit, got {conventions}")
    means: dict[str, float] = {}
    reasons: dict[str, str] = {}
    for name in FIELDS:
        means[name], reason = mean_of({c: getattr(r, name) for c, r in reports.items()})
        if reason:
            reasons[name] = reason
    anomalous = [r.anomalous_images for r in reports.values()]
    known = [n for n in anomalous if n is not None]
    return Report(
        **means,
        protocol=conventions[0][0],
        pro_limit=conventions[0][1],
        images=sum(r.images for r in reports.values()),
        anomalous_images=sum(known) if len(known) == len(anomalous) else None,
        reasons=reasons,
        method=" and ".join(sorted({r.method for r in reports.values()})),
    )


def mean_of(values: Mapping[str, float]) -> tuple[float, str]:
    """The mean over the categories that define a metric.

    Args:
        values: By category, at least one; NaN where undefined.

    Returns:
        The mean, NaN if none defines it; and which are left out, empty if none is.
    """
    defined = [value for value in values.values() if not math.isnan(value)]
    if not defined:
        return math.nan, f"undefined in all categories ({len(values)})"
    left_out = [category for category, value in values.items() if math.isnan(value)]
    reason = (
        f"mean of {len(defined)} of {len(values)} categories; undefined in {', '.join(left_out)}"
    )
    return math.fsum(defined) / len(defined), reason if left_out else ""


def _read_masks(masks: Masks, shape: tuple[int, ...]) -> BoolArray | str:
    if masks is None:
        return "no masks"
    if isinstance(masks, Sequence) and not isinstance(masks, str):
        missing = sum(mask is None for mask in masks)
        if missing:
            return f"no masks for {missing} of {len(masks)} pictures"
    return as_masks(masks, shape)  # type: ignore[arg-type]  # no None is left in it


def _read_labels(
    labels: ArrayLike | None, truth: BoolArray | str, count: int, protocol: Protocol
) -> BoolArray | str:
    if labels is not None and protocol == "exact":
        return as_labels(labels, count)
    if isinstance(truth, str):
        wanted = "no labels and " if protocol == "exact" else "ader labels pictures by masks: "
        return wanted + truth
    return as_labels(truth.any(axis=(1, 2)), count)


def _image_outcomes(scores: FloatArray, labels: BoolArray | str) -> dict[str, Outcome]:
    if isinstance(labels, str):
        return dict.fromkeys(IMAGE_METRICS, labels)
    return {
        "image_AUROC": outcome(lambda: ranking.auroc(labels, scores)),
        "image_AP": outcome(lambda: ranking.average_precision(labels, scores)),
        "image_F1max": outcome(lambda: ranking.f1_max(labels, scores)),
    }


def _report(
    outcomes: Mapping[str, Outcome],
    *,
    protocol: Protocol,
    pro_limit: float,
    images: int,
    anomalous_images: int | None,
    method: Exactness = "exact",
) -> Report:
    reasons = {name: found for name, found in outcomes.items() if isinstance(found, str)}
    values = {n: math.nan if isinstance(found, str) else found for n, found in outcomes.items()}
    if reasons:
        reasons["mAD"] = f"undefined: {', '.join(reasons)}"
    return Report(
        **values,
        mAD=float(np.mean([values[name] for name in METRICS])),
        protocol=protocol,
        pro_limit=pro_limit,
        images=images,
        anomalous_images=anomalous_images,
        reasons=reasons,
        method=method,
    )


def _none_if_nan(value: float) -> float | None:
    return None if math.isnan(value) else value
