"""The original tree of VisA (Zou et al., ECCV 2022), with its one-class split.

::

    root/split_csv/1cls.csv                      columns object, split, label, image, mask
    root/<category>/Data/Images/Normal/NAME.JPG
    root/<category>/Data/Images/Anomaly/NAME.JPG
    root/<category>/Data/Masks/Anomaly/NAME.png

Masks hold a number for each kind of defect (1, 2, ...), so every value above 0 is defective: they
look black. The list says which pictures are for training; a category whose folder is not there is
passed over.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mambaad.data.layouts.base import Layout
from mambaad.data.layouts.listed import UNNAMED_DEFECT, Row, checked, once, read_table
from mambaad.data.samples import Sample
from mambaad.errors import DatasetError

SPLIT = Path("split_csv") / "1cls.csv"
COLUMNS = ("object", "split", "label", "image", "mask")


def read_visa(root: Path, categories: Sequence[str] = ()) -> list[Sample]:
    """Read VisA by its one-class split; the module's docstring has the layout.

    Raises:
        DatasetError: If the list cannot be read, or names files that are not there.
    """
    known, samples = _find(root), []
    for row in _rows(root / SPLIT):
        category, split, label = row["object"], row["split"], row["label"]
        if category not in known or (categories and category not in categories):
            continue
        if label not in ("normal", "anomaly") or split not in ("train", "test"):
            raise DatasetError(
                f"{root / SPLIT} must say train or test, and normal or anomaly; got {row}"
            )
        is_good = label == "normal"
        samples.append(
            Sample(
                root / row["image"],
                category,
                "train" if split == "train" else "test",
                "good" if is_good else UNNAMED_DEFECT,
                root / row["mask"] if row["mask"] and not is_good else None,
            )
        )
    return checked(samples, root / SPLIT)


@once
def _rows(source: Path) -> list[Row]:
    return read_table(source, COLUMNS)


def _find(root: Path) -> dict[str, Path]:
    if not (root / SPLIT).is_file():
        return {}
    names = sorted({row["object"] for row in _rows(root / SPLIT)})
    return {name: root / name for name in names if (root / name).is_dir()}


def _notes(root: Path) -> list[str]:
    names = {row["object"] for row in _rows(root / SPLIT)}
    absent = sorted(names - set(_find(root)))
    return [f"{SPLIT.as_posix()} also lists {absent}, which are not there"] if absent else []


VISA = Layout(
    name="visa",
    tree=(
        "split_csv/1cls.csv",
        "<category>/Data/Images/{Normal,Anomaly}/NAME.JPG",
        "<category>/Data/Masks/Anomaly/NAME.png",
    ),
    find=_find,
    read=read_visa,
    notes=_notes,
)
