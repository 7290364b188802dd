from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from trees import lay

from mambaad.data.catalogue import Counts, PublishedSet, published
from mambaad.data.catalogue_check import compare
from mambaad.data.layouts import read_dataset

KNOWN = PublishedSet(
    name="tiny",
    title="Tiny",
    layout="mvtec",
    licence="none",
    source="http://nowhere",
    categories={"big_nut": Counts(4, 3, 2), "bolt": Counts(1, 1, 0), "pin": None},
    total=Counts(6, 4, 2),
)
FILES = (
    *(f"big_nut/train/good/{i:03}.png" for i in range(4)),
    "big_nut/test/good/000.png",
    "big_nut/test/bent/000.png",
    "big_nut/test/bent/001.png",
    "bolt/train/good/000.png",
    "bolt/test/good/000.png",
    "pin/train/good/000.png",
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return lay(tmp_path, *FILES)


def test_a_whole_copy_has_no_difference(root: Path) -> None:
    assert compare(read_dataset(root), KNOWN) == []


def test_names_may_be_written_otherwise(root: Path) -> None:
    (root / "big_nut").rename(root / "BigNut_AD")
    assert compare(read_dataset(root), KNOWN) == []


def change(*names: str) -> Callable[[Path], None]:
    def remove(root: Path) -> None:
        for name in names:
            (root / name).unlink()

    return remove


@pytest.mark.parametrize(
    ("spoil", "lines"),
    [
        (
            change("big_nut/train/good/001.png"),
            [
                "big_nut: 3 training pictures instead of 4; not there: big_nut/train/good/001.png",
                "in all: 5 training pictures instead of 6",
            ],
        ),
        (
            change("big_nut/test/bent/001.png"),
            [
                "big_nut: 2 test pictures instead of 3",
                "big_nut: 1 defective pictures instead of 2",
                "in all: 3 test pictures instead of 4",
                "in all: 1 defective pictures instead of 2",
            ],
        ),
        (
            change("bolt/train/good/000.png", "bolt/test/good/000.png"),
            [
                "bolt: missing (1 + 1 pictures)",
                "in all: 5 training pictures instead of 6",
                "in all: 3 test pictures instead of 4",
            ],
        ),
        (
            lambda root: lay(root, "screw/train/good/0.png"),
            ["screw: not in Tiny", "in all: 7 training pictures instead of 6"],
        ),
        (
            change("pin/train/good/000.png"),
            ["pin: missing", "in all: 5 training pictures instead of 6"],
        ),
    ],
)
def test_what_differs_is_named(
    root: Path, spoil: Callable[[Path], object], lines: list[str]
) -> None:
    spoil(root)
    assert compare(read_dataset(root), KNOWN) == lines


def test_named_categories_alone_are_compared(root: Path) -> None:
    assert compare(read_dataset(root, categories=["bolt"]), KNOWN, ["bolt"]) == []


def test_many_gaps_are_cut_short(root: Path) -> None:
    lay(root, "bolt/train/good/009.png")
    (root / "bolt/test/good/000.png").unlink()
    lay(root, "big_nut/train/good/020.png")
    for number in (1, 2):
        (root / f"big_nut/train/good/{number:03}.png").unlink()
    line = compare(read_dataset(root), KNOWN)[0]
    assert line.startswith("big_nut: 3 training pictures instead of 4; not there: big_nut/train")
    assert line.endswith("006.png, and 13 more")


def test_another_layout_is_said(root: Path) -> None:
    found = compare(read_dataset(root), published("visa"))
    assert found == ["read with the layout mvtec; visa needs visa"]
