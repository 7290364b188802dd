"""The training loop: the recipe's constants, resuming to the bit, and what goes wrong."""

from __future__ import annotations

import itertools
import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from training import Marks, StopAt

from mambaad import checkpoint
from mambaad.config import Config
from mambaad.data import read_dataset
from mambaad.data.synthetic import synthesize
from mambaad.errors import (
    CheckpointError,
    ConfigError,
    DatasetError,
    ImageError,
    TrainingError,
)
from mambaad.files import alone_in
from mambaad.model import MambaAD
from mambaad.splits import split_holdout
from mambaad.steplog import StepLog
from mambaad.steps import LaterStep, Ring
from mambaad.train import Observer, train


@pytest.mark.parametrize("cache", ["features", "pictures", "none"])
def test_an_interrupted_run_equals_an_uninterrupted_one(
    tiny_config: Config, tmp_path: Path, cache: str
) -> None:
    # drop path is on, so the random state matters; 3 steps an epoch, stopped inside the second
    config = tiny_config.override({"train.epochs": 3, "data.cache": cache, "model.drop_path": 0.5})
    whole, parts = StopAt(), StopAt(4)
    train(config, tmp_path / "whole", device="cpu", observer=whole)
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "parts", device="cpu", observer=parts)
    torch.manual_seed(999)
    rest = StopAt()
    train(config, tmp_path / "parts", device="cpu", resume=True, observer=rest)

    losses = [s.loss for s in whole.steps]
    assert losses == [s.loss for s in parts.steps + rest.steps]
    a, b = (load_file(tmp_path / n / "model.safetensors") for n in ("whole", "parts"))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    logs = [(tmp_path / n / "metrics.jsonl").read_text().splitlines() for n in ("whole", "parts")]
    steps = [[json.loads(line)["step"] for line in log] for log in logs]
    assert steps[0] == steps[1] == list(range(1, 10))
    assert not (tmp_path / "parts" / "state.safetensors").exists()


def test_the_state_is_saved_every_so_often(
    tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[int] = []
    from mambaad import train as module

    original = module.save_state

    def spy(*arguments: object) -> None:
        saved.append(arguments[3]["step"])  # type: ignore[index]
        original(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "save_state", spy)
    config = tiny_config.override({"train.epochs": 1, "train.checkpoint_minutes": 0})
    train(config, tmp_path, device="cpu")
    assert saved == [1, 2, 3, 3]


def test_the_first_state_is_saved_after_a_minute(
    tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mambaad import train as module

    saved: list[int] = []
    seconds = itertools.count(0.0, 40.0)
    clock = SimpleNamespace(monotonic=lambda: next(seconds))
    monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(module, "save_state", lambda *a: saved.append(a[3]["step"]))
    config = tiny_config.override({"train.epochs": 2})
    train(config, tmp_path, device="cpu")
    assert saved == [2, 6]  # at 80 seconds, and at the end: 10 minutes are not over


@pytest.mark.parametrize(("largest", "scored"), [(8, 8), (64, 12)])
def test_kernels_are_compiled_before_the_first_step(
    tiny_config: Config,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    largest: int,
    scored: int,
) -> None:
    """Those of the thresholds too, for as many pictures as there will be at once."""
    from mambaad import train as module

    calls: list[tuple[object, ...]] = []
    seen = StopAt(1)

    def spy(model: MambaAD, *arguments: object, **options: object) -> None:
        calls.append((type(model), *arguments, options, len(seen.steps)))

    monkeypatch.setattr(module, "warm_up", spy)
    monkeypatch.setattr(module, "batch_size_for", lambda _device, _size: largest)
    config = tiny_config.override({"train.batch_size": 99})  # of 12 pictures
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path, device="cpu", observer=seen)
    options = {"training": True, "scored": scored, "tell": seen.message}
    assert calls == [(MambaAD, 12, (64, 64), torch.device("cpu"), "float32", options, 0)]


def test_an_unreadable_picture_is_named(
    tiny_config: Config, tiny_data: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "data"
    shutil.copytree(tiny_data, copy)
    bad = copy / "metal" / "train" / "good" / "000.png"
    bad.write_bytes(b"not a picture")
    config = tiny_config.override({"data.root": str(copy)})
    with pytest.raises(ImageError, match=r"000\.png.*mambaad check"):
        train(config, tmp_path / "run", device="cpu")


def test_a_run_is_not_overwritten(tiny_run: Path, tiny_config: Config, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds a run already; choose another"):
        train(tiny_config, tiny_run, device="cpu")
    with pytest.raises(CheckpointError, match="cannot be resumed: its training is complete"):
        train(tiny_config, tiny_run, device="cpu", resume=True)
    with pytest.raises(CheckpointError, match=r"there is no state\.safetensors"):
        train(tiny_config, tmp_path, device="cpu", resume=True)


def test_two_do_not_train_in_one_folder(tiny_config: Config, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with alone_in(run), pytest.raises(ConfigError, match="another process is training in"):
        train(tiny_config, run, device="cpu")
    with pytest.raises(DatasetError):  # alone there, but without pictures
        train(tiny_config.override({"data.root": str(tmp_path / "none")}), run, device="cpu")
    assert not run.exists()


def test_other_settings_cannot_be_resumed_with(tiny_config: Config, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(tiny_config, tmp_path, device="cpu", observer=StopAt(1))
    other = tiny_config.override({"train.epochs": 9})
    with pytest.raises(ConfigError, match="settings differ"):
        train(other, tmp_path, device="cpu", resume=True)


def test_what_the_record_must_say_to_resume(tiny_config: Config, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(tiny_config, tmp_path, device="cpu", observer=StopAt(1))
    record = tmp_path / "provenance.json"
    for text, why in {
        "[]": r"cannot read .*provenance\.json: it must hold an object",
        '{"encoder': r"cannot read .*provenance\.json",
        "{}": r"cannot be resumed: .*where the encoder's weights come from",
    }.items():
        record.write_text(text)
        with pytest.raises(CheckpointError, match=why):
            train(tiny_config, tmp_path, device="cpu", resume=True)
    record.unlink()
    with pytest.raises(CheckpointError, match="cannot be resumed: there is no provenance"):
        train(tiny_config, tmp_path, device="cpu", resume=True)


def test_held_out_pictures_make_the_thresholds(tiny_config: Config, tmp_path: Path) -> None:
    synthesize(tmp_path / "data", size=64, train=12, good=1, defective=1, categories=("metal",))
    config = tiny_config.override({"data.root": str(tmp_path / "data"), "data.holdout": 0.25})
    train(config, tmp_path / "run", device="cpu")
    values = json.loads((tmp_path / "run" / "calibration.json").read_text())
    assert values["source"] == "held-out training pictures"
    assert values["overall"]["pictures"] == 3
    record = json.loads((tmp_path / "run" / "provenance.json").read_text())
    assert (record["training_pictures"], record["held_out_pictures"]) == (9, 3)


def test_the_run_folder_says_where_it_comes_from(tiny_run: Path) -> None:
    record = json.loads((tiny_run / "provenance.json").read_text())
    assert record["seed"] == 3
    assert record["encoder_weights"].startswith("filterbank")
    assert record["categories"] == ["metal", "wood"]
    assert len(record["data_fingerprint"]) == 64
    assert record["training_pictures"] == 12
    assert (record["contamination"], record["preset"]) == ([], None)
    values = json.loads((tiny_run / "calibration.json").read_text())
    assert values["source"] == "training pictures"
    assert sorted(p.name for p in tiny_run.iterdir()) == [
        "calibration.json", "config.toml", "metrics.jsonl", "model.safetensors", "provenance.json",
    ]  # fmt: skip


def test_bf16_trains_and_keeps_float32_weights(tiny_config: Config, tmp_path: Path) -> None:
    seen = StopAt()
    train(tiny_config.override({"train.precision": "bf16"}), tmp_path, device="cpu", observer=seen)
    assert all(np.isfinite(s.loss) for s in seen.steps)
    tensors, _ = checkpoint.load_tensors(tmp_path / "model.safetensors")
    assert {t.dtype for t in tensors.values() if t.is_floating_point()} == {torch.float32}


def test_data_without_training_pictures_are_refused(tiny_config: Config, tmp_path: Path) -> None:
    (tmp_path / "x" / "train" / "good").mkdir(parents=True)
    with pytest.raises(DatasetError):
        train(tiny_config.override({"data.root": str(tmp_path)}), tmp_path / "run", device="cpu")


def test_ctrl_c_in_the_middle_of_a_step_waits_for_its_end(
    tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config.override({"train.epochs": 2, "model.drop_path": 0.5})
    whole, parts, rest = StopAt(), StopAt(), StopAt()
    train(config, tmp_path / "whole", device="cpu", observer=whole)
    original, calls = MambaAD.loss_parts, []

    def interrupted(self: MambaAD, *arguments: object) -> dict[str, torch.Tensor]:
        calls.append(1)
        found = original(self, *arguments)  # type: ignore[arg-type]
        if len(calls) == 3:
            signal.raise_signal(signal.SIGINT)
        return found

    monkeypatch.setattr(MambaAD, "loss_parts", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "parts", device="cpu", observer=parts)
    monkeypatch.setattr(MambaAD, "loss_parts", original)
    assert len(parts.steps) == 3
    train(config, tmp_path / "parts", device="cpu", resume=True, observer=rest)
    assert [s.loss for s in whole.steps] == [s.loss for s in parts.steps + rest.steps]
    a, b = (load_file(tmp_path / n / "model.safetensors") for n in ("whole", "parts"))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_second_ctrl_c_stops_at_once_and_keeps_the_last_state(
    tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def impatient(*_: object) -> dict[str, torch.Tensor]:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("still here")

    monkeypatch.setattr(MambaAD, "loss_parts", impatient)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(tiny_config, tmp_path, device="cpu")
    assert not (tmp_path / "state.safetensors").exists()
    assert signal.getsignal(signal.SIGINT) == before


def test_changed_pictures_cannot_be_resumed_with(
    tiny_config: Config, tiny_data: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(tiny_data, data)
    config = tiny_config.override({"data.root": str(data)})
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "run", device="cpu", observer=StopAt(1))
    (data / "wood" / "train" / "good" / "003.png").unlink()
    with pytest.raises(CheckpointError, match="pictures have changed"):
        train(config, tmp_path / "run", device="cpu", resume=True)


def test_every_category_has_a_threshold_also_with_few_pictures(
    tiny_config: Config, tmp_path: Path
) -> None:
    synthesize(tmp_path / "a", size=64, train=12, good=1, defective=1, categories=("metal",))
    synthesize(tmp_path / "b", size=64, train=4, good=1, defective=1, categories=("wood",))
    shutil.move(tmp_path / "b" / "wood", tmp_path / "a" / "wood")
    config = tiny_config.override({"data.root": str(tmp_path / "a"), "data.holdout": 0.25})
    train(config, tmp_path / "run", device="cpu")
    values = json.loads((tmp_path / "run" / "calibration.json").read_text())
    counts = {name: category["pictures"] for name, category in values["categories"].items()}
    assert counts == {"metal": 3, "wood": 4}
    assert values["source"].endswith("training pictures of categories with few")


@pytest.mark.parametrize("cache", ["auto", "none"])
def test_an_unreadable_held_out_picture_is_found_before_the_training(
    tiny_config: Config, tmp_path: Path, cache: str
) -> None:
    synthesize(tmp_path / "a", size=64, train=12, good=1, defective=1, categories=("metal",))
    data = {"data.root": str(tmp_path / "a"), "data.holdout": 0.25, "data.cache": cache}
    config = tiny_config.override(data)
    _, held_out = split_holdout(read_dataset(tmp_path / "a"), config)
    held_out[0].image.write_bytes(b"no picture")
    seen = StopAt()
    with pytest.raises(ImageError, match=rf"{held_out[0].image.name}.*mambaad check"):
        train(config, tmp_path / "run", device="cpu", observer=seen)
    assert seen.steps == []


def test_a_single_value_for_batch_norm_is_refused(tiny_config: Config, tmp_path: Path) -> None:
    config = tiny_config.override({"data.image_size": 32, "train.batch_size": 1})
    with pytest.raises(ConfigError, match="leaves BatchNorm a single value"):
        train(config, tmp_path, device="cpu")


@pytest.mark.parametrize("bad", [2, 40])
def test_spoilt_weights_are_never_saved(tmp_path: Path, bad: int) -> None:
    """A GPU's steps, whose failure is known late: a state is due after each, every one waits."""
    from mambaad import train as module

    ring = Ring(lambda step, _: TrainingError(f"step {step}"), make_event=Marks().make)

    def steps() -> Iterator[LaterStep]:
        for number in range(1, 60):
            loss = float("nan") if number >= bad else 1.0
            yield LaterStep(1, 0.1, ring.push(number, torch.tensor([loss, 1.0]), ()))

    saved: list[int] = []
    with (
        pytest.raises(TrainingError, match=f"step {bad}"),
        StepLog(tmp_path, 0, 0.0, 4, False) as log,
    ):
        module._run_steps(steps(), log, lambda n, _: saved.append(n), 0.0, Observer(), 0)
    assert saved == list(range(1, bad))


def test_a_relative_data_set_is_found_from_elsewhere(
    tiny_config: Config, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_data.parent)
    near = tiny_config.override({"data.root": tiny_data.name, "train.epochs": 2})
    with pytest.raises(KeyboardInterrupt):
        train(near, tmp_path / "run", device="cpu", observer=StopAt(1))
    monkeypatch.chdir(tmp_path)
    kept = checkpoint.load_config(tmp_path / "run")
    assert kept.data.root == str(tiny_data)
    train(kept, tmp_path / "run", device="cpu", resume=True)


def test_few_steps_are_said_wherever_the_data_set_lies(
    tiny_config: Config, tiny_data: Path, tmp_path: Path
) -> None:
    """Inside the run's folder too, where only ``extend`` has its list."""
    shutil.copytree(tiny_data, tmp_path / "run" / "data")
    seen = StopAt(1)
    config = tiny_config.override({"data.root": str(tmp_path / "run" / "data")})
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "run", device="cpu", observer=seen)
    assert any("expect poor results" in text for text in seen.messages)
