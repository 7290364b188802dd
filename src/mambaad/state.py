"""The state of a training in the middle: all that the next step depends on.

``state.safetensors`` holds the weights and statistics, their running mean if there is one, the
optimiser's moments and counts, and the random numbers' states; its note says how far the training
is, and of what settings and data.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mambaad import checkpoint
from mambaad.average import WeightAverage, averaged_tensors
from mambaad.config import Config
from mambaad.errors import CheckpointError, ConfigError, first_line


def make_note(config: Config, fingerprint: str, step: int, seconds: float) -> dict[str, Any]:
    """What a state says of itself, beside its tensors."""
    return {
        "step": step,
        "seconds": seconds,
        "config": config.located().to_mapping(),
        "data_fingerprint": fingerprint,
    }


def save_state(
    run: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    about: dict[str, Any],
    average: WeightAverage | None = None,
) -> None:
    """Save all that the next step depends on: weights, statistics, optimiser, random state.

    Args:
        about: From ``make_note``.
        average: The running mean of the weights, if the recipe has one.
    """
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    for index, values in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in values.items()}
    if average is not None:
        tensors |= {f"average.{name}": value for name, value in average.state_dict().items()}
    tensors["random.cpu"] = torch.get_rng_state()
    device = next(model.parameters()).device
    if device.type == "cuda":
        tensors["random.cuda"] = torch.cuda.get_rng_state(device)
    checkpoint.save_tensors(run / checkpoint.STATE, tensors, about)


def load_state(
    run: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    config: Config,
    fingerprint: str,
    average: WeightAverage | None = None,
) -> tuple[int, float]:
    """Put back what ``save_state`` saved; the number of steps done and their seconds.

    A running mean that was not saved begins anew with the weights.

    Raises:
        CheckpointError: If the file is damaged or of another network, or the pictures are not those
            of the run.
        ConfigError: If the settings are not those of the run.
    """
    tensors, about = checkpoint.load_tensors(run / checkpoint.STATE)
    # a setting that the state does not name is newer than the run and at its default
    if Config.from_mapping(about.get("config", {}), complete=True) != config.located():
        raise ConfigError(f"the settings differ from those {run} began with; resume without any")
    if about.get("data_fingerprint") != fingerprint:
        raise CheckpointError(
            f"the pictures have changed since {run} began: files were added, removed, renamed or "
            "rewritten. Put them back, or train anew in another folder"
        )
    try:
        _put_back(tensors, model, optimizer, average)
        return int(about["step"]), float(about["seconds"])
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        cause = first_line(error)
        raise CheckpointError(
            f"{run / checkpoint.STATE} does not fit this network and recipe ({cause}): it is of "
            "another version. Train anew in another folder"
        ) from error


def _put_back(
    tensors: dict[str, Tensor],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: WeightAverage | None,
) -> None:
    by_part: dict[str, dict[str, Tensor]] = {
        part: {} for part in ("model", "average", "optimizer", "random")
    }
    for key, tensor in tensors.items():
        part, _, name = key.partition(".")
        by_part[part][name] = tensor
    model.load_state_dict(by_part["model"])
    if average is not None:
        average.load_state_dict(by_part["average"] or dict(averaged_tensors(model)))
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in by_part["optimizer"].items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = tensor
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    torch.set_rng_state(by_part["random"]["cpu"])
    device = next(model.parameters()).device
    if device.type == "cuda" and "cuda" in by_part["random"]:
        torch.cuda.set_rng_state(by_part["random"]["cuda"], device)
