"""Values that a person types: sizes."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mambaad import options
from mambaad.cli import main
from mambaad.config import DataConfig, ModelConfig, TrainConfig
from mambaad.errors import ConfigError
from mambaad.model import builtin
from mambaad.options import own_encoders, parse_size


@given(st.integers(0, 10_000), st.integers(0, 10_000))
def test_sizes_are_height_by_width(height: int, width: int) -> None:
    assert parse_size(f"{height}x{width}") == [height, width]
    assert parse_size(f" {height} X{width}") == [height, width]
    assert parse_size(str(height)) == [height, height]


@pytest.mark.parametrize("text", ["", "x", "256x", "1x2x3", "-32", "2.5", "big"])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="a size is a number or HEIGHTxWIDTH") as error_info:
        parse_size(text)
    assert repr(text) in str(error_info.value)


def test_the_builtin_encoder_is_offered_where_its_weights_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert options.BUILTIN_WEIGHTS == builtin.FILE
    weights = tmp_path / "weights"
    monkeypatch.setattr(options, "BUILTIN_WEIGHTS", weights)
    assert own_encoders() == "or filterbank"
    weights.touch()
    assert own_encoders() == "or builtin or filterbank, which need no download"


def test_help_says_the_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    height, width = DataConfig().image_size
    for option, default in {
        "--encoder": ModelConfig().encoder,
        "--epochs": TrainConfig().epochs,
        "--batch-size": TrainConfig().batch_size,
        "--image-size": f"{height}x{width}",
    }.items():
        text = shown.partition(f"{option} <")[2].partition(" --")[0]
        assert text.endswith(f"Default: {default}."), (option, text)
