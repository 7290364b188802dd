"""Tiles and their weights: every pixel is covered, and the weights sum to 1."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mambaad.tiling import Tiling, tile_shares, tile_starts, tile_weights

LENGTHS = st.tuples(st.integers(1, 40), st.integers(0, 200), st.floats(0, 0.99))


@given(LENGTHS)
def test_any_axis_is_covered_and_the_weights_sum_to_one(axis: tuple[int, int, float]) -> None:
    tile, more, overlap = axis
    length = tile + more
    starts = tile_starts(length, tile, overlap)
    assert starts[0] == 0
    assert starts[-1] == more
    steps = np.diff(starts)
    assert (steps >= 1).all()
    assert (steps <= max(1, tile - round(overlap * tile))).all()
    assert np.ptp(steps) <= 1 if len(steps) else more == 0
    weights = tile_weights(length, tile, starts)
    np.testing.assert_allclose(weights.sum(0), 1, rtol=1e-12)
    for row, start in zip(weights, starts, strict=True):
        assert (row[start : start + tile] > 0).all()
        assert not row[:start].any()
        assert not row[start + tile :].any()


@given(LENGTHS)
def test_moving_by_the_shares_weighs_by_the_weights(axis: tuple[int, int, float]) -> None:
    tile, more, overlap = axis
    length = tile + more
    starts = tile_starts(length, tile, overlap)
    shares = tile_shares(length, tile, starts)
    values = np.random.default_rng(0).random((len(starts), length))
    mean = np.full(length, 1e9)
    for value, share, start in zip(values, shares, starts, strict=True):
        place = slice(start, start + tile)
        mean[place] += share * (value[place] - mean[place])
    expected = (tile_weights(length, tile, starts) * values).sum(0)
    np.testing.assert_allclose(mean, expected, atol=1e-5)
    covered = np.zeros(length, bool)
    for share, start in zip(shares, starts, strict=True):
        place = slice(start, start + tile)
        assert (share[~covered[place]] == 1).all()  # exactly, or the 1e9 above would show
        covered[place] = True


def test_the_fewest_tiles_with_the_overlap() -> None:
    tiling = Tiling((4000, 6000), (256, 256), 0.25)
    assert (len(tiling.rows), len(tiling.columns)) == (21, 31)
    assert tiling.count == len(tiling.corners) == 651
    assert tiling.corners[:2] == ((0, 0), (0, tiling.columns[1]))
    assert Tiling((512, 256), (256, 256), 0.0).corners == ((0, 0), (256, 0))
    assert Tiling((256, 256), (256, 256), 0.5).corners == ((0, 0),)


def test_weights_fall_towards_the_ends_of_a_tile() -> None:
    weights = tile_weights(12, 8, (0, 4))
    np.testing.assert_allclose(weights[0], [1, 1, 1, 1, 7 / 8, 5 / 8, 3 / 8, 1 / 8, 0, 0, 0, 0])
    np.testing.assert_allclose(weights[1], weights[0][::-1])


@pytest.mark.parametrize(
    ("size", "tile", "overlap", "message"),
    [
        ((64, 64), (96, 32), 0.0, r"tile must be in \(1, 1\)\.\.\(64, 64\), got \(96, 32\)"),
        ((64, 64), (0, 32), 0.0, "tile must be"),
        ((64, 64), (32, 32), 1.0, r"overlap must be in \[0, 1\), got 1\.0"),
    ],
)
def test_what_cannot_be_cut_is_refused(
    size: tuple[int, int], tile: tuple[int, int], overlap: float, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Tiling(size, tile, overlap)
