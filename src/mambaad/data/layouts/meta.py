"""ADer's ``meta.json``: a list of records, whatever the tree; and COCO-AD's four, one a split.

::

    {"train": {<category>: [record, ...]}, "test": {...}, "validation": {...}}
    record = {"img_path", "mask_path" ("" if good), "cls_name", "specie_name", "anomaly": 0 or 1}

Paths are relative to the list's folder. Good pictures of ``validation``, which MVTec 3D-AD has,
train too, as ADer does it. ``coco-ad-0`` to ``coco-ad-3`` read ``meta_20_0.json`` to
``meta_20_3.json``, which ``mambaad prepare coco-ad`` writes: split x calls the 20 COCO classes of
block x defects (see ``mambaad.data.coco``). Split 0 is the one of the published configuration, the
paper's figure the mean of the four.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mambaad.data.layouts.base import Layout
from mambaad.data.layouts.listed import UNNAMED_DEFECT, checked, field, once, read_json, records
from mambaad.data.samples import Sample, Split
from mambaad.errors import DatasetError

META = "meta.json"
COCO_SPLITS = 4
SPLITS: dict[str, Split] = {"train": "train", "validation": "train", "test": "test"}
"""What each part of the list is for."""


def read_meta(root: Path, categories: Sequence[str] = (), *, name: str = META) -> list[Sample]:
    """Read a list of ADer's.

    Args:
        root: The folder of the list, or the list itself.
        categories: Categories to read; empty means all.
        name: File of the list in the folder.

    Raises:
        DatasetError: If the list cannot be read, or names files that are not there.
    """
    source = _source(root, name)
    parts = _parts(source)
    samples = [
        _sample(record, category, split, source)
        for part, split in SPLITS.items()
        for category, found in parts[part].items()
        if not categories or category in categories
        for record in found
    ]
    return checked(samples, source)


def coco_meta(split: int) -> str:
    """File of the records of a split of COCO-AD, as ADer names it."""
    return f"meta_20_{split}.json"


def _sample(record: Any, category: str, split: Split, source: Path) -> Sample:
    image, mask = field(record, "img_path", source), field(record, "mask_path", source)
    label = record.get("anomaly")
    if not image or label not in (0, 1):
        raise DatasetError(
            f"a record in {source} must have an img_path, and 0 or 1 as anomaly; "
            f"got {record!r:.200}"
        )
    kind = field({"specie_name": ""} | record, "specie_name", source)
    defect = UNNAMED_DEFECT if kind in ("", "good") else kind
    folder = source.parent
    return Sample(
        folder / image,
        category,
        split,
        defect if label else "good",
        folder / mask if mask and label else None,
    )


@once
def _parts(source: Path) -> dict[str, dict[str, list[Any]]]:
    content, parts = read_json(source), {}
    for name in SPLITS:
        part = content.get(name, {})
        if not isinstance(part, dict):
            raise DatasetError(f"{name!r} in {source} must map categories to lists of records")
        parts[name] = {category: records(part, category, source) for category in part}
    if not any(parts.values()):
        raise DatasetError(f"{source} has neither 'train' nor 'test' records")
    return parts


def _source(root: Path, name: str) -> Path:
    return root if root.is_file() else root / name


def _find(root: Path, name: str) -> dict[str, Path]:
    source = _source(root, name)
    if not source.is_file():
        return {}
    return {c: source.parent for part in _parts(source).values() for c in part}


def _notes(root: Path) -> list[str]:
    source = _source(root, META)
    count = sum(len(found) for found in _parts(source)["validation"].values())
    return [f"{count} pictures of 'validation' train too, as in ADer"] if count else []


def _coco(split: int) -> Layout:
    name = coco_meta(split)
    note = f"COCO-AD's split {split} of 0 to {COCO_SPLITS - 1}; published means are over all four"
    return Layout(
        name=f"coco-ad-{split}",
        tree=(
            f"{name} (mambaad prepare coco-ad makes it)",
            "train2017/NAME.jpg, val2017/NAME.jpg",
            f"val2017_mask_ad_20_{split}/NAME.png",
        ),
        find=partial(_find, name=name),
        read=partial(read_meta, name=name),
        notes=lambda _: [note],
    )


META_JSON = Layout(
    name="meta",
    tree=("meta.json (its records name the files)",),
    find=partial(_find, name=META),
    read=read_meta,
    notes=_notes,
)
COCO_AD = tuple(_coco(split) for split in range(COCO_SPLITS))
