"""The layouts of Real-IAD (Wang et al., CVPR 2024): five views of every object, and lists in JSON.

``real-iad`` reads the lists of all five views, C1 to C5, which published multi-class figures are
of; ``real-iad-single`` those of C1 alone::

    root/[realiad_1024/]<category>/OK/S0001/<category>_0001_OK_C1_<time>.jpg
    root/[realiad_1024/]<category>/NG/<defect>/S0001/<category>_0001_NG_<defect>_C1_<time>.jpg
    root/[realiad_1024/]<category>/NG/<defect>/S0001/..._mask.png
    root/realiad_jsons/[realiad_jsons/]<category>.json       or beside the categories' folders
    root/[realiad_jsons/]realiad_jsons_sv/<category>.json    for real-iad-single

``root`` may also be the folder of one resolution, with the lists beside it; it must be where
several resolutions are. It may be one category too: its list is looked for where the tree around
it would have it.

The label is the list's ``anomaly_class``, never the folder: a view of a defective object on which
its defect is not seen lies in ``NG/`` and is good. What the views of one object share is the
sample's ``group``, which sample-level metrics take the maximum over. The masks of the resized
resolutions have soft edges; as every value above 0 counts, they are a little wider than drawn, in
published figures too. The lists with contaminated training (``fuiad``) are refused.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

from mambaad.data.layouts.base import Layout, chosen, name_of
from mambaad.data.layouts.listed import checked, field, read_json, records
from mambaad.data.layouts.tree import all_subfolders
from mambaad.data.samples import Sample
from mambaad.errors import DatasetError

LISTS, SINGLE_LISTS = "realiad_jsons", "realiad_jsons_sv"
VIEW = re.compile(r"_C[1-5]_")
OBJECT = re.compile(r"S\d{4}")
SPLITS: tuple[Literal["train"], Literal["test"]] = ("train", "test")


def read_real_iad(
    root: Path, categories: Sequence[str] = (), *, lists: str = LISTS
) -> list[Sample]:
    """Read Real-IAD by its lists; the module's docstring has the layout.

    Args:
        root: The folder of the set, of one resolution or of one category.
        categories: Categories to read; empty means all.
        lists: Name of the folder of lists.

    Raises:
        DatasetError: If a list is missing, cannot be read, or names files that are not there.
    """
    samples: list[Sample] = []
    place = _lists(root, lists)
    for category, folder in chosen(_find(root, lists), categories):
        source = _list(place, category)
        content = read_json(source)
        found = [
            _sample(record, category, folder, split, source)
            for split in SPLITS
            for record in records(content, split, source)
        ]
        samples += checked(found, source)
    return samples


def _sample(
    record: object, category: str, folder: Path, split: Literal["train", "test"], source: Path
) -> Sample:
    image, mask = field(record, "image_path", source), field(record, "mask_path", source)
    kind, view = field(record, "anomaly_class", source), VIEW.search(image)
    if not kind or view is None:
        raise DatasetError(
            f"a record in {source} must have an anomaly_class, and a view _C1_ to _C5_ in its "
            f"image_path; got {record!r:.200}"
        )
    is_good = kind == "OK"
    return Sample(
        folder / image,
        category,
        split,
        "good" if is_good else kind,
        folder / mask if mask and not is_good else None,
        group=Path(image[: view.start()]).name,
    )


def _find(root: Path, lists: str) -> dict[str, Path]:
    """The categories that have both a folder and a list."""
    folders = _folders(root)
    if not folders:
        return {}
    place = _lists(root, lists)
    return {name: folder for name, folder in folders.items() if _list(place, name).is_file()}


def _folders(root: Path) -> dict[str, Path]:
    """The folders that may be categories; none if this is not Real-IAD."""
    if _is_category(root):
        return {name_of(root): root}
    pictures = _pictures(root)
    return {} if pictures is None else {path.name: path for path in all_subfolders(pictures)}


def _pictures(root: Path) -> Path | None:
    """The folder of the categories' folders; None if this is not Real-IAD."""
    if _holds_categories(root):
        return root
    found = [f for f in all_subfolders(root) if f.name.startswith("realiad_")]
    found = [f for f in found if _holds_categories(f)]
    if len(found) > 1:
        names = [f.name for f in found]
        raise DatasetError(f"{root} holds Real-IAD in the resolutions {names}; name one of them")
    return found[0] if found else None


def _holds_categories(folder: Path) -> bool:
    return any(map(_is_category, all_subfolders(folder)))


def _is_category(folder: Path) -> bool:
    return any(OBJECT.fullmatch(sample.name) for sample in all_subfolders(folder / "OK")[:1])


def _parent(folder: Path) -> Path:
    """The folder around one, also of ``.``."""
    return folder.resolve().parent if folder.name in ("", "..") else folder.parent


def _list(place: Path, category: str) -> Path:
    return place / f"{category}.json"


def _lists(root: Path, name: str) -> Path:
    """The folder of the lists.

    Raises:
        DatasetError: If there is none. To read the folders without them would give wrong labels.
    """
    is_one = _is_category(root)
    tree = _parent(root) if is_one else root
    places = [base / inner / name for base in (tree, _parent(tree)) for inner in (LISTS, "")]
    pictures = _pictures(tree)
    if name == LISTS and pictures is not None:
        places.insert(0, pictures)
    folders = _folders(root)
    for place in places:
        if any(_list(place, category).is_file() for category in folders):
            return place
    what = "one category of Real-IAD" if is_one else "Real-IAD"
    wanted = f"{name_of(root)}.json beside it" if is_one else "<category>.json"
    raise DatasetError(
        f"{root} looks like {what} but has no {name}/{wanted}: unpack its lists there, "
        "because the folders do not say which pictures are good (all views: layout real-iad; "
        "view C1 alone: real-iad-single; another set: folder)"
    )


def _notes(root: Path, lists: str) -> list[str]:
    place = _lists(root, lists)
    if _is_category(root):
        source = _list(place, name_of(root))
        return [f"labels and splits from {source}, pictures from {root}"]
    known, pictures = _find(root, lists), _pictures(root)
    absent = sorted(p.stem for p in place.glob("*.json") if p.stem not in known)
    notes = [f"labels and splits from {place.name}/, pictures from {pictures}"]
    if absent and place != pictures:
        notes.append(f"{place.name}/ also lists {absent}, which are not there")
    return notes


REAL_IAD = Layout(
    name="real-iad",
    tree=(
        "realiad_jsons/<category>.json (or beside the categories' folders)",
        "<category>/OK/S0001/<category>_0001_OK_C1_<time>.jpg",
        "<category>/NG/<defect>/S0001/<category>_0001_NG_<defect>_C1_<time>.jpg",
        "<category>/NG/<defect>/S0001/..._mask.png",
    ),
    find=partial(_find, lists=LISTS),
    read=read_real_iad,
    notes=partial(_notes, lists=LISTS),
)
REAL_IAD_SINGLE = replace(
    REAL_IAD,
    name="real-iad-single",
    tree=("realiad_jsons_sv/<category>.json", *REAL_IAD.tree[1:]),
    find=partial(_find, lists=SINGLE_LISTS),
    read=partial(read_real_iad, lists=SINGLE_LISTS),
    notes=partial(_notes, lists=SINGLE_LISTS),
)
