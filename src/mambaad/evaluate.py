"""Evaluation: a run against the test pictures of a data set, category by category.

The maps of a category are kept only while its metrics are computed. Image labels are the data
set's; under the protocol ``ader`` they come from the resized masks, as in the paper's tables.
"""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mambaad.calibrate import Calibration
from mambaad.data import Dataset, PictureStore, Sample, load_mask
from mambaad.data.cache import Progress
from mambaad.errors import DatasetError
from mambaad.files import write_json, write_text
from mambaad.inference import Method, batches, picture_scores
from mambaad.metrics import (
    Protocol,
    Report,
    mean_report,
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
    results: dict[str, CategoryResult] = {}
    done = 0
    for category in tests.categories:
        samples = tests.select(categories=[category]).samples

        def report(part: int, _: int, before: int = done) -> None:
            if progress is not None:
                progress(before + part, len(tests))

        results[category] = _evaluate_category(
            method, category, samples, image_size, device, protocol, pro_limit, calibration, report
        )
        done += len(samples)
    return Evaluation(protocol, results, time.monotonic() - began, len(tests))


def _evaluate_category(
    method: Method,
    category: str,
    samples: Sequence[Sample],
    size: tuple[int, int],
    device: torch.device,
    protocol: Protocol,
    pro_limit: float,
    calibration: Calibration | None,
    progress: Progress,
) -> CategoryResult:
    store = PictureStore([s.image for s in samples], size, "none")
    maps = np.empty((len(samples), *size), np.float32)
    for indices, _, part in batches(method, store, device, progress=progress):
        maps[indices] = part
    masks = read_masks(samples, size)
    labels = np.array([s.is_anomalous for s in samples], dtype=np.int64)
    scores = picture_scores(maps)
    return CategoryResult(
        category=category,
        report=score(maps, masks, labels, protocol=protocol, pro_limit=pro_limit),
        paths=tuple(s.image for s in samples),
        labels=labels,
        defects=tuple(s.defect for s in samples),
        scores=scores,
        threshold=None if calibration is None else calibration.threshold(category),
        examples=_examples(samples, store, maps, masks, labels, scores),
    )


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
    masks: list[NDArray[np.bool_] | None] = []
    for sample in samples:
        if sample.mask is not None:
            masks.append(load_mask(sample.mask, size))
        else:
            masks.append(None if sample.is_anomalous else empty)
    return masks


def _examples(
    samples: Sequence[Sample],
    store: PictureStore,
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
    pictures = store[list(chosen)]
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
        for (i, kind), picture in zip(chosen.items(), pictures, strict=True)
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
