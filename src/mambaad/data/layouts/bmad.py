"""The layout of BMAD, benchmarks for medical anomaly detection (Bao et al., CVPR workshops 2024).

::

    root/<category>/train/good/NAME.png
    root/<category>/test/good/img/NAME.png
    root/<category>/test/Ungood/img/NAME.png
    root/<category>/test/Ungood/anomaly_mask/NAME.png      or label/NAME.png
    root/<category>/valid/...                              as test; not read

The sets of its pictures that have masks are brain MRI (BraTS 2021), liver CT (BTCV and LiTS) and
retinal OCT (RESC); Uni-Medical is made of these three and lies like MVTec AD. A category without
``img/`` holds its pictures directly in ``good`` and ``Ungood``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mambaad.data.layouts.base import Layout, chosen, in_order
from mambaad.data.layouts.mvtec import categories_if
from mambaad.data.layouts.tree import (
    all_subfolders,
    by_key,
    good_folders,
    good_samples,
    key_of,
    list_pictures,
    subfolders,
)
from mambaad.data.samples import Sample

MASK_FOLDERS = ("anomaly_mask", "label")


def read_bmad(root: Path, categories: Sequence[str] = ()) -> list[Sample]:
    """Read BMAD's own layout; the module's docstring has it."""
    samples: list[Sample] = []
    for category, folder in chosen(_find(root), categories):
        train, test = (
            [_pictures(good) for good in good_folders(folder / split)]
            for split in ("train", "test")
        )
        samples += good_samples(category, train, test)
        for defect in subfolders(folder / "test"):
            place = _pictures(defect)
            masks: dict[str, Path] = {}
            for name in reversed(MASK_FOLDERS):
                masks |= by_key(list_pictures(defect / name), defect / name)
            samples += [
                Sample(path, category, "test", defect.name.lower(), masks.get(key_of(path, place)))
                for path in list_pictures(place)
            ]
    return in_order(samples)


def _pictures(kind: Path) -> Path:
    return kind / "img" if (kind / "img").is_dir() else kind


def _find(root: Path) -> dict[str, Path]:
    def shows(folder: Path) -> bool:
        return any((kind / "img").is_dir() for kind in all_subfolders(folder / "test"))

    return categories_if(root, shows)


def _masks(folder: Path) -> list[Path]:
    places = [kind / m for kind in all_subfolders(folder / "test") for m in MASK_FOLDERS]
    return [mask for place in places for mask in list_pictures(place)]


def _notes(root: Path) -> list[str]:
    held = [name for name, folder in _find(root).items() if (folder / "valid").is_dir()]
    return [f"the pictures of valid/ are left out, in {held}"] if held else []


BMAD = Layout(
    name="bmad",
    tree=(
        "<category>/train/good/NAME.png",
        "<category>/test/{good,Ungood}/img/NAME.png",
        "<category>/test/Ungood/anomaly_mask/NAME.png (or label/)",
    ),
    find=_find,
    read=read_bmad,
    notes=_notes,
    masks=_masks,
    left_alone=frozenset({"valid"}),
)
