"""COCO-AD from a miniature of COCO 2017: six pictures of 10 x 8 pixels."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from trees import rows

from mambaad.data import load_mask
from mambaad.data.coco import prepare_coco_ad, union
from mambaad.data.layouts import read_dataset
from mambaad.errors import DatasetError

HEIGHT, WIDTH = 8, 10
# COCO's numbers have gaps, and its file is not always in their order
CLASSES = [number * 2 + 1 for number in reversed(range(80))]
FIRST, SECOND = 1, 41
"""A class of block 0, and the first of block 1."""

BOX = [[2, 3, 6, 3, 6, 5, 2, 5]]
"""Columns 2 to 5 of rows 3 and 4."""

RUNS = {"size": [HEIGHT, WIDTH], "counts": [HEIGHT, 2, HEIGHT * WIDTH - HEIGHT - 2]}
"""Rows 0 and 1 of column 1: run lengths go down the columns."""


def annotations(part: str, objects: dict[str, list[tuple[int, Any]]]) -> dict[str, Any]:
    """Pictures by their names, each with its objects' classes and shapes."""
    images = [
        {"id": 100 + i, "file_name": f"{name}.jpg", "height": HEIGHT, "width": WIDTH}
        for i, name in enumerate(objects)
    ]
    found = [
        {"image_id": image["id"], "category_id": kind, "segmentation": shape, "iscrowd": 0}
        for image in images
        for kind, shape in objects[str(image["file_name"])[:-4]]
    ]
    classes = [{"id": number, "name": f"{part}{number}"} for number in CLASSES]
    return {"images": images, "annotations": found, "categories": classes}


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    root = tmp_path / "coco"
    contents = {
        "train2017": {"t2": [(SECOND, BOX)], "t1": [(FIRST, BOX)], "t0": []},
        "val2017": {
            "v2": [(SECOND, BOX)],
            "v1": [(FIRST, BOX), (FIRST, RUNS), (SECOND, BOX)],
            "v0": [],
        },
    }
    (root / "annotations").mkdir(parents=True)
    for part, objects in contents.items():
        (root / part).mkdir()
        for name in objects:
            Image.new("RGB", (WIDTH, HEIGHT)).save(root / part / f"{name}.jpg")
        text = json.dumps(annotations(part, objects))
        (root / "annotations" / f"instances_{part}.json").write_text(text)
    return root


class Rectangles(ModuleType):
    """``pycocotools.mask`` for upright rectangles and plain run lengths."""

    def frPyObjects(self, shape: Any, height: int, width: int) -> Any:
        if isinstance(shape, dict):
            values = np.arange(len(shape["counts"])) % 2
            flat = np.repeat(values, shape["counts"]).astype(np.uint8)
            return flat.reshape(width, height).T
        masks = []
        for x0, y0, _, _, x1, y1, _, _ in shape:
            mask = np.zeros((height, width), np.uint8)
            mask[y0:y1, x0:x1] = 1
            masks.append(mask)
        return masks

    def merge(self, masks: list[NDArray[np.uint8]]) -> Any:
        return np.maximum.reduce(masks)

    def decode(self, packed: Any) -> Any:
        return packed


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycocotools.mask", Rectangles("pycocotools.mask"))


@pytest.mark.usefixtures("tools")
def test_the_splits(coco: Path) -> None:
    told: list[tuple[int, int]] = []
    written = prepare_coco_ad(coco, progress=lambda *n: told.append(n))
    assert written == [coco / f"meta_20_{x}.json" for x in range(4)]
    assert told[-1] == (3, 3)  # v1 in split 0, v1 and v2 in split 1
    found = {x: rows(read_dataset(coco, f"coco-ad-{x}"), coco) for x in range(4)}
    train = {x: [r[0] for r in found[x] if r[2] == "train"] for x in range(4)}
    # t0 and v0 have no annotation and are in no split
    assert train == {
        0: ["train2017/t2.jpg"],
        1: ["train2017/t1.jpg"],
        2: ["train2017/t1.jpg", "train2017/t2.jpg"],
        3: ["train2017/t1.jpg", "train2017/t2.jpg"],
    }
    tests = {x: [r[0:1] + r[3:] for r in found[x] if r[2] == "test"] for x in range(4)}
    assert tests[0] == [
        ("val2017/v1.jpg", "defective", "val2017_mask_ad_20_0/v1.png"),
        ("val2017/v2.jpg", "good", ""),
    ]
    assert tests[1] == [
        ("val2017/v1.jpg", "defective", "val2017_mask_ad_20_1/v1.png"),
        ("val2017/v2.jpg", "defective", "val2017_mask_ad_20_1/v2.png"),
    ]
    assert tests[2] == tests[3] == [(f"val2017/v{i}.jpg", "good", "") for i in (1, 2)]


def expected_union() -> NDArray[np.bool_]:
    mask = np.zeros((HEIGHT, WIDTH), np.bool_)
    mask[3:5, 2:6] = True
    mask[0:2, 1] = True
    return mask


@pytest.mark.usefixtures("tools")
def test_a_mask_is_the_union_of_the_blocks_objects(coco: Path) -> None:
    prepare_coco_ad(coco)
    first = load_mask(coco / "val2017_mask_ad_20_0/v1.png")
    second = load_mask(coco / "val2017_mask_ad_20_1/v1.png")
    assert np.array_equal(first, expected_union())
    assert second.sum() == 8


# pycocotools 2.0.11 itself uses what NumPy 2 will drop
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_pycocotools_draws_the_same() -> None:
    real = pytest.importorskip("pycocotools.mask")
    assert np.array_equal(union([BOX, RUNS], HEIGHT, WIDTH, real), expected_union())
    packed = real.encode(np.asfortranarray(expected_union().astype(np.uint8)))
    assert np.array_equal(union([packed], HEIGHT, WIDTH, real), expected_union())


@pytest.mark.usefixtures("tools")
def test_records_can_be_written_elsewhere(coco: Path, tmp_path: Path) -> None:
    out = tmp_path / "made" / "coco-ad"
    prepare_coco_ad(coco, out)
    dataset = read_dataset(out)
    assert (dataset.layout, len(dataset)) == ("coco-ad-0", 3)
    assert sorted(p.name for p in coco.iterdir()) == ["annotations", "train2017", "val2017"]


def test_pycocotools_is_asked_for(coco: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycocotools.mask", None)
    with pytest.raises(DatasetError, match=r"pip install 'mambaad\[coco\]'"):
        prepare_coco_ad(coco)


@pytest.mark.usefixtures("tools")
def test_what_is_not_coco_is_refused(coco: Path) -> None:
    path = coco / "annotations/instances_val2017.json"
    content = json.loads(path.read_text())
    spoiled = (
        (content | {"categories": content["categories"][:5]}, "must have 80 classes, got 5"),
        ({"images": []}, "is no file of COCO's instances: KeyError"),
        (content | {"categories": [{"id": i} for i in range(80)]}, "different classes for train"),
    )
    for change, message in spoiled:
        path.write_text(json.dumps(change))
        with pytest.raises(DatasetError, match=message):
            prepare_coco_ad(coco)
    path.unlink()
    with pytest.raises(DatasetError, match="cannot read"):
        prepare_coco_ad(coco)


@pytest.mark.usefixtures("tools")
def test_the_pictures_must_be_there(coco: Path) -> None:
    (coco / "train2017").rename(coco / "train")
    with pytest.raises(DatasetError, match=r"unpack train2017\.zip there"):
        prepare_coco_ad(coco)
