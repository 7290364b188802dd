"""Anomaly maps as colours, on one fixed scale.

    t = clip((map - bottom) / (top - bottom), 0, 1)
    bottom = threshold / 2 = top / 3        top = 3/2 threshold
    shown = (1 - a) picture + a colour(t)        a = 0.85 t² (3 - 2 t)

The scale is not stretched to each map's own range, which would set the quietest good picture
ablaze: its middle is the threshold, so a colour means the same on every picture of a category. The
opacity grows with the heat, so that quiet areas show the picture.

numpy and PIL only: no torch is needed here. Source: original; the colours run from near black
over violet and red to pale yellow, each step lighter than the last, so that they also read in grey.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

OPACITY = 0.85
"""Of the hottest colour on a picture."""

BOTTOM = 1 / 3
"""The scale's lower end as a share of its top. Good pictures' maps are never near 0: a student does
not rebuild every feature, so below half the threshold there is nothing to see."""

OUTLINE = (0, 229, 255)
"""Colour of a mask's outline: cyan, which the scale does not have."""

_ANCHORS = np.array(
    [(9, 7, 33), (71, 20, 110), (148, 31, 112), (214, 51, 74), (246, 110, 32), (253, 179, 48),
     (255, 246, 176)],
    dtype=np.float64,
)  # fmt: skip

_LEVELS = 1201
"""Steps of the scale, so many that no channel jumps; the anchors and the middle are among them."""


def scale_top(threshold: float) -> float:
    """The anomaly that gets the hottest colour: 3/2 of the threshold, which is then the middle.

    Raises:
        ValueError: If the threshold is not a finite number above 0.
    """
    if not (math.isfinite(threshold) and threshold > 0):
        raise ValueError(f"threshold must be a finite number above 0, got {threshold}")
    return 1.5 * threshold


def colours(values: NDArray[np.floating[Any]], top: float) -> NDArray[np.uint8]:
    """Colours of anomalies: ``top / 3`` and less is near black, ``top`` and more is pale yellow.

    Args:
        values: (H, W), finite.
        top: What gets the hottest colour, above 0.

    Returns:
        uint8, (H, W, 3), RGB.

    Raises:
        ValueError: If ``values`` has another shape, or ``top`` is not a finite number above 0.
    """
    table = np.rint(_colour_table()).astype(np.uint8)
    return table[_levels(_heat(values, top, "values"))]


def overlay(
    picture: NDArray[np.uint8],
    map: NDArray[np.floating[Any]],
    top: float,
    *,
    mask: NDArray[np.bool_] | None = None,
) -> NDArray[np.uint8]:
    """Lay an anomaly map over a picture, at the picture's own size.

    Args:
        picture: uint8, (H, W, 3), RGB.
        map: (h, w), finite, of any size; resized bilinearly.
        top: What gets the hottest colour, above 0; see ``scale_top``.
        mask: bool, (H, W), a known defect to outline.

    Returns:
        uint8, (H, W, 3).

    Raises:
        ValueError: If a shape or type is another one, or ``top`` is not a finite number above 0.
    """
    _check_picture(picture)
    heat = _resized(_heat(map, top, "map"), picture.shape[0], picture.shape[1])
    levels, opacity = _levels(heat), _opacity_table()
    blended = (1 - opacity)[levels] * picture + (opacity * _colour_table())[levels]
    blended = np.rint(blended, out=blended).astype(np.uint8)
    return blended if mask is None else outlined(blended, mask)


def outlined(picture: NDArray[np.uint8], mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """A copy of a picture, (H, W, 3), with the outline of a mask, (H, W), drawn in cyan.

    Raises:
        ValueError: If a shape or type is another one.
    """
    _check_picture(picture)
    if mask.shape != picture.shape[:2]:
        raise ValueError(f"mask must have shape {picture.shape[:2]}, got {mask.shape}")
    drawn = picture.copy()
    drawn[outline(mask, width=max(1, round(min(mask.shape) / 128)))] = OUTLINE
    return drawn


def outline(mask: NDArray[np.bool_], *, width: int = 1) -> NDArray[np.bool_]:
    """The line around a mask.

    It lies outside the mask, so that a small defect stays in sight; where the mask touches the
    picture's border it lies on the mask's pixels there, so that it is closed.

    Args:
        mask: bool, (H, W).
        width: Of the line in pixels, at least 1.

    Returns:
        bool, (H, W).

    Raises:
        ValueError: If the mask has another shape or the width is less than 1.
    """
    if mask.ndim != 2:
        raise ValueError(f"mask must have shape (H, W), got {mask.shape}")
    if width < 1:
        raise ValueError(f"width must be at least 1, got {width}")
    inside = mask.astype(np.bool_)
    grown = inside
    for _ in range(width):
        wide = np.pad(grown, 1)
        rows = wide[:-2] | wide[1:-1] | wide[2:]
        grown = rows[:, :-2] | rows[:, 1:-1] | rows[:, 2:]
    border = np.ones_like(inside)
    border[width:-width, width:-width] = False
    line: NDArray[np.bool_] = (grown & ~inside) | (inside & border)
    return line


def _heat(values: NDArray[np.floating[Any]], top: float, name: str) -> NDArray[np.float32]:
    if values.ndim != 2 or 0 in values.shape:
        raise ValueError(f"{name} must have shape (H, W), got {values.shape}")
    if not (math.isfinite(top) and top > 0):
        raise ValueError(f"top must be a finite number above 0, got {top}")
    if not np.isfinite(values).all():
        raise ValueError(f"{name} must be finite, got {np.count_nonzero(~np.isfinite(values))} not")
    scaled = (values / top - BOTTOM) / (1 - BOTTOM)
    heat: NDArray[np.float32] = np.clip(scaled, 0, 1).astype(np.float32)
    return heat


def _levels(heat: NDArray[np.float32]) -> NDArray[np.intp]:
    """Heat as an index into the two tables below."""
    return np.rint(heat * (_LEVELS - 1)).astype(np.intp)


def _colour_table() -> NDArray[np.float32]:
    """The scale's colours, float32, (levels, 3)."""
    heat, places = np.linspace(0, 1, _LEVELS), np.linspace(0, 1, len(_ANCHORS))
    channels = [np.interp(heat, places, _ANCHORS[:, c]) for c in range(3)]
    return np.stack(channels, axis=-1).astype(np.float32)


def _opacity_table() -> NDArray[np.float32]:
    """The scale's opacities, float32, (levels, 1)."""
    heat = np.linspace(0, 1, _LEVELS, dtype=np.float32)[:, None]
    opacity: NDArray[np.float32] = OPACITY * heat**2 * (3 - 2 * heat)
    return opacity


def _resized(heat: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    # clipped before it is resized, so that one extreme pixel does not spread; PIL may overshoot
    # by a rounding error
    large = Image.fromarray(heat).resize((width, height), Image.Resampling.BILINEAR)
    clipped: NDArray[np.float32] = np.clip(np.asarray(large, dtype=np.float32), 0, 1)
    return clipped


def _check_picture(picture: NDArray[np.uint8]) -> None:
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
        raise ValueError(
            f"picture must be uint8 of shape (H, W, 3), got {picture.dtype} of {picture.shape}"
        )
