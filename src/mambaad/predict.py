"""Prediction: a ``Detector`` scores pictures, decides, and shows where.

detector = mambaad.load("runs/bottle")
prediction = detector.predict("new.png")
prediction.pred_score, prediction.pred_label, prediction.box
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from mambaad.calibrate import Calibration, load_calibration
from mambaad.checkpoint import load_model
from mambaad.config import Config
from mambaad.data import list_pictures, load_picture, picture_from_array, resize_picture
from mambaad.data.layouts import MASK_NAMES
from mambaad.devices import pick_device
from mambaad.errors import ConfigError, DatasetError, ImageError
from mambaad.files import replacing
from mambaad.heatmap import overlay, scale_top
from mambaad.inference import BATCH_SIZE, anomaly_maps, picture_scores
from mambaad.model import MambaAD

Box = tuple[int, int, int, int]
Picture = NDArray[Any]

UNCALIBRATED_TOP = 0.2
"""Top of the heat maps' colour scale for a run without thresholds; maps lie in 0 to 2/3."""

FIELDS = (
    "image_path", "category", "pred_score", "threshold", "pred_label",
    "box_left", "box_top", "box_right", "box_bottom", "width", "height",
)  # fmt: skip
"""Columns of ``predictions.csv``."""


@dataclass(frozen=True)
class Prediction:
    """What a detector says of one picture."""

    image_path: Path | None
    """Its file; None for an array."""

    category: str | None
    """The category whose threshold was used, if it is known."""

    pred_score: float
    """The maximum of the anomaly map; higher is more unusual."""

    threshold: float | None
    """Scores above it are defective; None if the run has no calibration."""

    anomaly_map: NDArray[np.float32]
    """(H, W) at the network's size."""

    picture_size: tuple[int, int]
    """Height and width of the picture itself."""

    @property
    def pred_label(self) -> bool | None:
        """True if defective; None without a threshold."""
        return None if self.threshold is None else self.pred_score > self.threshold

    @property
    def pred_mask(self) -> NDArray[np.bool_] | None:
        """(H, W) at the network's size: pixels above the threshold; None without one."""
        return None if self.threshold is None else self.anomaly_map > self.threshold

    @property
    def box(self) -> Box:
        """The hottest region in the picture's own pixels: left, top, right, bottom (exclusive).

        It is the connected region around the map's maximum that lies above the threshold or, where
        the picture is below it or there is none, above the middle of the map's median and maximum.
        """
        middle = (float(np.median(self.anomaly_map)) + self.pred_score) / 2
        level = self.threshold if self.pred_label and self.threshold is not None else middle
        regions, _ = ndimage.label(self.anomaly_map > level, np.ones((3, 3)))
        peak = np.unravel_index(int(self.anomaly_map.argmax()), self.anomaly_map.shape)
        if regions[peak] == 0:  # a flat map
            return 0, 0, self.picture_size[1], self.picture_size[0]
        rows, columns = ndimage.find_objects((regions == regions[peak]).astype(np.int8))[0]
        y, x = (p / m for p, m in zip(self.picture_size, self.anomaly_map.shape, strict=True))
        return (
            int(columns.start * x),
            int(rows.start * y),
            int(np.ceil(columns.stop * x)),
            int(np.ceil(rows.stop * y)),
        )

    def as_dict(self) -> dict[str, Any]:
        """The prediction without its map, as JSON can hold it; the keys are ``FIELDS``."""
        label = self.pred_label
        values = (
            None if self.image_path is None else str(self.image_path), self.category,
            self.pred_score, self.threshold, None if label is None else int(label),
            *self.box, self.picture_size[1], self.picture_size[0],
        )  # fmt: skip
        return dict(zip(FIELDS, values, strict=True))


class Detector:
    """A trained network with its settings and thresholds, ready for pictures."""

    def __init__(
        self, config: Config, model: MambaAD, calibration: Calibration | None, device: torch.device
    ) -> None:
        self.config = config
        self.model = model.to(device).eval()
        self.calibration = calibration
        self.device = device

    @classmethod
    def load(cls, run: Path | str, *, device: str = "auto") -> Detector:
        """Read a run folder.

        Args:
            run: Made by ``mambaad train`` or ``mambaad convert``.
            device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

        Raises:
            CheckpointError: If the folder is not a finished run, or a file in it is damaged.
            ConfigError: If the device cannot be used.
        """
        config, model = load_model(Path(run))
        return cls(config, model, load_calibration(Path(run)), pick_device(device))

    @property
    def scale_top(self) -> float:
        """The anomaly that heat maps show in their last colour; the same for every picture."""
        threshold = 0.0 if self.calibration is None else self.calibration.overall.threshold
        return scale_top(threshold) if threshold > 0 else UNCALIBRATED_TOP

    @overload
    def predict(
        self, source: Path | str | Picture, *, category: str | None = None
    ) -> Prediction: ...

    @overload
    def predict(
        self, source: list[Any] | tuple[Any, ...], *, category: str | None = None
    ) -> list[Prediction]: ...

    def predict(
        self,
        source: Path | str | Picture | list[Any] | tuple[Any, ...],
        *,
        category: str | None = None,
    ) -> Prediction | list[Prediction]:
        """Score one picture, or a list of them.

        Args:
            source: A file, an array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) in RGB order (uint8,
                uint16, bool, or float in 0..1), or a list of such.
            category: Whose threshold to use. None: for a file, the run's category that one of its
                folders is named after; else the overall threshold.

        Raises:
            ImageError: If a file cannot be read.
            ValueError: If an array is none of the above.
            ConfigError: If the run has no such category.
        """
        self.check_category(category)
        if isinstance(source, (str, Path, np.ndarray)):
            return self.score_pictures([_read(source)], [_path(source)], category)[0]
        sources = list(source)
        return [
            prediction
            for start in range(0, len(sources), BATCH_SIZE)
            for prediction in self.score_pictures(
                [_read(s) for s in sources[start : start + BATCH_SIZE]],
                [_path(s) for s in sources[start : start + BATCH_SIZE]],
                category,
            )
        ]

    def score_pictures(
        self,
        pictures: Sequence[NDArray[np.uint8]],
        paths: Sequence[Path | None],
        category: str | None,
    ) -> list[Prediction]:
        """Score pictures that are read already, as one batch.

        Args:
            pictures: uint8, (H, W, 3) each, of any sizes.
            paths: Their files, where they have one.
            category: See ``predict``; it is not checked here.
        """
        size = self.config.data.image_size
        prepared = np.stack([resize_picture(picture, size) for picture in pictures])
        maps = anomaly_maps(self.model, prepared, self.device)
        predictions = []
        for picture, path, value, score in zip(
            pictures, paths, maps, picture_scores(maps), strict=True
        ):
            name = category or self._category_of(path)
            threshold = None if self.calibration is None else self.calibration.threshold(name)
            own_size = (picture.shape[0], picture.shape[1])
            predictions.append(Prediction(path, name, float(score), threshold, value, own_size))
        return predictions

    def check_category(self, category: str | None) -> None:
        """Refuse a category that the run has no threshold for.

        Raises:
            ConfigError: With the categories that it has.
        """
        known = [] if self.calibration is None else list(self.calibration.categories)
        if category is not None and category not in known:
            raise ConfigError(f"this run has no category {category!r}; it has {known or 'none'}")

    def _category_of(self, path: Path | None) -> str | None:
        if path is None or self.calibration is None:
            return None
        if len(self.calibration.categories) == 1:
            return next(iter(self.calibration.categories))
        folders = path.absolute().parts[:-1]
        return next((f for f in reversed(folders) if f in self.calibration.categories), None)


def _read(source: Path | str | Picture) -> NDArray[np.uint8]:
    if isinstance(source, np.ndarray):
        return picture_from_array(source)
    return load_picture(Path(source))


def _path(source: Path | str | Picture) -> Path | None:
    return None if isinstance(source, np.ndarray) else Path(source)


def find_pictures(paths: Sequence[Path], leave_out: Path | None = None) -> list[tuple[Path, Path]]:
    """The pictures among files and folders, each with a name to put its outputs under.

    Inside a folder, those in folders of masks (``masks``, ``ground_truth``) are left out.

    Args:
        paths: Files and folders.
        leave_out: A folder whose pictures are left out: where the outputs go.

    Returns:
        Pairs (file, relative name without suffix); names are unique.

    Raises:
        DatasetError: If a path does not exist, or there is no picture in a folder.
    """
    found: list[tuple[Path, Path]] = []
    for path in paths:
        if path.is_dir():
            inside = [
                file
                for file in list_pictures(path)
                if not set(file.relative_to(path).parts[:-1]) & set(MASK_NAMES)
                and (leave_out is None or not file.is_relative_to(leave_out))
            ]
            if not inside:
                raise DatasetError(f"no pictures in {path}")
            found += [(file, file.relative_to(path)) for file in inside]
        elif path.is_file():
            found.append((path, Path(path.name)))
        else:
            raise DatasetError(f"no such file or folder: {path}")
    names: set[Path] = set()
    unique = []
    for file, name in found:
        stem, count = name.with_suffix(""), 1
        while stem in names:
            count += 1
            stem = name.with_name(f"{name.stem}_{count}")
        names.add(stem)
        unique.append((file, stem))
    return unique


def predict_files(
    detector: Detector,
    files: Sequence[tuple[Path, Path]],
    out: Path,
    *,
    category: str | None = None,
    heatmaps: bool = True,
    maps: bool = False,
) -> Iterator[Prediction | ImageError]:
    """Score files and write what is found; yield each prediction, or why a file was left out.

    ``out`` gets ``predictions.csv`` and ``predictions.jsonl`` (complete only when the last file is
    done: until then they have a temporary name), ``heatmaps/NAME.jpg`` at the picture's own size,
    and ``maps/NAME.npy`` (float32, the network's size) if ``maps``.

    Args:
        detector: Scores the pictures.
        files: From ``find_pictures``.
        out: Folder of the outputs.
        category: See ``Detector.predict``.
        heatmaps: Whether to draw heat maps.
        maps: Whether to write raw maps.

    Raises:
        ConfigError: If the run has no such category.
    """
    detector.check_category(category)
    with (
        replacing(out / "predictions.csv") as csv_path,
        replacing(out / "predictions.jsonl") as jsonl_path,
        csv_path.open("w", newline="", encoding="utf-8") as csv_file,
        jsonl_path.open("w", encoding="utf-8") as jsonl_file,
    ):
        rows = csv.DictWriter(csv_file, FIELDS, lineterminator="\n")
        rows.writeheader()
        for file, name in files:
            try:
                picture = load_picture(file)
            except ImageError as error:
                yield error
                continue
            prediction = detector.score_pictures([picture], [file], category)[0]
            values = prediction.as_dict()
            rows.writerow(values)
            jsonl_file.write(json.dumps(values) + "\n")
            if heatmaps:
                drawn = overlay(picture, prediction.anomaly_map, detector.scale_top)
                with replacing(out / "heatmaps" / f"{name}.jpg") as temporary:
                    Image.fromarray(drawn).save(temporary, quality=92)
            if maps:
                target = out / "maps" / f"{name}.npy"
                with replacing(target) as temporary:
                    np.save(temporary, prediction.anomaly_map)
            yield prediction
