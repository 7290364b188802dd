"""The demonstration: the built-in benchmark from nothing to a report, on a plain CPU."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch

from mambaad.checkpoint import load_model
from mambaad.config import Config
from mambaad.data import read_dataset
from mambaad.data.synthetic import synthesize
from mambaad.errors import CheckpointError
from mambaad.evaluate import Evaluation, evaluate
from mambaad.model import build
from mambaad.model.encoder import load_pretrained
from mambaad.testing import run_test
from mambaad.train import Observer, train

SETTINGS = {
    "model.encoder": "builtin",
    "model.depths": [1, 1, 1, 1],
    "model.directions": 2,
    "model.pointwise": False,
    "data.image_size": [128, 128],
    "train.recipe": "plus",
    "train.batch_size": 4,
    "train.learning_rate": 0.008,
    "train.epochs": 6,
}
"""What finds most in about a minute on two cores: small batches, because with so few pictures steps
count (the rate is 0.002 for each, as with a batch of 16), and no 1x1 convolutions in the local
branches, which would be half of a step's time."""

SIZE, TRAIN, GOOD, DEFECTIVE = 128, 40, 16, 16


@dataclass(frozen=True)
class DemoResult:
    """What the demonstration showed."""

    trained: Evaluation
    untrained: Evaluation
    """The same network as it was before the first step, on the same pictures."""

    report: Path
    seconds: float


def run_demo(folder: Path, *, seed: int = 0, observer: Observer | None = None) -> DemoResult:
    """Draw the pictures, train a small network, evaluate it, write the report.

    Args:
        folder: Gets ``data`` and ``run``; it must not exist or be empty.
        seed: Of pictures and training.
        observer: Told how it goes.

    Raises:
        CheckpointError: If ``folder`` holds something already.
    """
    began = time.monotonic()
    observer = observer or Observer()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(f"{folder} is not empty; remove it, or name another folder")
    data, run = folder / "data", folder / "run"
    synthesize(
        data,
        seed=seed,
        size=SIZE,
        train=TRAIN,
        good=GOOD,
        defective=DEFECTIVE,
        progress=lambda done, total: observer.progress("drawing", done, total),
    )
    root = {"data.root": str(data.absolute()), "train.seed": seed}
    train(Config().override({**SETTINGS, **root}), run, device="cpu", observer=observer)
    trained, files = run_test(
        run, device="cpu", progress=lambda d, n: observer.progress("testing", d, n)
    )
    untrained = _evaluate_untrained(run, observer)
    return DemoResult(trained, untrained, files[-1], time.monotonic() - began)


def _evaluate_untrained(run: Path, observer: Observer) -> Evaluation:
    config, trained = load_model(run)
    torch.manual_seed(config.train.seed)
    model = build(config.model)
    load_pretrained(model.encoder, config.model.encoder)
    if model.recentring is not None and trained.recentring is not None:
        model.recentring.load_state_dict(trained.recentring.state_dict())  # known before step 1
    return evaluate(
        model.eval(),
        read_dataset(config.data.root),
        config.data.image_size,
        device=torch.device("cpu"),
        progress=lambda d, n: observer.progress("testing the untrained network", d, n),
    )
