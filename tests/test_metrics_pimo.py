"""AUPIMO: against a slow one that passes normal pixels one by one, and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mambaad.metrics.pimo import area_under_pimo, picture_weights


def slow(defects: list[list[float]], normal: list[float], low: float, high: float) -> float:
    """The mean over pictures of the integral, by a sum over many steps of ln FPR."""
    steps = 4000
    rates = np.exp((np.arange(steps) + 0.5) / steps * math.log(high / low)) * low
    thresholds = sorted({*normal, *(s for d in defects for s in d)}, reverse=True)
    x, y = [0.0], [0.0]
    for t in thresholds:
        x.append(sum(s >= t for s in normal) / len(normal))
        y.append(float(np.mean([np.mean([s >= t for s in d]) for d in defects])))
    total = 0.0
    for rate in rates:
        after = next(i for i in range(len(x)) if x[i] > rate)
        share = (rate - x[after - 1]) / (x[after] - x[after - 1])
        total += y[after - 1] + share * (y[after] - y[after - 1])
    return total / steps


@settings(deadline=None, max_examples=40)
@given(
    hnp.arrays(np.float64, st.integers(1, 12), elements=st.integers(0, 6)),
    hnp.arrays(np.float64, st.integers(1, 5), elements=st.integers(0, 6)),
    hnp.arrays(np.float64, st.integers(1, 5), elements=st.integers(0, 6)),
)
def test_equal_to_small_steps(normal: np.ndarray, one: np.ndarray, two: np.ndarray) -> None:
    low, high = 0.02, 0.7
    scores = np.concatenate((one, two))
    weights = np.repeat([1 / len(one), 1 / len(two)], [len(one), len(two)]) / 2
    levels = np.unique(scores)[::-1]
    assume(levels.size)
    above = np.array([(normal > v).sum() for v in levels])
    at = np.array([(normal >= v).sum() for v in levels])
    recall = np.array([weights[scores >= v].sum() for v in levels])
    found = area_under_pimo(above, at, recall, normal.size, low, high)
    expected = slow([one.tolist(), two.tolist()], normal.tolist(), low, high)
    assert found == pytest.approx(expected, abs=2e-3)


def test_by_hand() -> None:
    # half of the defect above all normal pixels, the other half behind 10 of 100
    above, at = np.array([0, 10]), np.array([0, 10])
    found = area_under_pimo(above, at, np.array([0.5, 1.0]), 100, 0.01, 1.0)
    assert found == pytest.approx(0.5 * 0.5 + 0.5 * 1.0)  # a decade each


def test_a_tie_is_a_straight_line() -> None:
    # all equal: recall = FPR, and the integral of x d ln x is its range
    found = area_under_pimo(np.array([0]), np.array([50]), np.array([1.0]), 50, 0.1, 1.0)
    assert found == pytest.approx(0.9 / math.log(10))


def test_every_picture_weighs_the_same() -> None:
    masks = np.zeros((3, 2, 2), np.bool_)
    masks[0, 0] = True
    masks[2, 1, 1] = True
    assert picture_weights(masks).tolist() == [0.5, 0.5, 1.0]
    assert picture_weights(masks[1:2]).tolist() == []
