"""AUPRO: by hand, against a slow one that thresholds at every score, and its invariances."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from mambaad.metrics import arrays
from mambaad.metrics.arrays import count_at
from mambaad.metrics.regions import aupro, region_weights, sort_pixels

Maps = NDArray[np.float64]
Masks = NDArray[np.bool_]


def slow_regions(masks: Masks) -> list[Masks]:
    """Every 8-connected region as a mask of all pictures, grown pixel by pixel."""
    left = {tuple(int(i) for i in pixel) for pixel in np.argwhere(masks)}
    found = []
    while left:
        edge = [left.pop()]
        region = np.zeros_like(masks)
        while edge:
            n, y, x = edge.pop()
            region[n, y, x] = True
            near = {(n, y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= near
            edge += near
        found.append(region)
    return found


def slow_aupro(maps: Maps, masks: Masks, limit: float) -> float:
    """The definition: every distinct score is a threshold, straight lines join the points."""
    regions = slow_regions(masks)
    points = [(0.0, 0.0)]
    for threshold in sorted(set(maps.ravel().tolist()), reverse=True):
        hit = maps >= threshold
        pro = sum(float(hit[region].mean()) for region in regions) / len(regions)
        points.append((float(hit[~masks].mean()), pro))
    area = 0.0
    for (x0, y0), (x1, y1) in pairwise(points):
        if x0 < limit and x1 > x0:
            end = min(x1, limit)
            y_end = y0 + (y1 - y0) * (end - x0) / (x1 - x0)
            area += (end - x0) * (y0 + y_end) / 2
    return area / limit


@st.composite
def pictures(draw: st.DrawFn) -> tuple[Maps, Masks]:
    """Two tiny pictures of few distinct scores, with defect and normal pixels."""
    shape = (2, draw(st.integers(1, 5)), draw(st.integers(2, 5)))
    levels = draw(st.sampled_from([2, 5, 1000]))
    maps = draw(hnp.arrays(np.float64, shape, elements=st.integers(0, levels).map(float)))
    masks = draw(hnp.arrays(np.bool_, shape))
    assume(masks.any() and not masks.all())
    return maps, masks


limits = st.sampled_from([0.01, 0.05, 0.3, 0.5, 1.0])


@settings(deadline=None, max_examples=300)
@given(pictures(), limits)
def test_equal_to_thresholding_at_every_score(case: tuple[Maps, Masks], limit: float) -> None:
    maps, masks = case
    assert aupro(maps, masks, limit) == pytest.approx(slow_aupro(maps, masks, limit), abs=1e-12)


@settings(deadline=None)
@given(pictures(), limits)
def test_only_the_order_of_scores_matters(case: tuple[Maps, Masks], limit: float) -> None:
    maps, masks = case
    assert aupro(np.sqrt(maps) - 3, masks, limit) == aupro(maps, masks, limit)


def test_threads_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(0)
    maps = draw.integers(0, 50, (3, 16, 16)).astype(np.float32)
    masks = draw.random((3, 16, 16)) < 0.2
    alone = aupro(maps, masks)
    monkeypatch.setattr(arrays, "_WORTH_A_THREAD", 0)
    assert len(sort_pixels(maps, masks).negatives) == 2
    assert aupro(maps, masks) == pytest.approx(alone, abs=1e-12)


def test_a_small_region_weighs_as_much_as_a_large_one() -> None:
    # scores from the top: the single pixel, 4 normal pixels, the pair; 8 normal pixels follow
    maps = np.array([[[9, 0, 8, 8, 8], [0, 0, 8, 0, 0], [7, 7, 0, 0, 0]]], np.float32)
    masks = np.array([[[1, 0, 0, 0, 0], [0, 0, 0, 0, 0], [1, 1, 0, 0, 0]]], np.uint8)
    # PRO is 1/2 up to FPR 4/12, then 1
    assert aupro(maps, masks, limit=1 / 3) == pytest.approx(0.5)
    assert aupro(maps, masks, limit=1.0) == pytest.approx(1 / 3 * 0.5 + 2 / 3)


def test_the_limit_cuts_a_line() -> None:
    # one tie of all pixels: PRO rises along the diagonal, so the area to the limit is limit² / 2
    maps, masks = np.zeros((1, 2, 2)), np.array([[[1, 0], [0, 0]]])
    assert aupro(maps, masks, limit=0.3) == pytest.approx(0.15)
    assert aupro(maps, masks, limit=1.0) == pytest.approx(0.5)


def test_perfect_and_worst() -> None:
    masks = np.array([[[1, 0, 0, 1]]], np.bool_)
    maps = masks.astype(np.float64)
    assert aupro(maps, masks) == pytest.approx(1.0)
    assert aupro(-maps, masks) == 0.0


def test_regions_that_meet_at_a_corner_are_one() -> None:
    masks = np.array([[[1, 0, 0], [0, 1, 0], [0, 0, 0]], [[1, 0, 1], [0, 0, 1], [0, 0, 0]]])
    weights, regions = region_weights(masks.astype(np.bool_))
    assert regions == 3
    assert weights.tolist() == [0.5, 0.5, 1.0, 0.5, 0.5]  # in the order of maps[masks]


def test_weights_follow_their_pixels() -> None:
    maps = np.array([[[3.0, 0.0, 1.0, 2.0]]])
    pixels = sort_pixels(maps, np.array([[[True, False, True, True]]]))
    assert pixels.positives.tolist() == [1.0, 2.0, 3.0]
    assert pixels.weights.tolist() == [0.5, 0.5, 1.0]
    assert pixels.regions == 2
    assert count_at(pixels.negatives, np.array([0.0]))[1].tolist() == [1]


@pytest.mark.parametrize(("fill", "only"), [(0, "normal"), (1, "anomalous")])
def test_one_class_is_refused(fill: int, only: str) -> None:
    with pytest.raises(ValueError, match=f"every pixel is {only}"):
        aupro(np.zeros((1, 2, 2)), np.full((1, 2, 2), fill))


@pytest.mark.parametrize("limit", [0.0, -0.1, 1.1, float("nan")])
def test_a_limit_out_of_range_is_refused(limit: float) -> None:
    with pytest.raises(ValueError, match=r"limit of AUPRO must be in \(0, 1\]"):
        aupro(np.zeros((1, 2, 2)), np.array([[[1, 0], [0, 0]]]), limit)
