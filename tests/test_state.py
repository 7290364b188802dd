"""The state to resume from; that resuming is exact is tested with the training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from mambaad.config import Config
from mambaad.errors import CheckpointError, ConfigError
from mambaad.state import load_state, make_note, save_state


def made() -> tuple[nn.Module, torch.optim.AdamW]:
    model = nn.Linear(3, 2)
    return model, torch.optim.AdamW(model.parameters(), lr=0.5)


def saved(run: Path, config: Config) -> tuple[nn.Module, torch.optim.AdamW]:
    model, optimizer = made()
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    save_state(run, model, optimizer, make_note(config, "id", 7, 2.5))
    return model, optimizer


def test_weights_moments_and_random_numbers_come_back(tmp_path: Path) -> None:
    model, optimizer = saved(tmp_path, Config())
    expected = torch.rand(3)
    other, fresh = made()
    assert load_state(tmp_path, other, fresh, Config(), "id") == (7, 2.5)
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(model.weight, other.weight)
    a, b = optimizer.state_dict()["state"], fresh.state_dict()["state"]
    assert a.keys() == b.keys()
    assert all(torch.equal(a[i][name], b[i][name]) for i in a for name in a[i])
    assert fresh.param_groups[0]["lr"] == 0.5


def test_a_rate_in_a_tensor_stays_the_new_optimisers(tmp_path: Path) -> None:
    saved(tmp_path, Config())
    other, fresh = made()
    fresh.param_groups[0]["lr"] = torch.tensor(0.125)
    load_state(tmp_path, other, fresh, Config(), "id")
    assert float(fresh.param_groups[0]["lr"]) == 0.125
    assert fresh.defaults["lr"] == 0.5


def test_another_run_is_refused(tmp_path: Path) -> None:
    saved(tmp_path, Config())
    with pytest.raises(CheckpointError, match="pictures have changed"):
        load_state(tmp_path, *made(), Config(), "other")
    with pytest.raises(ConfigError, match="settings differ"):
        load_state(tmp_path, *made(), Config().override({"train.seed": 1}), "id")
