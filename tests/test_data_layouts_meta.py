from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from trees import counts, lay, rows

from mambaad.data.layouts import read_dataset, read_meta
from mambaad.errors import DatasetError


def record(image: str, *, bad: int = 0, mask: str = "", kind: str = "") -> dict[str, Any]:
    return {
        "img_path": image,
        "mask_path": mask,
        "cls_name": "nut",
        "specie_name": kind,
        "anomaly": bad,
    }


CONTENT = {
    "train": {"nut": [record("x/1.png", kind="good")]},
    "validation": {"nut": [record("v/1.png")]},
    "test": {
        "nut": [
            record("y/3.png", bad=1, mask="m/3.png", kind="bent"),
            record("y/2.png", bad=1),
            record("y/1.png"),
        ],
        "bolt": [record("z/1.png")],
    },
}


def write(root: Path, content: object, name: str = "meta.json") -> Path:
    lay(root, *(f"{n}.png" for n in ("x/1", "v/1", "y/1", "y/2", "y/3", "z/1", "m/3")))
    (root / name).write_text(json.dumps(content))
    return root


def test_meta(tmp_path: Path) -> None:
    dataset = read_dataset(write(tmp_path, CONTENT), "meta")
    assert rows(dataset, tmp_path) == [
        ("z/1.png", "bolt", "test", "good", ""),
        ("y/3.png", "nut", "test", "bent", "m/3.png"),
        ("y/2.png", "nut", "test", "defective", ""),
        ("y/1.png", "nut", "test", "good", ""),
        ("v/1.png", "nut", "train", "good", ""),
        ("x/1.png", "nut", "train", "good", ""),
    ]
    assert dataset.notes == ("1 pictures of 'validation' train too, as in ADer",)
    assert len(read_dataset(tmp_path, "meta", ["bolt"])) == 1


def test_meta_may_have_any_name(tmp_path: Path) -> None:
    dataset = read_dataset(write(tmp_path, CONTENT, "mine.json") / "mine.json")
    assert (dataset.root, dataset.layout, len(dataset)) == (tmp_path, "meta", 6)


def test_a_tree_that_is_known_comes_before_its_meta(tmp_path: Path) -> None:
    write(tmp_path, CONTENT)
    assert read_dataset(tmp_path).layout == "meta"
    lay(tmp_path, "nut/train/good/1.png")
    assert read_dataset(tmp_path).layout == "mvtec"


@pytest.mark.parametrize("split", range(4))
def test_coco_has_a_list_for_each_split(tmp_path: Path, split: int) -> None:
    content = {"train": {"coco": [record("x/1.png")]}, "test": {"coco": [record("y/2.png", bad=1)]}}
    write(tmp_path, content, f"meta_20_{split}.json")
    dataset = read_dataset(tmp_path)
    assert dataset.layout == f"coco-ad-{split}"
    assert counts(dataset) == {("coco", "train", "good"): 1, ("coco", "test", "defective"): 1}
    assert f"split {split} of 0 to 3" in dataset.notes[0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "must hold a JSON object"),
        ({}, "has neither 'train' nor 'test' records"),
        ({"train": []}, "'train' in .* must map categories to lists"),
        ({"train": {"nut": {}}}, "'nut' in .* must be a list"),
        ({"test": {"nut": [{}]}}, "must have the text 'img_path'"),
        ({"test": {"nut": [record("y/1.png", bad=2)]}}, "0 or 1 as anomaly"),
        ({"test": {"nut": [record("y/9.png")]}}, "1 of 1 pictures .* not there"),
        ({"test": {"nut": [record("y/1.png", bad=1, mask="m/9.png")]}}, "1 of 1 masks"),
        ({"train": {"nut": [record("y/1.png", bad=1)]}}, "takes good ones"),
    ],
)
def test_a_bad_list_is_refused(tmp_path: Path, content: object, message: str) -> None:
    with pytest.raises(DatasetError, match=message) as caught:
        read_meta(write(tmp_path, content))
    assert "\n" not in str(caught.value)
