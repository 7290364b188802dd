"""The log of a training."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from training import StopAt

from mambaad.config import Config
from mambaad.errors import ConfigError
from mambaad.train import train


def test_a_log_that_ends_in_half_a_line_is_mended(tiny_config: Config, tmp_path: Path) -> None:
    config = tiny_config.override({"train.epochs": 2})
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path, device="cpu", observer=StopAt(2))
    with (tmp_path / "metrics.jsonl").open("a") as log:
        log.write('{"step": 3, "lo')
    train(config, tmp_path, device="cpu", resume=True)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, 7))


def test_tensorboard_says_how_to_install_it(
    tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match=r"pip install 'mambaad\[tensorboard\]'"):
        train(tiny_config, tmp_path, device="cpu", tensorboard=True)


def test_tensorboard_gets_every_number(
    tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[str, int | None]] = []
    scalars: list[tuple[str, int]] = []

    class Writer:
        def __init__(self, folder: str, purge_step: int | None = None) -> None:
            made.append((folder, purge_step))

        def add_scalar(self, name: str, _: float, step: int) -> None:
            scalars.append((name, step))

        def close(self) -> None:
            made.append(("closed", None))

    module = SimpleNamespace(SummaryWriter=Writer)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    train(tiny_config, tmp_path, device="cpu", tensorboard=True)
    assert made == [(str(tmp_path / "tensorboard"), None), ("closed", None)]
    assert {step for _, step in scalars} == {1, 2, 3}
    assert {"train/loss", "train/loss_stride4", "train/learning_rate"} <= {n for n, _ in scalars}
