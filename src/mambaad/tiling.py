"""Cutting a picture into overlapping tiles, and the weights that put their maps together again.

Along an axis of L pixels, n tiles of t pixels start at evenly spaced places from 0 to L - t, so
every pixel is covered. A tile weighs less towards its ends, where a network sees least around a
pixel. With the weights of all tiles divided by their sum,

    w_i(p) >= 0 on tile i, 0 elsewhere        Σ_i w_i(p) = 1 at every pixel p

and a tile of a picture weighs the product of its row's weight and its column's.

A blended map is not added up, it is a running mean: tile i moves what is there towards itself by

    share_i(p) = w_i(p) / Σ_{j<=i} w_j(p)

which gives Σ_i w_i m_i, and where all tiles agree gives their value without any rounding.

numpy is imported when weights are computed, not before: settings are read without it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Tiling:
    """How pictures of one size are cut into tiles of another."""

    size: tuple[int, int]
    """Height and width of a picture."""

    tile: tuple[int, int]
    """Height and width of a tile."""

    overlap: float
    """Share of a tile's side that neighbours have in common, to the pixel; more where the tiles
    would reach beyond the picture. In [0, 1)."""

    def __post_init__(self) -> None:
        """Raises ValueError if a tile is empty or larger than a picture, or the overlap is not
        in [0, 1)."""
        if not all(1 <= t <= s for t, s in zip(self.tile, self.size, strict=True)):
            raise ValueError(f"tile must be in (1, 1)..{self.size}, got {self.tile}")
        if not 0 <= self.overlap < 1:
            raise ValueError(f"overlap must be in [0, 1), got {self.overlap}")

    @cached_property
    def rows(self) -> tuple[int, ...]:
        """First row of each row of tiles."""
        return tile_starts(self.size[0], self.tile[0], self.overlap)

    @cached_property
    def columns(self) -> tuple[int, ...]:
        """First column of each column of tiles."""
        return tile_starts(self.size[1], self.tile[1], self.overlap)

    @cached_property
    def corners(self) -> tuple[tuple[int, int], ...]:
        """First row and column of every tile, row of tiles by row of tiles."""
        return tuple((y, x) for y in self.rows for x in self.columns)

    @property
    def count(self) -> int:
        """Tiles of a picture."""
        return len(self.rows) * len(self.columns)


def tile_starts(length: int, tile: int, overlap: float) -> tuple[int, ...]:
    """Where tiles start along an axis: the fewest that overlap as asked, evenly spaced.

    Args:
        length: Pixels of the axis, at least ``tile``.
        tile: Pixels of a tile.
        overlap: Share of a tile that neighbours have in common, in [0, 1).

    >>> tile_starts(1000, 256, 0.25)
    (0, 186, 372, 558, 744)
    >>> tile_starts(256, 256, 0.25)
    (0,)
    """
    step = max(1, tile - round(overlap * tile))
    steps = -(-(length - tile) // step)
    return tuple(i * (length - tile) // max(1, steps) for i in range(steps + 1))


def tile_weights(length: int, tile: int, starts: tuple[int, ...]) -> NDArray[np.float64]:
    """The weights w of an axis, (n, length); each pixel's sum to 1.

    They rise and fall in straight lines over the pixels that a tile shares with its neighbours.
    """
    import numpy as np

    widest = max((b - a for a, b in pairwise(starts)), default=tile)
    ramp = max(tile - widest, 0.5)
    inside = np.arange(tile) + 0.5
    window = np.minimum(1.0, np.minimum(inside, tile - inside) / ramp)
    weights = np.zeros((len(starts), length))
    for row, start in zip(weights, starts, strict=True):
        row[start : start + tile] = window
    weights /= weights.sum(axis=0)
    return weights


def tile_shares(length: int, tile: int, starts: tuple[int, ...]) -> NDArray[np.float32]:
    """The shares of an axis, (n, tile): how far each tile moves the running mean, in (0, 1].

    Exactly 1 where a tile is the first to cover a pixel.
    """
    import numpy as np

    weights = tile_weights(length, tile, starts)
    shares = weights / np.maximum(np.cumsum(weights, axis=0), np.finfo(np.float64).tiny)
    rows = [row[start : start + tile] for row, start in zip(shares, starts, strict=True)]
    return np.stack(rows).astype(np.float32)
