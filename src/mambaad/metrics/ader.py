"""The ``ader`` protocol's own pixel metrics: what the tables of the MambaAD paper were made with.

    F1-max  scores are scaled to 0..1 over the category; 21 thresholds 0, 0.05 ... 1; anomalous is
            what is above; precision, recall and F1 have 1e-8 added to their denominators
    AUPRO   100 thresholds from the lowest score up, evenly spaced, the highest left out; anomalous
            is what is above; points of FPR < limit are kept, their FPR is scaled so that it runs
            from 0 to 1, and the trapezoids are added up: nothing is interpolated at the limit

One outlying pixel stretches both sets of thresholds, so these values can be far under the exact
ones; they serve to compare with published tables only. AUROC and AP are the exact ones.

Source: the behaviour of the ADer benchmark's evaluator (arXiv 2406.03262).
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mambaad.metrics.arrays import FloatArray, UndefinedMetricError
from mambaad.metrics.regions import SortedPixels

SCALED_THRESHOLDS = np.linspace(0.0, 1.0, 21)
"""F1-max's thresholds, for scores scaled to 0..1."""

_EPS = 1e-8


def ader_f1_max(pixels: SortedPixels) -> float:
    """F1-max over the 21 thresholds, 0 to 1.

    Raises:
        ValueError: If there is one class only, or all scores are equal.
    """
    low, high = _extremes(pixels)

    def scaled(score: np.floating[Any]) -> np.floating[Any]:
        # in the maps' own precision: that is what decides which pixels a threshold splits
        return (score - low) / (high - low)

    true = _above(pixels.positives, SCALED_THRESHOLDS, scaled)
    false = np.sum([_above(part, SCALED_THRESHOLDS, scaled) for part in pixels.negatives], axis=0)
    return f1_max_of_counts(true, false, pixels.positives.size)


def f1_max_of_counts(true: NDArray[np.int64], false: NDArray[np.int64], positives: int) -> float:
    """F1-max of counts.

    Args:
        true: (T,), anomalous pixels whose scaled score is above each threshold.
        false: (T,), normal pixels above it.
        positives: P.
    """
    precision = true / (true + false + _EPS)
    recall = true / (positives + _EPS)
    return float(np.max(2 * precision * recall / (precision + recall + _EPS)))


def ader_aupro(pixels: SortedPixels, limit: float) -> float:
    """AUPRO of the 100 thresholds, 0 to 1.

    Args:
        limit: Points of this false positive rate and above are left out; in (0, 1].

    Raises:
        ValueError: If there is one class only, all scores are equal, or the points left do not
            span any range of FPR.
    """
    low, high = _extremes(pixels)
    thresholds = hundred_thresholds(low, high)
    false = np.sum([_above(part, thresholds) for part in pixels.negatives], axis=0)
    rate = false / sum(part.size for part in pixels.negatives)
    suffix = np.append(np.cumsum(pixels.weights[::-1])[::-1], 0.0)
    pro = suffix[pixels.positives.size - _above(pixels.positives, thresholds)] / pixels.regions
    return aupro_of_points(rate, pro, limit)


def aupro_of_points(rate: NDArray[np.float64], pro: NDArray[np.float64], limit: float) -> float:
    """AUPRO of points of the curve.

    Args:
        rate: (T,), the false positive rate at each threshold, lowest threshold first.
        pro: (T,), the mean over the regions of the share above the threshold.
        limit: In (0, 1].

    Raises:
        ValueError: If the points of a lower rate do not span any range.
    """
    kept = rate < limit
    rate, pro = rate[kept][::-1], pro[kept][::-1]
    if not rate.size or rate[0] == rate[-1]:
        raise UndefinedMetricError(
            f"the points of the ader AUPRO with a false positive rate under {limit} span no range"
        )
    x = (rate - rate[0]) / (rate[-1] - rate[0])
    return float(np.diff(x) @ (pro[1:] + pro[:-1])) / 2.0


def hundred_thresholds(low: np.floating[Any], high: np.floating[Any]) -> NDArray[np.float64]:
    """AUPRO's thresholds, from the lowest score up, below the highest.

    Args:
        low: The lowest score, in the maps' own type.
        high: The highest; see ``check_range``.
    """
    # spaced as published, by the difference of the first two in the maps' own precision: up to
    # 1e-6 of the result hangs on it, and rounding can make them 101
    kind = type(low)
    step = kind((high - low) / kind(100))
    spacing = float(kind(low + step)) - float(low)
    thresholds: NDArray[np.float64] = float(low) + spacing * np.arange(
        math.ceil((high - low) / step), dtype=np.float64
    )
    return thresholds


def _extremes(pixels: SortedPixels) -> tuple[np.floating[Any], np.floating[Any]]:
    parts = [pixels.positives, *pixels.negatives]
    if not pixels.positives.size or not any(part.size for part in pixels.negatives):
        only = "anomalous" if pixels.positives.size else "normal"
        raise UndefinedMetricError(f"one class only: every pixel is {only}")
    low = min(part[0] for part in parts if part.size)
    high = max(part[-1] for part in parts if part.size)
    check_range(low, high)
    return low, high


def check_range(low: np.floating[Any], high: np.floating[Any]) -> None:
    """Refuse scores that cannot be scaled.

    Raises:
        ValueError: If the lowest and the highest score are equal.
    """
    if not (high - low) / 100 > 0:  # also a range so small that its hundredth is 0
        raise UndefinedMetricError("all scores are equal, and ader scales by their range")


def _above(
    ascending: FloatArray,
    thresholds: NDArray[np.float64],
    key: Callable[[np.floating[Any]], np.floating[Any]] | None = None,
) -> NDArray[np.int64]:
    # a bisection by hand compares in float64, where numpy's search would convert all the scores
    found = [len(ascending) - bisect_right(ascending, t, key=key) for t in thresholds]
    return np.array(found, dtype=np.int64)
