"""Pictures of scan paths, as the paper's Figure 3 shows them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mambaad.scan import direction_orders

PANEL = 320
MARGIN = 36
TITLE = 34
START, END = (37, 99, 235), (220, 38, 38)


def draw_scans(
    method: str | Mapping[str, int],
    directions: int | Literal["distinct"],
    height: int,
    width: int,
) -> Image.Image:
    """Draw all paths of a scan over a map, one panel each, from blue (first) to red (last).

    A dot marks the first pixel. A title names the direction and, where an earlier panel has the
    very same path, that panel.

    Args:
        method: See ``direction_orders``.
        directions: See ``direction_orders``.
        height: Rows of the map.
        width: Columns of the map.

    Raises:
        ValueError: As ``direction_orders``.
    """
    orders = direction_orders(method, directions, height, width)
    columns = min(4, len(orders))
    rows = math.ceil(len(orders) / columns)
    sheet = Image.new("RGB", (columns * PANEL, rows * (PANEL + TITLE)), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=16)
    seen: dict[bytes, int] = {}
    for k, order in enumerate(orders):
        left, top = k % columns * PANEL, k // columns * (PANEL + TITLE)
        earlier = seen.setdefault(order.tobytes(), k)
        title = f"direction {k}" + (f" (the same path as {earlier})" if earlier != k else "")
        draw.text((left + MARGIN / 2, top + 8), title, fill=(40, 40, 40), font=font)
        _draw_path(draw, order, width, max(height, width), left, top + TITLE)
    return sheet


def _draw_path(
    draw: ImageDraw.ImageDraw, order: np.ndarray, width: int, longest: int, left: int, top: int
) -> None:
    cell = (PANEL - MARGIN) / longest
    points = [
        (left + MARGIN / 2 + (p % width + 0.5) * cell, top + (p // width + 0.5) * cell)
        for p in order.tolist()
    ]
    thick = max(1, round(cell / 5))
    for i, (a, b) in enumerate(pairwise(points)):
        share = i / max(1, len(points) - 2)
        colour = tuple(round(s + share * (e - s)) for s, e in zip(START, END, strict=True))
        draw.line([a, b], fill=colour, width=thick)
    radius = max(2.0, cell / 4)
    x, y = points[0]
    draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=START)
