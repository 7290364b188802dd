"""The state to resume from; that resuming is exact is tested with the training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mambaad import checkpoint
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


def rewritten(run: Path, change: Callable[[dict[str, Tensor], dict[str, Any]], object]) -> None:
    tensors, note = checkpoint.load_tensors(run / checkpoint.STATE)
    change(tensors, note)
    checkpoint.save_tensors(run / checkpoint.STATE, tensors, note)


def test_a_setting_that_is_newer_than_the_run_is_at_its_default(tmp_path: Path) -> None:
    saved(tmp_path, Config())
    rewritten(tmp_path, lambda _, note: note["config"]["model"].pop("fine_pooling"))
    load_state(tmp_path, *made(), Config(), "id")
    with pytest.raises(ConfigError, match="settings differ"):
        load_state(tmp_path, *made(), Config().override({"model.fine_pooling": 3}), "id")


@pytest.mark.parametrize("name", ["random.cpu", "model.weight"])
def test_a_state_of_another_network_is_refused(name: str, tmp_path: Path) -> None:
    saved(tmp_path, Config())
    rewritten(tmp_path, lambda tensors, _: tensors.pop(name))
    with pytest.raises(CheckpointError, match="does not fit this network and recipe") as caught:
        load_state(tmp_path, *made(), Config(), "id")
    assert "\n" not in str(caught.value)
