"""The files of an evaluation."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import Brightness
from PIL import Image

from mambaad.calibrate import calibrate
from mambaad.data import Dataset, Sample
from mambaad.evaluate import evaluate
from mambaad.metrics import EXTRA_FIELDS, MORE_PIXEL_METRICS
from mambaad.results import save_evaluation

SIZE = (32, 32)
CPU = torch.device("cpu")


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """Two good pictures and three bad ones, with a square of known brightness and no masks; two
    views each of two objects, and one of a third.
    """
    samples = []
    values = {"g0": (10, "a"), "g1": (40, "a"), "b0": (200, "b"), "b1": (30, "b"), "b2": (20, "d")}
    for name, (value, group) in values.items():
        array = np.zeros((32, 32, 3), np.uint8)
        array[4:12, 4:12] = value
        path = tmp_path / f"{name}.png"
        Image.fromarray(array).save(path)
        defect = "good" if name.startswith("g") else "hole"
        samples.append(Sample(path, "c", "test", defect, group=group))
    return Dataset(tmp_path, "mvtec", tuple(samples))


def test_every_number_and_every_score(dataset: Dataset, tmp_path: Path) -> None:
    calibration = calibrate([0.1], ["c"], "training pictures")
    found = evaluate(Brightness(), dataset, SIZE, device=CPU, calibration=calibration)
    out = tmp_path / "out"
    files = save_evaluation(out, found, {"seed": 1})
    assert sorted(f.name for f in files) == [
        "evaluation.csv", "evaluation.json", "evaluation.md", "scores.csv",
    ]  # fmt: skip
    values = json.loads((out / "evaluation.json").read_text())
    assert values["categories"]["c"]["image_AUROC"] == pytest.approx(4 / 6)
    assert values["decisions"]["c"] == {"threshold": 0.1, "false_alarms": 1, "misses": 1}
    assert values["about"] == {"seed": 1}
    rows = list(csv.DictReader((out / "scores.csv").read_text().splitlines()))
    assert [r["pred_label"] for r in rows] == ["0", "1", "1", "1", "0"]


def test_more_metrics_are_in_every_file(masked: Dataset, tmp_path: Path) -> None:
    """Beside the category with masks there is one without, whose pictures stand for themselves."""
    calibration = calibrate([0.1], ["c"], "training pictures")
    found = evaluate(Brightness(), masked, SIZE, device=CPU, calibration=calibration)
    save_evaluation(tmp_path, found, {})
    values = json.loads((tmp_path / "evaluation.json").read_text())
    assert list(values["pixels"]) == ["c", "mean"]
    assert values["pixels"]["c"]["method"] == "exact"
    left_out = "mean of 1 of 2 categories; undefined in bare"
    assert values["pixels"]["mean"] == {
        **{name: values["pixels"]["c"][name] for name in MORE_PIXEL_METRICS},
        "reasons": dict.fromkeys(MORE_PIXEL_METRICS, left_out),
    }
    rows = list(csv.DictReader((tmp_path / "evaluation.csv").read_text().splitlines()))
    assert list(rows[0])[-6:] == ["mAD", *EXTRA_FIELDS]
    assert [row["category"] for row in rows] == ["bare", "c", "mean"]
    for name in MORE_PIXEL_METRICS:
        assert [rows[0][name], rows[1][name]] == ["", repr(values["pixels"]["c"][name])]
        assert rows[2][name] == rows[1][name]
    assert [row["sample_AUROC"] for row in rows] == ["", "0.5", "0.5"]
    lines = (tmp_path / "evaluation.md").read_text().splitlines()
    assert lines[2].endswith(" | mAD | " + " | ".join(EXTRA_FIELDS) + " |")
    assert lines[4].endswith(" | – | – | – | – | – | – |")
    assert any(f"pixel_AUPIMO: {left_out}" in line for line in lines)


@pytest.fixture
def masked(dataset: Dataset, tmp_path: Path) -> Dataset:
    mask = np.zeros((32, 32), np.uint8)
    mask[4:12, 4:12] = 255
    path = tmp_path / "mask.png"
    Image.fromarray(mask).save(path)
    bad = [s.is_anomalous for s in dataset.samples]
    marked = [
        replace(s, mask=path if b else None) for s, b in zip(dataset.samples, bad, strict=True)
    ]
    bare = [replace(s, category="bare", group="") for s in dataset.samples]
    return Dataset(dataset.root, "mvtec", (*marked, *bare))


def test_objects_of_several_views(dataset: Dataset, tmp_path: Path) -> None:
    """The best views are 40 of the good object, and 200 and 20 of the bad ones."""
    found = evaluate(Brightness(), dataset, SIZE, device=CPU)
    save_evaluation(tmp_path, found, {})
    values = json.loads((tmp_path / "evaluation.json").read_text())
    assert values["samples"] == {"c": 0.5, "mean": 0.5}


def test_pictures_that_stand_for_themselves(dataset: Dataset, tmp_path: Path) -> None:
    ungrouped = tuple(Sample(s.image, "c", "test", s.defect) for s in dataset.samples)
    plain = Dataset(dataset.root, "mvtec", ungrouped)
    save_evaluation(tmp_path, evaluate(Brightness(), plain, SIZE, device=CPU), {})
    assert json.loads((tmp_path / "evaluation.json").read_text())["samples"] == {}
