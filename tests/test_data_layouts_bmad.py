from __future__ import annotations

from pathlib import Path

import pytest
from trees import counts, paint, rows

from mambaad.data.check import check_dataset
from mambaad.data.layouts import read_dataset

BMAD = (
    *(f"Brain_AD/train/good/{i}.png" for i in range(3)),
    "Brain_AD/valid/good/img/9.png",
    "Brain_AD/valid/Ungood/img/8.png",
    "Brain_AD/valid/Ungood/{mask}/8.png",
    "Brain_AD/test/good/img/1.png",
    "Brain_AD/test/Ungood/img/1.png",
    "Brain_AD/test/Ungood/img/2.png",
    "Brain_AD/test/Ungood/{mask}/1.png",
    "Brain_AD/test/Ungood/{mask}/2.png",
    "Chest_AD/train/good/1.png",
    "Chest_AD/test/good/1.png",
    "Chest_AD/test/Ungood/1.png",
)


@pytest.mark.parametrize("mask", ["anomaly_mask", "label"])
def test_bmad(tmp_path: Path, mask: str) -> None:
    dataset = read_dataset(paint(tmp_path, *(n.format(mask=mask) for n in BMAD)))
    assert dataset.layout == "bmad"
    assert counts(dataset) == {
        ("Brain_AD", "train", "good"): 3,
        ("Brain_AD", "test", "good"): 1,
        ("Brain_AD", "test", "ungood"): 2,
        ("Chest_AD", "train", "good"): 1,
        ("Chest_AD", "test", "good"): 1,
        ("Chest_AD", "test", "ungood"): 1,
    }
    found = {r[0]: r[4] for r in rows(dataset, tmp_path) if r[3] == "ungood"}
    assert found == {
        "Brain_AD/test/Ungood/img/1.png": f"Brain_AD/test/Ungood/{mask}/1.png",
        "Brain_AD/test/Ungood/img/2.png": f"Brain_AD/test/Ungood/{mask}/2.png",
        "Chest_AD/test/Ungood/1.png": "",
    }
    assert dataset.notes == ("the pictures of valid/ are left out, in ['Brain_AD']",)
    (problem,) = check_dataset(tmp_path, image_size=(32, 32), workers=1).problems
    assert problem.kind == "few_training_pictures"


def test_uni_medical_lies_like_mvtec(tmp_path: Path) -> None:
    paint(
        tmp_path,
        "retinal/train/good/1.png",
        "retinal/test/good/1.png",
        "retinal/test/Ungood/2.png",
        "retinal/ground_truth/Ungood/2.png",
    )
    dataset = read_dataset(tmp_path)
    assert dataset.layout == "mvtec"
    assert [r[3:] for r in rows(dataset, tmp_path) if r[3] != "good"] == [
        ("Ungood", "retinal/ground_truth/Ungood/2.png")
    ]
