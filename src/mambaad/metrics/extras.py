"""What is measured beside a report: more pixel metrics, and the AUROC of samples of several views.

    pixel_IoUmax, pixel_AUPRO05, pixel_SegF1, pixel_AUPIMO   see ``summary``
    sample_AUROC                                             see ``views``

A category's extras hold a value, or why there is none; a metric that does not apply is left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TypeAlias

from mambaad.metrics.report import Outcome, mean_of
from mambaad.metrics.summary import MORE_PIXEL_METRICS, PixelSummary

EXTRA_FIELDS = (*MORE_PIXEL_METRICS, "sample_AUROC")
"""Every number of extras, in the order of the tables' columns."""

Extras: TypeAlias = Mapping[str, Outcome]
"""By the names of ``EXTRA_FIELDS``."""


def extras_of(summary: PixelSummary | str, samples: Outcome | None = None) -> Extras:
    """One category's extras.

    Args:
        summary: Its pixel metrics, or why there are none.
        samples: AUROC of its samples; None if each picture shows another one.
    """
    found: dict[str, Outcome] = {
        name: summary
        if isinstance(summary, str)
        else summary.reasons.get(name, getattr(summary, name))
        for name in MORE_PIXEL_METRICS
    }
    return found if samples is None else {**found, "sample_AUROC": samples}


def value_of(extras: Extras, name: str) -> float:
    """A number, NaN if it is undefined or does not apply."""
    found = extras.get(name, math.nan)
    return math.nan if isinstance(found, str) else found


def mean_extras(extras: Mapping[str, Extras]) -> tuple[Extras, dict[str, str]]:
    """The unweighted mean over the categories that define a metric.

    Args:
        extras: By category.

    Returns:
        The mean, without what applies to no category; and, for each metric that is undefined in
        a category to which it applies, which categories its mean leaves out.
    """
    means: dict[str, Outcome] = {}
    reasons: dict[str, str] = {}
    for name in EXTRA_FIELDS:
        values = {c: value_of(found, name) for c, found in extras.items() if name in found}
        if values:
            mean, reason = mean_of(values)
            means[name] = reason if math.isnan(mean) else mean
            if reason:
                reasons[name] = reason
    return means, reasons
