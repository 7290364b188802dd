"""The tree of bins: every pixel in one bin, limits kept, order kept, memory bounded."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from mambaad.metrics import bins
from mambaad.metrics.bins import FOUND, SHARE, ScoreBins


def drawn(seed: int, count: int = 8) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    draw = np.random.default_rng(seed)
    maps = draw.standard_normal((count, 48, 48)).astype(np.float32)
    masks = np.zeros(maps.shape, np.bool_)
    masks[: count // 2, 5:12, 7:9] = True
    return maps, masks


def test_channels() -> None:
    maps, masks = drawn(0)
    tree = ScoreBins()
    tree.count(maps, masks)
    normal_pictures = 4 * 48 * 48
    regions = 4
    assert tree.totals[:3].tolist() == [normal_pictures - 56, normal_pictures, 56]
    assert tree.totals[3:] / 2**40 == pytest.approx([regions, 4])


def test_bins_descend_and_tell_single_numbers() -> None:
    maps = np.array([[[3.0, -1.0, -0.0, 0.0, 3.0, -2.0, 1e-40, 1e30]]], np.float32)
    masks = np.array([[[0, 0, 0, 1, 1, 0, 0, 0]]], np.bool_)
    tree = ScoreBins()
    tree.count(maps, masks)
    counts, single = tree.ordered()
    assert counts[:, 0].tolist() == [1, 1, 1, 1, 1, 1]  # 1e30, 3, 1e-40, 0, -1, -2
    assert counts[:, 2].tolist() == [0, 1, 0, 1, 0, 0]
    assert single[[1, 3]].all()  # ties of both classes are split to the last bit


def test_bins_keep_their_limits() -> None:
    maps, masks = drawn(1, 200)
    tree = ScoreBins()
    for start in range(0, 200, 50):
        tree.count(maps[start : start + 50], masks[start : start + 50])
    counts, single = tree.ordered()
    totals = tree.totals
    wide = counts[~single]
    # what lay in a bin before it was split can come on top, once
    assert wide[:, :2].sum(axis=1).max() <= 2 * max(1, SHARE * totals[:2].sum())
    assert wide[:, 2].max() <= 2 * max(1, FOUND * totals[2])


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    most = (1 << 16) + 160
    monkeypatch.setattr(bins, "MOST_SLOTS", most)
    trees = [ScoreBins(), ScoreBins()]
    for seed, tree in enumerate(trees):
        for part in range(3):
            tree.count(*drawn(10 * seed + part))
        assert tree.slots == most
    total = trees[0].totals + trees[1].totals
    trees[0].merge(trees[1])
    assert trees[0].slots == most
    assert trees[0].totals.tolist() == total.tolist()
    assert trees[0].ordered()[0].sum(axis=0) == pytest.approx(total)


def test_arrays_hold_everything() -> None:
    tree = ScoreBins()
    tree.count(*drawn(2))
    again = ScoreBins.from_arrays(tree.to_arrays())
    for one, other in zip(tree.ordered(), again.ordered(), strict=True):
        assert np.array_equal(one, other)
    again.count(*drawn(3))
    tree.count(*drawn(3))
    assert np.array_equal(tree.ordered()[0], again.ordered()[0])
