"""MambaAD: find defects in pictures of many products, learned from good pictures only.

    import mambaad
    detector = mambaad.load("runs/bottle")
    prediction = detector.predict("new.png")

Training and evaluation from Python: ``mambaad.train.train(config, run)``, with settings from
``mambaad.read_config("settings.toml")``, and ``mambaad.evaluate.evaluate``.
Names are imported when they are first used, so ``import mambaad`` is quick and does not load torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from mambaad import evaluate, metrics, train
    from mambaad.config import Config, DataConfig, ModelConfig, TrainConfig
    from mambaad.errors import MambaADError
    from mambaad.model import MambaAD, build
    from mambaad.predict import Detector, Prediction

__version__ = "0.1.0"

__all__ = [
    "Config",
    "DataConfig",
    "Detector",
    "MambaAD",
    "MambaADError",
    "ModelConfig",
    "Prediction",
    "TrainConfig",
    "build",
    "evaluate",
    "load",
    "metrics",
    "read_config",
    "train",
]

_MODULES = ("evaluate", "metrics", "train")

_HOMES = {
    "Config": "config",
    "DataConfig": "config",
    "ModelConfig": "config",
    "TrainConfig": "config",
    "MambaADError": "errors",
    "MambaAD": "model",
    "build": "model",
    "Detector": "predict",
    "Prediction": "predict",
}


def load(run: Path | str, *, device: str = "auto", precision: str | None = None) -> Detector:
    """The detector of a run folder; see ``Detector.load``."""
    from mambaad.predict import Detector

    return Detector.load(run, device=device, precision=precision)


def read_config(path: Path | str) -> Config:
    """The settings of a TOML file; what it does not set is as by default.

    Raises:
        ConfigError: If the file is missing, is not TOML, or a setting is unknown or does not fit.
    """
    from pathlib import Path

    from mambaad import config

    return config.read_config(Path(path))


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"mambaad.{name}")
    if name in _HOMES:
        return getattr(import_module(f"mambaad.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'mambaad' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
