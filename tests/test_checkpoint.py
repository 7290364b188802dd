"""Run folders: what is written comes back, and what is damaged is named."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from mambaad import checkpoint
from mambaad.config import Config, read_config
from mambaad.errors import CheckpointError, ConfigError
from mambaad.model import build


def test_settings_come_back(tmp_path: Path) -> None:
    config = Config().override(
        {"model.scan": {"zigzag": 4, "hilbert": 4}, "data.image_size": [64, 96], "train.seed": 7}
    )
    checkpoint.save_config(tmp_path, config)
    assert checkpoint.load_config(tmp_path) == config


def test_a_recipe_that_has_grown_since_changes_no_run(tmp_path: Path) -> None:
    config = Config().override({"train.recipe": "plus"})
    assert config.model.fine_pooling == 3
    checkpoint.save_config(tmp_path, config)
    settings = tmp_path / checkpoint.CONFIG
    lines = settings.read_text("utf-8").splitlines(keepends=True)
    settings.write_text("".join(x for x in lines if "fine_pooling" not in x), "utf-8")
    loaded = checkpoint.load_config(tmp_path)
    assert loaded == config.override({"model.fine_pooling": 1})
    # a file of one's own names the recipe and gets all of it
    assert read_config(settings) == config


def test_a_network_comes_back_with_its_encoder(tiny_config: Config, tmp_path: Path) -> None:
    model = build(tiny_config.model)
    checkpoint.save_config(tmp_path, tiny_config)
    checkpoint.save_model(tmp_path, model)
    config, again = checkpoint.load_model(tmp_path)
    assert config == tiny_config
    assert not again.training
    wanted = model.state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in again.state_dict().items())
    assert any(name.startswith("encoder.") for name in wanted)


def test_what_is_missing_or_damaged_is_named(tiny_run: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no config\.toml"):
        checkpoint.load_model(tmp_path)
    copy = tmp_path / "run"
    shutil.copytree(tiny_run, copy)
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"cannot read .*model\.safetensors"):
        checkpoint.load_model(copy)
    weights.unlink()
    (copy / "state.safetensors").touch()
    with pytest.raises(CheckpointError, match=r"no model\.safetensors \(training is not complete"):
        checkpoint.load_model(copy)
    (copy / "config.toml").write_text("[model]\ndepth = 3\n")
    with pytest.raises(CheckpointError, match="unknown ModelConfig setting"):
        checkpoint.load_model(copy)


def test_weights_of_another_network_are_refused(
    tiny_run: Path, tiny_config: Config, tmp_path: Path
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(tiny_run, copy)
    checkpoint.save_config(copy, tiny_config.override({"model.directions": 4}))
    with pytest.raises(CheckpointError, match="does not fit"):
        checkpoint.load_model(copy)


def test_tensors_come_back_with_their_note(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(6.0).reshape(2, 3).T, "b": torch.tensor(3, dtype=torch.int64)}
    checkpoint.save_tensors(tmp_path / "x.safetensors", tensors, {"step": 4})
    again, note = checkpoint.load_tensors(tmp_path / "x.safetensors")
    assert note == {"step": 4}
    assert all(torch.equal(again[k], v) and again[k].dtype == v.dtype for k, v in tensors.items())


def test_provenance_holds_no_path(tiny_config: Config) -> None:
    record = checkpoint.provenance(tiny_config, torch.device("cpu"), more=1)
    assert record["more"] == 1
    assert record["seed"] == 3
    assert record["device"]
    assert not any("/" in str(v) for k, v in record.items() if k != "device")


def test_others_may_read_tensors_as_they_may_any_file(tmp_path: Path) -> None:
    checkpoint.save_tensors(tmp_path / "a.safetensors", {"x": torch.ones(1)})
    (tmp_path / "b").touch()
    modes = [(tmp_path / name).stat().st_mode for name in ("a.safetensors", "b")]
    assert modes[0] == modes[1]


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise SafetensorError("Error while serializing: No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(CheckpointError, match=r"cannot write .*: .*No space left on device"):
        checkpoint.save_tensors(tmp_path / "a.safetensors", {"x": torch.ones(1)})
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_may_not_be_read_is_not_called_missing(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").mkdir()  # root may read any file, and no folder
    with pytest.raises(CheckpointError, match="Is a directory"):
        checkpoint.load_tensors(tmp_path / "a.safetensors")


def test_a_record_comes_back(tmp_path: Path) -> None:
    assert checkpoint.load_provenance(tmp_path) == {}
    checkpoint.save_provenance(tmp_path, {"encoder_weights": "file a.pth"})
    assert checkpoint.load_provenance(tmp_path) == {"encoder_weights": "file a.pth"}
    for damaged in ("{", "[1]", "3", "[]", '[["encoder_weights", "x"]]', "null", "\xff"):
        (tmp_path / "provenance.json").write_bytes(damaged.encode("latin-1"))
        with pytest.raises(CheckpointError, match=r"cannot read .*provenance\.json: .*remove it$"):
            checkpoint.load_provenance(tmp_path)


def test_settings_with_a_path_that_is_not_utf8_are_refused(tmp_path: Path) -> None:
    config = Config().override({"data.root": os.fsdecode(b"/data/Gr\xf6\xdfe")})
    with pytest.raises(ConfigError, match="is not UTF-8; rename the folder"):
        checkpoint.save_config(tmp_path, config)
    assert not (tmp_path / checkpoint.CONFIG).exists()
