"""The network that several benchmarks run: made, checked against float64, and timed.

The encoder's weights are random, which changes no time, so nothing is downloaded. Training is
``mambaad.fit``'s and scoring ``mambaad.inference.Scorer``'s, as the command line uses them.
"""

from __future__ import annotations

import copy
import logging
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from timing import Clock, PeakMemory, kernels_of, refuse, relative_error, timed
from torch import Tensor

from mambaad.config import Cache, Config, DataConfig, ModelConfig, Precision, TrainConfig
from mambaad.data import Sample
from mambaad.fit import build_optimizer, computing, fit
from mambaad.graphs import EAGER_STEPS
from mambaad.inference import Scorer
from mambaad.model import MambaAD, build
from mambaad.model.blocks import HSSBlock
from mambaad.model.warmup import warm_up
from mambaad.scan import Backend
from mambaad.train import Observer, prepare_batches

LOSS_LIMITS = {"float32": 1e-5, "bf16": 2e-2}
"""Largest relative error of the loss."""

GRADIENT_LIMIT = 1e-3
"""Largest relative error, in float32, of the gradient of all parameters with the same last name."""

ZERO = 1e-9
"""Largest share that a parameter left without a gradient may have in the true one of all with its
last name. Of a bias before a norm float64 leaves up to 5e-15; every other's share is above 1e-5."""

MAP_LIMITS = {"float32": 1e-4, "bf16": 2e-2}
"""Largest relative error of the anomaly maps."""


@dataclass(frozen=True)
class Case:
    """What is run."""

    model: ModelConfig
    size: int
    """Height and width of a picture."""

    batch: int
    precision: Precision
    """``float32`` or ``bf16``."""

    source: Cache = "features"
    """What a training step starts from: kept ``features``, or ``pictures``."""


@dataclass(frozen=True)
class Result:
    """What was measured."""

    times: list[float]
    """Milliseconds of each repeat."""

    memory: list[str]
    """``PeakMemory.cells``, the weights included."""

    kernels: tuple[int, int, float] | None = None
    """``kernels_of`` a training step; None on the CPU."""


def make(config: ModelConfig, device: torch.device) -> MambaAD:
    """The same random network every time."""
    torch.manual_seed(0)
    return build(config).to(device)


def with_backend(model: MambaAD, backend: Backend) -> MambaAD:
    """A copy of the network whose scans run there."""
    twin = copy.deepcopy(model)
    for module in twin.modules():
        if isinstance(module, HSSBlock):
            module.backend = backend
    return twin


def random_images(batch: int, size: int, device: torch.device) -> Tensor:
    """Normalised pictures of noise, (B, 3, size, size)."""
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1)).to(device)


def check_training(case: Case, device: torch.device) -> None:
    """Compare loss and gradients of two pictures with float64.

    On a GPU, and in bf16, gradients may be as far off as twice what the plain torch path's are: its
    convolutions are less exact than their type, and a network is many of them.

    Raises:
        SystemExit: If something is further off than that, or than the limits above.
    """
    model = make(replace(case.model, drop_path=0.0), device).train()
    exact, plain = with_backend(model, "reference").double(), with_backend(model, "torch")
    images = random_images(2, case.size, device)
    warm_up(model, 2, (case.size, case.size), device, case.precision, training=True)
    loss, gradients = named_gradients(model, images, case.precision)
    true_loss, truths = named_gradients(exact, images.double(), "float32")
    error, limit = relative_error(loss, true_loss), LOSS_LIMITS[case.precision]
    if not error <= limit:
        refuse(f"the loss in {case.precision} is off by {error:.1e}, not {limit:.0e}")
    others = None
    if case.precision != "float32" or device.type == "cuda":
        _, others = named_gradients(plain, images, case.precision)
    check_gradients(gradients, truths, others, case.precision)


def named_gradients(
    model: MambaAD, images: Tensor, precision: str
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss, and its gradients by the parameters' names; those that get none are left out."""
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    with computing(precision, images.device):
        loss = model.loss(images)
        found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    pairs = zip(named, found, strict=True)
    return loss.detach(), {name: gradient for name, gradient in pairs if gradient is not None}


def check_gradients(
    found: Mapping[str, Tensor],
    truths: Mapping[str, Tensor],
    others: Mapping[str, Tensor] | None,
    precision: str,
    *,
    way: str = "",
) -> None:
    """Compare gradients with those of float64, all parameters with the same last name together.

    On a GPU a bias before a norm gets none: the norm takes it away, so its gradient is zero.

    Args:
        found: By name, without those of parameters that got none.
        truths: In float64, of all parameters.
        others: The plain torch path's: twice as far off is allowed. None, and in float32 at least:
            ``GRADIENT_LIMIT`` is.
        precision: Of the found, for the message.
        way: Begins the message.

    Raises:
        SystemExit: If some are further off, or one is missing that is not zero.
    """
    whole = by_last_name(truths, truths)
    for name, truth in truths.items():
        share = float(truth.norm() / whole[name.rpartition(".")[2]].norm())
        if name not in found and not share <= ZERO:
            refuse(f"{way}{name} in {precision} has no gradient, where float64's is not zero")
    gradients = by_last_name(found, truths)
    limits = dict.fromkeys(whole, GRADIENT_LIMIT)
    if others is not None:
        rough = by_last_name(others, truths)
        least = GRADIENT_LIMIT if precision == "float32" else 0.0
        limits = {
            name: max(least, 2 * relative_error(rough[name], truth))
            for name, truth in whole.items()
        }
    for name, limit in limits.items():
        error = relative_error(gradients[name], whole[name])
        if not error <= limit:
            what = f"{way}the gradients of {name} in {precision}"
            refuse(f"{what} are off by {error:.1e}, not {limit:.1e}")


def by_last_name(
    gradients: Mapping[str, Tensor], truths: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Each last name's gradients as one vector, in the order of ``truths``; zeros where none is."""
    groups: dict[str, list[Tensor]] = defaultdict(list)
    for name, truth in truths.items():
        gradient = gradients[name] if name in gradients else torch.zeros_like(truth)
        groups[name.rpartition(".")[2]].append(gradient.flatten())
    return {name: torch.cat(parts) for name, parts in groups.items()}


def check_scoring(case: Case, device: torch.device) -> None:
    """Compare the anomaly map of one picture with float64.

    Raises:
        SystemExit: If it is further off than ``MAP_LIMITS``.
    """
    model = make(case.model, device).eval()
    images = random_images(1, case.size, device)
    maps, _ = Scorer(model, device, precision=case.precision).on_device(images)
    with torch.no_grad():
        truth = with_backend(model, "reference").double().anomaly_maps(images.double())
    error, limit = relative_error(maps, truth), MAP_LIMITS[case.precision]
    if not error <= limit:
        refuse(f"the anomaly map in {case.precision} is off by {error:.1e}, not {limit:.0e}")


def time_training(case: Case, device: torch.device, repeats: int) -> Result:
    """Steps of ``mambaad.fit`` after the eager ones and the capture; two batches make an epoch.

    Raises:
        SystemExit: If a step cannot become a CUDA graph.
        TrainingError: If a loss is not finite.
    """
    config = Config(
        model=case.model,
        data=DataConfig(image_size=(case.size, case.size), cache=case.source),
        # a rate at which noise can be learned from for ever
        train=TrainConfig(
            epochs=10_000,
            batch_size=case.batch,
            learning_rate=1e-5,
            precision=case.precision,
        ),
    )
    model = make(case.model, device)
    with tempfile.TemporaryDirectory() as folder:
        samples = random_samples(Path(folder), 2 * case.batch, case.size)
        data = prepare_batches(samples, config, model, case.batch, device, Observer())
        sides = (case.size, case.size)
        warm_up(model, case.batch, sides, device, case.precision, training=True)
        memory = PeakMemory(device)
        optimizer = build_optimizer(model, config.train, case.batch)
        steps = fit(model, data, optimizer, config.train, tell=refuse)
        for _ in range(EAGER_STEPS + 1):
            next(steps)
        clock = Clock(device)
        clock.mark()
        for _ in range(repeats):
            step = next(steps)
            clock.mark()
        times = clock.intervals()
        step.wait()
        cells = memory.cells()
        seen = kernels_of(lambda: next(steps), device) if device.type == "cuda" else None
    return Result(times, cells, seen)


def time_scoring(case: Case, device: torch.device, repeats: int) -> Result:
    """``Scorer.on_device`` from normalised images on the device to maps and scores there.

    Raises:
        SystemExit: If it cannot become a CUDA graph.
    """
    images = random_images(case.batch, case.size, device)
    memory = PeakMemory(device)
    scorer = Scorer(make(case.model, device).eval(), device, precision=case.precision)
    with _NoFallback():
        times = timed(lambda: scorer.on_device(images), device, repeats)
    return Result(times, memory.cells())


def random_samples(folder: Path, count: int, size: int) -> list[Sample]:
    """Picture files of coloured patches."""
    draw = np.random.default_rng(0)
    samples = []
    for number in range(count):
        patches = Image.fromarray(draw.integers(0, 256, (16, 16, 3), dtype=np.uint8))
        path = folder / f"{number}.png"
        patches.resize((size, size), Image.Resampling.NEAREST).save(path, compress_level=1)
        samples.append(Sample(path, "noise", "train"))
    return samples


class _NoFallback(logging.Handler):
    """While it is open, scoring without a CUDA graph ends the program."""

    _log = logging.getLogger("mambaad.replay")

    def __enter__(self) -> None:
        self._log.addHandler(self)
        self._log.setLevel(logging.INFO)

    def __exit__(self, *_: object) -> None:
        self._log.removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        refuse(record.getMessage())
