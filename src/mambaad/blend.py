"""Running a function of a picture on its tiles, and blending the tiles' maps into the picture's.

The definition is in ``mambaad.tiling``. It is done where the pictures are: a few tiles at a time
are cut out, scored and moved into the map, row of tiles by row of tiles, so that memory holds the
pictures, their maps and one batch of tiles. No sum depends on how tiles are batched: a repeated
run gives the same bits.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mambaad.tiling import Tiling, tile_shares

Function = Callable[[Tensor], tuple[Tensor, ...]]


class Blend:
    """A function of pictures made of one of tiles. It keeps nothing between calls."""

    def __init__(
        self, function: Function, tiling: Tiling, device: torch.device, at_once: int
    ) -> None:
        """Wrap a function.

        Args:
            function: From tiles to their maps, float32 (N, h, w), first of its results.
            tiling: How pictures are cut.
            device: Where pictures and maps are.
            at_once: Tiles for one call of the function; at least one of each picture.
        """
        self._function = function
        self._tiling = tiling
        self._at_once = at_once
        # on the device once and for all: a copy from the host would wait for the queue
        self._row_shares, self._column_shares = (
            torch.from_numpy(tile_shares(length, tile, starts)).to(device)
            for length, tile, starts in zip(
                tiling.size, tiling.tile, (tiling.rows, tiling.columns), strict=True
            )
        )

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Blend the maps of a batch's tiles.

        Args:
            images: uint8 (B, H, W, 3) or floating point (B, 3, H, W), of the tiling's size.

        Returns:
            Maps, float32 (B, H, W), and their maxima, (B,).

        Raises:
            ValueError: If they are of another size.
        """
        top = 1 if images.dtype == torch.uint8 else 2
        found = tuple(images.shape[top : top + 2])
        if found != self._tiling.size:
            raise ValueError(f"pictures must be {self._tiling.size} as tiled, got {found}")
        count, (height, width) = len(images), self._tiling.tile
        corners = self._tiling.corners
        maps = images.new_zeros((count, *found), dtype=torch.float32)
        strip = images.new_zeros((count, height, found[1]), dtype=torch.float32)
        step = max(1, self._at_once // max(1, count))
        for start in range(0, len(corners), step):
            part = corners[start : start + step]
            tiles = [images.narrow(top, y, height).narrow(top + 1, x, width) for y, x in part]
            scored = self._function(torch.cat(tiles))[0].split(count)
            for number, tile in enumerate(scored, start):
                self._move(maps, strip, number, tile)
        return maps, maps.amax((1, 2))

    def _move(self, maps: Tensor, strip: Tensor, number: int, tile: Tensor) -> None:
        """Move a row of tiles towards one of them, and the maps towards the row at its end."""
        (height, width), columns = self._tiling.tile, self._tiling.columns
        row, column = divmod(number, len(columns))
        strip.narrow(2, columns[column], width).lerp_(tile, self._column_shares[column])
        if column == len(columns) - 1:
            place = maps.narrow(1, self._tiling.rows[row], height)
            place.lerp_(strip, self._row_shares[row][:, None])
