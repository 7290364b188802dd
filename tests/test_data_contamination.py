"""Defective pictures among the training ones: how many, which, and that they leave the test."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mambaad.data import Dataset, Sample
from mambaad.data.contamination import contaminate, leave_out
from mambaad.errors import DatasetError

ROOT = Path("/data")


def dataset(
    good: int = 100, bad: int = 40, categories: tuple[str, ...] = ("nut", "bolt")
) -> Dataset:
    samples = []
    for name in categories:
        folder = ROOT / name
        samples += [Sample(folder / f"train/{i}.png", name, "train") for i in range(good)]
        samples += [Sample(folder / f"test/good/{i}.png", name, "test") for i in range(7)]
        samples += [
            Sample(folder / f"test/cut/{i}.png", name, "test", "cut", folder / f"mask/{i}.png")
            for i in range(bad)
        ]
    return Dataset(ROOT, "mvtec", tuple(samples))


def test_nothing_changes_without_contamination() -> None:
    data = dataset()
    assert contaminate(data, 0.0, 1) == (data, ())


@given(share=st.sampled_from([0.01, 0.05, 0.1, 0.3]), seed=st.integers(0, 9))
def test_a_share_of_each_category_is_replaced(share: float, seed: int) -> None:
    data = dataset()
    mixed, moved = contaminate(data, share, seed)
    assert (mixed, moved) == contaminate(data, share, seed)
    for category in data.categories:
        train = mixed.select(split="train", categories=[category]).samples
        test = mixed.select(split="test", categories=[category]).samples
        count = round(share * 100)
        assert (len(train), sum(s.is_anomalous for s in train)) == (100, count)
        assert (len(test), sum(s.is_anomalous for s in test)) == (47 - count, 40 - count)
        assert not {s.image for s in train} & {s.image for s in test}
    learned = [s for s in mixed.select(split="train") if s.is_anomalous]
    assert sorted(s.image.relative_to(ROOT).as_posix() for s in learned) == list(moved)
    # what the test of such a run leaves out is just what left it
    assert leave_out(data, moved).select(split="test").samples == mixed.select(split="test").samples


def test_how_many_were_moved_is_a_note() -> None:
    data = replace(dataset(good=12, bad=6), notes=("a note",))
    mixed, moved = contaminate(data, 0.1, 0)
    assert len(moved) == 2
    assert mixed.notes == (
        "a note",
        "2 of 24 training pictures (8.3 %) are defective ones of the test, which they leave "
        "(data.contamination 0.1)",
    )


def test_a_smaller_share_is_part_of_a_larger_one() -> None:
    data = dataset()
    few, many = contaminate(data, 0.05, 3), contaminate(data, 0.1, 3)
    assert set(few[1]) < set(many[1])
    good = [
        {s for s in mixed.select(split="train") if not s.is_anomalous} for mixed, _ in (few, many)
    ]
    assert good[1] < good[0]
    assert contaminate(data, 0.05, 4)[1] != few[1]


def test_a_category_is_drawn_alike_beside_others() -> None:
    both, one = dataset(), dataset(categories=("nut",))
    drawn = [name for name in contaminate(both, 0.1, 0)[1] if name.startswith("nut/")]
    assert drawn == list(contaminate(one, 0.1, 0)[1])


@pytest.mark.parametrize(
    ("good", "bad", "share", "message"),
    [
        (100, 10, 0.1, r"contamination 0\.1 of the 100 .* needs 10 .* it has 10: lower"),
        (100, 0, 0.05, r"needs 5 defective test pictures, and one more to test on; it has 0"),
        (8, 20, 0.05, r"contamination 0\.05 is less than one training picture"),
    ],
)
def test_what_cannot_be_done_is_refused(good: int, bad: int, share: float, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        contaminate(dataset(good, bad), share, 0)


def test_only_test_pictures_are_left_out() -> None:
    data = dataset(2, 2)
    names = ["nut/train/0.png", "nut/test/cut/1.png", "other/test/cut/0.png"]
    gone = set(data) - set(leave_out(data, names))
    assert [s.image for s in gone] == [ROOT / "nut/test/cut/1.png"]
