"""Testing a run: which data, which categories, where the files go."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from mambaad.calibrate import load_calibration
from mambaad.errors import ConfigError, DatasetError
from mambaad.testing import calibrate_run, run_test


def test_results_can_go_to_another_folder(tiny_run: Path, tmp_path: Path) -> None:
    before = sorted(p.name for p in tiny_run.iterdir())
    evaluation, files = run_test(tiny_run, device="cpu", out=tmp_path)
    assert list(evaluation.categories) == ["metal", "wood"]
    assert [f.name for f in files] == [
        "evaluation.json", "evaluation.csv", "evaluation.md", "scores.csv", "report.html",
    ]  # fmt: skip
    assert all(f.parent == tmp_path and f.is_file() for f in files)
    assert sorted(p.name for p in tiny_run.iterdir()) == before
    about = json.loads((tmp_path / "evaluation.json").read_text())["about"]
    assert about["seed"] == 3
    assert len(about["data_fingerprint"]) == 64


def test_categories_can_be_chosen(tiny_run: Path, tiny_data: Path, tmp_path: Path) -> None:
    evaluation, _ = run_test(tiny_run, tiny_data, categories=["wood"], out=tmp_path, device="cpu")
    assert list(evaluation.categories) == ["wood"]
    with pytest.raises(DatasetError, match="tin"):
        run_test(tiny_run, categories=["tin"], out=tmp_path, device="cpu")


def test_evaluating_twice_gives_the_same_numbers(tiny_run: Path, tmp_path: Path) -> None:
    first, _ = run_test(tiny_run, out=tmp_path / "a", device="cpu")
    second, _ = run_test(tiny_run, out=tmp_path / "b", device="cpu")
    assert first.mean == second.mean


def test_arguments_are_checked_first(tiny_run: Path) -> None:
    with pytest.raises(ConfigError, match="protocol must be one of"):
        run_test(tiny_run, protocol="best")
    with pytest.raises(ConfigError, match="pro_limit"):
        run_test(tiny_run, pro_limit=0)


def test_a_run_can_be_calibrated_afterwards(
    tiny_run: Path, tiny_data: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(tiny_run, copy)
    (copy / "calibration.json").unlink()
    found = calibrate_run(copy, tiny_data, quantile=0.5, device="cpu")
    assert {n: t.pictures for n, t in found.categories.items()} == {"metal": 6, "wood": 6}
    assert load_calibration(copy) == found
    assert found.precision == "float32"
    highest = calibrate_run(copy, tiny_data, quantile=1, device="cpu")
    assert highest.threshold("metal") == highest.categories["metal"].maximum
    assert highest.threshold("metal") > found.threshold("metal")


def test_the_precision_is_chosen_and_recorded(
    tiny_run: Path, tiny_data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(tiny_run, copy)
    narrow = calibrate_run(copy, tiny_data, quantile=1, device="cpu", precision="bf16")
    assert narrow.precision == "bf16"
    wide = calibrate_run(copy, tiny_data, quantile=1, device="cpu", precision="float32")
    change = narrow.overall.threshold / wide.overall.threshold - 1
    assert 0 < abs(change) < 0.02
    run_test(copy, categories=["wood"], device="cpu")
    assert not caplog.messages
    _, files = run_test(copy, categories=["wood"], device="cpu", precision="bf16")
    assert json.loads(files[0].read_text())["about"]["precision"] == "bf16"
    (line,) = caplog.messages
    assert "set in float32, and this runs in bf16" in line
    with pytest.raises(ConfigError, match="precision must be auto, float32 or bf16, got 'half'"):
        run_test(copy, device="cpu", precision="half")
