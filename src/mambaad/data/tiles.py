"""The tiles of a store's pictures, each as a picture of its own: what training on tiles sees."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mambaad.data.cache import PictureStore, Store
from mambaad.tiling import Tiling


class TileStore:
    """All tiles of all pictures: those of the first picture, row by row, then of the next."""

    def __init__(self, pictures: PictureStore, tiling: Tiling) -> None:
        """Nothing is copied: tiles are cut out of what the store keeps.

        Raises:
            ValueError: If the pictures are not of the tiling's size.
        """
        if pictures.size != tiling.size:
            raise ValueError(f"pictures must be {tiling.size} as tiled, got {pictures.size}")
        self.pictures = pictures
        self.size = tiling.tile
        self._corners = tiling.corners

    def __len__(self) -> int:
        return len(self.pictures) * len(self._corners)

    def path(self, index: int) -> Path:
        """The file of the picture that a tile is of."""
        return self.pictures.path(index // len(self._corners))

    def __getitem__(self, indices: Sequence[int] | NDArray[np.integer]) -> NDArray[np.uint8]:
        """Tiles by index, in the order asked for.

        Args:
            indices: (n,), whole numbers in 0..len-1; may repeat.

        Returns:
            uint8, (n, h, w, 3), the caller's own.

        Raises:
            ImageError: If a picture cannot be read.
            DatasetError: If the disk is full.
            IndexError: If there is no such tile.
        """
        wanted = np.asarray(indices, dtype=np.intp)
        if wanted.size and not 0 <= wanted.min() <= wanted.max() < len(self):
            raise IndexError(
                f"indices must lie in 0..{len(self) - 1}, got {wanted.min()}..{wanted.max()}"
            )
        pictures, places = np.divmod(wanted, len(self._corners))
        corners = [self._corners[place] for place in places.tolist()]
        return self.pictures.windows(pictures.tolist(), corners, self.size)


def whole_pictures(store: Store) -> Store:
    """The pictures that a store's tiles are of, or the store itself if it has no tiles."""
    return store.pictures if isinstance(store, TileStore) else store
