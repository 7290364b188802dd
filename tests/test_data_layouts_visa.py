from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from trees import counts, lay, rows

from mambaad.data import load_mask
from mambaad.data.layouts import read_dataset
from mambaad.errors import DatasetError

NORMAL, ANOMALY, MASKS = "Data/Images/Normal", "Data/Images/Anomaly", "Data/Masks/Anomaly"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two categories with files, a third only in the list, which is in no order."""
    lines = [
        "object,split,label,image,mask",
        f"pcb1,test,anomaly,pcb1/{ANOMALY}/000.JPG,pcb1/{MASKS}/000.png",
        f"pcb1,train,normal,pcb1/{NORMAL}/0002.JPG,",
        f"pcb1,train,normal,pcb1/{NORMAL}/0000.JPG,",
        f"pcb1,test,normal,pcb1/{NORMAL}/0001.JPG,",
        f"candle,train,normal,candle/{NORMAL}/0000.JPG,",
        f"candle,test,anomaly,candle/{ANOMALY}/000.JPG,candle/{MASKS}/000.png",
        f"fryum,train,normal,fryum/{NORMAL}/0000.JPG,",
    ]
    lay(tmp_path, "split_csv/2cls_fewshot.csv", *(f"pcb1/{NORMAL}/000{i}.JPG" for i in range(3)))
    lay(tmp_path, f"candle/{NORMAL}/0000.JPG")
    (tmp_path / "split_csv/1cls.csv").write_text("\n".join(lines) + "\n")
    for name in ("pcb1", "candle"):
        lay(tmp_path, f"{name}/{ANOMALY}/000.JPG", f"{name}/{MASKS}/000.png")
    return tmp_path


def test_visa(root: Path) -> None:
    dataset = read_dataset(root)
    assert dataset.layout == "visa"
    assert rows(dataset, root)[:3] == [
        (
            f"candle/{ANOMALY}/000.JPG",
            "candle",
            "test",
            "defective",
            f"candle/{MASKS}/000.png",
        ),
        (f"candle/{NORMAL}/0000.JPG", "candle", "train", "good", ""),
        (f"pcb1/{ANOMALY}/000.JPG", "pcb1", "test", "defective", f"pcb1/{MASKS}/000.png"),
    ]
    assert counts(dataset.select(categories=["pcb1"])) == {
        ("pcb1", "train", "good"): 2,
        ("pcb1", "test", "good"): 1,
        ("pcb1", "test", "defective"): 1,
    }
    assert dataset.notes == ("split_csv/1cls.csv also lists ['fryum'], which are not there",)


def test_masks_hold_small_numbers(root: Path) -> None:
    values = np.zeros((8, 8), np.uint8)
    values[0, 0], values[0, 1] = 1, 2
    Image.fromarray(values).save(root / f"pcb1/{MASKS}/000.png")
    sample = next(s for s in read_dataset(root, categories=["pcb1"]) if s.is_anomalous)
    assert sample.mask is not None
    assert load_mask(sample.mask).sum() == 2


def test_a_category_that_is_only_listed_cannot_be_chosen(root: Path) -> None:
    with pytest.raises(DatasetError, match=r"no category \['fryum'\] .*'candle', 'pcb1'"):
        read_dataset(root, categories=["fryum"])


def test_what_is_listed_must_be_there(root: Path) -> None:
    (root / f"pcb1/{NORMAL}/0002.JPG").unlink()
    with pytest.raises(DatasetError, match=r"1 of 6 pictures .*0002\.JPG\. Is everything unpack"):
        read_dataset(root)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("object,split", "thing,split", r"lacks the columns \['object'\]"),
        ("pcb1,test,normal", "pcb1,val,normal", "must say train or test"),
        ("pcb1,test,normal", "pcb1,test,fine", "must say train or test"),
        ("pcb1,test,anomaly", "pcb1,train,anomaly", "1 training pictures in .* are defective"),
        ("0001.JPG,", "0001.JPG", "line 5 of .* does not have 5 cells"),
        ("0002.JPG,", "0000.JPG,", "twice"),
    ],
)
def test_a_bad_list_is_refused(root: Path, old: str, new: str, message: str) -> None:
    path = root / "split_csv/1cls.csv"
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(DatasetError, match=message) as caught:
        read_dataset(root)
    assert "\n" not in str(caught.value)
