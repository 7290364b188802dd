from __future__ import annotations

from pathlib import Path

import pytest

from mambaad.data.samples import RESERVED_NAMES, Dataset, Sample, path_inside
from mambaad.errors import DatasetError
from mambaad.metrics.tables import MEAN

SAMPLES = (
    Sample(Path("r/bottle/a.png"), "bottle", "train"),
    Sample(Path("r/bottle/b.png"), "bottle", "test", "crack", Path("r/bottle/b_mask.png")),
    Sample(Path("r/cable/c.png"), "cable", "test"),
)
DATASET = Dataset(Path("r"), "mvtec", SAMPLES)


def test_only_a_defect_makes_a_sample_anomalous() -> None:
    assert [s.is_anomalous for s in DATASET] == [False, True, False]


def test_categories_are_sorted_and_single() -> None:
    reverse = Dataset(Path("r"), "mvtec", SAMPLES[::-1])
    assert reverse.categories == ("bottle", "cable")
    assert len(reverse) == 3


def test_select_keeps_the_order_of_what_fits() -> None:
    assert DATASET.select(split="test").samples == SAMPLES[1:]
    assert DATASET.select(categories=["bottle"]).samples == SAMPLES[:2]
    assert DATASET.select(split="train", categories=["cable"]).samples == ()
    assert DATASET.select(categories=[]).samples == SAMPLES


def test_select_refuses_an_unknown_category() -> None:
    with pytest.raises(DatasetError, match=r"no category \['pill'\] in r; it has"):
        DATASET.select(categories=["bottle", "pill"])


def test_the_row_of_means_has_a_reserved_name() -> None:
    assert MEAN in RESERVED_NAMES


def test_files_are_named_by_their_place_in_the_data_set() -> None:
    assert path_inside(Path("r/bottle/a.png"), Path("r")) == "bottle/a.png"
    assert path_inside(Path("elsewhere/a.png"), Path("r")) == "elsewhere/a.png"
