"""Run folders: what a training leaves behind, and how a network comes back from it.

    config.toml          the settings
    model.safetensors    all weights, the encoder's included, so a run needs no download
    calibration.json     thresholds; a text file that may be edited
    metrics.jsonl        one line for each training step
    provenance.json      version, commit, seed, data, device, where the encoder's weights came from
    state.safetensors    what is needed to resume; removed when training is complete
    evaluation.json ...  what ``mambaad test`` adds, with report.html

Nothing here is pickled.
"""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mambaad.config import Config, read_config
from mambaad.errors import CheckpointError, ConfigError
from mambaad.files import replacing, write_json, write_text
from mambaad.model import MambaAD, build

CONFIG, MODEL, STATE = "config.toml", "model.safetensors", "state.safetensors"
PROVENANCE, CALIBRATION, METRICS = "provenance.json", "calibration.json", "metrics.jsonl"

LONGEST_CAUSE = 160
"""Characters of torch's reason why weights do not fit that are shown."""


def save_config(run: Path, config: Config) -> None:
    """Write the settings of a run.

    Raises:
        ConfigError: If a path in them is not UTF-8, which TOML must be.
    """
    text = tomli_w.dumps(config.to_mapping())
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"{config.data.root!r}: a path in the settings is not UTF-8; rename the folder"
        ) from error
    write_text(run / CONFIG, text)


def load_config(run: Path) -> Config:
    """Read the settings of a run, which are all in its file.

    A setting that is not there is newer than the run and at its default, whatever the recipe of
    that name is by now.

    Raises:
        CheckpointError: If the folder is not a run.
    """
    if not (run / CONFIG).is_file():
        raise CheckpointError(f"{run} is not a run folder: there is no {CONFIG} in it")
    try:
        return read_config(run / CONFIG, complete=True)
    except ConfigError as error:
        raise CheckpointError(str(error)) from error


def save_model(run: Path, model: nn.Module) -> None:
    """Write all weights of a network, the encoder's too."""
    save_tensors(run / MODEL, model.state_dict())


def load_model(run: Path) -> tuple[Config, MambaAD]:
    """Settings and network of a run, in evaluation mode on the CPU.

    Raises:
        CheckpointError: If the folder is not a finished run, or the weights are not its network's.
    """
    config = load_config(run)
    if not (run / MODEL).is_file():
        hint = (
            " (training is not complete; resume it with --resume)"
            if (run / STATE).is_file()
            else ""
        )
        raise CheckpointError(f"{run} has no {MODEL}{hint}")
    state, _ = load_tensors(run / MODEL)
    model = build(config.model, loss_weight=config.train.loss_weight, drawn=False)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        cause = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        if len(cause) > LONGEST_CAUSE:  # torch names every key
            cause = cause[:LONGEST_CAUSE] + " ..."
        raise CheckpointError(f"{run / MODEL} does not fit {run / CONFIG}: {cause}") from error
    return config, model.eval()


def save_tensors(
    path: Path, tensors: Mapping[str, Tensor], note: Mapping[str, Any] | None = None
) -> None:
    """Write tensors by name, with an optional note that JSON can hold, all or nothing.

    Raises:
        CheckpointError: If it cannot be written, such as on a full disk.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with replacing(path) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode  # safetensors lets nobody else read
        try:
            save_file(plain, temporary, metadata={"note": json.dumps(note or {})})
        except SafetensorError as error:
            raise CheckpointError(f"cannot write {path}: {error}") from error
        temporary.chmod(mode)


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what ``save_tensors`` wrote.

    Raises:
        CheckpointError: If the file is missing or damaged.
    """
    try:
        path.open("rb").close()  # says what is wrong, where safetensors says it is not there
        with safe_open(path, framework="pt") as file:
            note = dict(json.loads((file.metadata() or {}).get("note", "{}")))
        return load_file(path), note
    except (OSError, SafetensorError, ValueError, TypeError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error


def provenance(config: Config, device: torch.device, **more: Any) -> dict[str, Any]:
    """What a result belongs to: versions, commit, seed, machine, and what the caller adds."""
    from mambaad import __version__

    return {
        "mambaad": __version__,
        "commit": git_commit(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "seed": config.train.seed,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        **more,
    }


def save_provenance(run: Path, values: Mapping[str, Any]) -> None:
    """Write the record of where a run's result comes from."""
    write_json(run / PROVENANCE, dict(values))


def load_provenance(run: Path) -> dict[str, Any]:
    """Read the record of where a run's result comes from; empty for a run without one.

    Raises:
        CheckpointError: If it is damaged, or holds anything but names and values.
    """
    path = run / PROVENANCE
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {path}: {error}; mend or remove it") from error
    if not isinstance(values, dict):
        raise CheckpointError(
            f"cannot read {path}: it must hold an object of names and values, got "
            f"{type(values).__name__}; mend or remove it"
        )
    names = values.get("categories", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise CheckpointError(
            f"cannot read {path}: categories must be a list of names, got {names!r}; "
            "mend or remove it"
        )
    return values


def git_commit() -> str | None:
    """The commit of the source tree that the package runs from, with ``+`` if it has changes."""
    folder = Path(__file__).parent
    try:
        head = subprocess.run(
            ["git", "describe", "--always", "--abbrev=10", "--dirty=+", "--exclude=*"],
            cwd=folder, capture_output=True, text=True, timeout=5, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None  # installed without its repository
    return head.stdout.strip()


def device_name(device: torch.device) -> str:
    """The GPU's or the processor's name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
