"""Where the built-in encoder's pictures come from: every pixel used, some pictures kept apart."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from distilling import distil_scripts
from PIL import Image

from mambaad.errors import DatasetError


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    with distil_scripts() as scripts:
        yield scripts["distil_pictures"]


@pytest.mark.parametrize(
    ("height", "width", "count"), [(32, 32, 1), (64, 33, 4), (32, 96, 3), (70, 100, 12)]
)
def test_tiles_cover_the_picture(script: ModuleType, height: int, width: int, count: int) -> None:
    picture = np.arange(height * width * 3, dtype=np.int64).reshape(height, width, 3)
    tiles = script.tiles_of(picture, 32)
    assert tiles.shape == (count, 32, 32, 3)
    assert np.array_equal(np.unique(tiles), picture.ravel())


def test_a_small_picture_is_enlarged(script: ModuleType) -> None:
    tiles = script.tiles_of(np.full((10, 25, 3), 7, dtype=np.uint8), 32)
    assert tiles.shape == (3, 32, 32, 3)
    assert (tiles == 7).all()


def test_a_folder(script: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "pills" / "deep").mkdir(parents=True)
    for number in range(12):
        folder = tmp_path / "pills" / ("deep" if number > 9 else "")
        Image.new("RGB", (32, 32), (number, 0, 100)).save(folder / f"{number:02}.png")
    (tmp_path / "pills" / "notes.txt").write_text("not a picture")
    source = script.folder_source(tmp_path / "pills", "CC0", 32)
    assert (source.name, source.licence, source.pictures) == ("pills", "CC0", 12)
    held_out, learned = source.held_out[:, 0, 0, 0].tolist(), source.tiles[:, 0, 0, 0].tolist()
    assert held_out == [0, 10]
    assert learned == [1, 2, 3, 4, 5, 6, 7, 8, 9, 11]
    assert source.tiles[0, :, 5, 6].tolist() == [1, 0, 100]
    assert source.to_mapping() == {
        **{"name": "pills", "licence": "CC0", "pictures": 12},
        **{"tiles": 10, "held_out_tiles": 2},
    }


def test_an_empty_folder(script: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="has 0 pictures; at least 2 are needed"):
        script.folder_source(tmp_path, "CC0", 32)


def test_drawn_pictures(script: ModuleType) -> None:
    source = script.synthetic_source(2, 32, workers=1)
    assert len(source.tiles) + len(source.held_out) == source.pictures == 12
    every = {t.numpy().tobytes() for t in (*source.tiles, *source.held_out)}
    assert len(every) == 12
    again = script.synthetic_source(2, 32, workers=1)
    assert (again.tiles == source.tiles).all()


def test_only_free_pictures_of_scikit_image(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Spec:
        origin = str(tmp_path / "__init__.py")

    (tmp_path / "data").mkdir()
    for name in ("brick.png", "coffee.png", "moon.png"):
        Image.new("L", (40, 40)).save(tmp_path / "data" / name)
    monkeypatch.setattr(script.importlib.util, "find_spec", lambda _: Spec())
    assert script.skimage_source(32).pictures == 2
    monkeypatch.setattr(script.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(DatasetError, match="leave out --skimage"):
        script.skimage_source(32)


def test_no_pictures_at_all(script: ModuleType) -> None:
    with pytest.raises(DatasetError, match="no pictures: give --pictures"):
        script.gather([], side=32, synthetic=0, skimage=False)
