"""A user's own pictures, sorted into good ones and one folder per defect.

::

    root/<category>/good/NAME.jpg
    root/<category>/<defect>/NAME.jpg
    root/<category>/masks/<defect>/NAME.png

``root`` may be one category itself; ``good`` may also be called ``ok`` or ``normal``. There is no
split: of the good pictures in the order of their names, every fifth goes to the test, but only in a
category that has defective ones. A ``root`` that holds nothing but pictures is one category of good
ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from mambaad.data.layouts.base import Layout, chosen, in_order, name_of, split_good
from mambaad.data.layouts.tree import (
    GOOD_PLACE,
    all_subfolders,
    defect_samples,
    files_in,
    good_folders,
    has_pictures,
    mask_folder_in,
    masks_in,
    pictures_in,
    subfolders,
)
from mambaad.data.samples import Sample
from mambaad.errors import DatasetError


def read_folder(root: Path, categories: Sequence[str] = ()) -> list[Sample]:
    """Read a plain folder of good and defective pictures; the module's docstring has the rules.

    Raises:
        DatasetError: If a folder's pictures can be neither good nor defective ones, masks lie
            outside the categories, or a mask is ambiguous.
    """
    samples: list[Sample] = []
    found = _find(root)
    if root not in found.values() and not categories:
        _refuse_strays(root, found)
    for category, folder in chosen(found, categories):
        goods = good_folders(folder)
        defects = defect_samples(category, subfolders(folder), mask_folder_in(folder))
        good = pictures_in(goods)
        if folder == root and not goods:
            good = sorted(files_in(root))
        samples += split_good(category, good, has_defects=bool(defects))
        samples += defects
    return in_order(samples)


def _find(root: Path) -> dict[str, Path]:
    inside = subfolders(root)
    if good_folders(root) or (files_in(root) and not any(map(has_pictures, inside))):
        return {name_of(root): root}
    categories = {
        folder.name: folder
        for folder in inside
        if good_folders(folder) or any(map(has_pictures, all_subfolders(folder)))
    }
    # defects with sub-folders, and no good/ anywhere, would pass for categories
    return categories if any(map(good_folders, categories.values())) else {}


def _refuse_strays(root: Path, categories: Mapping[str, Path]) -> None:
    masks = mask_folder_in(root)
    if masks is not None:
        raise DatasetError(
            f"{masks} lies beside the categories {sorted(categories)}; "
            f"put a {masks.name}/ in each category's folder"
        )
    strays = [f.name for f in subfolders(root) if f.name not in categories and has_pictures(f)]
    if strays:
        raise DatasetError(
            f"{strays} in {root} hold pictures but no {GOOD_PLACE}, as the categories "
            f"{sorted(categories)} do; name the categories to use, or move them away"
        )


FOLDER = Layout(
    name="folder",
    tree=(
        "<category>/good/NAME.jpg",
        "<category>/<defect>/NAME.jpg",
        "<category>/masks/<defect>/NAME.png",
    ),
    find=_find,
    read=read_folder,
    masks=masks_in,
)
