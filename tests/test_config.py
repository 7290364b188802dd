from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from hypothesis import given, settings
from hypothesis import strategies as st

from mambaad.config import (
    Config,
    DataConfig,
    ModelConfig,
    TrainConfig,
    parse_setting,
    read_config,
)
from mambaad.errors import ConfigError
from mambaad.tiling import Tiling


def test_defaults_are_the_published_ones() -> None:
    model, train = ModelConfig(), TrainConfig()
    assert (model.encoder, model.depths, model.scan) == ("resnet34", (3, 4, 6, 3), "hilbert")
    assert (model.directions, model.kernels, model.drop_path) == (8, (5, 7), 0.2)
    assert (train.batch_size, train.learning_rate, train.weight_decay) == (16, 0.005, 1e-4)
    assert (train.loss_weight, train.clip_norm, train.seed) == (5.0, 5.0, 42)
    assert (train.decay_at, train.decay_factor, train.precision) == (0.8, 0.1, "auto")
    assert DataConfig().image_size == (256, 256)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"encoder": ""}, "encoder must be a name"),
        ({"encoder": 34}, "encoder must be str, got 34"),
        ({"depths": (3, 4, 6)}, "depths must be four positive numbers"),
        ({"depths": (3, 4, 0, 3)}, "depths must be four positive numbers"),
        ({"depths": (3, 4, 6.0, 3)}, "depths must be a list of whole numbers"),
        ({"depths": (True, 4, 6, 3)}, "depths must be a list of whole numbers"),
        ({"depths": "3463"}, "depths must be a list of whole numbers"),
        ({"scan": "peano"}, "scan must be one of"),
        ({"scan": {}}, "scan must be a name or a mapping"),
        ({"scan": 3}, "scan must be a name or a mapping"),
        ({"scan": {"zigzag": 4}, "directions": 2}, "a hybrid scan has its own counts"),
        ({"scan": {"peano": 2}}, "a hybrid scan maps names"),
        ({"scan": {"hilbert": 3}}, "a hybrid scan maps names"),
        ({"scan": {"hilbert": 8, "zigzag": 8, "sweep": 2}}, "16 in all; got 18"),
        ({"directions": 6}, "directions must be 2, 4, 8 or 'distinct'; got 6"),
        ({"hss_per_lss": 2}, "hss_per_lss must divide every depth; got 2"),
        ({"hss_per_lss": 0}, "hss_per_lss must divide every depth; got 0"),
        ({"hss_per_lss": 1.0}, "hss_per_lss must be int"),
        ({"kernels": (5, 9)}, "kernels must be different sizes from 1, 3, 5 and 7"),
        ({"kernels": (5, 5)}, "kernels must be different sizes from 1, 3, 5 and 7"),
        ({"kernels": ()}, "needs at least one size in kernels"),
        ({"kernels": (), "branches": "local"}, "needs at least one size in kernels"),
        ({"branches": "neither"}, "branches must be one of"),
        ({"pointwise": 1}, "pointwise must be bool"),
        ({"residual": "yes"}, "residual must be bool"),
        ({"drop_path": 1.0}, r"drop_path must be a number in \[0.0, 1.0\), got 1.0"),
        ({"drop_path": float("nan")}, "drop_path must be a number"),
    ],
)
def test_bad_model_setting(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ModelConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layout": "coco"}, "layout must be one of"),
        ({"cache": "ram"}, "cache must be one of"),
        ({"image_size": 250}, "multiples of 32.*got 250, 256 is near"),
        ({"image_size": 0}, "got 0, 32 is near"),
        ({"image_size": (256, 100)}, r"got \[256, 100\]"),
        ({"image_size": (256, 256, 3)}, "image_size must be one or two multiples"),
        ({"image_size": 300, "tile": 250}, "tile must be one or two multiples of 32.*got 250"),
        ({"image_size": (64, 256), "tile": 96}, r"larger than image_size, \[64, 256\]; got \[96"),
        ({"tile": 0}, "tile must be one or two multiples of 32.*got 0, 32 is near"),
        ({"tile": 64, "tile_overlap": 0.95}, r"tile_overlap must be a number in \[0.0, 0.9\]"),
        ({"image_size": ()}, "image_size must be one or two multiples"),
        ({"image_size": "256"}, "image_size must be a list of whole numbers"),
        ({"holdout": 1.0}, r"holdout must be a number in \[0.0, 0.9\], got 1.0"),
        ({"holdout": "some"}, "holdout must be a number"),
        ({"contamination": 0.6}, r"contamination must be a number in \[0.0, 0.5\], got 0.6"),
        ({"contamination": "auto"}, "contamination must be a number"),
    ],
)
def test_bad_data_setting(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DataConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1; got 0"),
        ({"epochs": 1.5}, "epochs must be int, got 1.5"),
        ({"batch_size": True}, "batch_size must be int, got True"),
        ({"seed": -1}, "seed must be a number"),
        ({"learning_rate": 0.0}, r"learning_rate must be a number in \(0.0, 10.0\], got 0.0"),
        ({"weight_decay": -1e-4}, "weight_decay must be a number"),
        ({"loss_weight": 0}, "loss_weight must be a number"),
        ({"clip_norm": -1}, "clip_norm must be a number"),
        ({"decay_at": 1.1}, "decay_at must be a number"),
        ({"decay_factor": 2}, "decay_factor must be a number"),
        ({"precision": "fp16"}, "precision must be one of"),
        ({"checkpoint_minutes": "10"}, "checkpoint_minutes must be a number"),
        ({"preset": "cifar"}, "preset must be one of"),
    ],
)
def test_bad_train_setting(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainConfig(**settings)


def test_direction_count() -> None:
    assert ModelConfig(directions=4).direction_count == 4
    assert ModelConfig(directions="distinct").direction_count == 8
    hybrid = ModelConfig(scan={"zigzag": 4, "hilbert": 2})
    assert (hybrid.direction_count, hybrid.directions) == (6, 6)


def test_branches_may_do_without_kernels() -> None:
    assert ModelConfig(branches="global", kernels=()).kernels == ()


def test_values_take_their_final_form() -> None:
    data = DataConfig(image_size=64, categories="bottle")  # type: ignore[arg-type]
    assert data.image_size == data.network_size == (64, 64)
    assert data.tiling is None
    tiled = DataConfig(image_size=(500, 700), tile=96)  # type: ignore[arg-type]
    assert tiled.network_size == tiled.tile == (96, 96)
    assert tiled.tiling == Tiling((500, 700), (96, 96), 0.25)
    assert DataConfig.from_mapping(tiled.to_mapping()) == tiled
    assert data.categories == ("bottle",)
    assert ModelConfig(depths=[1, 2, 3, 4]).depths == (1, 2, 3, 4)  # type: ignore[arg-type]


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        ModelConfig().encoder = "resnet18"  # type: ignore[misc]


def test_unknown_keys_are_named() -> None:
    with pytest.raises(ConfigError, match=r"unknown ModelConfig setting \['x'\]; known: \['enc"):
        Config.from_mapping({"model": {"x": [1, 1, 1, 1]}})
    with pytest.raises(ConfigError, match=r"setting \['dept'\]; did you mean 'depths'\?$"):
        Config.from_mapping({"model": {"dept": [1, 1, 1, 1]}})
    with pytest.raises(ConfigError, match=r"table \['modle'\]; .*; did you mean 'model'\?$"):
        Config.from_mapping({"modle": {}})
    with pytest.raises(ConfigError, match=r"\[train\] must be a table"):
        Config.from_mapping({"train": 3})


SCANS = st.sampled_from(["sweep", "scan", "zorder", "zigzag", "hilbert"])


@pytest.mark.parametrize(
    ("before", "change", "directions"),
    [
        ({"directions": 4}, {"model.scan": "zigzag"}, 4),
        ({"directions": 4}, {"model.scan": {"zigzag": 2, "sweep": 4}}, 6),
        ({"scan": {"zigzag": 2, "sweep": 4}}, {"model.scan": "hilbert"}, 8),
        ({"scan": {"zigzag": 2}}, {"model.scan": "scan", "model.directions": 4}, 4),
        ({"scan": {"zigzag": 2, "sweep": 4}}, {"train.epochs": 3}, 6),
    ],
)
def test_directions_follow_the_kind_of_scan(
    before: dict[str, Any], change: dict[str, Any], directions: int
) -> None:
    config = Config.from_mapping({"model": before}).override(change)
    assert config.model.directions == directions


@settings(max_examples=50, deadline=None)
@given(
    model=st.builds(
        ModelConfig,
        encoder=st.sampled_from(["resnet18", "filterbank"]),
        depths=st.tuples(*[st.integers(1, 9)] * 4),
        scan=SCANS | st.dictionaries(SCANS, st.sampled_from([2, 4]), min_size=1, max_size=4),
        hss_per_lss=st.sampled_from([None, 1]),
        kernels=st.sets(st.sampled_from([1, 3, 5, 7]), min_size=1).map(tuple),
        branches=st.sampled_from(["both", "local", "global"]),
        drop_path=st.floats(0, 0.5),
    ),
    size=st.tuples(*[st.integers(1, 20).map(lambda n: 32 * n)] * 2),
    epochs=st.integers(1, 1000),
)
def test_toml_round_trip(
    tmp_path_factory: pytest.TempPathFactory,
    model: ModelConfig,
    size: tuple[int, int],
    epochs: int,
) -> None:
    config = Config(
        model,
        DataConfig(root="/some/where", categories=("a", "ü"), image_size=size),
        TrainConfig(epochs=epochs),
    )
    file = tmp_path_factory.mktemp("config") / "config.toml"
    file.write_text(tomli_w.dumps(config.to_mapping()), encoding="utf-8")
    assert read_config(file) == config


def test_read_config(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(
        """
        [model]
        scan = { zigzag = 4, hilbert = 2 }
        [data]
        image_size = 64
        [train]
        epochs = 7
        """,
        encoding="utf-8",
    )
    config = read_config(file)
    expected = ModelConfig(scan={"zigzag": 4, "hilbert": 2})
    assert config == Config(expected, DataConfig(image_size=(64, 64)), TrainConfig(epochs=7))
    # a hybrid's paths follow each other in the order given, so equality is not enough
    assert isinstance(config.model.scan, dict)
    assert list(config.model.scan) == ["zigzag", "hilbert"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read the settings file .*config.toml"),
        (b"\xff\xfe", "cannot read the settings file .*config.toml"),
        (b"[model\n", "config.toml is not a TOML file"),
        (b"[model]\nencoder = 3\n", "config.toml: encoder must be str, got 3"),
    ],
)
def test_read_config_errors(tmp_path: Path, content: bytes | None, message: str) -> None:
    file = tmp_path / "config.toml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        read_config(file)


def test_override() -> None:
    config = Config().override({"train.epochs": 30, "model.depths": [2, 2, 2, 2]})
    assert (config.train.epochs, config.model.depths) == (30, (2, 2, 2, 2))
    assert config.train.batch_size == 16


def test_override_a_hybrid_scan_by_a_plain_one() -> None:
    hybrid = Config(ModelConfig(scan={"zigzag": 4, "hilbert": 2}))
    assert hybrid.override({"model.scan": "sweep"}).model.directions == 8
    both = hybrid.override({"model.scan": "sweep", "model.directions": 2})
    assert both.model.directions == 2


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("epochs", "a setting is named table.setting .*'epochs'; did you mean 'train.epochs'\\?$"),
        ("trian.epochs", "named table.setting .*got 'trian.epochs'; did you mean 'train.epochs'"),
        ("lr", "named table.setting with table one of .*; got 'lr'$"),
        ("train.epoch", r"unknown setting 'train.epoch'; did you mean 'train.epochs'\?$"),
        ("model.epochs", r"unknown setting 'model.epochs'; did you mean 'train.epochs'\?$"),
        ("data.xyz", r"unknown setting 'data.xyz'; known in data: \['root', 'layout'"),
    ],
)
def test_override_errors(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Config().override({name: 3})


def test_override_checks_the_value() -> None:
    with pytest.raises(ConfigError, match="epochs must be int, got '3'"):
        Config().override({"train.epochs": "3"})


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("train.epochs=3", 3),
        ("train.epochs = 3", 3),
        ("model.encoder=resnet18", "resnet18"),
        ('model.encoder="resnet18"', "resnet18"),
        ("data.root=/a=b", "/a=b"),
        ("model.residual=false", False),
        ("model.scan={zigzag = 4, hilbert = 4}", {"zigzag": 4, "hilbert": 4}),
    ],
)
def test_parse_setting(text: str, value: object) -> None:
    name, found = parse_setting(text)
    assert name == text.partition("=")[0].strip()
    assert found == value


def test_parse_setting_without_equals() -> None:
    with pytest.raises(ConfigError, match=r"given as table.setting=value; got 'train.epochs'"):
        parse_setting("train.epochs")
