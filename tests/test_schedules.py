"""The rate over a training."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mambaad.schedules import rate_factor
from mambaad.train_config import TrainConfig


def factors(per_epoch: int, **settings: object) -> list[float]:
    config = TrainConfig.from_mapping(settings)
    return [rate_factor(config, i, per_epoch) for i in range(config.epochs * per_epoch)]


def test_the_published_step() -> None:
    assert factors(3, epochs=5) == [1.0] * 12 + [0.1] * 3
    assert factors(2, epochs=1, decay_at=0.1) == [1.0] * 2  # never in the first epoch


def test_a_warm_up_comes_before_either() -> None:
    found = factors(1, epochs=10, warmup=0.3)
    assert found == pytest.approx([1 / 3, 2 / 3, 1, 1, 1, 1, 1, 1, 0.1, 0.1])
    found = factors(1, epochs=10, warmup=0.3, schedule="cosine", decay_factor=0.0)
    assert found[:4] == pytest.approx([1 / 3, 2 / 3, 1, 1])


@given(st.integers(1, 40), st.integers(1, 7), st.floats(0, 1), st.floats(0, 1))
def test_a_cosine_falls_from_1_to_its_end(
    epochs: int, per_epoch: int, warmup: float, end: float
) -> None:
    settings = {"schedule": "cosine", "warmup": warmup, "decay_factor": end}
    found = factors(per_epoch, epochs=epochs, **settings)
    rising = int(warmup * len(found))
    assert found[:rising] == sorted(found[:rising])
    assert found[rising:] == sorted(found[rising:], reverse=True)
    assert all(0 <= f <= 1 + 1e-12 for f in found)
    if rising < len(found):
        assert found[rising] == pytest.approx(1)
        assert found[-1] >= end - 1e-12
