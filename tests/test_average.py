"""The running mean of the weights."""

from __future__ import annotations

import pytest
from torch import nn

from mambaad.average import WeightAverage, average_of, averaged_tensors
from mambaad.errors import CheckpointError
from mambaad.train_config import TrainConfig


def network() -> nn.Sequential:
    frozen = nn.BatchNorm1d(2).requires_grad_(False)
    return nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), frozen)


def test_it_averages_what_is_trained_and_its_statistics() -> None:
    assert sorted(dict(averaged_tensors(network()))) == [
        "0.bias", "0.weight", "1.bias", "1.running_mean", "1.running_var", "1.weight",
    ]  # fmt: skip


def test_the_first_steps_are_averaged_evenly_then_the_decay_holds() -> None:
    model = network()
    weight, statistic = model[0].weight, model[1].running_mean
    average = WeightAverage(model, 0.75)
    values, expected = [1.0, 5.0, -3.0, 7.0, 2.0, 8.0], None
    for number, value in enumerate(values, 1):
        weight.data.fill_(value)
        statistic.fill_(2 * value)
        average.set_step(number)
        average.update()
        share = max(0.25, 1 / number)
        expected = value if expected is None else expected + share * (value - expected)
        if number <= 4:
            assert expected == pytest.approx(sum(values[:number]) / number)
        state = average.state_dict()
        assert state["0.weight"].tolist() == [[pytest.approx(expected)] * 2] * 2
        assert state["1.running_mean"].tolist() == [pytest.approx(2 * expected)] * 2
    assert float(weight.detach().mean()) == 8.0  # training goes on with its own
    average.give()
    assert float(weight.detach().mean()) == pytest.approx(expected)


def test_tensors_keep_their_places() -> None:
    average = WeightAverage(network(), 0.9)
    before = [value.data_ptr() for value in average.state_dict().values()]
    for number in (1, 2, 3):
        average.set_step(number)
        average.update()
    average.load_state_dict({n: v.clone() for n, v in average.state_dict().items()})
    assert [value.data_ptr() for value in average.state_dict().values()] == before


def test_another_networks_mean_is_refused() -> None:
    average = WeightAverage(network(), 0.9)
    state = average.state_dict()
    del state["0.bias"]
    with pytest.raises(CheckpointError, match="not of this network"):
        average.load_state_dict(state)


def test_a_recipe_may_have_none() -> None:
    assert average_of(network(), TrainConfig()) is None
    assert average_of(network(), TrainConfig(ema_decay=0.5)) is not None
