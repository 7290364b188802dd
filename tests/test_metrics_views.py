"""Samples seen in several pictures."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mambaad.metrics import auroc
from mambaad.metrics.views import by_sample, sample_auroc


def test_the_highest_view_counts() -> None:
    labels, scores = [0, 1, 0, 0, 0], [0.9, 0.1, 0.3, 0.2, 0.8]
    samples = ["a", "b", "c", "b", "c"]
    names, anomalous, joined = by_sample(labels, scores, samples)
    assert names == ["a", "b", "c"]
    assert anomalous.tolist() == [False, True, False]
    assert joined.tolist() == [0.9, 0.2, 0.8]
    assert sample_auroc(labels, scores, samples) == 0.0


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5), st.integers(0, 3)), min_size=1))
def test_equal_to_a_plain_loop(views: list[tuple[bool, int, int]]) -> None:
    groups: dict[str, list[tuple[bool, int]]] = {}
    for label, score, sample in views:
        groups.setdefault(str(sample), []).append((label, score))
    labels = [any(label for label, _ in g) for g in groups.values()]
    highest = [max(score for _, score in g) for g in groups.values()]
    arguments = ([v[0] for v in views], [v[1] for v in views], [str(v[2]) for v in views])
    if len(set(labels)) == 2:
        assert sample_auroc(*arguments) == auroc(labels, highest)
    else:
        with pytest.raises(ValueError, match="one class only"):
            sample_auroc(*arguments)


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError, match="samples must name each of 2 pictures, got 1"):
        sample_auroc([0, 1], np.array([0.1, 0.2]), ["a"])
