"""How well scores rank anomalous items above normal ones: AUROC, average precision, F1-max.

With P positives, M negatives, and TP(t), FP(t) the positives and negatives of score >= t,

    AUROC   = (pairs with the positive above the negative + half the tied pairs) / (P M)
    AP      = Σ_t (TP(t) - TP(t'))/P · TP(t)/(TP(t) + FP(t))      t' the next higher score
    F1-max  = max_t 2 TP(t) / (TP(t) + FP(t) + P)

All three are exact, ties included, and need the negatives' counts at the positives' distinct
scores only: between two of those no term of a sum, and no maximum, can change for the better.

Source: the definitions of ``sklearn.metrics.roc_auc_score``, ``average_precision_score`` (which is
not the trapezoidal area under the curve) and the maximum over ``precision_recall_curve``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mambaad.metrics.arrays import (
    FloatArray,
    UndefinedMetricError,
    as_labels,
    as_scores,
    count_at,
)


@dataclass(frozen=True)
class Crossings:
    """Counts at every distinct score of a positive, highest first; arrays are (K,), int64."""

    positives: int
    """P."""

    negatives: int
    """M."""

    tp_from: NDArray[np.int64]
    """Positives at or above the score: ascending, the last is P."""

    fp_above: NDArray[np.int64]
    """Negatives above the score."""

    fp_from: NDArray[np.int64]
    """Negatives at or above the score."""


def crossings(positives: FloatArray, negatives: Sequence[FloatArray]) -> Crossings:
    """Count, from sorted scores.

    Args:
        positives: (P,), ascending.
        negatives: One or more arrays, each ascending, which together hold M scores.

    Raises:
        ValueError: If P or M is 0: no metric of this file is defined for one class only.
    """
    total = sum(part.size for part in negatives)
    if not positives.size or not total:
        missing = "anomalous" if total else "normal"
        raise UndefinedMetricError(f"one class only: none of {positives.size + total} is {missing}")
    starts = np.flatnonzero(np.concatenate(([True], positives[1:] != positives[:-1])))[::-1]
    above, at = count_at(negatives, positives[starts])
    return Crossings(positives.size, total, positives.size - starts, above, at)


def auroc_of(counts: Crossings) -> float:
    """AUROC of counts, 0 to 1."""
    here = np.diff(counts.tp_from, prepend=0)
    beaten_twice = 2 * counts.negatives - counts.fp_above - counts.fp_from
    # Python integers divide without rounding twice
    return int(here @ beaten_twice) / (2 * counts.positives * counts.negatives)


def average_precision_of(counts: Crossings) -> float:
    """Average precision of counts, 0 to 1."""
    here = np.diff(counts.tp_from, prepend=0)
    precision = counts.tp_from / (counts.tp_from + counts.fp_from)
    return float(here @ precision) / counts.positives


def f1_max_of(counts: Crossings) -> float:
    """F1-max of counts, 0 to 1."""
    f1 = 2 * counts.tp_from / (counts.tp_from + counts.fp_from + counts.positives)
    return float(f1.max())


def auroc(labels: ArrayLike, scores: ArrayLike) -> float:
    """Area under the ROC curve, ties counted half. Higher is better, 0.5 is chance.

    Args:
        labels: (n,), bool, or 0 and 1; True is anomalous.
        scores: (n,), finite, higher is more anomalous.

    Returns:
        0 to 1.

    Raises:
        ValueError: If labels hold one class only, shapes differ, or a score is not finite.

    >>> auroc([0, 0, 1, 1], [0.1, 0.4, 0.4, 0.8])  # 3 of 4 pairs, and one tie
    0.875
    """
    return auroc_of(_count(labels, scores))


def average_precision(labels: ArrayLike, scores: ArrayLike) -> float:
    """Mean precision at the positives, not interpolated. Higher is better, P/(P+M) is chance.

    Args:
        labels: (n,), bool, or 0 and 1; True is anomalous.
        scores: (n,), finite, higher is more anomalous.

    Returns:
        0 to 1.

    Raises:
        ValueError: If labels hold one class only, shapes differ, or a score is not finite.

    >>> average_precision([1, 0, 1, 0, 0], [5, 4, 4, 2, 1])  # (1 + 2/3) / 2
    0.8333333333333333
    """
    return average_precision_of(_count(labels, scores))


def f1_max(labels: ArrayLike, scores: ArrayLike) -> float:
    """The best F1 that any threshold reaches. Higher is better.

    Args:
        labels: (n,), bool, or 0 and 1; True is anomalous.
        scores: (n,), finite, higher is more anomalous.

    Returns:
        0 to 1; never under that of calling everything anomalous, 2P / (2P + M).

    Raises:
        ValueError: If labels hold one class only, shapes differ, or a score is not finite.

    >>> f1_max([1, 0, 1, 0, 0], [5, 4, 3, 2, 1])  # the three highest: 2·2 / (2 + 1 + 2)
    0.8
    """
    return f1_max_of(_count(labels, scores))


def _count(labels: ArrayLike, scores: ArrayLike) -> Crossings:
    values = as_scores(scores)
    truth = as_labels(labels, len(values))
    return crossings(np.sort(values[truth]), [np.sort(values[~truth])])
