from __future__ import annotations

from pathlib import Path

import numpy as np
from trees import counts, lay, paint, rows

from mambaad.data.check import check_dataset
from mambaad.data.layouts import list_masks, read_dataset

D3 = (
    *(f"bagel/train/good/rgb/{i:03}.png" for i in range(4)),
    "bagel/train/good/xyz/000.tiff",
    *(f"bagel/validation/good/rgb/{i:03}.png" for i in range(2)),
    "bagel/validation/good/xyz/000.tiff",
    "bagel/test/good/rgb/000.png",
    "bagel/test/good/gt/000.png",
    "bagel/test/good/xyz/000.tiff",
    "bagel/test/crack/rgb/000.png",
    "bagel/test/crack/gt/000.png",
    "bagel/test/crack/xyz/000.tiff",
    "bagel/test/hole/rgb/000.png",
    "bagel/test/hole/rgb/001.png",
    "bagel/test/hole/gt/001.png",
    "bagel/calibration/camera_parameters.json",
    "rope/train/good/rgb/000.png",
)
LOCO = (
    "pushpins/train/good/000.png",
    "pushpins/train/good/001.png",
    "pushpins/validation/good/000.png",
    "pushpins/test/good/000.png",
    "pushpins/test/logical_anomalies/000.png",
    "pushpins/test/logical_anomalies/001.png",
    "pushpins/test/structural_anomalies/000.png",
    "pushpins/ground_truth/logical_anomalies/000/000.png",
    "pushpins/ground_truth/logical_anomalies/001/000.png",
    "pushpins/ground_truth/logical_anomalies/001/001.png",
    "pushpins/ground_truth/structural_anomalies/000/000.png",
    "pushpins/defects_config.json",
)
AD2 = (
    "can/train/good/000_regular.png",
    "can/validation/good/000_regular.png",
    "can/test_public/good/000_regular.png",
    "can/test_public/bad/000_regular.png",
    "can/test_public/bad/000_overexposed.png",
    "can/test_public/ground_truth/bad/000_regular_mask.png",
    "can/test_public/ground_truth/bad/000_overexposed_mask.png",
    "can/test_private/000_regular.png",
    "can/test_private_mixed/000_mixed.png",
)


def test_3d_trains_on_validation_as_published(tmp_path: Path) -> None:
    dataset = read_dataset(lay(tmp_path, *D3))
    assert dataset.layout == "mvtec-3d"
    assert counts(dataset) == {
        ("bagel", "train", "good"): 6,
        ("bagel", "test", "good"): 1,
        ("bagel", "test", "crack"): 1,
        ("bagel", "test", "hole"): 2,
        ("rope", "train", "good"): 1,
    }
    assert "2 good pictures of validation/ train too" in dataset.notes[0]
    masks = {r[0]: r[4] for r in rows(dataset, tmp_path) if r[3] == "hole"}
    assert masks == {
        "bagel/test/hole/rgb/000.png": "",
        "bagel/test/hole/rgb/001.png": "bagel/test/hole/gt/001.png",
    }
    assert all("/rgb/" in row[0] for row in rows(dataset, tmp_path))


def test_3d_strict_leaves_validation_out(tmp_path: Path) -> None:
    dataset = read_dataset(lay(tmp_path, *D3), "mvtec-3d-strict", ["bagel"])
    assert len(dataset.select(split="train")) == 4
    assert len(dataset.select(split="test")) == 4
    assert dataset.notes == ("2 good pictures of validation/ are left out",)


def test_3d_is_sound_with_its_depth_pictures(tmp_path: Path) -> None:
    paint(tmp_path, *(n for n in D3 if n.endswith("png")))
    lay(tmp_path, *(n for n in D3 if not n.endswith("png")))
    for layout in ("mvtec-3d", "mvtec-3d-strict"):
        result = check_dataset(tmp_path, layout, image_size=(32, 32), workers=1)
        # the good pictures' masks are black in the real set and marked here
        found = {p.kind: p.count for p in result.problems}
        assert found == {"few_training_pictures": 2, "missing_mask": 1, "unused_mask": 1}


def test_loco_has_a_mask_or_a_folder_of_masks(tmp_path: Path) -> None:
    dataset = read_dataset(lay(tmp_path, *LOCO))
    assert dataset.layout == "mvtec-loco"
    truth = "pushpins/ground_truth"
    assert rows(dataset, tmp_path) == [
        (
            "pushpins/test/good/000.png",
            "pushpins",
            "test",
            "good",
            "",
        ),
        (
            "pushpins/test/logical_anomalies/000.png",
            "pushpins",
            "test",
            "logical_anomalies",
            f"{truth}/logical_anomalies/000/000.png",
        ),
        (
            "pushpins/test/logical_anomalies/001.png",
            "pushpins",
            "test",
            "logical_anomalies",
            f"{truth}/logical_anomalies/001",
        ),
        (
            "pushpins/test/structural_anomalies/000.png",
            "pushpins",
            "test",
            "structural_anomalies",
            f"{truth}/structural_anomalies/000/000.png",
        ),
        ("pushpins/train/good/000.png", "pushpins", "train", "good", ""),
        ("pushpins/train/good/001.png", "pushpins", "train", "good", ""),
    ]
    assert dataset.notes == ("1 good pictures of validation/ are left out",)
    assert len(list_masks(dataset)) == 4


def test_loco_masks_in_a_folder_are_used_and_nothing_is_left_over(tmp_path: Path) -> None:
    paint(tmp_path, *(n for n in LOCO if n.endswith("png")))
    result = check_dataset(tmp_path, image_size=(32, 32), workers=1)
    assert [p.kind for p in result.problems] == ["few_training_pictures"]


def test_defects_in_sub_folders_are_not_taken_for_loco(tmp_path: Path) -> None:
    lay(tmp_path, "nut/train/good/a.png", "nut/test/dent/day1/x.png")
    lay(tmp_path, "nut/ground_truth/dent/day1/x_mask.png")
    dataset = read_dataset(tmp_path)
    assert dataset.layout == "mvtec"
    assert [s.mask for s in dataset if s.is_anomalous] == [
        tmp_path / "nut/ground_truth/dent/day1/x_mask.png"
    ]


def test_ad2_tests_on_its_public_part(tmp_path: Path) -> None:
    dataset = read_dataset(paint(tmp_path, *AD2))
    assert dataset.layout == "mvtec-ad-2"
    assert counts(dataset) == {
        ("can", "train", "good"): 1,
        ("can", "test", "good"): 1,
        ("can", "test", "bad"): 2,
    }
    for sample in dataset:
        if sample.mask is not None:
            assert sample.mask.stem == f"{sample.image.stem}_mask"
    assert sum(s.mask is not None for s in dataset) == 2
    (problem,) = check_dataset(tmp_path, image_size=(32, 32), workers=1).problems
    assert problem.kind == "few_training_pictures"


def test_one_category_of_each_can_be_the_root(tmp_path: Path) -> None:
    for number, (names, layout) in enumerate(
        ((D3, "mvtec-3d"), (LOCO, "mvtec-loco"), (AD2, "mvtec-ad-2"))
    ):
        root = lay(tmp_path / str(number), *names) / names[0].split("/")[0]
        dataset = read_dataset(root)
        assert (dataset.layout, dataset.categories) == (layout, (root.name,))


def test_painted_masks_mark_a_quarter(tmp_path: Path) -> None:
    from mambaad.data import load_mask

    paint(tmp_path, *AD2)
    masks = [load_mask(s.mask) for s in read_dataset(tmp_path) if s.mask is not None]
    assert np.mean(masks) == 0.25
