from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mambaad.data.check import (
    ERRORS,
    FEW_PICTURES,
    KINDS,
    CategoryCounts,
    CheckResult,
    check_dataset,
)
from mambaad.errors import DatasetError

COUNTER = iter(range(1_000_000))


def picture(path: Path, size: tuple[int, int] = (40, 48), mode: str = "RGB") -> Path:
    """A picture that no other is equal to."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(next(COUNTER)).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(noise).convert(mode).save(path)
    return path


def mask(path: Path, size: tuple[int, int] = (40, 48), marked: int = 20) -> Path:
    """A mask whose upper left ``marked`` x ``marked`` pixels are the defect."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.zeros(size, np.uint8)
    values[:marked, :marked] = 255
    Image.fromarray(values).save(path)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A sound data set in MVTec's layout."""
    for i in range(3):
        picture(tmp_path / f"nut/train/good/{i}.png")
        picture(tmp_path / f"nut/test/bent/{i}.png")
        mask(tmp_path / f"nut/ground_truth/bent/{i}_mask.png")
    picture(tmp_path / "nut/test/good/0.png")
    return tmp_path


def check(root: Path, **options: object) -> CheckResult:
    return check_dataset(root, image_size=(32, 32), workers=2, **options)  # type: ignore[arg-type]


def problems(root: Path, **options: object) -> dict[str, tuple[int, tuple[str, ...]]]:
    result = check(root, **options)
    assert result.ok == (not ERRORS & {p.kind for p in result.problems})
    found = {p.kind: (p.count, p.cases) for p in result.problems}
    found.pop("few_training_pictures", None)  # these sets are tiny; it has a test of its own
    return found


def test_a_sound_data_set_has_no_problem(root: Path) -> None:
    for i in range(3, FEW_PICTURES):
        picture(root / f"nut/train/good/{i}.png")
    told: list[tuple[int, int]] = []
    result = check(root, progress=lambda done, total: told.append((done, total)))
    assert result.ok
    assert result.problems == ()
    assert result.notes == ()
    assert result.categories == (CategoryCounts("nut", 20, 1, {"bent": 3}, 3),)
    assert (result.layout, result.smallest, result.largest) == ("mvtec", (40, 48), (40, 48))
    assert result.modes == {"RGB": 24}
    assert told[-1] == (24, 24)


def test_few_training_pictures_are_a_warning(root: Path) -> None:
    for i in range(3, FEW_PICTURES - 1):
        picture(root / f"nut/train/good/{i}.png")
    result = check(root)
    assert result.ok
    (problem,) = result.problems
    assert (problem.kind, problem.severity) == ("few_training_pictures", "warning")
    assert (problem.count, problem.cases) == (1, ("nut: 19",))
    assert "fewer than 20 good pictures" in problem.message


def test_unreadable_files(root: Path) -> None:
    (root / "nut/test/bent/1.png").write_bytes(b"")
    (root / "nut/ground_truth/bent/2_mask.png").write_bytes(b"x")
    assert problems(root) == {
        "unreadable_test_picture": (1, ("nut/test/bent/1.png: the file is empty",)),
        "unreadable_mask": (
            1,
            ("nut/ground_truth/bent/2_mask.png: it is not a picture, or its beginning is damaged",),
        ),
    }
    whole = (root / "nut/train/good/0.png").read_bytes()
    (root / "nut/train/good/0.png").write_bytes(whole[: len(whole) // 2])
    result = check(root)
    assert not result.ok
    assert result.problems[0].kind == "unreadable_training_picture"
    assert result.problems[0].severity == "error"
    assert result.problems[0].cases[0].startswith("nut/train/good/0.png: ")


def test_a_category_without_training_pictures_is_an_error(root: Path) -> None:
    picture(root / "bolt/test/good/0.png")
    (root / "pill/train/good").mkdir(parents=True)
    assert problems(root) == {"no_training_pictures": (2, ("bolt", "pill"))}
    assert problems(root, categories=["nut"]) == {}
    assert [c.category for c in check(root).categories] == ["bolt", "nut", "pill"]


def test_missing_masks_count_where_others_have_one(root: Path) -> None:
    (root / "nut/ground_truth/bent/1_mask.png").unlink()
    assert problems(root) == {"missing_mask": (1, ("nut/test/bent/1.png",))}
    for i in (0, 2):
        (root / f"nut/ground_truth/bent/{i}_mask.png").unlink()
    assert problems(root) == {}


def test_masks_that_cannot_be_right(root: Path) -> None:
    folder = root / "nut/ground_truth/bent"
    mask(folder / "0_mask.png", size=(48, 40))
    mask(folder / "1_mask.png", marked=0)
    (folder / "2_mask.png").unlink()
    mask(folder / "2_mask.jpg")
    assert problems(root) == {
        "mask_size": (1, ("nut/ground_truth/bent/0_mask.png",)),
        "empty_mask": (1, ("nut/ground_truth/bent/1_mask.png",)),
        "lossy_mask": (1, ("nut/ground_truth/bent/2_mask.jpg",)),
    }


def test_a_defect_too_small_for_the_image_size(root: Path) -> None:
    picture(root / "nut/test/bent/9.png", (400, 400))
    mask(root / "nut/ground_truth/bent/9_mask.png", (400, 400), marked=3)
    assert problems(root) == {"vanishing_mask": (1, ("nut/ground_truth/bent/9_mask.png",))}
    large = check_dataset(root, image_size=(416, 416))
    assert [p.kind for p in large.problems] == ["few_training_pictures"]


def test_a_mask_without_a_picture(root: Path) -> None:
    mask(root / "nut/ground_truth/bent/7_mask.png")
    mask(root / "nut/ground_truth/good/0_mask.png", marked=0)
    assert problems(root) == {"unused_mask": (1, ("nut/ground_truth/bent/7_mask.png",))}


def test_pictures_in_places_that_nothing_reads(root: Path) -> None:
    picture(root / "nut/train/bent/5.png")
    picture(root / "nut/preview.png")
    found = ("nut/preview.png", "nut/train/bent/5.png")
    assert problems(root) == {"ignored_picture": (2, found)}
    picture(root / "pill/0.png")
    assert problems(root) == {"ignored_picture": (3, (*found, "pill/0.png"))}
    assert problems(root, categories=["nut"]) == {"ignored_picture": (2, found)}


def test_duplicates(root: Path) -> None:
    data = (root / "nut/train/good/0.png").read_bytes()
    (root / "nut/train/good/8.png").write_bytes(data)
    (root / "nut/test/good/9.png").write_bytes(data)
    assert problems(root) == {
        "train_in_test": (1, ("nut/test/good/9.png = nut/train/good/0.png",)),
        "duplicate": (1, ("nut/train/good/8.png = nut/train/good/0.png",)),
    }


def test_no_good_pictures_to_test_against(root: Path) -> None:
    (root / "nut/test/good/0.png").unlink()
    assert problems(root) == {"no_good_test_pictures": (1, ("nut",))}


def test_at_most_three_cases_are_shown(root: Path) -> None:
    for i in range(5):
        picture(root / f"nut/extra/{i}.png")
    count, cases = problems(root)["ignored_picture"]
    assert (count, len(cases)) == (5, 3)


def test_notes_and_dark_16_bit_pictures(tmp_path: Path) -> None:
    picture(tmp_path / "good/a.png", (10, 10), "L")
    picture(tmp_path / "good/b.png", (64, 40), "RGBA")
    twelve_bits = np.linspace(0, 4095, 40 * 40, dtype=np.uint16).reshape(40, 40)
    Image.fromarray(twelve_bits).save(tmp_path / "good/c.png")
    Image.fromarray(twelve_bits * 16).save(tmp_path / "good/d.png")
    result = check(tmp_path)
    name = tmp_path.name
    assert result.notes == (
        "3 of 4 pictures are grey; they are used as three equal channels",
        "2 of 4 pictures have 16 bits; 0..65535 becomes 0..255",
        "1 of 4 pictures have an alpha channel, which is dropped",
        "pictures have 3 different sizes; all become 32 x 32",
        "1 of 4 pictures are smaller than 32 x 32: enlarged",
        f"no defective pictures in ['{name}']: training works, testing says nothing there",
    )
    assert (result.smallest, result.largest) == ((10, 10), (64, 40))
    found = {p.kind: p.cases for p in result.problems}
    assert found == {
        "few_training_pictures": (f"{name}: 4",),
        "dark_16_bit": ("good/c.png",),
    }


def test_pictures_alone_are_said_to_be_taken_as_good(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    assert check(tmp_path).notes[-1].startswith("there is no good/ folder: all 1 pictures are")


def test_files_with_other_endings_are_a_note(root: Path) -> None:
    for name in ("nut/train/good/x.gif", "nut/readme.txt", "pill/train/good/y.dcm"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    assert "2 files with other endings (.dcm, .gif) are left out" in check(root).notes
    notes = check(root, categories=["nut"]).notes
    assert "1 file with another ending (.gif) is left out" in notes
    (root / "samples.csv").write_text("image_path,label_index\nnut/train/good/0.png,0\n")
    assert not any("left out" in note for note in check(root).notes)  # what a list names counts


def test_the_result_is_json(root: Path) -> None:
    picture(root / "nut/preview.png", mode="L")
    result = check(root)
    plain = result.to_mapping()
    assert json.loads(json.dumps(plain)) == plain
    assert plain["ok"] is True
    assert plain["root"] == root.as_posix()
    assert plain["smallest"] == [40, 48]
    assert plain["categories"] == [
        {"category": "nut", "train_good": 3, "test_good": 1, "defects": {"bent": 3}, "masks": 3}
    ]
    kinds = [problem["kind"] for problem in plain["problems"]]
    assert kinds == ["few_training_pictures", "ignored_picture"]


def test_no_data_set_at_all(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="is no data set"):
        check(tmp_path)


def test_every_message_is_one_line() -> None:
    assert set(KINDS) > ERRORS
    assert not any("\n" in message or message.endswith(".") for message in KINDS.values())
