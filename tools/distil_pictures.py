"""The pictures that the built-in encoder learns from, with their licences.

    folders named on the command line, each with its licence
    pictures that the package draws itself (mambaad.data.synthetic), good and defective ones
    pictures that scikit-image installs, those its documentation calls CC0 or public domain

Each becomes one or more square tiles of ``side`` pixels. One picture in ten of every source is
held out: nothing is learned from it, and the quality is measured on it.
"""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mambaad.data.images import load_picture, resize_picture
from mambaad.data.synthetic import CATEGORIES, defects_of, render
from mambaad.errors import DatasetError

SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
HELD_OUT = 10
"""One picture in so many is held out."""

FREE = (
    *("astronaut.png", "brick.png", "camera.png", "cell.png", "chelsea.png", "clock_motion.png"),
    *("coffee.png", "grass.png", "gravel.png", "hubble_deep_field.jpg", "microaneurysms.png"),
    *("retina.jpg", "rocket.jpg", "text.png"),
)
"""Of scikit-image's bundled pictures those with CC0 or public domain in their documentation."""

SYNTHETIC_SEED = 60_000
"""Far from the seeds that demonstrations and tests draw with."""


@dataclass(frozen=True)
class Source:
    """Pictures of one origin."""

    name: str
    licence: str
    tiles: Tensor
    """uint8, (N, 3, side, side)."""

    held_out: Tensor
    """The same, of pictures that nothing is learned from."""

    pictures: int
    """How many pictures the tiles were cut from, held-out ones included."""

    def to_mapping(self) -> dict[str, str | int]:
        """What is said of it beside the weights."""
        return {
            "name": self.name,
            "licence": self.licence,
            "pictures": self.pictures,
            "tiles": len(self.tiles),
            "held_out_tiles": len(self.held_out),
        }


def tiles_of(picture: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Squares that cover a picture, edge to edge; a small picture is enlarged first.

    Args:
        picture: uint8, (H, W, 3).
        side: Height and width of a square.

    Returns:
        uint8, (N, side, side, 3).
    """
    height, width = picture.shape[:2]
    if min(height, width) < side:
        factor = side / min(height, width)
        size = max(side, round(height * factor)), max(side, round(width * factor))
        picture = resize_picture(picture, size)
        height, width = size
    tops, lefts = (_starts(length, side) for length in (height, width))
    return np.stack([picture[y : y + side, x : x + side] for y in tops for x in lefts])


def _starts(length: int, side: int) -> list[int]:
    count = math.ceil(length / side)
    return [round(i * (length - side) / max(1, count - 1)) for i in range(count)]


def make_source(
    name: str, licence: str, pictures: Iterable[NDArray[np.uint8]], side: int
) -> Source:
    """Cut pictures into tiles and hold some of them out.

    Raises:
        DatasetError: If there are none.
    """
    learned: list[NDArray[np.uint8]] = []
    held_out: list[NDArray[np.uint8]] = []
    count = 0
    for picture in pictures:
        (held_out if count % HELD_OUT == 0 else learned).append(tiles_of(picture, side))
        count += 1
    if count < 2:
        raise DatasetError(f"{name} has {count} pictures; at least 2 are needed")
    tiles = [
        torch.from_numpy(np.concatenate(part)).permute(0, 3, 1, 2).contiguous()
        for part in (learned, held_out)
    ]
    return Source(name, licence, tiles[0], tiles[1], count)


def folder_source(folder: Path, licence: str, side: int) -> Source:
    """Every picture of a folder and of those inside it, by name.

    Raises:
        DatasetError: If it has too few.
        ImageError: If one cannot be read.
    """
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
    return make_source(folder.name, licence, map(load_picture, paths), side)


def skimage_source(side: int) -> Source:
    """The free ones of the pictures that scikit-image brings along.

    Raises:
        DatasetError: If it is not installed, or came without them.
    """
    found = importlib.util.find_spec("skimage")  # its import takes a second and is not needed
    if found is None or found.origin is None:
        raise DatasetError("scikit-image is not installed: install it, or leave out --skimage")
    folder = Path(found.origin).parent / "data"
    paths = [path for path in (folder / name for name in FREE) if path.is_file()]
    licence = "CC0 or public domain, by scikit-image's documentation of each"
    return make_source("scikit-image", licence, map(load_picture, paths), side)


def synthetic_source(each: int, side: int, workers: int | None = None) -> Source:
    """Pictures that the package draws: every category, every second one with a defect.

    Args:
        each: Pictures of a category.
        side: Their height and width.
        workers: Processes that draw; None takes one for each processor.
    """
    jobs = [(category, number) for number in range(each) for category in CATEGORIES]
    name, licence = "mambaad's drawings", "Apache-2.0, this project"
    workers = workers or os.cpu_count() or 1
    draw = partial(_draw, side)
    if workers == 1:
        return make_source(name, licence, map(draw, jobs), side)
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        return make_source(name, licence, pool.map(draw, jobs, chunksize=8), side)


def _draw(side: int, job: tuple[str, int]) -> NDArray[np.uint8]:
    category, number = job
    names = defects_of(category)
    defect = names[number // 2 % len(names)] if number % 2 else None
    drawn = render(
        category, size=side, seed=SYNTHETIC_SEED, split="train", number=number, defect=defect
    )
    return drawn.image


def gather(
    folders: Sequence[tuple[Path, str]],
    *,
    side: int,
    synthetic: int,
    skimage: bool,
    workers: int | None = None,
) -> list[Source]:
    """All sources asked for.

    Raises:
        DatasetError: If there is none, or one has too few pictures.
    """
    sources = [folder_source(folder, licence, side) for folder, licence in folders]
    if skimage:
        sources.append(skimage_source(side))
    if synthetic:
        sources.append(synthetic_source(synthetic, side, workers))
    if not sources:
        raise DatasetError("no pictures: give --pictures FOLDER LICENCE, --synthetic or --skimage")
    return sources
