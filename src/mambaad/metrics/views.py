"""Metrics of samples that are seen in several pictures, as in Real-IAD: five views of each object.

A sample's score is the maximum of its views' scores, and it is anomalous if one of its views is.

Source: Wang et al., "Real-IAD", CVPR 2024: the sample-level AUROC.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mambaad.metrics.arrays import BoolArray, FloatArray, as_labels, as_scores
from mambaad.metrics.ranking import auroc


def by_sample(
    labels: ArrayLike, scores: ArrayLike, samples: Sequence[str]
) -> tuple[list[str], BoolArray, FloatArray]:
    """Join the views of every sample.

    Args:
        labels: (n,), bool, or 0 and 1; True is an anomalous picture.
        scores: (n,), finite, higher is more anomalous.
        samples: The name of each picture's sample; pictures of one sample may be apart.

    Returns:
        Names in the order of their first pictures, labels and scores, as many as samples.

    Raises:
        ValueError: If lengths differ, there is none, or a score is not finite.
    """
    values = as_scores(scores)
    truth = as_labels(labels, len(values))
    if len(samples) != len(values) or not len(values):
        raise ValueError(f"samples must name each of {len(values)} pictures, got {len(samples)}")
    numbers: dict[str, int] = {}
    of: NDArray[np.intp] = np.array([numbers.setdefault(s, len(numbers)) for s in samples])
    joined = np.full(len(numbers), -np.inf, values.dtype)
    np.maximum.at(joined, of, values)
    anomalous = np.zeros(len(numbers), np.bool_)
    anomalous[of[truth]] = True
    return list(numbers), anomalous, joined


def sample_auroc(labels: ArrayLike, scores: ArrayLike, samples: Sequence[str]) -> float:
    """AUROC of samples, each with the highest score of its views.

    Args:
        labels: (n,), bool, or 0 and 1; True is an anomalous picture.
        scores: (n,), finite, higher is more anomalous.
        samples: The name of each picture's sample.

    Returns:
        0 to 1.

    Raises:
        ValueError: If lengths differ, a score is not finite, or the samples are of one class only.

    >>> sample_auroc([0, 0, 1, 0], [0.1, 0.3, 0.2, 0.4], ["a", "a", "b", "b"])
    1.0
    """
    _, anomalous, joined = by_sample(labels, scores, samples)
    return auroc(anomalous, joined)
