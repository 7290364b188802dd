"""The demonstration, shrunk."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from mambaad import demo
from mambaad.checkpoint import load_model
from mambaad.errors import CheckpointError


def test_the_demo_trains_evaluates_and_reports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = {"model.depths": [1, 1, 1, 1], "model.directions": 2, "data.image_size": [64, 64]}
    monkeypatch.setattr(demo, "SETTINGS", {**demo.SETTINGS, **small, "train.epochs": 1})
    for name, value in (("SIZE", 64), ("TRAIN", 3), ("GOOD", 2), ("DEFECTIVE", 2)):
        monkeypatch.setattr(demo, name, value)
    evaluate, networks = demo.evaluate, []
    monkeypatch.setattr(
        demo, "evaluate", lambda model, *a, **k: networks.append(model) or evaluate(model, *a, **k)
    )
    result = demo.run_demo(tmp_path / "demo")
    assert result.report == tmp_path / "demo" / "run" / "report.html"
    assert result.report.is_file()
    assert len(result.trained.categories) >= 5
    assert result.trained.images == result.untrained.images == 4 * len(result.trained.categories)
    (untrained,), (_, trained) = networks, load_model(tmp_path / "demo" / "run")
    first, last = untrained.state_dict(), trained.state_dict()
    changed = {name.split(".")[0] for name in first if not torch.equal(first[name], last[name])}
    assert changed == {"neck", "decoder"}  # what is usual is known before the first step
    record = json.loads((tmp_path / "demo" / "run" / "provenance.json").read_text("utf-8"))
    assert record["encoder_weights"].startswith("built-in encoder")
    with pytest.raises(CheckpointError, match="not empty"):
        demo.run_demo(tmp_path / "demo")
