"""The public names."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import mambaad


def test_every_public_name_is_there() -> None:
    for name in mambaad.__all__:
        assert getattr(mambaad, name) is not None
    assert set(mambaad.__all__) <= set(dir(mambaad))


def test_metrics_need_no_import_of_their_own() -> None:
    report = mambaad.metrics.score([[[0.1]], [[0.9]]], [[[0]], [[1]]])
    assert report.image_AUROC == report.pixel_AUROC == 1.0


def test_training_and_evaluation_need_no_import_of_their_own() -> None:
    code = "import mambaad; print(mambaad.train.train, mambaad.evaluate.evaluate)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "function train" in done.stdout
    assert "function evaluate" in done.stdout


def test_settings_are_read_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_text("[train]\nepochs = 7\n")
    assert mambaad.read_config(path) == mambaad.read_config(str(path))
    assert mambaad.read_config(path) == mambaad.Config().override({"train.epochs": 7})
    with pytest.raises(mambaad.MambaADError, match="cannot read the settings file"):
        mambaad.read_config(tmp_path / "no.toml")


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = mambaad.nothing
