"""COCO-AD: four anomaly detection splits of COCO 2017, by which of its classes are defects.

The 80 classes, in the order of their numbers, make four blocks of 20. In split x

* training has the pictures of train2017 that are annotated and show no object of block x;
* the test has every annotated picture of val2017; one with an object of block x is defective, and
  the union of those objects, crowds too, is its mask.

Training pictures with an object of block x are not used. Source: Zhang et al., "Learning feature
inversion for multi-class anomaly detection under general-purpose COCO-AD benchmark", arXiv
2404.10760. Records and masks have the names and the form of its code (ADer), so that either reads
them: ``meta_20_x.json`` and ``val2017_mask_ad_20_x/NAME.png``.
"""

from __future__ import annotations

import importlib
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mambaad.data.cache import Progress, map_in_threads, worker_count
from mambaad.data.layouts.listed import read_json
from mambaad.data.layouts.meta import COCO_SPLITS, coco_meta
from mambaad.errors import DatasetError
from mambaad.files import replacing, write_json

CLASSES = 80
BLOCK = CLASSES // COCO_SPLITS
CATEGORY = "coco"

Record = dict[str, Any]


def prepare_coco_ad(
    source: Path, out: Path | None = None, *, progress: Progress | None = None
) -> list[Path]:
    """Write the records and masks of the four splits.

    Args:
        source: The folder with ``annotations/instances_train2017.json``, ``train2017/`` and the
            same of val2017.
        out: Folder to write to, which is then the data set; None: ``source``.
        progress: Called after each mask.

    Returns:
        The four files of records.

    Raises:
        DatasetError: If pycocotools is not installed, or a file is missing or not COCO's.
    """
    masks = _mask_tools()
    folder = source if out is None else out
    train, val = (_Annotations(source, part) for part in ("train2017", "val2017"))
    if train.classes != val.classes:
        raise DatasetError(f"the annotations in {source} have different classes for train and val")
    folder.mkdir(parents=True, exist_ok=True)
    base = Path(os.path.relpath(source, folder))
    blocks = [train.classes[BLOCK * x :][:BLOCK] for x in range(COCO_SPLITS)]
    jobs = [(x, image) for x, block in enumerate(blocks) for image in val.showing(block)]

    def draw(job: tuple[int, Record]) -> None:
        split, image = job
        shapes = [a["segmentation"] for a in val.objects(image, blocks[split])]
        mask = union(shapes, image["height"], image["width"], masks)
        with replacing(folder / mask_name(split, image)) as temporary:
            Image.fromarray(mask * np.uint8(255)).save(temporary)

    map_in_threads(draw, jobs, workers=worker_count(), progress=progress)
    written = []
    for split, block in enumerate(blocks):
        records = {"train": train.records(base, block), "test": val.records(base, block, split)}
        written.append(folder / coco_meta(split))
        write_json(written[-1], {part: {CATEGORY: found} for part, found in records.items()})
    return written


def mask_name(split: int, image: Mapping[str, Any]) -> str:
    """Where the mask of a picture of val2017 is."""
    return f"val2017_mask_ad_20_{split}/{Path(image['file_name']).stem}.png"


def union(shapes: Sequence[Any], height: int, width: int, tools: Any) -> NDArray[np.uint8]:
    """The pixels of any of several objects.

    Args:
        shapes: COCO's segmentations: lists of polygons, or run lengths.
        height: Of the picture, in pixels.
        width: Of the picture, in pixels.
        tools: The module ``pycocotools.mask``.

    Returns:
        (height, width), 0 and 1.
    """
    marked: NDArray[np.uint8] = np.zeros((height, width), np.uint8)
    for shape in shapes:
        packed = shape
        if isinstance(shape, list):
            packed = tools.merge(tools.frPyObjects(shape, height, width))
        elif isinstance(shape["counts"], list):
            packed = tools.frPyObjects(shape, height, width)
        marked |= tools.decode(packed)
    return marked


class _Annotations:
    """A file of COCO's annotations, and what it says of each picture."""

    def __init__(self, source: Path, part: str) -> None:
        self.part = part
        path = source / "annotations" / f"instances_{part}.json"
        content = read_json(path)
        try:
            self.classes: list[int] = sorted(c["id"] for c in content["categories"])
            images = {image["id"]: image for image in content["images"]}
            self._objects: dict[int, list[Record]] = defaultdict(list)
            for annotation in content["annotations"]:
                self._objects[annotation["image_id"]].append(annotation)
            annotated = [images[number] for number in self._objects]
            self.images: list[Record] = sorted(annotated, key=lambda i: str(i["file_name"]))
        except (KeyError, TypeError) as error:
            raise DatasetError(f"{path} is no file of COCO's instances: {error!r}") from error
        if len(self.classes) != CLASSES:
            raise DatasetError(f"{path} must have {CLASSES} classes, got {len(self.classes)}")
        if not (source / part).is_dir():
            raise DatasetError(f"no pictures at {source / part}; unpack {part}.zip there")

    def objects(self, image: Record, block: Sequence[int]) -> list[Record]:
        """The objects of a block's classes on a picture."""
        return [a for a in self._objects[image["id"]] if a["category_id"] in block]

    def showing(self, block: Sequence[int]) -> list[Record]:
        """The pictures with an object of a block."""
        return [image for image in self.images if self.objects(image, block)]

    def records(self, base: Path, block: Sequence[int], split: int | None = None) -> list[Record]:
        """Good pictures, and those of a test's ``split`` with an object of the block."""
        bad = {image["id"] for image in self.showing(block)}
        found = []
        for image in self.images:
            is_bad = image["id"] in bad
            if is_bad and split is None:
                continue
            found.append(
                {
                    "img_path": (base / self.part / image["file_name"]).as_posix(),
                    "mask_path": mask_name(split, image) if is_bad and split is not None else "",
                    "cls_name": CATEGORY,
                    "specie_name": "",
                    "anomaly": int(is_bad),
                }
            )
        return found


def _mask_tools() -> Any:
    try:
        return importlib.import_module("pycocotools.mask")
    except ImportError as error:
        raise DatasetError(
            "preparing COCO-AD needs pycocotools: pip install 'mambaad[coco]'"
        ) from error
