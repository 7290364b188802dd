"""The table of training settings refuses what does not fit."""

from __future__ import annotations

import pytest

from mambaad.errors import ConfigError
from mambaad.train_config import TrainConfig


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": "huber"}, "loss must be one of"),
        ({"mining": "some"}, "mining must be one of"),
        ({"mining_share": 1.5}, r"mining_share must be a number in \[0.0, 1.0\], got 1.5"),
        ({"mining_ramp": -1}, "mining_ramp must be a number"),
        ({"optimizer": "sgd"}, "optimizer must be one of"),
        ({"schedule": "linear"}, "schedule must be one of"),
        ({"warmup": 2}, "warmup must be a number"),
        ({"ema_decay": 1.0}, r"ema_decay must be a number in \[0.0, 1.0\), got 1.0"),
        ({"decay_states": 1}, "decay_states must be bool, got 1"),
        ({"scale_weights": 1.0}, "scale_weights must be three numbers"),
        ({"scale_weights": [1, 1]}, "scale_weights must be three numbers"),
        ({"scale_weights": [1, 1, -1]}, "scale_weights must be a number"),
        ({"scale_weights": [0, 0, 0]}, "scale_weights must not all be 0"),
    ],
)
def test_bad_settings(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainConfig.from_mapping(settings)


def test_weights_of_scales_are_numbers() -> None:
    config = TrainConfig.from_mapping({"scale_weights": [1, 0, 2]})
    assert config.scale_weights == (1.0, 0.0, 2.0)
    assert config.to_mapping()["scale_weights"] == [1.0, 0.0, 2.0]
