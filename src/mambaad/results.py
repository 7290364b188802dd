"""The files of an evaluation: its metrics as JSON, CSV and Markdown, and every picture's score."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mambaad.evaluate import Evaluation
from mambaad.files import write_json, write_text
from mambaad.metrics import (
    MORE_PIXEL_METRICS,
    mean_extras,
    to_csv,
    to_json_mapping,
    to_markdown,
    value_of,
)
from mambaad.metrics.tables import MEAN


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
        "pixels": _of_pixels(evaluation),
        "samples": _of_samples(evaluation),
        "decisions": decisions,
        "images": evaluation.images,
        "seconds": round(evaluation.seconds, 2),
        "about": dict(about),
    }
    files = [folder / f"evaluation.{suffix}" for suffix in ("json", "csv", "md")]
    write_json(files[0], values)
    write_text(files[1], to_csv(evaluation.reports, evaluation.extras))
    write_text(files[2], to_markdown(evaluation.reports, evaluation.extras))
    files.append(folder / "scores.csv")
    write_text(files[-1], _scores_csv(evaluation))
    return files


def _of_pixels(evaluation: Evaluation) -> dict[str, dict[str, Any]]:
    """All pixel metrics of each category that has masks, the mean of those that are not in a
    report, and all metrics of the pixels of all categories together if there are."""
    found = {n: r.pixels.to_mapping() for n, r in evaluation.categories.items() if r.pixels}
    if found:
        means, reasons = mean_extras(evaluation.extras)
        values = {name: value_of(means, name) for name in MORE_PIXEL_METRICS}
        found[MEAN] = {
            **{name: None if math.isnan(value) else value for name, value in values.items()},
            "reasons": {name: why for name, why in reasons.items() if name in values},
        }
    if evaluation.pooled is not None:
        found["pooled"] = evaluation.pooled.to_mapping()
    return found


def _of_samples(evaluation: Evaluation) -> dict[str, float]:
    """The sample-level AUROC of each category that has one, and their mean."""
    found = {name: result.sample_auroc for name, result in evaluation.categories.items()}
    known = {name: value for name, value in found.items() if value is not None}
    return {**known, MEAN: math.fsum(known.values()) / len(known)} if known else {}


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
