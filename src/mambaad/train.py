"""Training: the published recipe as one loop, and the run folder around it.

``fit`` is the loop. It prints nothing and decides nothing: it yields every step. ``train`` is what
``mambaad train`` does: data, encoder weights, caches, log, checkpoints, thresholds, record.

The recipe (published code): AdamW with betas 0.9 and 0.999, the rate scaled by the batch and
multiplied by 0.1 once after 80 % of the epochs; weight decay on tensors of two or more dimensions
there; gradients clipped at norm 5; every epoch a new order, an incomplete last batch left out. The
last weights are the result: nothing is selected on test pictures.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TextIO
from zlib import crc32

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mambaad import checkpoint
from mambaad.calibrate import Source, calibrate, save_calibration
from mambaad.config import Config, TrainConfig
from mambaad.data import (
    Dataset,
    PictureStore,
    Sample,
    available_memory,
    choose_cache,
    fingerprint,
    read_dataset,
)
from mambaad.data.tensors import FeatureStore, feature_bytes, to_tensor
from mambaad.errors import CheckpointError, ConfigError, DatasetError, TrainingError
from mambaad.inference import batches, picture_scores
from mambaad.model import MambaAD, build
from mambaad.model.encoder import load_pretrained

HOLDOUT_SHARE = 0.1
HOLDOUT_LEAST = 10


@dataclass(frozen=True)
class Step:
    """What one training step did."""

    number: int
    """1 for the first."""

    epoch: int
    """1 for the first."""

    loss: float
    """The loss before the update."""

    parts: dict[str, float]
    """The loss by scale."""

    gradient_norm: float
    """L2 norm of the gradient before clipping."""

    learning_rate: float
    """The rate of this step."""


class Observer:
    """Told how a training goes. This one does nothing; the command line's draws a progress bar."""

    def message(self, text: str) -> None:
        """Something worth a line."""

    def progress(self, task: str, done: int, total: int) -> None:
        """A stage before or after the steps has come this far."""

    def begin(self, done: int, total: int, batch_size: int) -> None:
        """The steps begin; ``done`` is more than 0 when resuming."""

    def step(self, step: Step) -> None:
        """A step is done."""


class Method(Protocol):
    """What training needs of a method; it is an ``nn.Module`` as well."""

    def loss_parts(
        self, images: Tensor | None, features: Sequence[Tensor] | None = None
    ) -> dict[str, Tensor]:
        """The parts of the loss, whose sum is the loss."""
        ...


@dataclass
class Batches:
    """Training pictures in batches: which ones a step sees depends on seed and step alone."""

    store: PictureStore
    size: int
    seed: int
    device: torch.device
    features: FeatureStore | None = None

    @property
    def per_epoch(self) -> int:
        """Steps in an epoch."""
        return max(1, len(self.store) // self.size)

    def indices(self, step: int) -> NDArray[np.intp]:
        """The pictures of a step, counted from 0."""
        epoch, batch = divmod(step, self.per_epoch)
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.store))
        return order[batch * self.size : (batch + 1) * self.size]

    def load(self, step: int) -> tuple[Tensor | None, list[Tensor] | None]:
        """Images, or kept features instead."""
        indices = self.indices(step)
        if self.features is not None:
            return None, [maps.to(self.device) for maps in self.features[indices]]
        return to_tensor(self.store[indices], self.device), None


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """AdamW's two groups. As published, ``a_log`` and ``dt_bias`` decay, ``skip`` does not.

    (There ``skip`` has one dimension; here it has two, so it is told by its name.)
    """
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        keep = parameter.dim() < 2 or name.endswith((".bias", ".skip"))
        (plain if keep else decayed).append(parameter)
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]


def build_optimizer(
    model: nn.Module, config: TrainConfig, batch_size: int | None = None
) -> torch.optim.AdamW:
    """AdamW at the rate for a batch of ``batch_size`` (the configured one if None)."""
    rate = config.learning_rate * (batch_size or config.batch_size) / 16
    groups = parameter_groups(model, config.weight_decay)
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.999), eps=1e-8)


def fit(
    model: nn.Module,
    data: Batches,
    optimizer: torch.optim.AdamW,
    config: TrainConfig,
    *,
    start: int = 0,
) -> Iterator[Step]:
    """Train from step ``start`` to the end of the last epoch; yield every step.

    ``model`` (a ``Method``) and ``optimizer`` are changed in place. The caller decides what to log
    and when to save, by what it does between two steps.

    Raises:
        TrainingError: If the loss or the gradient is not finite; names the batch's pictures.
    """
    method: Method = model  # type: ignore[assignment]
    trainable = [p for p in model.parameters() if p.requires_grad]
    full_rate = optimizer.param_groups[0]["lr"]
    decay_step = int(config.decay_at * config.epochs) * data.per_epoch
    limit = config.clip_norm or math.inf
    model.train()
    for index in range(start, config.epochs * data.per_epoch):
        rate = full_rate * (config.decay_factor if index >= decay_step else 1.0)
        for group in optimizer.param_groups:
            group["lr"] = rate
        images, features = data.load(index)
        with torch.autocast(data.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            parts = method.loss_parts(images, features)
            loss = torch.stack(list(parts.values())).sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(trainable, limit)
        if not bool(torch.isfinite(loss + norm)):
            files = [data.store.paths[i].name for i in data.indices(index)]
            raise TrainingError(
                f"the loss is {loss.item():g} and the gradient's norm {norm.item():g} at step "
                f"{index + 1}; the pictures of its batch: {', '.join(files)}. Try a lower "
                "train.learning_rate; weights from before this step can be resumed from"
            )
        optimizer.step()
        yield Step(
            number=index + 1,
            epoch=index // data.per_epoch + 1,
            loss=loss.item(),
            parts={name: part.item() for name, part in parts.items()},
            gradient_norm=norm.item(),
            learning_rate=rate,
        )


def train(
    config: Config,
    run: Path,
    *,
    encoder_weights: Path | None = None,
    resume: bool = False,
    device: str = "auto",
    tensorboard: bool = False,
    observer: Observer | None = None,
) -> MambaAD:
    """Train on a data set and leave a run folder.

    Args:
        config: All settings; ``config.data.root`` is the data set.
        run: The run folder. It must not hold a run yet, unless ``resume``.
        encoder_weights: File of the encoder's weights; None downloads them.
        resume: Continue an interrupted run, with its own settings (``config`` must equal them). On
            the same device the result is the same to the bit as without the interruption.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        tensorboard: Also log to ``run/tensorboard``.
        observer: Told how it goes.

    Returns:
        The trained network, in evaluation mode.

    Raises:
        DatasetError: If the data cannot be read or have no training pictures.
        ConfigError: If a setting does not work, or ``tensorboard`` is not installed.
        WeightsError: If the encoder's weights cannot be had.
        CheckpointError: If ``run`` holds a run already, or has nothing to resume.
        TrainingError: If the loss is not finite.
        KeyboardInterrupt: Passed on, after the state has been saved.
    """
    observer = observer or Observer()
    target = checkpoint.pick_device(device)
    check_run_folder(run, resume)
    dataset = read_dataset(config.data.root, config.data.layout, config.data.categories)
    chosen, held_out = split_holdout(dataset, config)
    torch.manual_seed(config.train.seed)
    model = build(config.model, loss_weight=config.train.loss_weight)
    if resume:
        # made once: the state holds all weights
        source = json.loads((run / checkpoint.PROVENANCE).read_text("utf-8"))["encoder_weights"]
    else:
        source = load_pretrained(model.encoder, config.model.encoder, encoder_weights)
    observer.message(f"encoder {config.model.encoder}: weights from {source}")
    model.to(target)

    size = min(config.train.batch_size, len(chosen))
    optimizer = build_optimizer(model, config.train, size)
    start, seconds = load_state(run, model, optimizer, config) if resume else (0, 0.0)
    data = prepare_batches(chosen, config, model, size, target, observer)
    run.mkdir(parents=True, exist_ok=True)
    checkpoint.save_config(run, config)
    record = checkpoint.provenance(
        config,
        target,
        encoder_weights=source,
        data_fingerprint=fingerprint(dataset),
        categories=list(dataset.categories),
        training_pictures=len(chosen),
        held_out_pictures=len(held_out),
        batch_size=size,
    )
    checkpoint.save_provenance(run, record)

    steps = fit(model, data, optimizer, config.train, start=start)
    observer.begin(start, config.train.epochs * data.per_epoch, size)
    with _Log(run, start, seconds, size, tensorboard) as log:
        _run_steps(steps, log, run, model, optimizer, config, observer, start)
    model.eval()
    _calibrate(run, model, chosen, held_out, data.store, config, target, observer)
    checkpoint.save_model(run, model)
    record["training_seconds"] = round(log.seconds, 1)
    checkpoint.save_provenance(run, record)
    (run / checkpoint.STATE).unlink(missing_ok=True)
    return model


def _run_steps(
    steps: Iterator[Step],
    log: _Log,
    run: Path,
    model: MambaAD,
    optimizer: torch.optim.AdamW,
    config: Config,
    observer: Observer,
    start: int,
) -> None:
    """Take all steps, log them, save the state every so often, at the end and when interrupted."""
    done, saved_at = start, time.monotonic()
    try:
        for step in steps:
            done = step.number
            log.write(step)
            observer.step(step)
            if time.monotonic() - saved_at > 60 * config.train.checkpoint_minutes:
                save_state(run, model, optimizer, config, done, log.seconds)
                saved_at = time.monotonic()
    except KeyboardInterrupt:
        save_state(run, model, optimizer, config, done, log.seconds)
        observer.message(f"interrupted after step {done}; the state is saved in {run}")
        raise
    save_state(run, model, optimizer, config, done, log.seconds)


def check_run_folder(run: Path, resume: bool) -> None:
    """Refuse to overwrite a run, or to resume what is not there.

    Raises:
        CheckpointError: With what to do instead.
    """
    state, finished = (run / checkpoint.STATE).is_file(), (run / checkpoint.MODEL).is_file()
    if resume and not state:
        why = "its training is complete" if finished else f"there is no {checkpoint.STATE} in it"
        raise CheckpointError(f"{run} cannot be resumed: {why}")
    if not resume and (state or finished):
        hint = "continue it with --resume or " if state else ""
        raise CheckpointError(f"{run} holds a run already; {hint}choose another folder with --out")
    if run.exists() and not run.is_dir():
        raise CheckpointError(f"{run} is a file; a run needs a folder")


def split_holdout(dataset: Dataset, config: Config) -> tuple[list[Sample], list[Sample]]:
    """Training pictures, and those held out of training to set thresholds on.

    Of each category a share is held out, drawn with the run's seed; a category with fewer than
    ten training pictures keeps them all.

    Raises:
        DatasetError: If there is no training picture.
    """
    samples = list(dataset.select(split="train"))
    if not samples:
        raise DatasetError(
            f"no training pictures in {dataset.root}: run 'mambaad check {dataset.root}' to see why"
        )
    share = config.data.holdout
    if share == "auto":
        share = HOLDOUT_SHARE if dataset.layout == "folder" else 0.0
    chosen, held_out = [], []
    for category in dataset.categories:
        own = [s for s in samples if s.category == category]
        count = round(share * len(own)) if len(own) >= HOLDOUT_LEAST else 0
        rng = np.random.default_rng([config.train.seed, crc32(category.encode())])
        drawn = set(rng.permutation(len(own))[:count].tolist())
        held_out += [s for i, s in enumerate(own) if i in drawn]
        chosen += [s for i, s in enumerate(own) if i not in drawn]
    return chosen, held_out


def prepare_batches(
    samples: Sequence[Sample],
    config: Config,
    model: MambaAD,
    batch_size: int,
    device: torch.device,
    observer: Observer,
) -> Batches:
    """Decode, and encode if features are kept, as ``config.data.cache`` says.

    Raises:
        ImageError: At the first picture that cannot be read.
    """
    size = config.data.image_size

    def encode(images: Tensor) -> list[Tensor]:
        bf16 = config.train.precision == "bf16"
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            return model.encode(images)

    cache = choose_cache(
        config.data.cache,
        len(samples) * size[0] * size[1] * 3,
        len(samples) * feature_bytes(encode, size, device),
        available_memory(),
    )
    mode = "none" if cache == "features" else cache
    store = PictureStore([s.image for s in samples], size, mode)
    data = Batches(store, batch_size, config.train.seed, device)
    if cache == "features":
        data.features = FeatureStore(
            store, encode, device, progress=lambda d, n: observer.progress("encoding", d, n)
        )
    else:
        store.fill(lambda d, n: observer.progress("decoding", d, n))
    return data


def _calibrate(
    run: Path,
    model: MambaAD,
    chosen: Sequence[Sample],
    held_out: Sequence[Sample],
    store: PictureStore,
    config: Config,
    device: torch.device,
    observer: Observer,
) -> None:
    source: Source = "held-out training pictures" if held_out else "training pictures"
    samples = held_out or chosen
    if held_out:
        store = PictureStore([s.image for s in held_out], config.data.image_size, "none")
    scores: list[float] = []
    for _, _, maps in batches(
        model, store, device, progress=lambda d, n: observer.progress("calibrating", d, n)
    ):
        scores += picture_scores(maps).tolist()
    save_calibration(run, calibrate(scores, [s.category for s in samples], source))


def save_state(
    run: Path,
    model: nn.Module,
    optimizer: torch.optim.AdamW,
    config: Config,
    step: int,
    seconds: float,
) -> None:
    """Save all that the next step depends on: weights, statistics, optimiser, random state."""
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    for index, values in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in values.items()}
    tensors["random.cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["random.cuda"] = torch.cuda.get_rng_state()
    note = {"step": step, "seconds": seconds, "config": config.to_mapping()}
    checkpoint.save_tensors(run / checkpoint.STATE, tensors, note)


def load_state(
    run: Path, model: nn.Module, optimizer: torch.optim.AdamW, config: Config
) -> tuple[int, float]:
    """Put back what ``save_state`` saved; the number of steps done and their seconds.

    Raises:
        CheckpointError: If the file is damaged.
        ConfigError: If the settings are not those of the run.
    """
    tensors, note = checkpoint.load_tensors(run / checkpoint.STATE)
    if note.get("config") != json.loads(json.dumps(config.to_mapping())):
        raise ConfigError(f"the settings differ from those {run} began with; resume without any")
    by_part: dict[str, dict[str, Tensor]] = {"model": {}, "optimizer": {}, "random": {}}
    for key, tensor in tensors.items():
        part, _, name = key.partition(".")
        by_part[part][name] = tensor
    model.load_state_dict(by_part["model"])
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in by_part["optimizer"].items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = tensor
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    torch.set_rng_state(by_part["random"]["cpu"])
    if torch.cuda.is_available() and "cuda" in by_part["random"]:
        torch.cuda.set_rng_state(by_part["random"]["cuda"])
    return int(note["step"]), float(note["seconds"])


class _Log:
    """``metrics.jsonl``, one line a step, and TensorBoard if asked for."""

    def __init__(
        self, run: Path, start: int, seconds: float, batch_size: int, tensorboard: bool
    ) -> None:
        self.path = run / checkpoint.METRICS
        self.batch_size = batch_size
        self.seconds = seconds
        self._file: TextIO | None = None
        self._clock = time.monotonic()
        self._board = _tensorboard(run) if tensorboard else None
        kept = []
        if start and self.path.is_file():
            lines = self.path.read_text("utf-8").splitlines()
            kept = [line for line in lines if _step_of(line) <= start]
        self.path.write_text("".join(line + "\n" for line in kept), "utf-8")

    def __enter__(self) -> _Log:
        self._file = self.path.open("a", encoding="utf-8")
        self._clock = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
        if self._board is not None:
            self._board.close()

    def write(self, step: Step) -> None:
        now = time.monotonic()
        took, self._clock = now - self._clock, now
        self.seconds += took
        values = {
            "step": step.number,
            "epoch": step.epoch,
            "loss": step.loss,
            **{f"loss_{name}": value for name, value in step.parts.items()},
            "gradient_norm": step.gradient_norm,
            "learning_rate": step.learning_rate,
            "images_per_second": self.batch_size / max(took, 1e-9),
            "seconds": self.seconds,
        }
        if self._file is not None:
            self._file.write(json.dumps(values) + "\n")
            self._file.flush()
        if self._board is not None:
            for name, value in values.items():
                if name not in ("step", "epoch"):
                    self._board.add_scalar(f"train/{name}", value, step.number)


def _step_of(line: str) -> float:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError):
        return math.inf  # half a line, from the moment of the interruption


def _tensorboard(run: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError(
            "TensorBoard is not installed: pip install 'mambaad[tensorboard]'"
        ) from error
    return SummaryWriter(str(run / "tensorboard"))
