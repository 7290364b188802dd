"""AUROC, AP and F1-max: by hand, against scikit-learn, and by what must hold of any ranking."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from mambaad.metrics.ranking import auroc, average_precision, crossings, f1_max

Ranking = tuple[NDArray[np.bool_], NDArray[np.float64]]
METRICS = [auroc, average_precision, f1_max]


@st.composite
def rankings(draw: st.DrawFn) -> Ranking:
    """Both classes, and few distinct scores, so that ties are the rule."""
    size = draw(st.integers(2, 25))
    labels = draw(st.lists(st.booleans(), min_size=size, max_size=size))
    labels[0], labels[-1] = True, False
    scores = draw(st.lists(st.integers(-4, 4), min_size=size, max_size=size))
    return np.array(labels), np.array(scores) / 4


def test_auroc_by_hand() -> None:
    # pairs (positive, negative): 4>3, 4>1, 2<3, 2>1
    assert auroc([1, 0, 1, 0], [4, 3, 2, 1]) == 3 / 4
    assert auroc([1, 0, 1, 0], [1, 1, 1, 1]) == 0.5
    assert auroc([0, 0, 1], [1, 2, 3]) == 1.0
    assert auroc([1, 1, 0], [1, 2, 3]) == 0.0


def test_average_precision_by_hand() -> None:
    assert average_precision([1, 0, 1, 0], [4, 3, 2, 1]) == pytest.approx((1 + 2 / 3) / 2)
    assert average_precision([1, 0, 1, 0], [1, 1, 1, 1]) == 0.5  # one tie: the base rate
    assert average_precision([0, 0, 1], [3, 2, 1]) == pytest.approx(1 / 3)


def test_f1_max_by_hand() -> None:
    assert f1_max([1, 0, 1, 0], [4, 3, 2, 1]) == pytest.approx(2 * 2 / (3 + 2))
    assert f1_max([1, 0, 0, 0], [1, 1, 1, 1]) == pytest.approx(2 / 5)  # everything is anomalous
    assert f1_max([0, 1], [0, 1]) == 1.0


def test_crossings_by_hand() -> None:
    counts = crossings(np.array([1.0, 3.0, 3.0]), [np.array([0.0, 3.0]), np.array([1.0, 4.0])])
    assert (counts.positives, counts.negatives) == (3, 4)
    assert counts.tp_from.tolist() == [2, 3]
    assert counts.fp_above.tolist() == [1, 2]
    assert counts.fp_from.tolist() == [2, 3]


@settings(deadline=None)
@given(rankings())
def test_equal_to_scikit_learn(ranking: Ranking) -> None:
    labels, scores = ranking
    precision, recall, _ = precision_recall_curve(labels, scores)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-300)
    assert auroc(labels, scores) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert average_precision(labels, scores) == pytest.approx(
        average_precision_score(labels, scores), abs=1e-12
    )
    assert f1_max(labels, scores) == pytest.approx(f1.max(), abs=1e-12)


def test_equal_to_scikit_learn_on_many_float32_scores() -> None:
    draw = np.random.default_rng(0)
    labels = draw.random(20_000) < 0.1
    scores = (draw.standard_normal(20_000) + labels).astype(np.float32)
    assert auroc(labels, scores) == pytest.approx(roc_auc_score(labels, scores), abs=1e-9)
    assert average_precision(labels, scores) == pytest.approx(
        average_precision_score(labels, scores), abs=1e-9
    )


@given(rankings())
def test_negated_scores_mirror_auroc(ranking: Ranking) -> None:
    labels, scores = ranking
    assert auroc(labels, -scores) == pytest.approx(1 - auroc(labels, scores), abs=1e-12)


@pytest.mark.parametrize("metric", METRICS)
@settings(deadline=None)
@given(rankings())
def test_only_the_order_of_scores_matters(metric: Callable[..., float], ranking: Ranking) -> None:
    labels, scores = ranking
    assert metric(labels, np.exp(scores) - 7) == metric(labels, scores)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    ("labels", "reason"), [([1, 1], "none of 2 is normal"), ([0, 0], "none of 2 is anomalous")]
)
def test_one_class_is_refused(metric: Callable[..., float], labels: list[int], reason: str) -> None:
    with pytest.raises(ValueError, match=f"one class only: {reason}"):
        metric(labels, [0.0, 1.0])


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    ("labels", "scores", "message"),
    [([1, 0], [0.0, np.nan], "finite"), ([1, 0, 1], [0.0, 1.0], r"shape \(2,\), got \(3,\)")],
)
def test_bad_input_is_named(
    metric: Callable[..., float], labels: list[int], scores: list[Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        metric(labels, scores)
