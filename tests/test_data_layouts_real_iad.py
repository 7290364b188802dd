from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from trees import counts, lay

from mambaad.data.layouts import read_dataset
from mambaad.data.samples import Sample
from mambaad.errors import DatasetError

VIEWS = range(1, 6)


def views(number: int, kind: str, seen: tuple[int, ...] = ()) -> list[dict[str, Any]]:
    """The records of one toy's five views; ``seen``: the views on which its defect is seen."""
    folder = f"OK/S{number:04}" if kind == "OK" else f"NG/{kind}/S{number:04}"
    label = "OK" if kind == "OK" else f"NG_{kind}"
    found = []
    for view in VIEWS:
        image = f"{folder}/toy_{number:04}_{label}_C{view}_20231025.jpg"
        mask = image.replace(".jpg", "_mask.png") if view in seen else None
        record = {"category": "toy", "anomaly_class": kind if view in seen else "OK"}
        found.append({**record, "image_path": image, "mask_path": mask})
    return found


TRAIN = views(1, "OK") + views(2, "OK")
TEST = views(3, "OK") + views(1, "HS", (1, 4)) + views(2, "ZW", (2,))
# three views of a defective toy on which nothing is seen, and four of the other, are good
ALL_VIEWS = {
    ("toy", "train", "good"): 10,
    ("toy", "test", "good"): 5 + 3 + 4,
    ("toy", "test", "HS"): 2,
    ("toy", "test", "ZW"): 1,
}


def build(root: Path, pictures: str, lists: str, single: str = "") -> Path:
    """Write the pictures and the lists where told."""
    for record in TRAIN + TEST:
        lay(root / pictures / "toy", *filter(None, (record["image_path"], record["mask_path"])))
    meta = {"prefix": "toy/", "normal_class": "OK"}
    full = {"meta": meta, "train": TRAIN, "test": TEST}
    top = {k: [r for r in v if "_C1_" in r["image_path"]] for k, v in full.items() if k != "meta"}
    for place, content in ((lists, full), (single, {"meta": meta, **top})):
        if place:
            (root / place).mkdir(parents=True, exist_ok=True)
            (root / place / "toy.json").write_text(json.dumps(content))
    return root


@pytest.mark.parametrize(
    ("pictures", "lists"),
    [
        (".", "."),
        (".", "realiad_jsons"),
        ("realiad_1024", "realiad_jsons"),
        ("realiad_256", "realiad_jsons/realiad_jsons"),
    ],
)
def test_all_views(tmp_path: Path, pictures: str, lists: str) -> None:
    dataset = read_dataset(build(tmp_path, pictures, lists))
    assert dataset.layout == "real-iad"
    assert counts(dataset) == ALL_VIEWS
    assert all((s.mask is not None) == s.is_anomalous for s in dataset)
    assert all(s.mask is None or s.mask.stem == f"{s.image.stem}_mask" for s in dataset)
    assert dataset.notes[0].startswith("labels and splits from ")


def groups(samples: list[Sample]) -> dict[str, tuple[int, bool]]:
    """Each group's number of views, and whether any is defective."""
    found: dict[str, tuple[int, bool]] = {}
    for sample in samples:
        number, is_bad = found.get(sample.group, (0, False))
        found[sample.group] = number + 1, is_bad or sample.is_anomalous
    return found


def test_the_views_of_an_object_are_a_group(tmp_path: Path) -> None:
    dataset = read_dataset(build(tmp_path, ".", "."))
    assert groups(list(dataset.select(split="test"))) == {
        "toy_0003_OK": (5, False),
        "toy_0001_NG_HS": (5, True),
        "toy_0002_NG_ZW": (5, True),
    }


def test_one_resolution_with_the_lists_beside_it(tmp_path: Path) -> None:
    build(tmp_path, "realiad_256", "realiad_jsons")
    build(tmp_path, "realiad_512", "realiad_jsons")
    assert len(read_dataset(tmp_path / "realiad_512")) == 25
    with pytest.raises(DatasetError, match=r"\['realiad_256', 'realiad_512'\]; name one of them"):
        read_dataset(tmp_path)


@pytest.mark.parametrize("single", ["realiad_jsons_sv", "realiad_jsons/realiad_jsons_sv"])
def test_a_single_view(tmp_path: Path, single: str) -> None:
    build(tmp_path, ".", "realiad_jsons", single)
    assert read_dataset(tmp_path).layout == "real-iad"
    dataset = read_dataset(tmp_path, "real-iad-single")
    assert counts(dataset) == {
        ("toy", "train", "good"): 2,
        ("toy", "test", "good"): 2,
        ("toy", "test", "HS"): 1,
    }
    assert all("_C1_" in s.image.name for s in dataset)


def test_folders_without_lists_are_not_guessed_at(tmp_path: Path) -> None:
    build(tmp_path, ".", "")
    with pytest.raises(DatasetError, match=r"looks like Real-IAD but has no realiad_jsons/<cat"):
        read_dataset(tmp_path)
    build(tmp_path, ".", "realiad_jsons")
    with pytest.raises(DatasetError, match="has no realiad_jsons_sv/<category>"):
        read_dataset(tmp_path, "real-iad-single")


@pytest.mark.parametrize("layout", ["auto", "real-iad"])
@pytest.mark.parametrize(
    ("pictures", "lists"),
    [
        (".", "."),
        (".", "realiad_jsons"),
        (".", "realiad_jsons/realiad_jsons"),
        ("realiad_256", "realiad_256"),
        ("realiad_256", "realiad_256/realiad_jsons"),
        ("realiad_1024", "realiad_jsons"),
        ("realiad_1024", "realiad_jsons/realiad_jsons"),
    ],
)
def test_one_category(tmp_path: Path, pictures: str, lists: str, layout: str) -> None:
    root = build(tmp_path, pictures, lists) / pictures / "toy"
    lay(root.parent, "usb/OK/S0001/usb_0001_OK_C1_20231025.jpg")
    dataset = read_dataset(root, layout)
    assert dataset.layout == "real-iad"
    assert counts(dataset) == ALL_VIEWS
    assert all(s.image.is_relative_to(root) and s.image.is_file() for s in dataset)
    source = tmp_path / lists / "toy.json"
    assert dataset.notes == (f"labels and splits from {source}, pictures from {root}",)
    assert read_dataset(root, layout, ["toy"]).samples == dataset.samples
    with pytest.raises(DatasetError, match=r"no category \['usb'\] in .*; it has \['toy'\]"):
        read_dataset(root, layout, ["usb"])


@pytest.mark.parametrize(
    ("inside", "root"),
    [
        ("realiad_256/toy", "."),
        ("realiad_256/toy/OK", ".."),
        ("realiad_256", "toy"),
        ("realiad_256", "."),
        ("realiad_256/toy", ".."),
    ],
)
def test_a_short_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inside: str, root: str
) -> None:
    build(tmp_path, "realiad_256", "realiad_jsons")
    monkeypatch.chdir(tmp_path / inside)
    assert counts(read_dataset(root)) == ALL_VIEWS


@pytest.mark.parametrize("single", ["realiad_jsons_sv", "realiad_jsons/realiad_jsons_sv"])
@pytest.mark.parametrize("pictures", [".", "realiad_512"])
def test_a_single_view_of_one_category(tmp_path: Path, pictures: str, single: str) -> None:
    root = build(tmp_path, pictures, "realiad_jsons", single) / pictures / "toy"
    assert counts(read_dataset(root)) == ALL_VIEWS
    dataset = read_dataset(root, "real-iad-single")
    assert len(dataset) == 5
    assert all("_C1_" in s.image.name for s in dataset)


@pytest.mark.parametrize("lists", ["", "toy", "realiad_jsons_fuiad_0.1"])
def test_one_category_without_its_list_is_not_guessed_at(tmp_path: Path, lists: str) -> None:
    root = build(tmp_path, ".", lists) / "toy"
    (tmp_path / "usb.json").write_text("{}")  # another category's says nothing of this one
    for layout, name in (
        ("auto", "realiad_jsons"),
        ("real-iad", "realiad_jsons"),
        ("real-iad-single", "realiad_jsons_sv"),
    ):
        with pytest.raises(DatasetError, match=rf"but has no {name}/toy\.json beside") as caught:
            read_dataset(root, layout)
        assert str(caught.value).startswith(f"{root} looks like one category of Real-IAD but")
    assert read_dataset(root, "folder").layout == "folder"


def test_lists_of_other_categories_alone_are_none(tmp_path: Path) -> None:
    build(tmp_path, ".", "")
    lay(tmp_path, "realiad_jsons/usb.json", "realiad_jsons/realiad_jsons_sv/usb.json")
    with pytest.raises(DatasetError, match="looks like Real-IAD but has no realiad_jsons/<cat"):
        read_dataset(tmp_path)


def test_a_listed_category_may_be_absent(tmp_path: Path) -> None:
    build(tmp_path, ".", "realiad_jsons")
    (tmp_path / "realiad_jsons/usb.json").write_text("{}")
    dataset = read_dataset(tmp_path)
    assert dataset.categories == ("toy",)
    assert dataset.notes[1] == "realiad_jsons/ also lists ['usb'], which are not there"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "must hold a JSON object, got list"),
        ("{", "cannot read"),
        ('{"train": {}}', "'train' in .* must be a list, got dict"),
        ('{"train": [7]}', "must have the text 'image_path'; got 7"),
        ('{"test": [{"image_path": "a_C1_b.jpg", "mask_path": null}]}', "text 'anomaly_class'"),
        (
            '{"test": [{"image_path": "a.jpg", "mask_path": null, "anomaly_class": "OK"}]}',
            "a view _C1_ to _C5_",
        ),
        (json.dumps({"train": views(1, "HS", (1,))}), "training pictures in .* are defective"),
    ],
)
def test_a_bad_list_is_refused(tmp_path: Path, content: str, message: str) -> None:
    build(tmp_path, ".", ".")
    (tmp_path / "toy.json").write_text(content)
    with pytest.raises(DatasetError, match=message) as caught:
        read_dataset(tmp_path)
    assert "\n" not in str(caught.value)
