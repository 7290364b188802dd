from __future__ import annotations

from pathlib import Path

import pytest
from trees import lay, rows

from mambaad.data.layouts import read_dataset, read_keys
from mambaad.errors import DatasetError

FILES = (
    *(f"fine/{i}.png" for i in range(6)),
    "fine/notes.bmp",
    "later/0.png",
    "crack/x.png",
    "dent/x.png",
    "marks/crack/x.png",
    "marks/dent/x_mask.png",
)


def write(root: Path, text: str, name: str = "folder.toml") -> Path:
    lay(root, *FILES)
    (root / name).write_text(text)
    return root


def test_one_category(tmp_path: Path) -> None:
    write(
        tmp_path,
        """
        name = "bolt"
        normal_dir = "fine"
        abnormal_dir = ["crack", "dent"]
        normal_test_dir = "later"
        mask_dir = "marks"
        extensions = [".png"]
        """,
    )
    dataset = read_dataset(tmp_path)
    assert dataset.layout == "keys"
    assert rows(dataset, tmp_path) == [
        ("crack/x.png", "bolt", "test", "crack", "marks/crack/x.png"),
        ("dent/x.png", "bolt", "test", "dent", "marks/dent/x_mask.png"),
        ("later/0.png", "bolt", "test", "good", ""),
        *((f"fine/{i}.png", "bolt", "train", "good", "") for i in range(6)),
    ]


def test_tables_are_categories(tmp_path: Path) -> None:
    write(
        tmp_path,
        """
        [nut]
        normal_dir = "fine"
        abnormal_dir = "crack"
        mask_dir = ["marks/crack"]
        [bolt]
        root = "later"
        normal_dir = "."
        """,
        "mine.toml",
    )
    dataset = read_dataset(tmp_path / "mine.toml")
    assert dataset.categories == ("bolt", "nut")
    tests = [row for row in rows(dataset, tmp_path) if row[2] == "test"]
    assert tests == [
        ("crack/x.png", "nut", "test", "crack", "marks/crack/x.png"),
        ("fine/4.png", "nut", "test", "good", ""),  # the fifth, for lack of a normal_test_dir
    ]
    assert len(read_dataset(tmp_path / "mine.toml", categories=["bolt"])) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("normal_dir = ", "cannot read"),
        ("", "no data set|no pictures|must name"),
        ("mask_dir = 'marks'", "must name a normal_dir"),
        ("normal_dir = 'fine'\nnormal = 'x'", r"unknown key \['normal'\] in .*; known: \['name'"),
        ("normal_dir = 'good'", "good, which does not exist"),
        ("normal_dir = 7", "normal_dir in .* must be a text or a list of texts, got 7"),
        ("normal_dir = ['fine', 1]", "must be a text or a list of texts"),
        ("normal_dir = 'fine'\n[x]\nnormal_dir = 'fine'", "it has both"),
        (
            "abnormal_dir = ['crack', 'dent']\nmask_dir = ['marks']",
            "as many as the 2 of abnormal_dir; got 1",
        ),
        ("abnormal_dir = ['crack', 'dent']\nextensions = ['.tif']", "no pictures in"),
    ],
)
def test_bad_keys_are_refused(tmp_path: Path, text: str, message: str) -> None:
    root = write(tmp_path, text)
    with pytest.raises(DatasetError, match=message) as caught:
        read_dataset(root, "keys")
    assert "\n" not in str(caught.value)


def test_one_mask_folder_for_one_defect(tmp_path: Path) -> None:
    root = write(tmp_path, "normal_dir = 'fine'\nabnormal_dir = 'dent'\nmask_dir = 'marks/dent'")
    found = [s.mask for s in read_keys(root) if s.is_anomalous]
    assert found == [tmp_path / "marks/dent/x_mask.png"]
