"""Walking folders of pictures, and pairing pictures with masks by name.

* A picture is a file with one of ``PICTURE_SUFFIXES``, in any case of letters; other files and
  everything whose name begins with a dot are passed over. Folders of pictures may have folders
  inside them.
* ``good`` may also be called ``ok`` or ``normal``, ``ground_truth`` also ``masks`` or ``mask``.
* A mask belongs to the picture of the same name, with or without ``_mask`` at its end, whatever the
  file types; never to the one at the same position. Masks lie in a folder per defect, or all in
  one folder when the pictures' names differ, or beside the pictures as ``NAME_mask``. A mask that
  two pictures could claim is refused.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from mambaad.data.images import PICTURE_SUFFIXES
from mambaad.data.samples import Sample
from mambaad.errors import DatasetError

GOOD_NAMES = ("good", "ok", "normal")
MASK_NAMES = ("ground_truth", "masks", "mask")

GOOD_PLACE = f"{GOOD_NAMES[0]}/ (or {', '.join(f'{name}/' for name in GOOD_NAMES[1:])})"
"""For messages: how a folder of good pictures may be called."""


def list_pictures(folder: Path) -> list[Path]:
    """All pictures in a folder and the folders in it, sorted by their path inside it.

    Links to folders are followed, each folder once.
    """
    return sorted(walk(folder), key=lambda path: path.relative_to(folder).as_posix())


def pictures_in(folders: Iterable[Path]) -> list[Path]:
    """The pictures of several folders, one folder after the other."""
    return [path for folder in folders for path in list_pictures(folder)]


def good_samples(category: str, train: Iterable[Path], test: Iterable[Path]) -> list[Sample]:
    """The good pictures in folders of training and in folders of testing."""
    samples = [Sample(path, category, "train") for path in pictures_in(train)]
    return samples + [Sample(path, category, "test") for path in pictures_in(test)]


def defect_samples(
    category: str, defect_folders: Iterable[Path], mask_folder: Path | None
) -> list[Sample]:
    """The defective pictures of a category, each with the mask of its name if there is one.

    Args:
        category: Its name.
        defect_folders: A folder for each defect, which gives it its name.
        mask_folder: Where masks are, if not beside the pictures.

    Raises:
        DatasetError: If a mask could belong to two pictures.
    """
    masks = by_key(list_pictures(mask_folder), mask_folder) if mask_folder else {}
    samples: list[Sample] = []
    claimed: dict[Path, Path] = {}
    for defect_folder in defect_folders:
        defect = defect_folder.name
        pictures = list_pictures(defect_folder)
        named = by_key(pictures, defect_folder)
        beside = {k: p for k, p in named.items() if k.removesuffix("_mask") != k}
        beside = {k: p for k, p in beside.items() if k.removesuffix("_mask") in named}
        for picture in pictures:
            key = key_of(picture, defect_folder)
            if key in beside:
                continue
            mask = beside.get(f"{key}_mask") or find_mask(masks, defect, key)
            if mask is not None and mask in claimed:
                raise DatasetError(
                    f"the mask {mask} could belong to {claimed[mask]} or to {picture}; give every "
                    "picture a name of its own, or put the masks in a folder per defect"
                )
            if mask is not None:
                claimed[mask] = picture
            samples.append(Sample(picture, category, "test", defect, mask))
    return samples


def find_mask(masks: Mapping[str, Path], defect: str, key: str) -> Path | None:
    """The mask of the picture ``key``: in its defect's folder, else in the folder of all masks."""
    name = key.rpartition("/")[2]
    for place in (f"{defect}/{key}", f"{defect}/{name}", key, name):
        mask = masks.get(f"{place}_mask") or masks.get(place)
        if mask is not None:
            return mask
    return None


def by_key(paths: Sequence[Path], folder: Path) -> dict[str, Path]:
    """Paths by what pictures and masks are paired by; the first of a name counts."""
    return {key_of(path, folder): path for path in reversed(paths)}


def key_of(path: Path, folder: Path) -> str:
    """The path inside the folder, without the file's type."""
    return path.relative_to(folder).with_suffix("").as_posix()


def all_subfolders(folder: Path) -> list[Path]:
    """The visible folders in a folder, sorted; none if it does not exist."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if _is_visible(path.name) and path.is_dir())


def subfolders(folder: Path, reserved: Sequence[str] = GOOD_NAMES + MASK_NAMES) -> list[Path]:
    """The folders in a folder but those of good pictures and masks."""
    return [path for path in all_subfolders(folder) if path.name.lower() not in reserved]


def good_folders(folder: Path) -> list[Path]:
    """The folders of good pictures in a folder."""
    return [path for path in all_subfolders(folder) if path.name.lower() in GOOD_NAMES]


def mask_folder_in(folder: Path) -> Path | None:
    """The folder of masks in a folder."""
    names = {path.name.lower(): path for path in all_subfolders(folder)}
    return next((names[name] for name in MASK_NAMES if name in names), None)


def masks_in(folder: Path) -> list[Path]:
    """Every picture in the folder of masks in a folder, used or not."""
    masks = mask_folder_in(folder)
    return [] if masks is None else list_pictures(masks)


def files_in(folder: Path) -> list[Path]:
    """The pictures that lie directly in a folder, in no order."""
    if not folder.is_dir():
        return []
    return [path for path in folder.iterdir() if path.is_file() and _is_picture(path.name)]


def has_pictures(folder: Path) -> bool:
    """Whether there is a picture in a folder or in the folders in it."""
    return any(True for _ in walk(folder))


def walk(folder: Path) -> Iterator[Path]:
    """Pictures in a folder and the folders in it, in no order; each folder once."""
    seen: set[str] = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        folders[:] = [f for f in folders if _is_visible(f)] if real not in seen else []
        yield from (Path(place, f) for f in files if real not in seen and _is_picture(f))
        seen.add(real)


def what_is_in(folder: Path) -> str:
    """For messages: the folders and the number of pictures in a folder."""
    names = [path.name for path in all_subfolders(folder)]
    shown = names[:8] + (["..."] if len(names) > 8 else [])
    count = len(files_in(folder))
    pictures = "1 picture" if count == 1 else f"{count} pictures"
    return f"found the folders {shown} and {pictures} directly in it"


def _is_visible(name: str) -> bool:
    return not name.startswith(".") and name != "__MACOSX"


def _is_picture(name: str) -> bool:
    return _is_visible(name) and Path(name).suffix.lower() in PICTURE_SUFFIXES
