from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trees import lay, rows

from mambaad.data.layouts import (
    LAYOUTS,
    find_categories,
    list_masks,
    list_pictures,
    read_dataset,
    read_folder,
    read_mvtec,
)
from mambaad.errors import ConfigError, DatasetError
from mambaad.layout_names import Layout

MVTEC = (
    "bottle/train/good/000.png",
    "bottle/train/good/001.PNG",
    "bottle/test/good/000.png",
    "bottle/test/crack/000.png",
    "bottle/test/crack/001.png",
    "bottle/ground_truth/crack/000_mask.png",
    "bottle/ground_truth/crack/001_mask.png",
    "cable/train/good/000.jpg",
    "cable/test/bent/000.jpg",
    "cable/ground_truth/bent/000.bmp",
)


def test_mvtec(tmp_path: Path) -> None:
    dataset = read_dataset(lay(tmp_path, *MVTEC, "readme.txt"))
    assert dataset.layout == "mvtec"
    assert rows(dataset, tmp_path) == [
        (
            "bottle/test/crack/000.png",
            "bottle",
            "test",
            "crack",
            "bottle/ground_truth/crack/000_mask.png",
        ),
        (
            "bottle/test/crack/001.png",
            "bottle",
            "test",
            "crack",
            "bottle/ground_truth/crack/001_mask.png",
        ),
        ("bottle/test/good/000.png", "bottle", "test", "good", ""),
        ("bottle/train/good/000.png", "bottle", "train", "good", ""),
        ("bottle/train/good/001.PNG", "bottle", "train", "good", ""),
        ("cable/test/bent/000.jpg", "cable", "test", "bent", "cable/ground_truth/bent/000.bmp"),
        ("cable/train/good/000.jpg", "cable", "train", "good", ""),
    ]


BTAD = (
    "01/train/ok/0000.bmp",
    "01/test/ok/0021.bmp",
    "01/test/ko/0000.bmp",
    "01/ground_truth/ko/0000.png",
)
MPDD = (
    "tubes/train/good/000.png",
    "tubes/test/good/000.png",
    "tubes/test/anomalous/000.png",
    "tubes/ground_truth/anomalous/000_mask.png",
)


@pytest.mark.parametrize(("names", "defect"), [(BTAD, "ko"), (MPDD, "anomalous")])
def test_sets_that_lie_like_mvtec(tmp_path: Path, names: tuple[str, ...], defect: str) -> None:
    dataset = read_dataset(lay(tmp_path, *names))
    train, good, bad, mask = names
    category = train.split("/")[0]
    assert dataset.layout == "mvtec"
    assert set(rows(dataset, tmp_path)) == {
        (train, category, "train", "good", ""),
        (good, category, "test", "good", ""),
        (bad, category, "test", defect, mask),
    }


def test_one_category_can_be_the_root_and_gives_its_name(tmp_path: Path) -> None:
    lay(tmp_path, *MVTEC)
    dataset = read_dataset(tmp_path / "bottle")
    assert dataset.categories == ("bottle",)
    assert len(dataset) == 5


def test_the_current_folder_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay(tmp_path, *MVTEC)
    monkeypatch.chdir(tmp_path / "cable")
    assert read_dataset(".").categories == ("cable",)


def test_a_lost_mask_does_not_shift_the_others(tmp_path: Path) -> None:
    lay(tmp_path, *MVTEC)
    (tmp_path / "bottle/ground_truth/crack/000_mask.png").unlink()
    masks = {s.image.name: s.mask for s in read_mvtec(tmp_path) if s.defect == "crack"}
    assert masks["000.png"] is None
    assert masks["001.png"] == tmp_path / "bottle/ground_truth/crack/001_mask.png"


def test_categories_are_chosen_by_name(tmp_path: Path) -> None:
    lay(tmp_path, *MVTEC)
    assert read_dataset(tmp_path, categories=["cable"]).categories == ("cable",)
    with pytest.raises(DatasetError, match=r"no category \['pill'\] in .*'bottle', 'cable'"):
        read_dataset(tmp_path, categories=["pill", "cable"])


@pytest.mark.parametrize("name", ["mean", "pooled"])
def test_names_that_results_need_are_refused(tmp_path: Path, name: str) -> None:
    lay(tmp_path / "a", *MVTEC, f"{name}/train/good/0.png")
    assert read_dataset(tmp_path / "a", categories=["cable"]).categories == ("cable",)
    lay(tmp_path / "b", f"{name}/good/0.png", "nut/good/0.png")
    lay(tmp_path / "c" / name, "0.png")
    lay(tmp_path / "d", "0.png")
    (tmp_path / "d/samples.csv").write_text(f"image_path,label_index,category\n0.png,0,{name}\n")
    lay(tmp_path / "e", "0.png")
    (tmp_path / "e/folder.toml").write_text(f'name = "{name}"\nnormal_dir = "."\n')
    record = '{"img_path": "0.png", "mask_path": "", "anomaly": 0}'
    lay(tmp_path / "f", "0.png")
    (tmp_path / "f/meta.json").write_text(f'{{"train": {{"{name}": [{record}]}}}}')
    places = [tmp_path / place for place in ("a", "b", f"c/{name}", "d", "e", "f")]
    for place in places:
        with pytest.raises(DatasetError, match=f"named '{name}', .*: rename its folder") as caught:
            read_dataset(place)
        assert "\n" not in str(caught.value)


def test_hidden_and_foreign_files_are_passed_over(tmp_path: Path) -> None:
    good = "part/train/good/"
    lay(
        tmp_path,
        *(f"{good}{n}" for n in ("._a.png", "Thumbs.db", "notes.txt", ".git/x.png", "deep/b.tif")),
        f"{good}a.png",
        "__MACOSX/part/train/good/a.png",
    )
    assert [s.image.name for s in read_dataset(tmp_path)] == ["a.png", "b.tif"]


def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    lay(tmp_path / "real", "a.png", "deep/b.png")
    (tmp_path / "real/deep/loop").symlink_to(tmp_path / "real", target_is_directory=True)
    (tmp_path / "link").symlink_to(tmp_path / "real", target_is_directory=True)
    assert [p.name for p in list_pictures(tmp_path / "link")] == ["a.png", "b.png"]


def test_mvtec_train_may_hold_its_pictures_itself(tmp_path: Path) -> None:
    lay(tmp_path / "p", "train/a.png", "test/OK/b.png", "test/bad/c.png")
    found = rows(read_dataset(tmp_path / "p"), tmp_path / "p")
    assert [row[2:4] for row in found] == [("test", "bad"), ("test", "good"), ("train", "good")]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("p/train/bottle/a.png",), r"must hold good/ \(or ok/, normal/\) with the good pictures"),
        (
            ("gut/a.png", "riss/b.png"),
            r"expected good/ \(or ok/, normal/\) with one folder per def",
        ),
        (("gut/a.png", "b.png"), r"\['gut'\] and 1 picture directly in it; expected good/"),
        (("p/train/good/a.png", "p/test/b.png"), "put them in test/good or test/<defect>"),
        (("p/train/good/readme.txt",), "no pictures in"),
        (("crack/a.png", "dent/b.png"), r"found the folders \['crack', 'dent'\]"),
        (("crack/x/a.png", "dent/y/b.png"), "is no data set"),
        (("a/good/1.png", "b/1.png"), r"\['b'\] in .* hold pictures but no good/ \(or ok/, norm"),
        (("a/good/1.png", "masks/a/1.png"), "put a masks/ in each category's folder"),
        (("readme.txt",), r"found the folders \[\] and 0 pictures directly in it; expected"),
    ],
)
def test_what_cannot_be_read_is_said_in_one_line(
    tmp_path: Path, names: tuple[str, ...], message: str
) -> None:
    with pytest.raises(DatasetError, match=message) as caught:
        read_dataset(lay(tmp_path, *names))
    assert "\n" not in str(caught.value)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="does not exist"):
        read_dataset(tmp_path / "nowhere")
    lay(tmp_path, "file")
    with pytest.raises(DatasetError, match="is a file, not a folder"):
        read_dataset(tmp_path / "file")


def test_layouts_can_be_forced(tmp_path: Path) -> None:
    lay(tmp_path, "good/a.png")
    assert read_dataset(tmp_path, "folder").layout == "folder"
    with pytest.raises(DatasetError, match="of the layout 'mvtec'"):
        read_dataset(tmp_path, "mvtec")
    with pytest.raises(DatasetError, match=r"layout 'visa': .*; expected split_csv/1cls\.csv"):
        read_dataset(tmp_path, "visa")
    with pytest.raises(ConfigError, match=r"one of \['auto', .*, 'folder'\], got 'imagenet'"):
        read_dataset(tmp_path, "imagenet")


def test_the_settings_know_every_layout() -> None:
    assert set(get_args(Layout)) == {"auto", *LAYOUTS}


def test_mvtec_by_name_does_not_read_3d_pictures(tmp_path: Path) -> None:
    lay(tmp_path, "p/train/good/rgb/a.png", "p/train/good/xyz/a.tiff")
    with pytest.raises(DatasetError, match="use the layout 'mvtec-3d'"):
        read_dataset(tmp_path, "mvtec")


def test_folder_keeps_every_fifth_good_picture_for_the_test(tmp_path: Path) -> None:
    good = [f"good/{i:02}.jpg" for i in range(12)]
    lay(tmp_path, *good, "crack/a.jpg")
    dataset = read_dataset(tmp_path)
    tested = [s.image.name for s in dataset if s.split == "test" and not s.is_anomalous]
    assert dataset.layout == "folder"
    assert tested == ["04.jpg", "09.jpg"]
    assert len(dataset.select(split="train")) == 10


@pytest.mark.parametrize(("count", "tested"), [(4, 0), (5, 1), (9, 1), (10, 2)])
def test_folder_test_share(tmp_path: Path, count: int, tested: int) -> None:
    lay(tmp_path, *(f"ok/{i}.jpg" for i in range(count)), "crack/a.jpg")
    samples = read_folder(tmp_path)
    assert sum(s.split == "test" and not s.is_anomalous for s in samples) == tested


def test_folder_without_defects_is_all_training(tmp_path: Path) -> None:
    lay(tmp_path, *(f"Normal/{i}.jpg" for i in range(10)))
    assert {(s.split, s.defect) for s in read_folder(tmp_path)} == {("train", "good")}


def test_folder_of_pictures_alone_is_one_good_category(tmp_path: Path) -> None:
    lay(tmp_path / "nuts", "1.jpg", "2.jpg", "empty/readme.txt")
    found = rows(read_dataset(tmp_path / "nuts"), tmp_path / "nuts")
    assert found == [(f"{i}.jpg", "nuts", "train", "good", "") for i in (1, 2)]


def test_folder_with_many_categories(tmp_path: Path) -> None:
    names = (
        "bolt/good/1.jpg",
        "bolt/bent/1.jpg",
        "nut/OK/1.jpg",
        "nut/sub/deep/2.jpg",
        "docs/a.md",
    )
    dataset = read_dataset(lay(tmp_path, *names))
    assert dataset.categories == ("bolt", "nut")
    assert [s.defect for s in dataset if s.is_anomalous] == ["bent", "sub"]


def test_folder_a_stray_is_no_hindrance_when_categories_are_named(tmp_path: Path) -> None:
    lay(tmp_path, "a/good/1.png", "previews/1.png")
    assert len(read_dataset(tmp_path, categories=["a"])) == 1


@pytest.mark.parametrize(
    "mask",
    [
        "masks/crack/x.png",
        "masks/crack/x_mask.tif",
        "mask/x.png",
        "Ground_Truth/x_mask.bmp",
        "crack/x_mask.png",
    ],
)
def test_folder_masks_are_found_by_name(tmp_path: Path, mask: str) -> None:
    lay(tmp_path, "good/x.jpg", "crack/w.jpg", "crack/x.jpg", "crack/y.jpg", mask)
    found = {s.image.name: s.mask for s in read_folder(tmp_path) if s.is_anomalous}
    assert found == {"w.jpg": None, "x.jpg": tmp_path / mask, "y.jpg": None}


def test_masks_of_pictures_in_deeper_folders(tmp_path: Path) -> None:
    lay(tmp_path, "good/x.jpg", "dent/day1/x.jpg", "dent/day2/x.jpg", "masks/dent/day2/x.png")
    masks = [s.mask for s in read_folder(tmp_path) if s.is_anomalous]
    assert masks == [None, tmp_path / "masks/dent/day2/x.png"]


def test_a_mask_of_another_defect_is_not_taken(tmp_path: Path) -> None:
    lay(tmp_path, "good/x.jpg", "dent/x.jpg", "crack/x.jpg", "masks/crack/x.png")
    masks = {s.defect: s.mask for s in read_folder(tmp_path) if s.is_anomalous}
    assert masks == {"dent": None, "crack": tmp_path / "masks/crack/x.png"}


@pytest.mark.parametrize("other", ["dent/x.jpg", "crack/x.png", "crack/deep/x.jpg"])
def test_a_mask_with_two_pictures_is_refused(tmp_path: Path, other: str) -> None:
    lay(tmp_path, "good/a.jpg", "crack/x.jpg", other, "masks/x.png")
    with pytest.raises(DatasetError, match=r"masks/x\.png could belong to .* or to"):
        read_folder(tmp_path)


def test_all_masks_and_empty_categories_are_listed(tmp_path: Path) -> None:
    lay(tmp_path, *MVTEC, "bottle/ground_truth/crack/999_mask.png", "pill/train/good/readme.txt")
    assert [p.name for p in list_masks(read_dataset(tmp_path))] == [
        "000_mask.png",
        "001_mask.png",
        "999_mask.png",
        "000.bmp",
    ]
    assert list(find_categories(tmp_path, "mvtec")) == ["bottle", "cable", "pill"]


@given(st.sets(st.integers(0, 999), min_size=1, max_size=30), st.sets(st.integers(0, 999)))
def test_a_mask_always_has_its_pictures_name(
    tmp_path_factory: pytest.TempPathFactory, pictures: set[int], masks: set[int]
) -> None:
    root = tmp_path_factory.mktemp("any")
    lay(root, "good/a.png", *(f"bad/{i}.jpg" for i in pictures))
    lay(root, *(f"masks/bad/{i}_mask.png" for i in masks))
    found = [s for s in read_folder(root) if s.is_anomalous]
    assert {int(s.image.stem) for s in found if s.mask} == pictures & masks
    assert all(s.mask.stem == f"{s.image.stem}_mask" for s in found if s.mask)
