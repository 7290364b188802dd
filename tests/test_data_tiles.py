"""Tiles as training pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mambaad.data import PictureStore
from mambaad.data.cache import StoreMode
from mambaad.data.tiles import TileStore, whole_pictures
from mambaad.errors import ImageError
from mambaad.tiling import Tiling

TILING = Tiling((40, 70), (32, 32), 0.25)


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    rng = np.random.default_rng(0)
    found = []
    for number in range(3):
        found.append(tmp_path / f"{number}.png")
        Image.fromarray(rng.integers(0, 256, (40, 70, 3), dtype=np.uint8)).save(found[-1])
    return found


@pytest.mark.parametrize("mode", ["pictures", "disk", "none"])
def test_tiles_are_the_parts_of_the_pictures(
    paths: list[Path], tmp_path: Path, mode: StoreMode
) -> None:
    pictures = PictureStore(paths, TILING.size, mode, folder=tmp_path)
    store = TileStore(pictures, TILING)
    assert len(store) == 3 * TILING.count == 18
    assert store.size == (32, 32)
    whole = PictureStore(paths, TILING.size)[range(3)]
    tiles = store[[17, 4, 6, 4]]
    for tile, index in zip(tiles, (17, 4, 6, 4), strict=True):
        y, x = TILING.corners[index % 6]
        assert np.array_equal(tile, whole[index // 6, y : y + 32, x : x + 32])
    tiles[...] = 0  # the caller's own
    assert store[np.array([4])].any()
    assert store[[]].shape == (0, 32, 32, 3)
    assert pictures.missing == (3 if mode == "none" else 0)


def test_only_pictures_that_are_needed_are_read_and_a_tile_knows_its_file(
    paths: list[Path],
) -> None:
    pictures = PictureStore(paths, TILING.size)
    store = TileStore(pictures, TILING)
    assert store[[7]].any()
    assert pictures.missing == 2
    assert [store.path(i) for i in (0, 5, 6, 17)] == [paths[0], paths[0], paths[1], paths[2]]
    assert whole_pictures(store) is pictures
    assert whole_pictures(pictures) is pictures


def test_mistakes_are_told(paths: list[Path], tmp_path: Path) -> None:
    store = TileStore(PictureStore(paths, TILING.size), TILING)
    with pytest.raises(IndexError, match=r"0\.\.17, got 3\.\.18"):
        store[[3, 18]]
    with pytest.raises(ValueError, match=r"pictures must be \(40, 70\) as tiled, got \(64, 64\)"):
        TileStore(PictureStore(paths, (64, 64)), TILING)
    broken = PictureStore([tmp_path / "none.png"], TILING.size, "none")
    with pytest.raises(ImageError, match=r"none\.png"):
        TileStore(broken, TILING)[[0]]
