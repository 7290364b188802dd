"""Miniature data sets on disk: files, and what a reader made of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from zlib import crc32

import numpy as np
from PIL import Image

from mambaad.data.samples import Dataset, Sample

MASK_PARTS = ("mask", "/gt/", "ground_truth", "/label/")


def lay(root: Path, *names: str) -> Path:
    """Empty files: a reader looks at names only."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def paint(root: Path, *names: str) -> Path:
    """Pictures of 32 x 32 pixels that all differ; masks mark their upper left quarter."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.zeros((32, 32), np.uint8)
        if any(part in name.lower() for part in MASK_PARTS):
            pixels[:16, :16] = 255
        else:
            noise = np.random.default_rng(crc32(name.encode()))
            pixels[:] = noise.integers(0, 256, (32, 32))
        Image.fromarray(pixels).save(path)
    return root


def rows(found: Dataset | list[Sample], root: Path) -> list[tuple[str, str, str, str, str]]:
    """File, category, split, defect and mask of each sample."""
    return [
        (
            s.image.relative_to(root).as_posix(),
            s.category,
            s.split,
            s.defect,
            "" if s.mask is None else s.mask.relative_to(root).as_posix(),
        )
        for s in found
    ]


def counts(found: Iterable[Sample]) -> dict[tuple[str, str, str], int]:
    """How many samples there are of a category, split and defect."""
    return dict(Counter((s.category, s.split, s.defect) for s in found))
