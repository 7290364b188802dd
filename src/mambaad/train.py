"""A training from the data to the run folder: what ``mambaad train`` does.

Data, encoder weights, caches, the loop of ``fit``, its log, checkpoints, thresholds, record.
The last weights are the result: nothing is selected on test pictures.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from zlib import crc32

import numpy as np
import torch
from torch import Tensor, nn

from mambaad import checkpoint
from mambaad.calibrate import Source, calibrate, save_calibration
from mambaad.config import Config
from mambaad.data import (
    Dataset,
    PictureStore,
    Sample,
    available_memory,
    choose_cache,
    fingerprint,
    read_dataset,
)
from mambaad.data.tensors import FeatureStore, feature_bytes
from mambaad.errors import CheckpointError, ConfigError, DatasetError
from mambaad.fit import Batches, Step, build_optimizer, fit
from mambaad.inference import batches, picture_scores
from mambaad.model import MambaAD, build
from mambaad.model.encoder import load_pretrained
from mambaad.steplog import StepLog

HOLDOUT_SHARE = 0.1
HOLDOUT_LEAST = 10


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
        resume: Continue an interrupted run with its own settings: on the same device the result is
            the same to the bit as without the interruption.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        tensorboard: Also log to ``run/tensorboard``.
        observer: Told how it goes.

    Returns:
        The trained network, in evaluation mode.

    Raises:
        MambaADError: DatasetError, ConfigError, WeightsError, CheckpointError or TrainingError.
        KeyboardInterrupt: Passed on, after the state has been saved.
    """
    observer = observer or Observer()
    target = checkpoint.pick_device(device)
    check_run_folder(run, resume)
    dataset = read_dataset(config.data.root, config.data.layout, config.data.categories)
    chosen, held_out = split_holdout(dataset, config)
    torch.manual_seed(config.train.seed)
    model = build(config.model, loss_weight=config.train.loss_weight)
    source = _encoder_weights(run, model, config, encoder_weights, resume)
    observer.message(f"encoder weights: {source}")
    model.to(target)
    size = min(config.train.batch_size, len(chosen))
    optimizer = build_optimizer(model, config.train, size)
    start, seconds = load_state(run, model, optimizer, config) if resume else (0, 0.0)
    data = prepare_batches(chosen, config, model, size, target, observer)
    counts = {"training_pictures": len(chosen), "held_out_pictures": len(held_out)}
    record = checkpoint.provenance(
        config, target, encoder_weights=source, batch_size=size, **describe(dataset), **counts
    )
    checkpoint.save_config(run, config)
    checkpoint.save_provenance(run, record)
    steps = fit(model, data, optimizer, config.train, start=start)
    observer.begin(start, config.train.epochs * data.per_epoch, size)
    with StepLog(run, start, seconds, size, tensorboard) as log:
        _run_steps(steps, log, run, model, optimizer, config, observer, start)
    model.eval()
    _calibrate(run, model, chosen, held_out, data.store, config, target, observer)
    checkpoint.save_model(run, model)
    record["training_seconds"] = round(log.seconds, 1)
    checkpoint.save_provenance(run, record)
    (run / checkpoint.STATE).unlink(missing_ok=True)
    return model


def _encoder_weights(
    run: Path, model: MambaAD, config: Config, file: Path | None, resume: bool
) -> str:
    """Fill the encoder, unless the state to resume from will; say where its weights come from."""
    if not resume:
        return load_pretrained(model.encoder, config.model.encoder, file)
    try:
        values = json.loads((run / checkpoint.PROVENANCE).read_text("utf-8"))
        return str(values["encoder_weights"])
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"cannot read {run / checkpoint.PROVENANCE}: {error}") from error


def _run_steps(
    steps: Iterator[Step],
    log: StepLog,
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


def describe(dataset: Dataset) -> dict[str, object]:
    """What the record says of a data set."""
    return {"data_fingerprint": fingerprint(dataset), "categories": list(dataset.categories)}


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
