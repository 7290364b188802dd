"""Charts: what is drawn, by hand; and that any numbers can be drawn."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mambaad.report_charts import BINS, bin_scores, log_ticks, loss_chart, score_chart, thin, ticks

finite = st.floats(0, 2, allow_subnormal=False)
scores = st.lists(finite, min_size=1, max_size=40).map(lambda v: np.array(v, dtype=np.float64))


def test_thinning_by_hand() -> None:
    # ten values in four bins: two, three, two and three of them
    assert thin(np.arange(10.0), 4).tolist() == [0.5, 3.0, 5.5, 8.0]
    assert thin(np.array([[1.0, 10.0], [3.0, 30.0], [8.0, 0.0]]), 1).tolist() == [[4.0, 40 / 3]]


def test_short_curve_is_not_thinned() -> None:
    values = np.arange(5.0)
    assert thin(values, 5) is values


@given(st.integers(1, 2000), st.integers(1, 50))
def test_thinning_keeps_the_order_and_the_number(count: int, points: int) -> None:
    thinned = thin(np.arange(count, dtype=np.float64), points)
    assert len(thinned) == min(count, points)
    assert (np.diff(thinned) > 0).all()


def test_histogram_by_hand() -> None:
    # at most 40 bins over 0 to 3.97: each is 0.1 wide, and one begins at the threshold 1
    good = np.array([0.0, 0.95, 1.0, 1.0, 1.01])
    bad = np.array([1.0, 1.05, 1.15, 3.97])
    found = bin_scores(good, bad, 1.0)
    counts = {
        round(float(high), 6): (int(g), int(b))
        for high, g, b in zip(found.edges[1:], found.good, found.bad, strict=True)
        if g or b
    }
    # a bin is named by its upper edge, which belongs to it
    assert counts == {0.0: (1, 0), 1.0: (3, 1), 1.1: (1, 1), 1.2: (0, 1), 4.0: (0, 1)}


@given(scores, scores, finite)
def test_bars_right_of_the_threshold_are_the_pictures_called_defective(
    good: np.ndarray, bad: np.ndarray, threshold: float
) -> None:
    found = bin_scores(good, bad, threshold)
    right = found.edges[:-1] >= threshold
    assert found.good[right].sum() == (good > threshold).sum()
    assert found.bad[right].sum() == (bad > threshold).sum()
    assert (found.good.sum(), found.bad.sum()) == (len(good), len(bad))
    assert len(found.good) <= BINS + 2
    assert threshold in found.edges


def test_histogram_without_threshold_or_spread() -> None:
    found = bin_scores(np.array([0.3, 0.3]), np.array([]), None)
    assert (found.good.tolist(), found.bad.tolist()) == ([2], [0])
    assert found.edges[0] < 0.3 <= found.edges[1]


def test_ticks_by_hand() -> None:
    assert ticks(0, 1) == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert ticks(0.11, 0.52) == [0.2, 0.3, 0.4, 0.5]
    assert ticks(-12, 30, 4) == [0.0, 20.0]
    assert ticks(3, 3) == [3]
    assert log_ticks(1, 10000) == [1, 10, 100, 1000, 10000]


def test_loss_chart_is_logarithmic_over_a_wide_range_only() -> None:
    steps = np.arange(1.0, 101)
    steep = loss_chart(steps, {"total": 1 / steps}, [], 720)
    flat = loss_chart(steps, {"total": 1 + 1 / steps}, [], 720)
    assert "logarithmic scale: from 1 to 0.01" in steep
    assert "linear scale: from 2 to 1.01" in flat


def test_loss_chart_runs_from_top_left_to_bottom_right() -> None:
    chart = loss_chart(np.array([1.0, 2.0, 3.0]), {"total": np.array([4.0, 3.0, 2.0])}, [], 720)
    points = re.findall(r"([\d.]+),([\d.]+)", chart.partition("points=")[2])
    xs, ys = ([float(p[i]) for p in points] for i in range(2))
    assert xs == sorted(xs)
    assert ys == sorted(ys)  # down the page
    assert xs[-1] == pytest.approx(720 - 14)


def test_score_chart_draws_a_bar_per_filled_bin() -> None:
    histogram = bin_scores(np.array([0.1, 0.1, 0.2]), np.array([0.2, 0.9]), 0.5)
    chart = score_chart(histogram, 0.5, "nuts & bolts")
    assert chart.count('<rect class="good"') == 2
    assert chart.count('<rect class="bad"') == 2
    assert "threshold 0.5" in chart
    assert "nuts &amp; bolts" in chart


@given(scores, scores, st.none() | finite)
def test_any_scores_can_be_drawn(good: np.ndarray, bad: np.ndarray, level: float | None) -> None:
    chart = score_chart(bin_scores(good, bad, level), level, "x")
    assert "nan" not in chart
    assert "inf" not in chart


@given(st.lists(st.just(0.0) | st.floats(1e-20, 1e9), min_size=1, max_size=20))
def test_any_losses_can_be_drawn(losses: list[float]) -> None:
    steps = np.arange(1.0, len(losses) + 1)
    chart = loss_chart(steps, {"total": np.array(losses)}, [(1.0, "drop")], 360)
    assert "nan" not in chart
    assert "inf" not in chart
