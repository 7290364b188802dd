"""What several test files share: a tiny data set, settings for it, and a run trained on it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

# Beside other programs on the same cores, torch's waiting threads make small tensors ten times
# slower unless they soon sleep. OpenMP reads this once, when torch is imported.
os.environ.setdefault("GOMP_SPINCOUNT", "3000")

import torch

# Triton's kernels run in its interpreter where there is no GPU. Read when they are imported.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

from helpers import forget_tilings

from mambaad.config import Config
from mambaad.data.synthetic import synthesize
from mambaad.scan import tuning
from mambaad.train import train


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two categories of the built-in benchmark at 64 x 64: 6 training, 3 good, 3 defective each."""
    folder = tmp_path_factory.mktemp("tiny") / "data"
    synthesize(folder, size=64, train=6, good=3, defective=3, categories=("metal", "wood"))
    return folder


@pytest.fixture(scope="session")
def tiny_config(tiny_data: Path) -> Config:
    """The smallest network, one HSS block a stage and two directions, for ``tiny_data``."""
    return Config().override(
        {
            "model.encoder": "filterbank",
            "model.depths": [1, 1, 1, 1],
            "model.directions": 2,
            "data.root": str(tiny_data),
            "data.image_size": [64, 64],
            "train.epochs": 1,
            "train.batch_size": 4,
            "train.seed": 3,
        }
    )


@pytest.fixture(scope="session")
def tiny_run(tiny_config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of ``tiny_config``. Tests must not change it."""
    run = tmp_path_factory.mktemp("tiny") / "run"
    train(tiny_config, run, device="cpu")
    return run


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[tuning.GpuClass]]:
    """The kinds of GPUs that there are, at first one H200; and no file of tilings yet."""
    kinds = [tuning.H200]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(tuning, "gpus", lambda: tuple(kinds))
    forget_tilings()
    yield kinds
    forget_tilings()


@pytest.fixture
def interruptible() -> Iterator[None]:
    """In the background a shell starts programs with SIGINT ignored, and children inherit that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
