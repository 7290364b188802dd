"""What the procedural benchmark draws with: noise, distances to shapes, and a surface to paint.

A product is a ``Surface``: colour, height and gloss on a square grid that is finer than the
picture. Every length is in picture widths, so a scene looks the same at any size. Edges come from
signed distances d (negative inside) as coverage clip(1/2 - d / width, 0, 1), so they are smooth
before the camera scales the grid down, and smoother after it.

Letters: n cells along a side of the fine grid, (n, n) arrays are indexed [row, column].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

Array = NDArray[np.floating[Any]]
"""float32 throughout; the wider type is what numpy's stubs give to arithmetic with float32."""

Colour = tuple[float, float, float]
Window = tuple[slice, slice]

_SPLINE_GAIN = 2.09
"""1 / mean sum of squared weights of the cubic B-spline, so that the noise has unit variance."""


def rgb(code: str) -> Colour:
    """Red, green and blue in [0, 1] of a hexadecimal code.

    >>> rgb("ff8000")[0], rgb("ff8000")[2]
    (1.0, 0.0)
    """
    red, green, blue = (int(code[k : k + 2], 16) / 255 for k in (0, 2, 4))
    return red, green, blue


def tinted(colour: Colour, rng: np.random.Generator, amount: float = 0.02) -> Colour:
    """The colour with a common and a small per-channel random deviation."""
    common = 1 + rng.normal(0, amount)
    red, green, blue = (
        float(c * common * (1 + e))
        for c, e in zip(colour, rng.normal(0, amount / 4, 3), strict=True)
    )
    return red, green, blue


def blend(first: Colour, second: Colour, share: float) -> Colour:
    """The colour between two: the first at share 0, the second at 1."""
    red, green, blue = (a + share * (b - a) for a, b in zip(first, second, strict=True))
    return red, green, blue


@lru_cache(maxsize=8)
def axes(n: int) -> tuple[Array, Array]:
    """Cell centres: x of shape (1, n) and y of shape (n, 1), both in (0, 1). Not to be changed."""
    centres = ((np.arange(n) + 0.5) / n).astype(np.float32)
    return centres[None, :], centres[:, None]


@lru_cache(maxsize=64)
def _spline(n: int, cells: int) -> sparse.csr_array[np.float32, tuple[int, int]]:
    """A uniform cubic B-spline with ``cells`` intervals, from its cells + 3 knots to n places."""
    position = (np.arange(n) + 0.5) / n * cells
    base = np.floor(position).astype(np.int32)
    t = position - base
    weights = [(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3]
    data = (np.stack(weights, axis=1) * np.sqrt(_SPLINE_GAIN) / 6).astype(np.float32)
    columns = base[:, None] + np.arange(4, dtype=np.int32)
    starts = np.arange(0, 4 * n + 1, 4, dtype=np.int32)
    return sparse.csr_array((data.ravel(), columns.ravel(), starts), shape=(n, cells + 3))


def noise(rng: np.random.Generator, n: int, rows: int, columns: int | None = None) -> Array:
    """Smooth noise of about unit variance with that many bumps down and across, (n, n).

    A product with two sparse matrices: quicker than filtering white noise, and, unlike a dense
    product, its bytes cannot depend on the number of threads.
    """
    columns = rows if columns is None else columns
    knots = rng.standard_normal((rows + 3, columns + 3), dtype=np.float32)
    across = np.ascontiguousarray((_spline(n, columns) @ knots.T).T)
    result: Array = _spline(n, rows) @ across
    return result


def cover(distance: Array, width: float) -> Array:
    """Share of a cell inside a shape: 1 at a signed distance below -width/2."""
    share = distance * np.float32(-1 / width)
    share += np.float32(0.5)
    return np.clip(share, 0, 1, out=share)


def smoothstep(low: float, high: float, value: Array) -> Array:
    """0 below ``low``, 1 above ``high``, a cubic between."""
    t = value - np.float32(low)
    t *= np.float32(1 / (high - low))
    np.clip(t, 0, 1, out=t)
    falling = np.float32(3) - 2 * t
    t *= t
    t *= falling
    return t


def bell(value: Array, width: float) -> Array:
    """exp(-(value / width)²), held above 1e-9: numbers that underflow are slow to compute with."""
    squared = value * np.float32(1 / width)
    squared *= squared
    np.minimum(squared, 20, out=squared)
    np.negative(squared, out=squared)
    np.exp(squared, out=squared)
    return squared


def length_of(x: Array, y: Array) -> Array:
    """Length of the vectors (x, y); quicker than ``np.hypot``, whose care is not needed here."""
    squared = x * x
    squared += y * y
    np.sqrt(squared, out=squared)
    return squared


def box_distance(x: Array, y: Array, half: tuple[float, float], corner: float = 0.0) -> Array:
    """Signed distance to a box around the origin with half sides ``half`` and rounded corners."""
    dx, dy = np.abs(x), np.abs(y)
    dx -= np.float32(half[0] - corner)
    dy -= np.float32(half[1] - corner)
    inner = np.maximum(dx, dy)
    np.minimum(inner, 0, out=inner)
    inner -= np.float32(corner)
    inner += length_of(np.maximum(dx, 0, out=dx), np.maximum(dy, 0, out=dy))
    return inner


@dataclass
class Surface:
    """A product (and what it lies on) on the fine grid."""

    colour: Array
    """(3, n, n), display values in [0, 1]."""

    height: Array
    """(n, n), picture widths."""

    gloss: Array
    """(n, n), strength of the highlight."""

    region: Array | None = None
    """(n, n), above 0.5 where a surface defect may lie; None is everywhere."""

    @classmethod
    def plain(cls, n: int, colour: Colour, gloss: float = 0.0) -> Surface:
        """A flat surface of one colour."""
        filled = np.empty((3, n, n), dtype=np.float32)
        filled[:] = np.asarray(colour, dtype=np.float32)[:, None, None]
        return cls(filled, np.zeros((n, n), np.float32), np.full((n, n), gloss, np.float32))

    @classmethod
    def toned(
        cls,
        mix: Array,
        first: Colour,
        second: Colour,
        shade: Array,
        *,
        height: Array,
        gloss: float,
    ) -> Surface:
        """A surface between two colours (``mix`` 0 and 1), darker where ``shade`` is below 1."""
        n = mix.shape[0]
        colour = np.empty((3, n, n), dtype=np.float32)
        for channel, a, b in zip(colour, first, second, strict=True):
            np.multiply(mix, np.float32(b - a), out=channel)
            channel += np.float32(a)
            channel *= shade
        return cls(colour, height, np.full((n, n), gloss, np.float32))

    def copy(self) -> Surface:
        """A surface that can be changed without changing this one."""
        return Surface(self.colour.copy(), self.height.copy(), self.gloss.copy(), self.region)

    @property
    def n(self) -> int:
        """Cells along a side."""
        return int(self.height.shape[0])

    def window(self, x: float, y: float, reach: float, down: float | None = None) -> Window:
        """The cells within ``reach`` of a point across the picture, and ``down`` (as far) down."""
        down = reach if down is None else down
        return _span(y - down, y + down, self.n), _span(x - reach, x + reach, self.n)

    def cover_with(self, other: Surface, alpha: Array) -> None:
        """Lay another surface, which is used up, over this one where ``alpha`` is 1."""
        below = (*self.colour, self.height, self.gloss)
        above = (*other.colour, other.height, other.gloss)
        for low, high in zip(below, above, strict=True):
            high -= low
            high *= alpha
            low += high

    def local(self, window: Window, x: float, y: float, angle: float = 0.0) -> tuple[Array, Array]:
        """Coordinates in a window, seen from (x, y) and turned by ``angle``."""
        grid_x, grid_y = axes(self.n)
        dx, dy = grid_x[:, window[1]] - np.float32(x), grid_y[window[0]] - np.float32(y)
        c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
        return c * dx + s * dy, c * dy - s * dx

    def paint(self, alpha: Array, colour: Colour, window: Window | None = None) -> None:
        """Lay a colour over the surface, with opacity ``alpha`` in [0, 1]."""
        if window is not None:  # small: one call for the three channels is quicker
            target = self.colour[:, window[0], window[1]]
            target += alpha * (np.asarray(colour, np.float32)[:, None, None] - target)
            return
        for channel, value in zip(self.colour, colour, strict=True):
            step = np.float32(value) - channel
            step *= alpha
            channel += step

    def filter(self, alpha: Array, colour: Colour, window: Window | None = None) -> None:
        """Multiply by a colour (a liquid, a shadow), with opacity ``alpha`` in [0, 1]."""
        if window is not None:
            target = self.colour[:, window[0], window[1]]
            target *= 1 + alpha * (np.asarray(colour, np.float32)[:, None, None] - 1)
            return
        for channel, value in zip(self.colour, colour, strict=True):
            channel *= 1 + alpha * np.float32(value - 1)


def _span(low: float, high: float, n: int) -> slice:
    start = min(max(int(np.floor(low * n)), 0), n - 1)
    return slice(start, min(max(int(np.ceil(high * n)), start + 1), n))


def line_distance(
    surface: Surface, points: NDArray[np.float64], reach: float
) -> tuple[Array, Array]:
    """Distance to a chain of points, and how far along it the nearest place is.

    Args:
        surface: Gives the grid.
        points: (k, 2), x and y in picture widths, k at least 2.
        reach: Cells farther than this keep the distance ``reach``.

    Returns:
        Two (n, n) arrays: the distance, and the place along the chain in [0, 1].
    """
    distance = np.full((surface.n, surface.n), reach, np.float32)
    place = np.zeros_like(distance)
    count = len(points) - 1
    for k, ((x0, y0), (x1, y1)) in enumerate(pairwise(points)):
        window = (
            _span(min(y0, y1) - reach, max(y0, y1) + reach, surface.n),
            _span(min(x0, x1) - reach, max(x0, x1) + reach, surface.n),
        )
        dx, dy = surface.local(window, x0, y0)
        squared = max((x1 - x0) ** 2 + (y1 - y0) ** 2, 1e-12)
        t = np.clip(
            (dx * np.float32(x1 - x0) + dy * np.float32(y1 - y0)) / np.float32(squared), 0, 1
        )
        found = length_of(dx - t * np.float32(x1 - x0), dy - t * np.float32(y1 - y0))
        nearer = found < distance[window]
        distance[window] = np.where(nearer, found, distance[window])
        place[window] = np.where(nearer, (k + t) / count, place[window])
    return distance, place


def walk(
    rng: np.random.Generator,
    start: Sequence[float],
    angle: float,
    length: float,
    *,
    turn: float,
    steps: int,
) -> NDArray[np.float64]:
    """A random path around ``start``, (steps + 1, 2); ``turn``: change of angle in a step."""
    angles = angle + np.cumsum(rng.normal(0, turn, steps))
    moves = length / steps * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    path = np.concatenate([np.zeros((1, 2)), np.cumsum(moves, axis=0)])
    moved: NDArray[np.float64] = path - path[len(path) // 2] + np.asarray(start)
    return moved
