"""AUPIMO: the recall within each anomalous picture at false positive rates near zero.

    FPR(t)  = share of the pixels of normal pictures with score >= t
    TPR(t)  = share of a picture's defect pixels with score >= t, mean over the anomalous pictures
    AUPIMO  = 1/ln(high/low) · ∫ TPR d ln FPR   from low to high

Only pictures without any defect count for the FPR, so that it says how a threshold does on good
products. The curve takes every distinct score as a threshold; as in AUPRO, the scores of normal
pixels are passed one by one, and a tie is a straight line. What is given is the mean over pictures
of their AUPIMO; as an integral is linear, that is the integral of the mean.

Source: Bertoldo et al., "AUPIMO: Redefining Visual Anomaly Detection Benchmarks with High Speed and
Low Tolerance", BMVC 2024, low 1e-5, high 1e-4.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

LOW, HIGH = 1e-5, 1e-4
"""The published range of the false positive rate."""


def picture_weights(masks: NDArray[np.bool_]) -> NDArray[np.float64]:
    """One over the number of defect pixels of its picture, for every mask pixel.

    Args:
        masks: (N, H, W).

    Returns:
        (P,), in the order of ``maps[masks]``.
    """
    areas = np.count_nonzero(masks, axis=(1, 2))
    areas = areas[areas > 0]
    return np.repeat(1.0 / areas, areas)


def area_under_pimo(
    above: NDArray[Any],
    at: NDArray[Any],
    recall: NDArray[np.float64],
    normals: int,
    low: float = LOW,
    high: float = HIGH,
) -> float:
    """Integrate the mean recall over the logarithm of the false positive rate.

    Args:
        above: (K,), pixels of normal pictures above each score, highest score first.
        at: (K,), those at or above it.
        recall: (K,), the mean recall at each score, pixels of that score included.
        normals: All pixels of normal pictures, 1 at least.
        low: The lowest rate, over 0.
        high: The highest, over ``low``; 1 at most.

    Returns:
        0 to 1.
    """
    first, last = low * normals, high * normals
    before = np.concatenate(([0.0], recall))
    ends = np.concatenate(([0.0], at))
    starts = np.append(above, float(normals)).astype(np.float64)
    # level from one score's end to the next one's start, and after the lowest to the end
    left, right = np.clip(ends, first, last), np.clip(starts, first, last)
    area = float(before @ np.log(right / left))
    # within a tie the recall rises in a straight line
    width = np.maximum(ends[1:] - starts[:-1], 1.0)
    left, right = right[:-1], np.clip(ends[1:], first, last)
    slope = (before[1:] - before[:-1]) / width
    logs = np.log1p((right - left) / left)
    area += float(before[:-1] @ logs + slope @ (right - left - starts[:-1] * logs))
    return area / math.log(high / low)
