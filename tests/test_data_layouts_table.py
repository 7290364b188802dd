from __future__ import annotations

from pathlib import Path

import pytest
from trees import lay, paint, rows

from mambaad.data.cache import fingerprint
from mambaad.data.check import check_dataset
from mambaad.data.layouts import read_csv, read_dataset
from mambaad.errors import DatasetError

FULL = """\
image_path,label_index,split,mask_path,category,defect,group
b/1.png,1,test,m/1.png,nut,bent,n1
a/1.png,0,train,,nut,,
a/2.png, 0 ,test,,bolt,,b2
b/2.png,1,test,,bolt,,
"""


def write(root: Path, text: str, name: str = "samples.csv") -> Path:
    lay(root, *(f"a/{i}.png" for i in range(1, 8)), "b/1.png", "b/2.png", "m/1.png")
    (root / name).write_text(text)
    return root


def test_csv(tmp_path: Path) -> None:
    dataset = read_dataset(write(tmp_path, FULL))
    assert dataset.layout == "csv"
    assert rows(dataset, tmp_path) == [
        ("b/2.png", "bolt", "test", "defective", ""),
        ("a/2.png", "bolt", "test", "good", ""),
        ("b/1.png", "nut", "test", "bent", "m/1.png"),
        ("a/1.png", "nut", "train", "good", ""),
    ]
    assert [s.group for s in dataset] == ["", "b2", "n1", ""]
    assert len(read_dataset(tmp_path, categories=["nut"])) == 2


def test_any_file_can_be_the_data_set(tmp_path: Path) -> None:
    dataset = read_dataset(write(tmp_path, FULL, "week 12.csv") / "week 12.csv")
    assert (dataset.root, dataset.layout, len(dataset)) == (tmp_path, "csv", 4)


def test_without_a_split_every_fifth_good_picture_is_for_testing(tmp_path: Path) -> None:
    good = "".join(f"a/{i}.png,0,g{i}\n" for i in (7, 6, 5, 4, 3, 2, 1))
    root = write(tmp_path / "parts", f"image_path,label_index,group\n{good}b/1.png,1,x\n")
    samples = read_csv(root)
    assert [s.image.name for s in samples if s.split == "test"] == ["1.png", "5.png"]
    assert {s.category for s in samples} == {"parts"}
    assert all(s.group == f"g{s.image.stem}" for s in samples if not s.is_anomalous)
    (root / "samples.csv").write_text(f"image_path,label_index,group\n{good}")
    assert {s.split for s in read_csv(root)} == {"train"}


def test_pictures_may_lie_elsewhere(tmp_path: Path) -> None:
    paint(tmp_path / "far", "a.png", "b.png")
    (tmp_path / "near").mkdir()
    lines = f"../far/a.png,0,train\n{tmp_path}/far/b.png,0,test\n"
    (tmp_path / "near/samples.csv").write_text(f"image_path,label_index,split\n{lines}")
    dataset = read_dataset(tmp_path / "near")
    assert len(fingerprint(dataset)) == 64
    (problem,) = check_dataset(tmp_path / "near", image_size=(32, 32), workers=1).problems
    assert problem.kind == "few_training_pictures"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"lacks the columns \['image_path', 'label_index'\]"),
        ("image_path,split\na/1.png,train\n", r"lacks the columns \['label_index'\]"),
        (
            "image_path;label_index\na/1.png;0\n",
            r"lacks the columns .*; its cells are separated by ';': save it with commas$",
        ),
        ("image_path\tlabel_index\na/1.png\t0\n", r"separated by '\\t'"),
        (
            "image_path,label_index\na/1.png,0\n\na/1.png,good\n",
            "^line 4 of .*: .* 0 or 1 as label_index; got .* label_index 'good'$",
        ),
        ("image_path,label_index\n,0\n", "line 2 of .* needs an image_path"),
        ("image_path,label_index\n\na/1.png\n", "line 3 of .* does not have 2 cells"),
        ("image_path,label_index\na/1.png\n", "line 2 of .* does not have 2 cells"),
        ("image_path,label_index\na/1.png,0,x\n", "line 2 of .* does not have 2 cells"),
        ("image_path,label_index,split\na/1.png,0,val\n", "line 2 .* train or test, got 'val'$"),
        ("image_path,label_index,split\na/1.png,1,train\n", "takes good ones"),
        ("image_path,label_index\na/1.png,0\na/1.png,0\n", "twice"),
        ("image_path,label_index\na/9.png,0\n", "not there"),
    ],
)
def test_a_bad_list_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DatasetError, match=message) as caught:
        read_csv(write(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_a_table_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "samples.csv").write_bytes(b"image_path,\xff\xfe\x00")
    with pytest.raises(DatasetError, match=r"cannot read .*samples\.csv"):
        read_csv(tmp_path)
