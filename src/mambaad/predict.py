"""Prediction: a ``Detector`` scores pictures, decides, and shows where.

detector = mambaad.load("runs/bottle")
prediction = detector.predict("new.png")
prediction.pred_score, prediction.pred_label, prediction.box
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from mambaad.calibrate import Calibration, load_calibration, precision_note
from mambaad.checkpoint import load_model, load_provenance
from mambaad.config import Config
from mambaad.data import list_pictures
from mambaad.data.cache import worker_count
from mambaad.data.images import PICTURE_SUFFIXES, left_out_note
from mambaad.data.layouts import MASK_NAMES
from mambaad.devices import pick_device
from mambaad.errors import ConfigError, DatasetError, ImageError
from mambaad.files import replacing
from mambaad.heatmap import overlay, scale_top
from mambaad.inference import Scorer, batch_size_for, scoring_precision
from mambaad.model import MambaAD
from mambaad.pipeline import ahead
from mambaad.prediction import COLUMNS, FIELDS, Box, Prediction
from mambaad.prediction_tables import (
    MARK,
    check_ours,
    escaped,
    heatmap_name,
    listed_heatmaps,
    map_name,
    remove_heatmaps,
    tables,
)
from mambaad.reading import Read, Reader, groups

__all__ = ["COLUMNS", "FIELDS", "Box", "Detector", "Prediction", "find_pictures", "predict_files"]

Picture = NDArray[Any] | Image.Image

_log = logging.getLogger(__name__)

UNCALIBRATED_TOP = 0.2
"""Top of the heat maps' colour scale for a run without thresholds; maps lie in 0 to 2/3."""


class Detector:
    """A trained network with its settings and thresholds, ready for pictures."""

    def __init__(
        self,
        config: Config,
        model: MambaAD,
        calibration: Calibration | None,
        device: torch.device,
        *,
        precision: str | None = None,
        products: Sequence[str] = (),
    ) -> None:
        """Move a network to a device and make it ready.

        Args:
            config: The run's settings.
            model: Its network. On CUDA in bf16 a copy is used: later changes are not seen.
            calibration: Its thresholds.
            device: Where to predict.
            precision: ``auto`` (bf16 on a CUDA device that has it, else float32), ``float32`` or
                ``bf16``. None: what the run was trained in on a CUDA device, float32 on others. If
                the thresholds were set in another, the first prediction logs a line.
            products: What the network has learned, as far as that is known.

        Raises:
            ConfigError: If ``precision`` is none of these.
        """
        self.config = config
        self.model = model.to(device).eval()
        self.calibration = calibration
        self.device = device
        self.products = tuple(products)
        self.scorer = Scorer(
            self.model,
            device,
            precision=scoring_precision(precision, config.train.precision, device),
            tiling=config.data.tiling,
        )
        self._told: str | None = None
        # a CPU gains nothing from batches, and pictures alone are done sooner
        self.batch_size = (
            1 if device.type == "cpu" else batch_size_for(device, config.data.image_size)
        )

    @classmethod
    def load(
        cls, run: Path | str, *, device: str = "auto", precision: str | None = None
    ) -> Detector:
        """Read a run folder.

        Args:
            run: Made by ``mambaad train`` or ``mambaad convert``.
            device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
            precision: ``auto``, ``float32`` or ``bf16``; None: see ``Detector``.

        Raises:
            CheckpointError: If the folder is not a finished run, or a file in it is damaged.
            ConfigError: If the device or the precision cannot be used.
        """
        config, model = load_model(Path(run))
        known, target = load_calibration(Path(run)), pick_device(device)
        learned = load_provenance(Path(run)).get("categories") or config.data.categories
        return cls(config, model, known, target, precision=precision, products=learned)

    @property
    def scale_top(self) -> float:
        """The anomaly that heat maps show in their last colour; the same for every picture."""
        threshold = 0.0 if self.calibration is None else self.calibration.overall.threshold
        return scale_top(threshold) if threshold > 0 else UNCALIBRATED_TOP

    @property
    def categories(self) -> tuple[str, ...]:
        """The products with thresholds of their own."""
        return () if self.calibration is None else tuple(self.calibration.categories)

    @property
    def lacking(self) -> tuple[str, ...]:
        """The products that the network has learned and that have no thresholds of their own."""
        return tuple(sorted(set(self.products) - set(self.categories)))

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
            source: A file; an array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) in RGB order (uint8,
                uint16, bool, or float in 0..1); a PIL picture, which is converted as a file is; or
                a list of such.
            category: Whose threshold to use. None: for a file, the run's category that one of its
                folders is named after; else the overall threshold. A run of one product takes
                every picture for it.

        Raises:
            ImageError: If a file or a PIL picture cannot be read.
            TypeError: If ``source`` is none of the above.
            ValueError: If an array is of another shape, type or range.
            ConfigError: If the run has no such category, or no threshold for it.
        """
        self.check_category(category)
        reader = Reader(self.config.data.image_size, keep=False)
        if not isinstance(source, (list, tuple)):
            return self._predict([reader(source)], category)[0]
        with closing(reader.ahead(reader, source, self.batch_size)) as read:
            return self._predict(read, category)

    def _predict(self, read: Iterable[Read], category: str | None) -> list[Prediction]:
        with closing(self.scored(read, category)) as scored:
            return [result for _, result in scored if isinstance(result, Prediction)]

    def scored(
        self, items: Iterable[Read | ImageError], category: str | None
    ) -> Generator[tuple[Read | None, Prediction | ImageError], None, None]:
        """Predictions of pictures that are read, with them, in order; errors in their places."""
        waiting: deque[list[Read | ImageError]] = deque()
        self._tell(precision_note(self.calibration, self.scorer.precision))

        def batches() -> Iterator[NDArray[np.uint8]]:
            for group in groups(items, self.batch_size):
                waiting.append(group)
                pictures = [item.prepared for item in group if isinstance(item, Read)]
                if pictures:  # the last group may have none
                    yield np.stack(pictures)

        with closing(self.scorer.stream(batches())) as results:
            for maps, scores in results:
                rows = zip(maps, scores, strict=True)
                for item in waiting.popleft():
                    if isinstance(item, Read):
                        yield item, self._prediction(item, *next(rows), category)
                    else:
                        yield None, item
        for group in waiting:
            yield from ((None, error) for error in group if isinstance(error, ImageError))

    def _tell(self, note: str | None) -> None:
        if note is not None and note != self._told:
            _log.warning("%s", note)
            self._told = note

    def _prediction(
        self, item: Read, map: NDArray[np.float32], score: float, category: str | None
    ) -> Prediction:
        name = category or self._category_of(item.path)
        threshold = None if self.calibration is None else self.calibration.threshold(name)
        # a copy, since the map is a part of its batch and would keep all of it
        return Prediction(item.path, name, float(score), threshold, map.copy(), item.size)

    def check_category(self, category: str | None) -> None:
        """Refuse a category that the run has no threshold for.

        Raises:
            ConfigError: With the categories that it has.
        """
        known = list(self.categories)
        if category is None or category in known:
            return
        if category in self.products:
            hint = "'mambaad calibrate' makes it; or leave the category out"
            raise ConfigError(f"this run has no threshold for {category!r}: {hint}")
        raise ConfigError(f"this run has no category {category!r}; it has {known or 'none'}")

    def _category_of(self, path: Path | None) -> str | None:
        known = self.categories
        if path is None or not known:
            return None
        if len(known) == 1 and len(self.products) <= 1:
            return known[0]
        # a product without a threshold is not another one that a folder further up is named after
        named = {*known, *self.products}
        nearest = next((f for f in reversed(path.absolute().parts[:-1]) if f in named), None)
        return nearest if nearest in known else None


def find_pictures(paths: Sequence[Path], leave_out: Path | None = None) -> list[tuple[Path, Path]]:
    """The pictures among files and folders, each with a name to put its outputs under.

    Inside a folder, those in folders of masks (``masks``, ``ground_truth``) are left out. A line is
    logged if there are files whose endings say that they are pictures of other kinds.

    Args:
        paths: Files and folders.
        leave_out: A folder whose pictures are left out: where the outputs go.

    Returns:
        Pairs (file, relative name without suffix); names are unique, and text: bytes that are no
        UTF-8 are escaped in them.

    Raises:
        DatasetError: If a path does not exist, or there is no picture in a folder.
    """
    found: list[tuple[Path, Path]] = []
    left = None if leave_out is None else leave_out.resolve()
    other = left_out_note([path for path in paths if path.is_dir()], MASK_NAMES)
    for path in paths:
        if path.is_dir():
            whole = path.resolve()
            inside = [
                file
                for file in list_pictures(path)
                if not set(file.relative_to(path).parts[:-1]) & set(MASK_NAMES)
                and (left is None or not (whole / file.relative_to(path)).is_relative_to(left))
            ]
            if not inside:
                what = f"expected files ending in {', '.join(sorted(PICTURE_SUFFIXES))}"
                raise DatasetError(f"no pictures in {path}: {what}{f'; {other}' if other else ''}")
            found += [(file, file.relative_to(path)) for file in inside]
        elif path.is_file():
            found.append((path, Path(path.name)))
        else:
            raise DatasetError(f"no such file or folder: {path}")
    if other is not None:
        _log.warning("note: %s", other)
    names: set[Path] = set()
    unique = []
    for file, name in found:
        name = Path(escaped(str(name)))
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
) -> Generator[Prediction | ImageError, None, None]:
    """Score files and write what is found; yield each prediction, or why a file was left out.

    ``out`` gets ``predictions.csv`` and ``predictions.jsonl`` (complete only when the last file is
    done: until then they have a temporary name), ``heatmaps/NAME.jpg`` at the picture's own size,
    and ``maps/NAME.npy`` (float32, the network's size) if ``maps``. Every file has a line in both
    tables: with its heat map's place in ``out``, or with the error, and nothing else, if it could
    not be read. In names, bytes that are no UTF-8 are escaped (``\\udcf6``). If this ends early, by
    an exception or because it is closed, the rows so far are in ``predictions.partial.csv``. Heat
    maps that the tables of earlier calls name, and this one does not, are removed when the new
    table is complete. A heat map or raw map that no earlier call wrote is never written over.

    Args:
        detector: Scores the pictures.
        files: From ``find_pictures``.
        out: Folder of the outputs.
        category: See ``Detector.predict``.
        heatmaps: Whether to draw heat maps.
        maps: Whether to write raw maps.

    Raises:
        ConfigError: Before anything is scored, if the run has no such category, or no threshold
            for it, or if a file of somebody else's would be written over.
    """
    detector.check_category(category)
    old, new = listed_heatmaps(out), set[str]()
    stems = [stem for _, stem in files]
    check_ours(out, map(heatmap_name, stems if heatmaps else ()), old)
    check_ours(out, map(map_name, stems if maps else ()), old)
    reader = Reader(detector.config.data.image_size, keep=heatmaps)
    write = _Writer(out, detector.scale_top if heatmaps else None, maps)
    paths = [path for path, _ in files]
    workers = worker_count()
    with (
        tables(out, len(files)) as add,
        closing(reader.ahead(reader.or_error, paths, detector.batch_size)) as read,
        closing(detector.scored(read, category)) as scored,
        closing(
            ahead(write, zip(files, scored, strict=True), workers=workers, limit=2 * workers)
        ) as written,
    ):
        for result, values in written:
            add(values)
            if values["heatmap"]:
                new.add(values["heatmap"])
            yield result
    remove_heatmaps(out, old, new)


class _Writer:
    """Writes what is found in a picture, in several threads at once."""

    def __init__(self, out: Path, top: float | None, maps: bool) -> None:
        """Args: out; top of the heat maps' scale, None for no heat maps; whether to write maps."""
        self._out = out
        self._top = top
        self._maps = maps

    def __call__(
        self, task: tuple[tuple[Path, Path], tuple[Read | None, Prediction | ImageError]]
    ) -> tuple[Prediction | ImageError, dict[str, Any]]:
        """Give back what came, and its row of the table."""
        (path, name), (item, result) = task
        row: dict[str, Any] = dict.fromkeys(COLUMNS)
        if isinstance(result, ImageError):
            error = str(result).removeprefix(f"cannot read {path}: ")
            return result, {**row, "image_path": str(path), "error": error}
        row.update(result.as_dict())
        if self._top is not None and item is not None and item.picture is not None:
            drawn = overlay(item.picture, result.anomaly_map, self._top)
            row["heatmap"] = heatmap_name(name)
            with replacing(self._out / row["heatmap"]) as temporary:
                Image.fromarray(drawn).save(temporary, quality=92, comment=MARK)
        if self._maps:
            place = self._out / map_name(name)
            with replacing(place) as temporary, temporary.open("wb") as file:
                np.save(file, result.anomaly_map)
                file.write(MARK)  # behind the array, where its readers do not look
        return result, row
