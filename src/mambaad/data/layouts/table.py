"""A user's own list as a CSV file, with the columns of anomalib's tabular data and a category.

``samples.csv`` in the folder, or any file ``*.csv`` given as the data set:

    image_path    relative to the file's folder, or absolute
    label_index   0 good, 1 defective
    split         train or test; without the column, defective pictures and every fifth good one
                  of a category that has defective ones are for testing
    mask_path     empty for good pictures, and where there is no mask; may be left out
    category      the file's folder names it where the column is left out
    defect        name of the defect; may be left out
    group         what pictures of one object share; may be left out
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mambaad.data.layouts.base import Layout, name_of, split_good
from mambaad.data.layouts.listed import UNNAMED_DEFECT, Row, checked, once, read_table
from mambaad.data.samples import Sample, Split
from mambaad.errors import DatasetError

TABLE = "samples.csv"
NEEDED = ("image_path", "label_index")


def read_csv(root: Path, categories: Sequence[str] = ()) -> list[Sample]:
    """Read a list of pictures in a CSV file; the module's docstring has its columns.

    Raises:
        DatasetError: If the list cannot be read, or names files that are not there.
    """
    source = _source(root)
    rows = [(_category(row, source), row) for row in _rows(source)]
    named = [(c, row) for c, row in rows if not categories or c in categories]
    samples = [_sample(category, row, source) for category, row in named]
    if any("split" not in row for _, row in named):
        samples = _split(samples)
    return checked(samples, source)


def _sample(category: str, row: Row, source: Path) -> Sample:
    label, place = row["label_index"], row.get("split", "test")
    if label not in ("0", "1") or not row["image_path"]:
        raise DatasetError(
            f"line {row.line} of {source}: every row needs an image_path, and 0 or 1 as "
            f"label_index; got image_path {row['image_path']!r} and label_index {label!r}"
        )
    if place not in ("train", "test"):
        raise DatasetError(
            f"line {row.line} of {source}: split must be train or test, got {place!r}"
        )
    is_good, mask = label == "0", row.get("mask_path", "")
    split: Split = "train" if place == "train" else "test"
    defect = row.get("defect", "")
    return Sample(
        source.parent / row["image_path"],
        category,
        split,
        "good" if is_good else UNNAMED_DEFECT if defect in ("", "good") else defect,
        source.parent / mask if mask and not is_good else None,
        row.get("group", ""),
    )


def _split(samples: Sequence[Sample]) -> list[Sample]:
    bad = [s for s in samples if s.is_anomalous]
    with_defects = {s.category for s in bad}
    good = sorted((s for s in samples if not s.is_anomalous), key=lambda s: s.image.as_posix())
    groups = {(s.category, s.image): s.group for s in good}
    divided = [
        sample
        for name in sorted({s.category for s in good})
        for sample in split_good(
            name,
            [s.image for s in good if s.category == name],
            has_defects=name in with_defects,
        )
    ]
    named = [
        Sample(s.image, s.category, s.split, group=groups[s.category, s.image]) for s in divided
    ]
    return bad + named


def _category(row: dict[str, str], source: Path) -> str:
    return row.get("category") or name_of(source.parent)


def _source(root: Path) -> Path:
    return root if root.is_file() else root / TABLE


@once
def _rows(source: Path) -> list[Row]:
    return read_table(source, NEEDED)


def _find(root: Path) -> dict[str, Path]:
    source = _source(root)
    if not source.is_file():
        return {}
    return {_category(row, source): source.parent for row in _rows(source)}


CSV = Layout(
    name="csv",
    tree=("samples.csv: image_path, label_index [, split, mask_path, category]",),
    find=_find,
    read=read_csv,
)
