"""The ader protocol's own F1-max and AUPRO, by a direct computation on small maps."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from mambaad.metrics.ader import ader_aupro, ader_f1_max
from mambaad.metrics.regions import sort_pixels


def f1_at(maps: NDArray[np.float32], masks: NDArray[np.bool_], threshold: float) -> float:
    """F1 of what is above the threshold of the scaled maps."""
    hit = (maps - maps.min()) / (maps.max() - maps.min()) > threshold
    true = np.sum(hit & masks)
    precision, recall = true / (hit.sum() + 1e-8), true / (masks.sum() + 1e-8)
    return float(2 * precision * recall / (precision + recall + 1e-8))


@settings(deadline=None)
@given(
    hnp.arrays(np.float32, (2, 3, 4), elements=st.floats(-4, 4, width=16)),
    hnp.arrays(np.bool_, (2, 3, 4)),
)
def test_f1_is_the_best_of_21_thresholds(
    maps: NDArray[np.float32], masks: NDArray[np.bool_]
) -> None:
    assume(masks.any() and not masks.all() and np.ptp(maps) > 1e-3)
    expected = max(f1_at(maps, masks, t) for t in np.linspace(0, 1, 21))
    assert ader_f1_max(sort_pixels(maps, masks)) == pytest.approx(expected, abs=1e-12)


def test_f1_misses_a_threshold_between_its_steps() -> None:
    # 0.51 is the defect and 0.52 is not, but no threshold of 0, 0.05 ... 1 parts them
    maps = np.array([[[0.0, 0.51, 0.52, 1.0]]])
    masks = np.array([[[False, False, True, True]]])
    assert ader_f1_max(sort_pixels(maps, masks)) == pytest.approx(2 * 2 / (3 + 2), abs=1e-7)


@pytest.mark.parametrize(("limit", "expected"), [(0.3, 1 / 2), (0.31, 1 / 2 * (1 / 2 + 3 / 4))])
def test_aupro_by_hand(limit: float, expected: float) -> None:
    normal = [0.0, 10.5, 20.5, 30.5, 40.5, 50.5, 60.5, 70.5, 80.5, 100.0]
    maps = np.array([[[75.5, 45.5, *normal, 85.5]]])
    masks = np.array([[[True, True, *[False] * 10, True]]])  # regions of two pixels and of one
    # (FPR, PRO) at thresholds 99, 85, 80, 75, 70 and the same in between: (.1, 0) (.1, 1/2)
    # (.2, 1/2) (.2, 3/4) (.3, 3/4); under 0.3 only the line from (.1, 1/2) to (.2, 1/2) has an area
    assert ader_aupro(sort_pixels(maps, masks), limit) == pytest.approx(expected)


def test_equal_scores_are_undefined() -> None:
    pixels = sort_pixels(np.ones((1, 2, 2)), np.array([[[True, False], [False, False]]]))
    for metric in (ader_f1_max, lambda p: ader_aupro(p, 0.3)):
        with pytest.raises(ValueError, match="all scores are equal"):
            metric(pixels)


def test_points_that_span_no_range_are_undefined() -> None:
    # every threshold leaves all normal pixels or half of them above: none is under 0.3
    pixels = sort_pixels(np.array([[[0.0, 1.0, 0.5]]]), np.array([[[False, False, True]]]))
    with pytest.raises(ValueError, match=r"under 0\.3 span no range"):
        ader_aupro(pixels, 0.3)


@pytest.mark.parametrize(("fill", "only"), [(False, "normal"), (True, "anomalous")])
def test_one_class_is_undefined(fill: bool, only: str) -> None:
    pixels = sort_pixels(np.zeros((1, 2, 2)), np.full((1, 2, 2), fill))
    with pytest.raises(ValueError, match=f"every pixel is {only}"):
        ader_f1_max(pixels)
