"""The built-in procedural benchmark: six products, good and defective, with exact masks.

Every picture is a function of (seed, category, split, number, defect) and nothing else, so the set
needs no file, no download, and is the same however many pictures are asked for. It is meant for
tests, demonstrations and installations without a data set; it is no substitute for one.

A defective picture is the good picture of the same key with one defect. Its mask holds the pixels
of which a channel differs by at least ``VISIBLE`` levels, with gaps of a pixel or two and small
holes closed and specks dropped. Outside the mask the two pictures are equal, byte for byte.

Source: original; the layout on disk is MVTec AD's (Bergmann et al., CVPR 2019).
"""

from __future__ import annotations

import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from mambaad.data.samples import Split
from mambaad.data.synthetic_board import BOARD_DEFECTS, board
from mambaad.data.synthetic_camera import Camera, quantise
from mambaad.data.synthetic_canvas import Surface
from mambaad.data.synthetic_defects import Fault, SurfaceDefect
from mambaad.data.synthetic_objects import BISCUIT_DEFECTS, BLISTER_DEFECTS, biscuit, blister
from mambaad.data.synthetic_textures import (
    FABRIC_DEFECTS,
    METAL_DEFECTS,
    WOOD_DEFECTS,
    fabric,
    metal,
    wood,
)
from mambaad.errors import ConfigError, DatasetError

VISIBLE = 4
"""A pixel is defective if one of its channels changes by at least this many of 255 levels."""

Builder = Callable[[int, np.random.Generator, Fault | None], Surface]


@dataclass(frozen=True)
class _Product:
    build: Builder
    defects: dict[str, SurfaceDefect | None]
    """None: the builder makes the defect itself, because it is one of structure."""


_PRODUCTS = {
    "biscuit": _Product(biscuit, BISCUIT_DEFECTS),
    "blister": _Product(blister, BLISTER_DEFECTS),
    "board": _Product(board, BOARD_DEFECTS),
    "fabric": _Product(fabric, FABRIC_DEFECTS),
    "metal": _Product(metal, METAL_DEFECTS),
    "wood": _Product(wood, WOOD_DEFECTS),
}

CATEGORIES: tuple[str, ...] = tuple(sorted(_PRODUCTS))
"""The products, sorted by name."""

_ATTEMPTS = 6


@dataclass(frozen=True)
class Picture:
    """One picture of a product."""

    image: NDArray[np.uint8]
    """(size, size, 3), RGB."""

    mask: NDArray[np.bool_]
    """(size, size), True where the defect changed the picture; all False for a good picture."""

    defect: str
    """``good``, or the name of the defect."""


def defects_of(category: str) -> tuple[str, ...]:
    """Names of the defects that a category can have, sorted.

    Raises:
        ConfigError: If the category is unknown.
    """
    return tuple(sorted(_product(category).defects))


def render(
    category: str,
    *,
    size: int = 256,
    seed: int,
    split: Split,
    number: int,
    defect: str | None = None,
) -> Picture:
    """Render one picture. The same arguments give the same bytes.

    Args:
        category: One of ``CATEGORIES``.
        size: Height and width in pixels, at least 32. The scene does not depend on it.
        seed: Of the whole set, at least 0.
        split: ``train`` or ``test``; their pictures are different ones.
        number: Which picture of the split, at least 0.
        defect: One of ``defects_of(category)``; None renders the good product of the same key.

    Raises:
        ConfigError: If the category, the split or the defect is unknown, or a number is too small.
    """
    product = _product(category)
    _check_least("size", size, 32)
    _check_least("seed", seed, 0)
    _check_least("number", number, 0)
    if split not in ("train", "test"):
        raise ConfigError(f"split must be 'train' or 'test', got {split!r}")
    if defect is not None and defect not in product.defects:
        raise ConfigError(f"{category} has the defects {sorted(product.defects)}; got {defect!r}")

    key = [seed, zlib.crc32(category.encode()), int(split == "test"), number]
    n = size * (4 if size < 128 else 2)
    camera = Camera.draw(np.random.default_rng([*key, 1]))
    surface = product.build(n, np.random.default_rng([*key, 0]), None)
    exposed = camera.expose(surface, size)
    grain = camera.grain(np.random.default_rng([*key, 2]), exposed)
    good = quantise(exposed + grain)
    if defect is None:
        return Picture(good, np.zeros((size, size), dtype=np.bool_), "good")

    # a defect that comes out too faint is drawn again, plainer each time; the best one is kept
    best = Picture(good, np.zeros((size, size), dtype=np.bool_), defect)
    for attempt in range(_ATTEMPTS):
        changed = _flawed(product, surface, key, defect, attempt)
        flawed = quantise(camera.expose(changed, size) + grain)
        mask = _visible_change(good, flawed)
        if mask.sum() > best.mask.sum():
            best = Picture(np.where(mask[..., None], flawed, good), mask, defect)
        if mask.sum() >= max(5, 3e-4 * size**2):
            break
    return best


def _flawed(
    product: _Product, surface: Surface, key: Sequence[int], defect: str, attempt: int
) -> Surface:
    rng = np.random.default_rng([*key, 3, zlib.crc32(defect.encode()), attempt])
    low = attempt / _ATTEMPTS
    strength, extent = float(rng.uniform(low, 1)), float(rng.uniform(low, 1))
    fault = Fault(defect, rng, strength, extent)
    apply = product.defects[defect]
    if apply is None:
        return product.build(surface.n, np.random.default_rng([*key, 0]), fault)
    changed = surface.copy()
    apply(changed, fault)
    return changed


def _visible_change(good: NDArray[np.uint8], flawed: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Where two pictures differ visibly: (h, w) bool, gaps closed and specks dropped."""
    difference = np.abs(good.astype(np.int16) - flawed.astype(np.int16)).max(axis=2)
    changed = difference >= VISIBLE
    radius = max(1, round(good.shape[0] / 128))
    padded = np.pad(changed, radius)  # closing would otherwise eat what touches the border
    closed = ndimage.binary_closing(padded, iterations=radius)[radius:-radius, radius:-radius]
    closed = _without_small_holes(closed)
    parts, count = ndimage.label(closed, structure=np.ones((3, 3)))
    areas = np.bincount(parts.ravel(), minlength=count + 1)
    kept = areas >= max(min(3, good.shape[0] // 20), 1e-4 * changed.size)
    kept[0] = False
    mask: NDArray[np.bool_] = kept[parts]
    return mask


def _without_small_holes(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Fill what a mask encloses up to 0.4 % of the picture; the inside of a fibre's loop stays."""
    holes, count = ndimage.label(~mask)
    areas = np.bincount(holes.ravel(), minlength=count + 1)
    small = areas <= 4e-3 * mask.size
    small[0] = True
    filled: NDArray[np.bool_] = small[holes]
    return filled


def synthesize(
    folder: Path,
    *,
    seed: int = 0,
    size: int = 256,
    train: int = 60,
    good: int = 20,
    defective: int = 20,
    categories: Sequence[str] = CATEGORIES,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write the benchmark in the layout of MVTec AD.

    The pictures are written beside ``folder`` and moved there when all are done: an interrupted
    call leaves nothing under the final name.

    Args:
        folder: Where to; must not exist, or be an empty folder.
        seed: Of the whole set.
        size: Height and width of every picture, at least 32.
        train: Good training pictures of a category, at least 1.
        good: Good test pictures of a category, at least 1.
        defective: Defective test pictures of a category, taken from its defects in turn.
        categories: Which products.
        progress: Called with (done, total) pictures after each.

    Raises:
        ConfigError: If a category is unknown or given twice, or a number is too small.
        DatasetError: If ``folder`` is not empty, or cannot be written.
    """
    for name, value in (("train", train), ("good", good), ("defective", defective)):
        _check_least(name, value, 1)
    _check_least("size", size, 32)
    _check_least("seed", seed, 0)
    if isinstance(categories, str) or not categories or len(set(categories)) < len(categories):
        raise ConfigError(
            f"categories must be different names of {list(CATEGORIES)}; got {categories!r}"
        )
    for category in categories:
        _product(category)
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DatasetError(f"{folder} exists and is not empty; name a new folder or empty it first")

    jobs = [job for category in categories for job in _jobs(category, train, good, defective)]
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
            for done, job in enumerate(jobs, start=1):
                _write(Path(scratch) / "set", job, seed=seed, size=size)
                if progress is not None:
                    progress(done, len(jobs))
            if folder.exists():
                folder.rmdir()
            shutil.move(Path(scratch) / "set", folder)
    except OSError as error:
        raise DatasetError(f"cannot write the pictures to {folder}: {error}") from error


@dataclass(frozen=True)
class _Job:
    category: str
    split: Split
    number: int
    """Of ``render``. In the test split good pictures are even and defective ones odd, so that
    neither depends on how many of the other there are."""
    defect: str | None
    file: int
    """Number in the file's name."""


def _jobs(category: str, train: int, good: int, defective: int) -> Iterator[_Job]:
    kinds = defects_of(category)
    for k in range(train):
        yield _Job(category, "train", k, None, k)
    for k in range(good):
        yield _Job(category, "test", 2 * k, None, k)
    for k in range(defective):
        yield _Job(category, "test", 2 * k + 1, kinds[k % len(kinds)], k // len(kinds))


def _write(root: Path, job: _Job, *, seed: int, size: int) -> None:
    picture = render(
        job.category, size=size, seed=seed, split=job.split, number=job.number, defect=job.defect
    )
    base = root / job.category
    image = base / job.split / picture.defect / f"{job.file:03d}.png"
    image.parent.mkdir(parents=True, exist_ok=True)
    # level 1 halves the time of writing noisy pictures and costs a few per cent in size
    Image.fromarray(picture.image).save(image, compress_level=1)
    if job.defect is not None:
        mask = base / "ground_truth" / picture.defect / f"{job.file:03d}_mask.png"
        mask.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture.mask.astype(np.uint8) * 255).save(mask)


def _product(category: str) -> _Product:
    if category not in _PRODUCTS:
        raise ConfigError(
            f"unknown category {category!r}; the built-in ones are {list(CATEGORIES)}"
        )
    return _PRODUCTS[category]


def _check_least(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigError(f"{name} must be a whole number of at least {least}, got {value!r}")
