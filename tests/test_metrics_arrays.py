"""What comes in is checked once and named; counting agrees with counting by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import DTypeLike

from mambaad.metrics import arrays
from mambaad.metrics.arrays import as_labels, as_maps, as_masks, as_scores, count_at, split


@pytest.mark.parametrize(
    ("given_type", "kept_type"),
    [
        (np.float32, np.float32),
        (np.float64, np.float64),
        (np.float16, np.float32),
        (np.int64, np.float64),
    ],
)
def test_maps_keep_their_precision(given_type: DTypeLike, kept_type: DTypeLike) -> None:
    assert as_maps(np.ones((2, 3, 4), given_type)).dtype == kept_type


def test_maps_are_not_copied() -> None:
    maps = np.ones((2, 3, 4), np.float32)
    assert np.shares_memory(as_maps(maps), maps)


@pytest.mark.parametrize(
    ("bad", "word"), [(np.nan, "NaN"), (np.inf, "infinity"), (-np.inf, "infinity")]
)
def test_picture_that_is_not_finite_is_named(bad: float, word: str) -> None:
    maps = np.zeros((4, 3, 3), np.float32)
    maps[2, 1, 1] = bad
    with pytest.raises(ValueError, match=f"picture 2 holds {word} \\(1 of 4"):
        as_maps(maps)


@pytest.mark.parametrize("shape", [(3, 3), (0, 3, 3), (1, 1, 3, 3)])
def test_maps_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="maps must have shape"):
        as_maps(np.zeros(shape))


def test_complex_maps_are_refused() -> None:
    with pytest.raises(ValueError, match="real numbers, got complex128"):
        as_maps(np.zeros((1, 2, 2), np.complex128))


def test_anything_but_zero_is_a_defect() -> None:
    assert as_masks(np.array([[[0, 1, 255]]], np.uint8), (1, 1, 3)).tolist() == [
        [[False, True, True]]
    ]


def test_masks_of_another_shape_or_type_are_refused() -> None:
    with pytest.raises(ValueError, match=r"maps' shape \(1, 2, 2\), got \(1, 2, 3\)"):
        as_masks(np.zeros((1, 2, 3), np.bool_), (1, 2, 2))
    with pytest.raises(ValueError, match="got float64; threshold them first"):
        as_masks(np.zeros((1, 2, 2)), (1, 2, 2))


def test_labels_are_zero_and_one() -> None:
    assert as_labels([0, 1, True], 3).tolist() == [False, True, True]
    with pytest.raises(ValueError, match="0 and 1"):
        as_labels([0, 2], 2)
    with pytest.raises(ValueError, match=r"labels must have shape \(3,\), got \(2,\)"):
        as_labels([0, 1], 3)


def test_scores_are_finite_and_flat() -> None:
    with pytest.raises(ValueError, match="number 1 is nan"):
        as_scores([0.0, np.nan])
    with pytest.raises(ValueError, match=r"scores must have shape \(3,\), got \(2,\)"):
        as_scores([0.0, 1.0], 3)
    with pytest.raises(ValueError, match=r"scores must have shape \(n,\), got \(1, 2\)"):
        as_scores([[0.0, 1.0]])


def test_split_threads_only_what_is_large() -> None:
    values = np.zeros(arrays._WORTH_A_THREAD, np.float32)
    assert [len(part) for part in split(values[:-1])] == [len(values) - 1]
    assert sum(len(part) for part in split(values)) == len(values)
    assert len(split(values)) > 1


@settings(deadline=None)
@given(
    parts=st.lists(st.lists(st.integers(0, 5), max_size=8), min_size=1, max_size=3),
    thresholds=st.lists(st.integers(-1, 6), min_size=1, max_size=8),
    threads=st.booleans(),
)
def test_counts_are_those_of_comparing(
    parts: list[list[int]], thresholds: list[int], threads: bool
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        if threads:
            patch.setattr(arrays, "_WORTH_A_THREAD", 0)
        above, at = count_at(
            [np.array(sorted(part), np.float32) for part in parts], np.array(thresholds, np.float32)
        )
    everything = [value for part in parts for value in part]
    assert above.tolist() == [sum(v > t for v in everything) for t in thresholds]
    assert at.tolist() == [sum(v >= t for v in everything) for t in thresholds]
