"""A training from the data to the run folder: what ``mambaad train`` does.

Data, encoder weights, caches, the loop of ``fit``, its log, checkpoints, thresholds, record.
The last weights are the result: nothing is selected on test pictures.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from mambaad import checkpoint
from mambaad.average import WeightAverage, average_of
from mambaad.batches import Batches
from mambaad.calibrate import Source, calibrate, save_calibration
from mambaad.config import TOTAL_STRIDE, Config
from mambaad.data import PictureStore, Sample, available_memory
from mambaad.data.cache import Store
from mambaad.data.memory import choose_place, open_pictures
from mambaad.data.tensors import (
    CPU,
    DevicePictures,
    FeatureStore,
    feature_bytes,
    free_device_memory,
)
from mambaad.data.tiles import TileStore, whole_pictures
from mambaad.devices import pick_device, resolve_precision
from mambaad.errors import CheckpointError, ConfigError
from mambaad.files import alone_in, check_writable
from mambaad.fit import build_optimizer, computing, fit
from mambaad.inference import batch_size_for, score_pictures
from mambaad.interrupt import DeferredInterrupt
from mambaad.kept_pictures import LIST
from mambaad.model import MambaAD, build
from mambaad.model.encoder import load_pretrained
from mambaad.model.losses import rebuilding_loss
from mambaad.model.warmup import warm_up
from mambaad.replay import drop_workspaces
from mambaad.splits import few_warning, learned_line, read_aside, read_pictures
from mambaad.state import load_state, make_note, save_state
from mambaad.steplog import StepLog, require_tensorboard
from mambaad.steps import Step

ENCODED_PIXELS = 64 * 256 * 256
"""Pixels that a GPU encodes at once when features are kept."""

MEASURED = 512
"""Pictures that the teacher's maps are recentred by."""

FIRST_SAVE = 1.0
"""Minutes until the first state is saved, at most: who kills a training early can resume it too."""

STOPPING = "finishing the step, then saving; once more stops at once and loses what is not saved"
"""Said when a training is asked to stop."""


class Observer:
    """Told how a training goes. This one does nothing; the command line's draws a progress bar."""

    def message(self, text: str) -> None:
        """Something worth a line."""

    def progress(self, task: str, done: int, total: int) -> None:
        """A stage before or after the steps has come this far."""

    def begin(self, done: int, total: int, batch_size: int) -> None:
        """The steps begin; ``done`` is more than 0 when resuming."""

    def step(self, step: Step) -> None:
        """A step is done; on a GPU it may be on its way yet, and reading its numbers waits."""


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
    """Train on a data set, ``config.data.root``, and leave a run folder.

    Args:
        config: All settings.
        run: The run folder. It must not hold a run yet, unless ``resume``.
        encoder_weights: File of the encoder's weights; None downloads them.
        resume: Continue an interrupted run; on the same device to the bit.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        tensorboard: Also log to ``run/tensorboard``.
        observer: Told how it goes.

    Returns:
        The trained network, in evaluation mode.

    Raises:
        MambaADError: DatasetError, ConfigError (also if another process trains in the folder),
            WeightsError, CheckpointError or TrainingError.
        KeyboardInterrupt: Passed on, after the state has been saved.
    """
    observer, target = observer or Observer(), pick_device(device)
    check_run_folder(run, resume, tensorboard)
    with alone_in(run):
        return _train(config, run, encoder_weights, resume, target, tensorboard, observer)


def _train(
    config: Config,
    run: Path,
    encoder_weights: Path | None,
    resume: bool,
    target: torch.device,
    tensorboard: bool,
    observer: Observer,
) -> MambaAD:
    """``train``, in a folder that no other process trains in."""
    chosen, held_out, about = read_pictures(config)
    model, source = _prepare_model(run, config, encoder_weights, resume, target)
    observer.message("; ".join([f"encoder weights: {source}", *about["notes"]]))
    size = _batch_size(run, config, chosen, held_out, observer)
    optimizer = build_optimizer(model, config.train, size)
    data_id, average = about["data_fingerprint"], average_of(model, config.train)
    whole = model, optimizer, config, data_id, average
    start, seconds = load_state(run, *whole) if resume else (0, 0.0)
    data = prepare_batches(chosen, config, model, size, target, observer, held_out)
    _recentre(model, data, resume)
    aside = read_aside(held_out, config)
    record = checkpoint.provenance(config, target, encoder_weights=source, batch_size=size, **about)
    checkpoint.save_config(run, config.located())
    checkpoint.save_provenance(run, record)
    _compile_kernels(config, model, size, len(chosen), target, observer)

    def save(step: int, seconds: float) -> None:
        save_state(run, model, optimizer, make_note(config, data_id, step, seconds), average)

    tell = observer.message
    steps = fit(model, data, optimizer, config.train, average=average, start=start, tell=tell)
    observer.begin(start, config.train.epochs * data.per_epoch, size)
    with StepLog(run, start, seconds, size, tensorboard) as log:
        _run_steps(steps, log, save, config.train.checkpoint_minutes, observer, start)
    checkpoint.save_model(run, _finished(model, average))
    stores = whole_pictures(data.store), aside
    _calibrate(run, config, model, chosen, held_out, stores, target, observer)
    checkpoint.save_provenance(run, {**record, "training_seconds": round(log.seconds, 1)})
    (run / checkpoint.STATE).unlink(missing_ok=True)
    return model


def _prepare_model(
    run: Path, config: Config, file: Path | None, resume: bool, device: torch.device
) -> tuple[MambaAD, str]:
    """The network with its first weights, and where the encoder's come from.

    When resuming, the state will fill all of them.
    """
    torch.manual_seed(config.train.seed)
    model = build(config.model, loss_weight=config.train.loss_weight)
    model.objective = rebuilding_loss(config.train, config.model.damping)
    model.to(device)
    if not resume:
        return model, load_pretrained(model.encoder, config.model.encoder, file)
    source = checkpoint.load_provenance(run).get("encoder_weights")
    if source is None:
        raise CheckpointError(
            f"{run} cannot be resumed: there is no {checkpoint.PROVENANCE} in it that says where "
            "the encoder's weights come from; train it anew"
        )
    return model, str(source)


def _finished(model: MambaAD, average: WeightAverage | None) -> MambaAD:
    """The network as it is tested and saved."""
    if average is not None:
        average.give()
    return model.eval()


def _recentre(model: MambaAD, data: Batches, resumed: bool) -> None:
    """Measure what is usual, on an epoch's first pictures, if the network does not know it yet."""
    if model.recentring is None or resumed:
        return
    steps = min(data.per_epoch, max(1, MEASURED // data.size))

    def maps(step: int) -> list[Tensor]:
        images, features = data.load(step)
        if features is None and images is not None:
            with computing("float32", data.device):
                features = model.encode(images)
        return features or []

    with torch.no_grad():
        model.recentring.measure(maps(step) for step in range(steps))


def _is_prepared(run: Path, config: Config) -> bool:
    """Whether ``extend`` does this: it starts from trained weights and sets thresholds itself."""
    return Path(config.data.root) == (run / LIST).absolute()


def _batch_size(
    run: Path,
    config: Config,
    chosen: Sequence[Sample],
    held_out: Sequence[Sample],
    observer: Observer,
) -> int:
    """At most the pictures that there are; says if they or the steps are few."""
    pictures, epochs = len(chosen) * tiles_of(config), config.train.epochs
    size = min(config.train.batch_size, pictures)
    warning = few_warning([*chosen, *held_out], epochs * (pictures // size), epochs)
    if warning is not None and not _is_prepared(run, config):
        observer.message(warning)
    if size * math.prod(config.data.network_size) == TOTAL_STRIDE**2:
        raise ConfigError(
            f"a batch of one picture of {TOTAL_STRIDE} x {TOTAL_STRIDE} leaves BatchNorm a single "
            "value: use a larger image_size or tile, or more pictures in a batch"
        )
    return size


def _compile_kernels(
    config: Config,
    model: MambaAD,
    batch_size: int,
    pictures: int,
    device: torch.device,
    observer: Observer,
) -> None:
    """On a GPU, what the first step would do one after the other: minutes on a new machine. And
    what the thresholds will need at the end."""
    precision, size = resolve_precision(config.train.precision, device), config.data.network_size
    scored, tell = min(pictures, batch_size_for(device, size)), observer.message
    warm_up(model, batch_size, size, device, precision, training=True, scored=scored, tell=tell)
    drop_workspaces()


def _run_steps(
    steps: Iterator[Step],
    log: StepLog,
    save: Callable[[int, float], None],
    minutes: float,
    observer: Observer,
    start: int,
) -> None:
    """Take all steps, log them, save the state every so often, at the end and when interrupted.

    Ctrl-C or SIGTERM waits for the end of the step: in the middle of one, statistics, random
    numbers and some of the weights have moved already, and a state saved then could not be resumed
    to the bit.
    """
    done, saved_at, pause = start, time.monotonic(), min(minutes, FIRST_SAVE)
    with DeferredInterrupt(STOPPING) as interrupt:
        for step in steps:
            done = step.number
            log.write(step)
            observer.step(step)
            due = time.monotonic() - saved_at > 60 * pause
            if interrupt.asked or due:
                step.wait()  # raises if the weights are spoilt
                log.flush()
                save(done, log.seconds)
                saved_at, pause = time.monotonic(), minutes
            if interrupt.asked:
                observer.message(f"interrupted after step {done}; the state is saved")
                raise KeyboardInterrupt
    log.flush()
    save(done, log.seconds)


def tiles_of(config: Config) -> int:
    """Training pictures that one picture gives: its tiles, or itself."""
    return config.data.tiling.count if config.data.tiling else 1


def check_run_folder(run: Path, resume: bool, tensorboard: bool = False) -> None:
    """Refuse to overwrite a run, to resume what is not there, or to log where nothing can.

    Raises:
        CheckpointError: With what to do instead.
        ConfigError: If TensorBoard is asked for and not installed, or nothing can be written there.
    """
    if tensorboard:
        require_tensorboard()
    state, finished = (run / checkpoint.STATE).is_file(), (run / checkpoint.MODEL).is_file()
    if resume and not state:
        why = "its training is complete"
        if not finished:
            why = f"there is no {checkpoint.STATE} in it; train without --resume"
        raise CheckpointError(f"{run} cannot be resumed: {why}")
    if not resume and (state or finished):
        hint = "continue it with --resume or " if state else ""
        raise CheckpointError(f"{run} holds a run already; {hint}choose another folder with --out")
    if run.exists() and not run.is_dir():
        raise CheckpointError(f"{run} is a file; a run needs a folder")
    check_writable(run)


def prepare_batches(
    samples: Sequence[Sample],
    config: Config,
    model: MambaAD,
    batch_size: int,
    device: torch.device,
    observer: Observer,
    held_out: Sequence[Sample] = (),
) -> Batches:
    """Decode, and encode if features are kept, as ``config.data.cache`` says.

    ``held_out`` are not read; a file of decoded pictures on disk has room for them too, so that
    runs with other seeds, which hold out others, share it.

    Raises:
        ImageError: At the first picture that cannot be read.
    """
    size, paths = config.data.network_size, [s.image for s in samples]
    count = len(samples) * tiles_of(config)
    gpu = device.type == "cuda"
    bf16 = resolve_precision(config.train.precision, device) == "bf16"

    def encode(images: Tensor) -> list[Tensor]:
        with computing(config.train.precision, device):
            maps = model.encode(images)
        return [m.bfloat16() for m in maps] if gpu and bf16 else maps

    memory = available_memory()
    place = cache, on_gpu = choose_place(
        config.data.cache,
        count * size[0] * size[1] * 3,
        count * feature_bytes(encode, size, device),
        memory,
        free_device_memory(device),
    )
    pictures = open_pictures(
        paths,
        config.data.image_size,
        config.data.cache,
        place,
        memory,
        among=[*paths, *(s.image for s in held_out)],
    )
    pictures.fill(lambda d, n: observer.progress("decoding", d, n))
    tiling = config.data.tiling
    store: Store = pictures if tiling is None else TileStore(pictures, tiling)
    data = Batches(store, batch_size, config.train.seed, device)
    if cache == "features":
        data.features = FeatureStore(
            store,
            encode,
            device,
            home=device if on_gpu else CPU,
            channels_last=gpu,
            batch_size=max(1, ENCODED_PIXELS // math.prod(size)) if gpu else 16,
            progress=lambda d, n: observer.progress("encoding", d, n),
        )
    elif on_gpu:
        data.pictures = DevicePictures(store, device)
    return data


def _calibrate(
    run: Path,
    config: Config,
    model: MambaAD,
    chosen: Sequence[Sample],
    held_out: Sequence[Sample],
    stores: tuple[Store, PictureStore],
    device: torch.device,
    observer: Observer,
) -> None:
    """Thresholds: of a category's held-out pictures, or of its training pictures if it has none.

    ``stores`` are those of ``chosen`` and of ``held_out``.
    """
    store, aside = stores
    apart = {s.category for s in held_out}
    rest = [i for i, s in enumerate(chosen) if s.category not in apart]
    precision, tiling = config.train.precision, config.data.tiling
    scores = score_pictures(
        model, aside, device, precision=precision, tiling=tiling,
        progress=lambda d, n: observer.progress("calibrating", d, n),
    )  # fmt: skip
    scores += score_pictures(
        model, store, device, indices=rest, precision=precision, tiling=tiling,
        progress=lambda d, n: observer.progress("calibrating the rest", d, n),
    )  # fmt: skip
    source: Source = "held-out training pictures" if held_out else "training pictures"
    if held_out and rest:
        source = "held-out training pictures, or training pictures of categories with few"
    names = [s.category for s in held_out] + [chosen[i].category for i in rest]
    used = resolve_precision(precision, device)
    save_calibration(run, calibrate(scores, names, source, precision=used))
    if not _is_prepared(run, config):
        observer.message(learned_line(len(chosen), len(held_out), source, run))
