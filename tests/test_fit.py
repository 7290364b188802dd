"""The training loop: the recipe's constants, the order of pictures, a loss that is no number."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from training import StopAt

from mambaad.config import Config
from mambaad.errors import TrainingError
from mambaad.fit import build_optimizer, parameter_groups
from mambaad.model import MambaAD, build
from mambaad.train import train


def test_the_published_parameter_groups(tiny_config: Config) -> None:
    model = build(tiny_config.model)
    decayed, plain = parameter_groups(model, 0.1)
    names = {id(p): n for n, p in model.named_parameters()}
    kept = {names[id(p)].rsplit(".", 1)[1] for p in plain["params"]}
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    assert kept == {"bias", "weight", "skip"}
    assert {"a_log", "dt_bias", "dt_weight", "scan_proj", "weight"} == {
        names[id(p)].rsplit(".", 1)[1] for p in decayed["params"]
    }
    assert all(p.dim() == 1 for p in plain["params"] if names[id(p)].endswith("weight"))
    assert not any(names[id(p)].startswith("encoder") for p in decayed["params"] + plain["params"])


def test_the_rate_is_scaled_by_the_batch(tiny_config: Config) -> None:
    model = build(tiny_config.model)
    optimizer = build_optimizer(model, tiny_config.train, batch_size=4)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.005 * 4 / 16)
    assert optimizer.defaults["betas"] == (0.9, 0.999)


def test_the_rate_drops_once_and_batches_follow_the_seed(
    tiny_config: Config, tmp_path: Path
) -> None:
    config = tiny_config.override({"train.epochs": 5, "train.decay_at": 0.8})
    seen = StopAt()
    train(config, tmp_path / "run", device="cpu", observer=seen)
    rates = [s.learning_rate for s in seen.steps]
    assert len(rates) == 15  # 12 pictures, batch 4
    assert rates[:12] == [pytest.approx(0.00125)] * 12
    assert rates[12:] == [pytest.approx(0.000125)] * 3
    assert all(s.loss == pytest.approx(sum(s.parts.values()), rel=1e-5) for s in seen.steps)
    assert seen.steps[-1].loss < seen.steps[0].loss


def test_a_loss_that_is_not_finite_stops_and_names_the_batch(
    tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = MambaAD.loss_parts
    calls = []

    def broken(self: MambaAD, *arguments: object) -> dict[str, torch.Tensor]:
        calls.append(1)
        parts = original(self, *arguments)  # type: ignore[arg-type]
        return {k: v * (float("nan") if len(calls) == 2 else 1) for k, v in parts.items()}

    monkeypatch.setattr(MambaAD, "loss_parts", broken)
    with pytest.raises(TrainingError, match=r"nan .* at step 2; .*: metal/train/good/0"):
        train(tiny_config, tmp_path, device="cpu")
    assert not (tmp_path / "model.safetensors").exists()


def test_a_small_set_makes_one_small_batch(tiny_config: Config, tmp_path: Path) -> None:
    seen = StopAt()
    config = tiny_config.override({"train.batch_size": 64, "train.epochs": 2})
    train(config, tmp_path, device="cpu", observer=seen)
    assert [s.epoch for s in seen.steps] == [1, 2]
    assert seen.steps[0].learning_rate == pytest.approx(0.005 * 12 / 16)
