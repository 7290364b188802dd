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

``aupimo`` is exact and sorts next to nothing: scores under that of the rate ``high`` cannot matter.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mambaad.metrics.arrays import BoolArray, FloatArray, UndefinedMetricError
from mambaad.metrics.ranking import crossings

LOW, HIGH = 1e-5, 1e-4
"""The published range of the false positive rate."""

NO_NORMALS = "no normal pictures"
"""Why there may be no AUPIMO."""

_BLOCK = 16  # pictures looked through at once


def aupimo(maps: FloatArray, masks: BoolArray) -> float:
    """AUPIMO, exact, ties included.

    Args:
        maps: (N, H, W), finite.
        masks: (N, H, W).

    Returns:
        0 to 1.

    Raises:
        ValueError: If no picture is normal, or none has a defect.
    """
    defective = masks.reshape(len(masks), -1).any(axis=1)
    pictures, good = np.flatnonzero(defective), np.flatnonzero(~defective)
    if not pictures.size or not good.size:
        raise UndefinedMetricError(NO_NORMALS if pictures.size else "no defect in any picture")
    normals = good.size * maps[0].size
    highest = _highest(maps, good, math.floor(HIGH * normals) + 1)
    scores, weights = [], []
    for picture in pictures:
        inside = maps[picture][masks[picture]]
        found = inside[inside >= highest[0]]
        scores.append(found)
        weights.append(np.full(found.size, 1.0 / inside.size))
    positives = np.concatenate(scores)
    if not positives.size:
        return 0.0
    order = np.argsort(positives, kind="stable")
    counts = crossings(positives[order], [highest])
    recall = np.cumsum(np.concatenate(weights)[order][::-1])[counts.tp_from - 1] / pictures.size
    return area_under_pimo(counts.fp_above, counts.fp_from, recall, normals)


def _highest(maps: FloatArray, pictures: NDArray[np.intp], count: int) -> FloatArray:
    """The ``count`` highest scores of some pictures, and all that equal the lowest of them.

    Returns:
        Ascending.
    """
    count = min(count, pictures.size * maps[0].size)
    kept = np.empty(0, maps.dtype)
    level = maps.dtype.type(-np.inf)
    for start in range(0, pictures.size, _BLOCK):
        block = maps[pictures[start : start + _BLOCK]]
        kept = np.concatenate((kept, block[block > level]))
        if kept.size >= count:
            kept = np.partition(kept, kept.size - count)[kept.size - count :]
            level = kept[0]
    # those that equal the lowest were not all kept, so that memory stays small
    equal = sum(int(np.count_nonzero(maps[picture] == level)) for picture in pictures)
    return np.concatenate((np.full(equal, level), np.sort(kept[kept > level])))


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
