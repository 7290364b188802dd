"""The layout of MVTec AD (Bergmann et al., CVPR 2019), and of many sets after it.

::

    root/<category>/train/good/NAME.png
    root/<category>/test/good/NAME.png
    root/<category>/test/<defect>/NAME.png
    root/<category>/ground_truth/<defect>/NAME_mask.png

``root`` may be one category itself; its name is then the folder's. BTAD (``ok`` and ``ko``, other
file types), MPDD and Uni-Medical lie so too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from mambaad.data.layouts.base import Layout, chosen, in_order, name_of
from mambaad.data.layouts.tree import (
    GOOD_PLACE,
    defect_samples,
    files_in,
    good_folders,
    good_samples,
    mask_folder_in,
    masks_in,
    subfolders,
    what_is_in,
)
from mambaad.data.samples import Sample
from mambaad.errors import DatasetError


def read_mvtec(root: Path, categories: Sequence[str] = ()) -> list[Sample]:
    """Read the layout of MVTec AD; the module's docstring has it.

    ``train/`` may hold its pictures directly. A category may lack ``train/`` or ``test/``.

    Raises:
        DatasetError: If pictures lie where their label cannot be known, or a mask is ambiguous.
    """
    samples: list[Sample] = []
    for category, folder in chosen(mvtec_categories(root), categories):
        train, test = folder / "train", folder / "test"
        goods = good_folders(train)
        if not goods and subfolders(train):
            raise DatasetError(
                f"{train} must hold {GOOD_PLACE} with the good pictures; {what_is_in(train)}"
            )
        if any((good / "rgb").is_dir() for good in goods):
            raise DatasetError(f"{root} is laid out like MVTec 3D-AD: use the layout 'mvtec-3d'")
        if files_in(test):
            raise DatasetError(
                f"pictures lie directly in {test}; put them in test/good or test/<defect>"
            )
        samples += good_samples(category, goods or [train], good_folders(test))
        samples += defect_samples(category, subfolders(test), mask_folder_in(folder))
    return in_order(samples)


def mvtec_categories(root: Path, splits: Sequence[str] = ("train", "test")) -> dict[str, Path]:
    """The categories: folders with one of the splits. ``root`` may be one itself."""

    def has_split(folder: Path) -> bool:
        return any((folder / split).is_dir() for split in splits)

    if has_split(root):
        return {name_of(root): root}
    return {folder.name: folder for folder in subfolders(root, ()) if has_split(folder)}


def categories_if(
    root: Path, shows: Callable[[Path], bool], splits: Sequence[str] = ("train", "test")
) -> dict[str, Path]:
    """All categories, if one of them shows what tells a layout from MVTec AD's; else none."""
    found = mvtec_categories(root, splits)
    return found if any(map(shows, found.values())) else {}


MVTEC = Layout(
    name="mvtec",
    tree=(
        "<category>/train/good/NAME.png",
        "<category>/test/good/NAME.png",
        "<category>/test/<defect>/NAME.png",
        "<category>/ground_truth/<defect>/NAME_mask.png",
    ),
    find=mvtec_categories,
    read=read_mvtec,
    masks=masks_in,
)
