"""AUPIMO: against a slow one that passes normal pixels one by one, and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mambaad.metrics import summarise
from mambaad.metrics.pimo import area_under_pimo, aupimo, picture_weights


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


@settings(deadline=None, max_examples=60)
@given(
    hnp.arrays(np.float32, st.tuples(st.integers(1, 5), st.just(3), st.just(4)),
               elements=st.integers(0, 4)),
    st.integers(0, 2**32),
)  # fmt: skip
def test_of_maps_it_equals_the_sorted_one(maps: np.ndarray, seed: int) -> None:
    draw = np.random.default_rng(seed)
    masks = draw.random(maps.shape) < draw.choice([0.0, 0.3], len(maps))[:, None, None]
    expected = summarise(maps, masks)
    if math.isnan(expected.pixel_AUPIMO):
        with pytest.raises(ValueError, match=r"no normal pictures|no defect in any picture"):
            aupimo(maps, masks)
    else:
        assert aupimo(maps, masks) == pytest.approx(expected.pixel_AUPIMO, abs=1e-12)


@pytest.mark.parametrize("digits", [0, 1, 6])
@pytest.mark.parametrize("louder", [0.0, 2.0, 4.0])
def test_of_many_maps_with_and_without_ties(digits: int, louder: float) -> None:
    """More pictures than are looked through at once; 14 pixels are above the highest rate."""
    draw = np.random.default_rng(digits)
    maps = draw.standard_normal((40, 64, 64)).astype(np.float32)
    masks = np.zeros(maps.shape, np.bool_)
    masks[::8, 10:20, 5:30] = True
    maps = np.round(maps + np.float32(louder) * masks, digits)
    expected = summarise(maps, masks).pixel_AUPIMO
    assert aupimo(maps, masks) == pytest.approx(expected, abs=1e-12)
    assert (expected > 0.1) == (louder > 3)
    assert aupimo(np.zeros_like(maps), masks) == pytest.approx(
        summarise(np.zeros_like(maps), masks).pixel_AUPIMO, abs=1e-12
    )
    assert aupimo(maps - 100 * masks, masks) == 0.0


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
