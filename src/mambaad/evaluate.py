"""Evaluation: a run against the test pictures of a data set, category by category.

The maps of a category are kept only while its metrics are computed, on the device if that is CUDA.
Masks are read while the network runs. Image labels are the data set's; under the protocol ``ader``
they come from the resized masks, as in the paper's tables.
"""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mambaad import device_metrics
from mambaad.calibrate import Calibration
from mambaad.data import Dataset, PictureStore, Sample, load_mask
from mambaad.data.cache import Progress, map_in_threads, worker_count
from mambaad.errors import DatasetError
from mambaad.files import write_json, write_text
from mambaad.inference import Method, batches, picture_scores
from mambaad.metrics import (
    PixelMetrics,
    Protocol,
    Report,
    mean_report,
    pixel_metrics,
    score,
    to_csv,
    to_json_mapping,
    to_markdown,
)


@dataclass(frozen=True)
class Example:
    """A picture worth looking at."""

    path: Path
    """Its file."""

    kind: str
    """``best``, ``median`` or ``worst`` of the defective pictures by score, or ``false alarm``:
    the good picture with the highest score."""

    label: int
    """1 if defective."""

    defect: str
    """``good``, or the defect's name."""

    score: float
    """The maximum of its map."""

    picture: NDArray[np.uint8]
    """(H, W, 3), as prepared."""

    map: NDArray[np.float32]
    """(H, W)."""

    mask: NDArray[np.bool_] | None
    """(H, W), or None without one."""


@dataclass(frozen=True)
class CategoryResult:
    """What evaluation found in one category."""

    category: str
    report: Report
    paths: tuple[Path, ...]
    labels: NDArray[np.int64]
    defects: tuple[str, ...]
    scores: NDArray[np.float32]
    threshold: float | None
    """The run's, or None if it has no calibration."""

    examples: tuple[Example, ...]

    @property
    def above(self) -> NDArray[np.bool_]:
        """Which scores lie above the threshold, compared as prediction does, in float64."""
        level = np.inf if self.threshold is None else self.threshold
        return self.scores.astype(np.float64) > level

    @property
    def false_alarms(self) -> int | None:
        """Good pictures above the threshold."""
        if self.threshold is None:
            return None
        return int(((self.labels == 0) & self.above).sum())

    @property
    def misses(self) -> int | None:
        """Defective pictures at or below the threshold."""
        if self.threshold is None:
            return None
        return int(((self.labels == 1) & ~self.above).sum())


@dataclass(frozen=True)
class Evaluation:
    """What evaluation found."""

    protocol: Protocol
    categories: Mapping[str, CategoryResult]
    seconds: float
    images: int

    @property
    def reports(self) -> dict[str, Report]:
        """The metrics by category."""
        return {name: result.report for name, result in self.categories.items()}

    @property
    def mean(self) -> Report:
        """The unweighted mean over categories."""
        return mean_report(self.reports)


def evaluate(
    method: Method,
    dataset: Dataset,
    image_size: tuple[int, int],
    *,
    device: torch.device,
    protocol: Protocol = "exact",
    pro_limit: float = 0.3,
    calibration: Calibration | None = None,
    progress: Progress | None = None,
    precision: str = "auto",
) -> Evaluation:
    """Score all test pictures of a data set.

    Args:
        method: On ``device`` and in evaluation mode.
        dataset: Its test pictures are used.
        image_size: Height and width that pictures and masks are resized to.
        device: Where the method is.
        protocol: ``exact`` or ``ader``; see ``mambaad.metrics``.
        pro_limit: Largest false positive rate of AUPRO.
        calibration: The run's thresholds, to count false alarms and misses.
        progress: Called with the number of pictures done and in all.
        precision: What the network runs in: ``auto``, ``float32`` or ``bf16``.

    Raises:
        DatasetError: If there are no test pictures.
        ImageError: If a picture or mask cannot be read.
    """
    began = time.monotonic()
    tests = dataset.select(split="test")
    if not tests.samples:
        raise DatasetError(
            f"no test pictures in {dataset.root}: a test needs good pictures and defective ones "
            f"(see 'mambaad check {dataset.root}')"
        )
    groups = {name: tests.select(categories=[name]).samples for name in tests.categories}
    store = PictureStore([s.image for part in groups.values() for s in part], image_size, "none")
    # one pass over all categories, so that pictures are decoded while metrics are computed
    parts = batches(method, store, device, progress=progress, precision=precision)
    grouped = regroup((maps for _, _, maps in parts), [len(part) for part in groups.values()])
    computed = partial(
        score,
        protocol=protocol,
        pro_limit=pro_limit,
        pixels=pixel_metrics_for(device),
    )
    results: dict[str, CategoryResult] = {}
    with ThreadPoolExecutor(1) as reader:
        reading = (
            (name, reader.submit(read_masks, samples, image_size))
            for name, samples in groups.items()
        )
        # zip asks for the masks first: they are read while the network computes the maps
        for (category, masks), maps in zip(reading, grouped, strict=True):
            threshold = None if calibration is None else calibration.threshold(category)
            results[category] = _category_result(
                category, groups[category], maps, masks.result(), computed, threshold
            )
    return Evaluation(protocol, results, time.monotonic() - began, len(tests))


def _category_result(
    category: str,
    samples: Sequence[Sample],
    maps: NDArray[np.float32],
    masks: Sequence[NDArray[np.bool_] | None] | None,
    compute: Callable[..., Report],
    threshold: float | None,
) -> CategoryResult:
    labels = np.array([s.is_anomalous for s in samples], dtype=np.int64)
    scores = picture_scores(maps)
    return CategoryResult(
        category=category,
        report=compute(maps, masks, labels, scores=scores),
        paths=tuple(s.image for s in samples),
        labels=labels,
        defects=tuple(s.defect for s in samples),
        scores=scores,
        threshold=threshold,
        examples=_examples(samples, maps, masks, labels, scores),
    )


def pixel_metrics_for(device: torch.device) -> PixelMetrics:
    """Sorting on the device if it is CUDA; numpy otherwise, which sorts faster than torch."""
    if device.type == "cuda":
        return partial(device_metrics.pixel_metrics, device=device)
    return pixel_metrics


def regroup(
    parts: Iterator[NDArray[np.float32]], counts: Sequence[int]
) -> Iterator[NDArray[np.float32]]:
    """Cut consecutive batches of maps into arrays of other lengths.

    Args:
        parts: Each (B, H, W), with any B; may be overwritten when the next one is asked for.
        counts: How many maps each array shall hold; as many as the batches in all.

    Returns:
        Arrays, (count, H, W).

    >>> numbers = np.arange(5, dtype=np.float32).reshape(5, 1, 1)
    >>> batches = iter((numbers[:2], numbers[2:4], numbers[4:]))
    >>> [maps.ravel().tolist() for maps in regroup(batches, [1, 4])]
    [[0.0], [1.0, 2.0, 3.0, 4.0]]
    """
    left = next(parts)
    for count in counts:
        maps = np.empty((count, *left.shape[1:]), np.float32)
        done = 0
        while done < count:
            if not len(left):
                left = next(parts)
            taken = left[: count - done]
            maps[done : done + len(taken)] = taken
            done += len(taken)
            left = left[len(taken) :]
        yield maps
    for _ in parts:  # none is left, but the last one's progress is reported when asked for another
        pass


def read_masks(
    samples: Sequence[Sample], size: tuple[int, int]
) -> list[NDArray[np.bool_] | None] | None:
    """The masks at the given size: zeros for good pictures, None where a defective one has none.

    Returns:
        None if no defective picture has a mask: the data set has none.
    """
    if not any(s.mask is not None for s in samples) and any(s.is_anomalous for s in samples):
        return None
    empty = np.zeros(size, dtype=np.bool_)

    def read(sample: Sample) -> NDArray[np.bool_] | None:
        if sample.mask is not None:
            return load_mask(sample.mask, size)
        return None if sample.is_anomalous else empty

    return map_in_threads(read, samples, workers=worker_count())


def _examples(
    samples: Sequence[Sample],
    maps: NDArray[np.float32],
    masks: Sequence[NDArray[np.bool_] | None] | None,
    labels: NDArray[np.int64],
    scores: NDArray[np.float32],
) -> tuple[Example, ...]:
    ascending = np.argsort(scores, kind="stable")
    bad = [int(i) for i in ascending if labels[i]]
    good = [int(i) for i in ascending if not labels[i]]
    chosen: dict[int, str] = {}
    if bad:
        for kind, index in (("best", bad[-1]), ("worst", bad[0]), ("median", bad[len(bad) // 2])):
            chosen.setdefault(index, kind)
    if good:
        chosen[good[-1]] = "false alarm"
    pictures = PictureStore([samples[i].image for i in chosen], maps.shape[1:], "none")
    order = {"best": 0, "median": 1, "worst": 2, "false alarm": 3}
    examples = [
        Example(
            path=samples[i].image,
            kind=kind,
            label=int(labels[i]),
            defect=samples[i].defect,
            score=float(scores[i]),
            picture=picture,
            map=maps[i].copy(),
            mask=None if masks is None else masks[i],
        )
        for (i, kind), picture in zip(chosen.items(), pictures[range(len(chosen))], strict=True)
    ]
    return tuple(sorted(examples, key=lambda e: order[e.kind]))


def save_evaluation(folder: Path, evaluation: Evaluation, about: Mapping[str, Any]) -> list[Path]:
    """Write ``evaluation.json``, ``.csv`` and ``.md``, and every picture's score in ``scores.csv``.

    Args:
        folder: Usually the run folder.
        evaluation: What ``evaluate`` returned.
        about: Added to the JSON: what the numbers belong to.

    Returns:
        The files.
    """
    decisions = {
        name: {"threshold": r.threshold, "false_alarms": r.false_alarms, "misses": r.misses}
        for name, r in evaluation.categories.items()
    }
    values = {
        **to_json_mapping(evaluation.reports),
        "decisions": decisions,
        "images": evaluation.images,
        "seconds": round(evaluation.seconds, 2),
        "about": dict(about),
    }
    files = [folder / f"evaluation.{suffix}" for suffix in ("json", "csv", "md")]
    write_json(files[0], values)
    write_text(files[1], to_csv(evaluation.reports))
    write_text(files[2], to_markdown(evaluation.reports))
    files.append(folder / "scores.csv")
    write_text(files[-1], _scores_csv(evaluation))
    return files


def _scores_csv(evaluation: Evaluation) -> str:
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["image_path", "category", "label_index", "defect", "pred_score", "pred_label"])
    for name, result in evaluation.categories.items():
        for path, label, defect, value, above in zip(
            result.paths, result.labels, result.defects, result.scores, result.above, strict=True
        ):
            decided = "" if result.threshold is None else int(above)
            rows.writerow([path, name, label, defect, repr(float(value)), decided])
    return text.getvalue()
