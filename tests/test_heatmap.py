"""Heat maps: the scale's ends and middle, a map laid over a picture, and outlines by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mambaad.heatmap import OPACITY, OUTLINE, colours, outline, outlined, overlay, scale_top

COLD, MIDDLE, HOT = (9, 7, 33), (214, 51, 74), (255, 246, 176)


def test_threshold_is_the_middle_of_the_scale() -> None:
    values = np.array([[0.15, 0.3, 0.45]])
    assert colours(values, scale_top(0.3)).tolist() == [[list(COLD), list(MIDDLE), list(HOT)]]


def test_values_outside_the_scale_get_its_ends() -> None:
    assert colours(np.array([[-5.0, 7.0]]), 1.0).tolist() == [[list(COLD), list(HOT)]]


def test_colours_get_lighter_all_the_way() -> None:
    shades = colours(np.linspace(1 / 3, 1, 101)[None], 1.0)[0] @ np.array([0.2126, 0.7152, 0.0722])
    assert (np.diff(shades) > 0).all()


@given(st.floats(1e-6, 1e6))
def test_only_the_ratio_to_the_top_counts(top: float) -> None:
    values = np.array([[0.0, 0.125, 0.5, 0.75, 2.0]])
    np.testing.assert_array_equal(colours(values * top, top), colours(values, 1.0))


def test_quiet_map_shows_the_picture_and_hot_map_does_not() -> None:
    picture = np.full((4, 6, 3), 100, dtype=np.uint8)
    assert (overlay(picture, np.zeros((4, 6), np.float32), 1.0) == picture).all()
    shown = overlay(picture, np.full((4, 6), 9.0, np.float32), 1.0)
    expected = [round(OPACITY * c + (1 - OPACITY) * 100) for c in HOT]
    assert (shown == np.array(expected)).all()


def test_opacity_at_the_threshold_is_half_of_the_greatest() -> None:
    shown = overlay(np.zeros((2, 2, 3), np.uint8), np.full((2, 2), 2 / 3, np.float32), 1.0)
    assert (shown == np.array([round(OPACITY / 2 * c) for c in MIDDLE])).all()


def test_small_map_is_laid_bilinearly_over_a_picture_of_its_own_size() -> None:
    # of the four columns that two become, the outer are at the ends and the inner a quarter off
    picture = np.zeros((3, 4, 3), np.uint8)
    shown = overlay(picture, np.array([[0.0, 1.0]], np.float32), 1.0)
    by_hand = overlay(picture[:1], np.array([[0.0, 0.5, 5 / 6, 1.0]], np.float32), 1.0)
    assert shown.shape == (3, 4, 3)
    assert (shown == by_hand).all()


def test_overlay_draws_the_outline_and_leaves_its_inputs_alone() -> None:
    picture = np.zeros((5, 5, 3), np.uint8)
    mask = np.zeros((5, 5), np.bool_)
    mask[2, 2] = True
    shown = overlay(picture, np.zeros((5, 5), np.float32), 1.0, mask=mask)
    assert (shown[outline(mask)] == np.array(OUTLINE)).all()
    assert (shown[~outline(mask)] == 0).all()
    assert picture.max() == 0


def test_outline_by_hand() -> None:
    mask = np.zeros((5, 6), np.bool_)
    mask[1:3, 0:2] = True  # touches the left border
    drawn = ["".join(".#"[v] for v in row) for row in outline(mask).astype(int)]
    assert drawn == ["###...", "#.#...", "#.#...", "###...", "......"]


def test_outline_of_nothing_and_of_everything() -> None:
    assert not outline(np.zeros((4, 4), np.bool_)).any()
    assert int(outline(np.ones((4, 4), np.bool_)).sum()) == 12


def test_outline_gets_as_wide_as_asked() -> None:
    mask = np.zeros((9, 9), np.bool_)
    mask[4, 4] = True
    assert int(outline(mask, width=2).sum()) == 24


def test_outline_is_wider_on_a_large_picture() -> None:
    for side, width in ((64, 1), (256, 2), (512, 4)):
        mask = np.zeros((side, side), np.bool_)
        mask[side // 2, side // 2] = True
        drawn = (outlined(np.zeros((side, side, 3), np.uint8), mask)[..., 1] > 0).sum()
        assert drawn == (2 * width + 1) ** 2 - 1


@pytest.mark.parametrize("threshold", [0.0, -1.0, float("nan"), float("inf")])
def test_scale_needs_a_threshold_above_zero(threshold: float) -> None:
    with pytest.raises(ValueError, match="above 0"):
        scale_top(threshold)


def test_wrong_arguments_are_named() -> None:
    picture, heat = np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4), np.float32)
    with pytest.raises(ValueError, match=r"picture must be uint8 of shape \(H, W, 3\)"):
        overlay(picture[..., 0], heat, 1.0)
    with pytest.raises(ValueError, match=r"map must have shape \(H, W\)"):
        overlay(picture, heat[None], 1.0)
    with pytest.raises(ValueError, match=r"mask must have shape \(4, 4\), got \(2, 4\)"):
        overlay(picture, heat, 1.0, mask=np.zeros((2, 4), np.bool_))
    with pytest.raises(ValueError, match="top must be"):
        overlay(picture, heat, 0.0)
    with pytest.raises(ValueError, match="values must be finite, got 1 not"):
        colours(np.array([[0.0, np.nan]]), 1.0)
    with pytest.raises(ValueError, match="width must be at least 1"):
        outline(np.zeros((4, 4), np.bool_), width=0)
