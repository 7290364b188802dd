"""How a data set lies on disk: one function per layout, each makes a list of ``Sample``.

``mvtec``, the layout of MVTec AD (Bergmann et al., CVPR 2019)::

    root/<category>/train/good/NAME.png
    root/<category>/test/good/NAME.png
    root/<category>/test/<defect>/NAME.png
    root/<category>/ground_truth/<defect>/NAME_mask.png

``folder``, a user's own pictures, sorted into good ones and one folder per defect::

    root/<category>/good/NAME.jpg
    root/<category>/<defect>/NAME.jpg
    root/<category>/masks/<defect>/NAME.png

Rules that hold for both:

* ``root`` may be one category itself; its name is then the folder's.
* A picture is a file with one of ``PICTURE_SUFFIXES``, in any case of letters; other files and
  everything whose name begins with a dot are passed over. Folders of pictures may have folders
  inside them.
* ``good`` may also be called ``ok`` or ``normal``, ``ground_truth`` also ``masks`` or ``mask``.
* A mask belongs to the picture of the same name, with or without ``_mask`` at its end, whatever the
  file types; never to the one at the same position. Masks lie in a folder per defect, or all in
  one folder when the pictures' names differ, or beside the pictures as ``NAME_mask``. A mask that
  two pictures could claim is refused.

The folder layout has no split of its own: of the good pictures in the order of their names, every
fifth goes to the test, because a test needs good pictures too; but only in a category that has
defective ones. Without those there is nothing to test, and all go to training. A ``root`` that
holds nothing but pictures is one category of good ones.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from mambaad.data.images import PICTURE_SUFFIXES
from mambaad.data.samples import Dataset, Sample
from mambaad.errors import ConfigError, DatasetError

GOOD_NAMES = ("good", "ok", "normal")
MASK_NAMES = ("ground_truth", "masks", "mask")
TEST_EVERY = 5
"""In the folder layout, every fifth good picture is for testing."""

EXPECTED = (
    "expected <category>/train/good with <category>/test/<defect> (MVTec AD), or good/ with one "
    "folder per defect"
)


def read_dataset(root: Path | str, layout: str = "auto", categories: Sequence[str] = ()) -> Dataset:
    """Read the folder of a data set.

    Args:
        root: The folder.
        layout: A name from ``READERS``, or ``auto``: ``mvtec`` when the folder, or a folder in
            it, has ``train/`` or ``test/``, else ``folder``.
        categories: Categories to read; empty means all.

    Returns:
        The pictures, sorted by category, split, defect and file name.

    Raises:
        ConfigError: If there is no such layout.
        DatasetError: If the folder is not laid out so, or lacks a named category.
    """
    if layout != "auto" and layout not in READERS:
        raise ConfigError(f"layout must be one of {['auto', *READERS]}, got {layout!r}")
    root = Path(root).expanduser()
    if not root.is_dir():
        what = "is a file, not a folder" if root.is_file() else "does not exist"
        raise DatasetError(f"no data set at {root}: it {what}")
    candidates = list(READERS) if layout == "auto" else [layout]
    found = next((name for name in candidates if find_categories(root, name)), None)
    if found is None:
        kind = "data set" if layout == "auto" else f"data set of the layout {layout!r}"
        raise DatasetError(f"{root} is no {kind}: {_seen(root)}; {EXPECTED}")
    known = sorted(find_categories(root, found))
    unknown = sorted(set(categories) - set(known))
    if unknown:
        raise DatasetError(f"no category {unknown} in {root}; it has {known}")
    samples = READERS[found](root, categories)
    if not samples:
        raise DatasetError(f"no pictures in {root}: {_seen(root)}; {EXPECTED}")
    return Dataset(root, found, tuple(samples))


def read_mvtec(root: Path, categories: Sequence[str] = ()) -> list[Sample]:
    """Read the layout of MVTec AD; the module's docstring has the rules.

    ``train/`` may hold its pictures directly. A category may lack ``train/`` or ``test/``.

    Raises:
        DatasetError: If pictures lie where their label cannot be known, or a mask is ambiguous.
    """
    samples: list[Sample] = []
    for category, folder in _chosen(_mvtec_categories(root), categories):
        train, test = folder / "train", folder / "test"
        goods = _good_folders(train)
        if not goods and _subfolders(train):
            raise DatasetError(f"{train} must hold good/ with the good pictures; {_seen(train)}")
        if any((good / "rgb").is_dir() for good in goods):
            raise DatasetError(f"{root} is laid out like MVTec 3D-AD, which is not supported")
        if _files(test):
            raise DatasetError(
                f"pictures lie directly in {test}; put them in test/good or test/<defect>"
            )
        good = [p for f in goods or [train] for p in list_pictures(f)]
        samples += [Sample(p, category, "train") for p in good]
        tested = [p for f in _good_folders(test) for p in list_pictures(f)]
        samples += [Sample(p, category, "test") for p in tested]
        samples += _defects(category, folder, _subfolders(test))
    return sorted(samples, key=_order)


def read_folder(root: Path, categories: Sequence[str] = ()) -> list[Sample]:
    """Read a plain folder of good and defective pictures; the module's docstring has the rules.

    Raises:
        DatasetError: If a folder's pictures can be neither good nor defective ones, masks lie
            outside the categories, or a mask is ambiguous.
    """
    samples: list[Sample] = []
    found = _folder_categories(root)
    if root not in found.values() and not categories:
        _refuse_strays(root, found)
    for category, folder in _chosen(found, categories):
        goods = _good_folders(folder)
        defects = _defects(category, folder, _subfolders(folder))
        good = [p for f in goods for p in list_pictures(f)]
        if folder == root and not goods:
            good = sorted(_files(root))
        tested = set(good[TEST_EVERY - 1 :: TEST_EVERY] if defects else ())
        samples += [Sample(p, category, "test" if p in tested else "train") for p in good]
        samples += defects
    return sorted(samples, key=_order)


Reader = Callable[[Path, Sequence[str]], list[Sample]]

READERS: dict[str, Reader] = {"mvtec": read_mvtec, "folder": read_folder}
"""Every layout that can be named; ``auto`` tries them in this order."""


def list_pictures(folder: Path) -> list[Path]:
    """All pictures in a folder and the folders in it, sorted by their path inside it.

    Links to folders are followed, each folder once.
    """
    return sorted(_walk(folder), key=lambda path: path.relative_to(folder).as_posix())


def list_masks(dataset: Dataset) -> list[Path]:
    """Every picture in the mask folders of the data set's categories, used or not."""
    known = find_categories(dataset.root, dataset.layout)
    folders = [_mask_folder(known[category]) for category in dataset.categories]
    return [path for folder in folders if folder is not None for path in list_pictures(folder)]


def find_categories(root: Path, layout: str) -> dict[str, Path]:
    """Name and folder of each category that a layout sees in ``root``, also of empty ones.

    Args:
        root: The folder of a data set.
        layout: A name from ``READERS``.
    """
    return _FINDERS[layout](root)


def _mvtec_categories(root: Path) -> dict[str, Path]:
    def has_split(folder: Path) -> bool:
        return (folder / "train").is_dir() or (folder / "test").is_dir()

    if has_split(root):
        return {_name(root): root}
    return {folder.name: folder for folder in _subfolders(root, ()) if has_split(folder)}


def _folder_categories(root: Path) -> dict[str, Path]:
    subfolders = _subfolders(root)
    if _good_folders(root) or (_files(root) and not any(map(_has_pictures, subfolders))):
        return {_name(root): root}
    categories = {
        folder.name: folder
        for folder in subfolders
        if _good_folders(folder) or any(map(_has_pictures, _all_subfolders(folder)))
    }
    # defects with sub-folders, and no good/ anywhere, would pass for categories
    return categories if any(map(_good_folders, categories.values())) else {}


_FINDERS: dict[str, Callable[[Path], dict[str, Path]]] = {
    "mvtec": _mvtec_categories,
    "folder": _folder_categories,
}


def _refuse_strays(root: Path, categories: Mapping[str, Path]) -> None:
    masks = _mask_folder(root)
    if masks is not None:
        raise DatasetError(
            f"{masks} lies beside the categories {sorted(categories)}; "
            f"put a {masks.name}/ in each category's folder"
        )
    strays = [f.name for f in _subfolders(root) if f.name not in categories and _has_pictures(f)]
    if strays:
        raise DatasetError(
            f"{strays} in {root} hold pictures but no good/, as the categories "
            f"{sorted(categories)} do; name the categories to use, or move them away"
        )


def _defects(category: str, folder: Path, defect_folders: Sequence[Path]) -> list[Sample]:
    """The defective pictures of a category, each with the mask of its name if there is one."""
    mask_folder = _mask_folder(folder)
    masks = _by_key(list_pictures(mask_folder), mask_folder) if mask_folder else {}
    samples: list[Sample] = []
    claimed: dict[Path, Path] = {}
    for defect_folder in defect_folders:
        defect = defect_folder.name
        pictures = list_pictures(defect_folder)
        by_key = _by_key(pictures, defect_folder)
        beside = {k: p for k, p in by_key.items() if k.removesuffix("_mask") != k}
        beside = {k: p for k, p in beside.items() if k.removesuffix("_mask") in by_key}
        for picture in pictures:
            key = _key(picture, defect_folder)
            if key in beside:
                continue
            mask = beside.get(f"{key}_mask") or _find_mask(masks, defect, key)
            if mask is not None and mask in claimed:
                raise DatasetError(
                    f"the mask {mask} could belong to {claimed[mask]} or to {picture}; give every "
                    "picture a name of its own, or put the masks in a folder per defect"
                )
            if mask is not None:
                claimed[mask] = picture
            samples.append(Sample(picture, category, "test", defect, mask))
    return samples


def _find_mask(masks: Mapping[str, Path], defect: str, key: str) -> Path | None:
    """The mask of the picture ``key``: in its defect's folder, else in the folder of all masks."""
    name = key.rpartition("/")[2]
    for place in (f"{defect}/{key}", f"{defect}/{name}", key, name):
        mask = masks.get(f"{place}_mask") or masks.get(place)
        if mask is not None:
            return mask
    return None


def _by_key(paths: Sequence[Path], folder: Path) -> dict[str, Path]:
    return {_key(path, folder): path for path in reversed(paths)}  # the first of a name counts


def _key(path: Path, folder: Path) -> str:
    return path.relative_to(folder).with_suffix("").as_posix()


def _chosen(known: Mapping[str, Path], categories: Sequence[str]) -> list[tuple[str, Path]]:
    return [
        (name, folder) for name, folder in known.items() if not categories or name in categories
    ]


def _order(sample: Sample) -> tuple[str, str, str, str]:
    return sample.category, sample.split, sample.defect, sample.image.as_posix()


def _name(root: Path) -> str:
    return root.resolve().name if root.name in ("", "..") else root.name


def _all_subfolders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if _is_visible(path.name) and path.is_dir())


def _subfolders(folder: Path, reserved: Sequence[str] = GOOD_NAMES + MASK_NAMES) -> list[Path]:
    return [path for path in _all_subfolders(folder) if path.name.lower() not in reserved]


def _good_folders(folder: Path) -> list[Path]:
    return [path for path in _all_subfolders(folder) if path.name.lower() in GOOD_NAMES]


def _mask_folder(folder: Path) -> Path | None:
    names = {path.name.lower(): path for path in _all_subfolders(folder)}
    return next((names[name] for name in MASK_NAMES if name in names), None)


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return [path for path in folder.iterdir() if path.is_file() and _is_picture(path.name)]


def _has_pictures(folder: Path) -> bool:
    return any(True for _ in _walk(folder))


def _walk(folder: Path) -> Iterator[Path]:
    seen: set[str] = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        folders[:] = [f for f in folders if _is_visible(f)] if real not in seen else []
        yield from (Path(place, f) for f in files if real not in seen and _is_picture(f))
        seen.add(real)


def _is_visible(name: str) -> bool:
    return not name.startswith(".") and name != "__MACOSX"


def _is_picture(name: str) -> bool:
    return _is_visible(name) and Path(name).suffix.lower() in PICTURE_SUFFIXES


def _seen(folder: Path) -> str:
    names = [path.name for path in _all_subfolders(folder)]
    shown = names[:8] + (["..."] if len(names) > 8 else [])
    return f"found the folders {shown} and {len(_files(folder))} pictures directly in it"
