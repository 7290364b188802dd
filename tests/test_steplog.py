"""The log of a training."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from training import Marks, StopAt

from mambaad.config import Config
from mambaad.errors import ConfigError, TrainingError
from mambaad.steplog import StepLog
from mambaad.steps import LaterStep, Ring
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


def test_a_damaged_log_loses_its_damaged_lines_only(tmp_path: Path) -> None:
    lines = [b'{"step": 1}', b'{"st\xffep": 2}', b"3", b"[4]", b'{"step": null}', b'{"step": 6}']
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join(lines))
    StepLog(tmp_path, 9, 0.0, 4, False)
    assert logged(tmp_path) == [1, 6]


def test_a_full_disk_leaves_the_log_of_a_run_that_is_resumed(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    text = "".join(f'{{"step": {step}}}\n' for step in range(1, 2001))
    (tmp_path / "metrics.jsonl").write_text(text)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))
    try:
        with pytest.raises(OSError, match="too large"):
            StepLog(tmp_path, 2000, 0.0, 4, False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / "metrics.jsonl").read_text() == text
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]


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


def later(ring: Ring, number: int, loss: float = 1.0) -> LaterStep:
    return LaterStep(1, 0.1, ring.push(number, torch.tensor([loss, 0.5, loss]), ("stride4",)))


def logged(run: Path) -> list[int]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["step"] for line in lines]


def test_steps_are_written_in_order_once_they_are_ready(tmp_path: Path) -> None:
    marks = Marks()
    ring = Ring(lambda step, _: TrainingError(f"step {step}"), make_event=marks.make)
    with StepLog(tmp_path, 0, 5.0, 4, False) as log:
        for number in (1, 2, 3):
            log.write(later(ring, number))
        assert logged(tmp_path) == []
        marks.reach(3)
        log.write(later(ring, 4))
        assert logged(tmp_path) == [1, 2, 3]
        assert marks.waits == []
        log.flush()
        assert logged(tmp_path) == [1, 2, 3, 4]
        log.write(later(ring, 5))
    assert logged(tmp_path) == [1, 2, 3, 4, 5]
    lines = [json.loads(x) for x in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["seconds"] == pytest.approx(log.seconds)
    assert lines[0]["images_per_second"] == pytest.approx(lines[1]["images_per_second"])


def test_a_failed_step_stops_the_log_and_what_came_before_is_kept(tmp_path: Path) -> None:
    ring = Ring(lambda step, _: TrainingError(f"step {step}"), make_event=Marks().make)

    def run() -> None:
        with StepLog(tmp_path, 0, 0.0, 4, False) as log:
            log.write(later(ring, 1))
            log.write(later(ring, 2, float("nan")))

    with pytest.raises(TrainingError, match="step 2"):
        run()
    assert logged(tmp_path) == [1]


def test_another_error_is_not_covered_by_a_failed_step(tmp_path: Path) -> None:
    ring = Ring(lambda step, _: TrainingError(f"step {step}"), make_event=Marks().make)

    def run() -> None:
        with StepLog(tmp_path, 0, 0.0, 4, False) as log:
            log.write(later(ring, 1))
            log.write(later(ring, 2, float("nan")))
            raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        run()
    assert logged(tmp_path) == [1]
