"""Presets: what they set, what overrides them, and that they are recorded."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from mambaad.checkpoint import save_config
from mambaad.cli import main
from mambaad.config import Config, PresetName, read_config
from mambaad.errors import ConfigError
from mambaad.model import encoder
from mambaad.presets import (
    EPOCHS,
    RECIPE,
    VARIANTS,
    configure,
    preset_settings,
    variant_settings,
)
from mambaad.recipes import PLUS


def test_every_preset_has_its_epochs() -> None:
    assert tuple(EPOCHS) == get_args(PresetName)
    assert {name for name, epochs in EPOCHS.items() if epochs == 300} == {"mvtec-ad", "mvtec-3d"}
    assert set(EPOCHS.values()) == {100, 300}


@pytest.mark.parametrize("name", EPOCHS)
def test_a_preset_is_the_published_recipe(name: str) -> None:
    config = configure(preset=name)
    assert (config.train.epochs, config.train.preset) == (EPOCHS[name], name)
    rest = config.override({"train.epochs": 100}).to_mapping()
    rest["train"].pop("preset")
    # the package's defaults are the published recipe, apart from pictures held out
    assert rest == Config().override({"data.holdout": 0.0}).to_mapping()
    assert all("." in setting for setting in RECIPE)


def test_what_is_said_overrides_the_preset(tmp_path: Path) -> None:
    said = {"train.epochs": 9, "model.encoder": "resnet18", "model.scan": {"zigzag": 4}}
    config = configure(settings=said, preset="mvtec-ad")
    assert (config.train.epochs, config.train.batch_size) == (9, 16)
    assert (config.model.encoder, config.model.scan) == ("resnet18", {"zigzag": 4})
    assert (config.train.preset, config.data.holdout) == ("mvtec-ad", 0.0)
    # so does what a file says beside the preset that it names
    file = tmp_path / "settings.toml"
    file.write_text(
        '[train]\npreset = "mvtec-ad"\nbatch_size = 8\nepochs = 7\n[model]\nscan = {zigzag = 4}\n'
    )
    config = configure(file, {"train.epochs": 9, "model.encoder": "resnet18"})
    assert (config.train.epochs, config.train.batch_size) == (9, 8)
    assert (config.model.encoder, config.model.scan) == ("resnet18", {"zigzag": 4})
    assert (config.train.preset, config.data.holdout) == ("mvtec-ad", 0.0)
    # a value that is the default still overrides
    file.write_text('[train]\npreset = "mvtec-ad"\nepochs = 100\n')
    assert configure(file).train.epochs == 100


@pytest.fixture
def complete(tmp_path: Path) -> Path:
    """A run's settings: every one is in the file, most as by default."""
    config = configure(None, {"train.epochs": 7, "train.learning_rate": 0.25, "data.root": "x"})
    save_config(tmp_path, config)
    return tmp_path / "config.toml"


def test_a_preset_beside_a_runs_settings(complete: Path) -> None:
    for named in ({"preset": "mvtec-ad"}, {"settings": {"train.preset": "mvtec-ad"}}):
        config = configure(complete, **named)
        wanted = preset_settings("mvtec-ad")
        assert config == Config().override({"data.root": "x", **wanted})
        assert (config.train.epochs, config.data.root) == (300, "x")
    # single settings win, also where they fit only together with each other
    said = {"train.epochs": 9, "data.image_size": [512, 512], "data.tile": [512, 512]}
    assert configure(complete, said, "visa") == Config().override(
        {"data.root": "x", **preset_settings("visa"), **said}
    )


def test_a_preset_leaves_a_recipe_whole(complete: Path) -> None:
    of_preset = {
        key: value for key, value in preset_settings("visa").items() if key not in PLUS
    }  # the recipe sets the others
    plus = Config().override({"data.root": "x", "train.recipe": "plus"})
    assert configure(complete, {"train.recipe": "plus"}, "visa") == plus.override(of_preset)
    save_config(complete.parent, plus.override({"train.epochs": 7}))
    assert configure(complete, preset="visa") == plus.override(of_preset)
    back = configure(complete, {"train.recipe": "paper"}, "visa")
    assert back == Config().override({"data.root": "x", **preset_settings("visa")})


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_beside_a_runs_settings(complete: Path, name: str) -> None:
    before = read_config(complete)
    assert configure(complete, variant=name) == before.override(VARIANTS[name]) != before
    said = {"model.encoder": "filterbank", "model.scan": {"zigzag": 4}}
    model = configure(complete, said, variant=name).model
    assert (model.encoder, model.scan, model.directions) == ("filterbank", {"zigzag": 4}, 4)
    both = configure(complete, preset="visa", variant=name)
    assert both == configure(complete, preset="visa").override(VARIANTS[name])


@pytest.mark.parametrize("name", ["fast", "distinct"])
def test_a_variant_has_its_own_paths(tmp_path: Path, name: str) -> None:
    file = tmp_path / "settings.toml"
    file.write_text("[model]\nscan = {zigzag = 4}\n")
    model = configure(file, variant=name).model
    assert (model.scan, model.directions) == ("hilbert", VARIANTS[name]["model.directions"])


def test_a_preset_can_be_named_in_a_file_or_a_setting(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text('[train]\npreset = "mvtec-3d"\nbatch_size = 8\n')
    config = configure(file)
    assert (config.train.epochs, config.train.batch_size) == (300, 8)
    assert configure(file, {"train.preset": "visa"}).train.epochs == 100
    assert configure(file, {"train.preset": "visa"}).train.batch_size == 16
    assert configure(file, {"train.preset": "visa"}, "mvtec-ad").train.epochs == 300
    assert configure(settings={"train.preset": "mvtec-ad"}).train.epochs == 300
    assert configure(settings={"train.epochs": 3}).train.preset is None


def test_an_unknown_preset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"preset must be one of .*mvtec-ad.*, got 'cifar'"):
        preset_settings("cifar")
    with pytest.raises(ConfigError, match="preset must be one of"):
        configure(settings={"train.preset": 3})
    file = tmp_path / "settings.toml"
    file.write_text('[train]\npreset = "cifar"\n')
    with pytest.raises(ConfigError, match="preset must be one of"):
        configure(file)


def test_a_variant_changes_the_network_only() -> None:
    for name, settings in VARIANTS.items():
        config = configure(variant=name)
        assert config == Config().override(settings) != Config()
        assert all(setting.startswith("model.") for setting in settings)
        both = configure(preset="visa", variant=name)
        assert both == configure(preset="visa").override(settings)
    assert configure(variant="distinct").model.direction_count == 8
    said = {"model.encoder": "filterbank", "model.depths": [2, 2, 2, 2]}
    model = configure(settings=said, variant="fast").model
    assert (model.encoder, model.depths, model.directions) == ("filterbank", (2, 2, 2, 2), 2)


def test_the_fast_variant_needs_no_download(
    tiny_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def asked(tag: str) -> None:
        raise AssertionError(f"{tag} was asked for")

    monkeypatch.setattr(encoder, "_pretrained_state", asked)
    words = ["train", str(tiny_data), "--out", str(tmp_path / "run"), "--variant", "fast"]
    size = ["--image-size", "32", "--epochs", "1", "--batch-size", "6", "--device", "cpu"]
    with pytest.raises(SystemExit) as ended:
        main([*words, *size])
    assert not ended.value.code
    assert "encoder weights: built-in encoder" in " ".join(capsys.readouterr().err.split())


def test_an_unknown_variant_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"variant must be one of .*'fast'.*, got 'slow'"):
        variant_settings("slow")
    with pytest.raises(ConfigError, match="variant must be one of"):
        configure(variant="slow")
