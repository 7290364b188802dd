from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
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
    assert compare(read_dataset(root), KNOWN).differences == ()


def test_names_may_be_written_otherwise(root: Path) -> None:
    (root / "big_nut").rename(root / "BigNut_AD")
    assert compare(read_dataset(root), KNOWN).differences == ()


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
    found = compare(read_dataset(root), KNOWN)
    assert (list(found.differences), found.agreement) == (lines, "")


def test_named_categories_alone_are_compared(root: Path) -> None:
    found = compare(read_dataset(root, categories=["bolt"]), KNOWN, ["bolt"])
    assert (found.differences, found.compared) == ((), ("bolt",))
    assert found.agreement == "as published: tiny: the numbers of pictures of 1 of 3 categories"


def test_many_gaps_are_cut_short(root: Path) -> None:
    lay(root, *(f"bolt/train/good/{number:03}.png" for number in (0, 19)))
    counts: dict[str, Counts | None] = {"bolt": Counts(20, 1, 0)}
    known = replace(KNOWN, categories=counts, total=None)
    (line,) = compare(read_dataset(root, categories=["bolt"]), known, ["bolt"]).differences
    assert line.startswith("bolt: 2 training pictures instead of 20; not there: bolt/train")
    assert line.endswith("005.png, and 13 more")


def test_numbers_with_more_gaps_than_lost_pictures_say_nothing(root: Path) -> None:
    # such as the second of the day: there are no 86400 pictures
    for old, new in ((1, 30_000), (2, 70_000)):
        good = root / "big_nut/train/good"
        (good / f"{old:03}.png").rename(good / f"{new:05}.png")
    (root / "big_nut/train/good/000.png").unlink()
    line = compare(read_dataset(root), KNOWN).differences[0]
    assert line == "big_nut: 3 training pictures instead of 4"


def test_only_files_that_do_not_exist_are_called_not_there(root: Path) -> None:
    good = root / "big_nut/train/good"
    (good / "001.png").rename(good / "001.jpg")  # the same picture in another format
    (good / "002.png").unlink()
    line = compare(read_dataset(root), KNOWN).differences[0]
    assert line.endswith("3 training pictures instead of 4; not there: big_nut/train/good/002.png")
    (good / "002.png").mkdir()  # no picture, but there
    line = compare(read_dataset(root), KNOWN).differences[0]
    assert line == "big_nut: 3 training pictures instead of 4"


def test_pictures_that_a_list_leaves_out_are_not_called_missing(tmp_path: Path) -> None:
    images = [f"candle/Data/Images/Normal/{i:04}.JPG" for i in (0, 1, 3, 4, 5)]
    lay(tmp_path, *images, "candle/Data/Images/Anomaly/000.JPG")
    rows = [f"candle,{'test' if n[-5] in '135' else 'train'},normal,{n}," for n in images]
    rows.append("candle,test,anomaly,candle/Data/Images/Anomaly/000.JPG,")
    (tmp_path / "split_csv").mkdir()
    text = "\n".join(["object,split,label,image,mask", *rows])
    (tmp_path / "split_csv/1cls.csv").write_text(text)
    counts: dict[str, Counts | None] = {"candle": Counts(6, 6, 1)}
    known = replace(KNOWN, layout="visa", categories=counts, total=None)
    assert compare(read_dataset(tmp_path), known).differences == (
        "candle: 2 training pictures instead of 6",
        "candle: 4 test pictures instead of 6",
    )


def test_what_was_compared_is_said(root: Path) -> None:
    found = compare(read_dataset(root), KNOWN)
    assert found.compared == ("big_nut", "bolt", "in all")
    assert found.agreement == (
        "as published: tiny: the numbers of pictures of 2 of 3 categories and in all; of pin they "
        "are not known, and were not compared"
    )
    total = Counts(6, 4, None)
    in_all = replace(KNOWN, categories=dict.fromkeys(KNOWN.categories), total=total)
    found = compare(read_dataset(root), in_all)
    assert (found.differences, found.compared) == ((), ("in all",))
    assert found.agreement == (
        "as published: tiny: the numbers of pictures in all; of big_nut, bolt, pin they are not "
        "known, and were not compared; how many should be defective is not known"
    )


@pytest.mark.parametrize(
    ("name", "categories", "agreement"),
    [
        ("mvtec-ad-2", (), "mvtec-ad-2: the names of 8 of 8 categories agree; how many pictures "),
        ("mvtec-ad-2", ("can",), "mvtec-ad-2: the names of 1 of 8 categories agree; how many "),
        ("bmad", ("Chest",), "bmad: nothing is known of Chest, and nothing was compared"),
    ],
)
def test_what_is_not_known_is_not_certified(
    tmp_path: Path, name: str, categories: tuple[str, ...], agreement: str
) -> None:
    for category in (*published("mvtec-ad-2").categories, "Chest"):
        for split, place in (("train/good", ""), ("test_public/good", ""), ("test/good", "img/")):
            lay(tmp_path / name / category, f"{split}/{place}000.png")
    if not categories:
        shutil.rmtree(tmp_path / name / "Chest")
    dataset = read_dataset(tmp_path / name, published(name).layout, categories)
    found = compare(dataset, published(name), categories)
    assert (found.differences, found.compared) == ((), ())
    assert found.agreement.startswith(agreement)


def test_all_categories_by_name_are_the_whole_set(root: Path) -> None:
    (root / "pin/train/good/000.png").rename(root / "pin/train/good/1.png")
    lay(root, "pin/train/good/2.png")
    names = ["pin", "bolt", "big_nut"]
    found = compare(read_dataset(root, categories=names), KNOWN, names)
    assert found.differences == ("in all: 7 training pictures instead of 6",)


def test_another_layout_is_said(root: Path) -> None:
    found = compare(read_dataset(root), published("visa"))
    assert found.differences == ("read with the layout mvtec; visa needs visa",)
    assert (found.compared, found.agreement) == ((), "")
