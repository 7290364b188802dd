"""Which pictures a training learns from, and which it keeps to set thresholds on.

Both are drawn from the data set's training pictures with the run's seed, category by category.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

from mambaad.checkpoint import PROVENANCE, load_provenance
from mambaad.config import Config
from mambaad.data import Dataset, PictureStore, Sample, fingerprint, read_dataset
from mambaad.data.cache import map_in_threads
from mambaad.data.check import FEW_PICTURES
from mambaad.data.contamination import contaminate, leave_out
from mambaad.data.layouts.table import TABLE
from mambaad.errors import CheckpointError, ConfigError, DatasetError

EXTENSION = "extension.json"
"""In a run that ``mambaad extend`` made; such a run's data set is the list in its folder."""

HOLDOUT_SHARE = 0.1
OWN_LAYOUTS = ("folder", "csv", "keys")
"""Layouts of people's own pictures; the benchmarks' training pictures are all learned from."""

HOLDOUT_LEAST = 3
"""Held-out pictures of a category; fewer say less of new pictures than the training ones do."""

FEW_STEPS = 100
"""Steps of a whole training below which its result is likely to be poor."""

HELD_OUT = "held-out training pictures"
"""The source of thresholds of which false alarms on new pictures are known."""

SHOWN = 3
"""Categories that a line names."""


def read_pictures(config: Config) -> tuple[list[Sample], list[Sample], dict[str, Any]]:
    """The pictures of ``config.data``.

    Returns:
        Those to learn from, those held out, and what a run's record says of them. There,
        ``contamination`` names the test pictures that are learned from, by their paths inside the
        data set.

    Raises:
        DatasetError: If the data set cannot be read, has no training picture, or too few defective
            test pictures for ``config.data.contamination``.
    """
    dataset = read_dataset(config.data.root, config.data.layout, config.data.categories)
    mixed, moved = contaminate(dataset, config.data.contamination, config.train.seed)
    chosen, held_out = split_holdout(mixed, config)
    about = {
        "data_fingerprint": fingerprint(dataset),
        "layout": dataset.layout,
        "notes": list(mixed.notes),
        "categories": list(dataset.categories),
        "training_pictures": len(chosen),
        "held_out_pictures": len(held_out),
        "test_pictures": len(mixed.select(split="test").samples),
        "contamination": list(moved),
        "preset": config.train.preset,
    }
    return chosen, held_out, about


def own_list(run: Path, config: Config) -> Config:
    """A run's settings, those of an extended run with its list where that is now.

    The list lies in the run folder and moves with it, while the settings name its first place,
    where another run may lie by now.
    """
    named, listed = Path(config.data.root).name == TABLE, (run / TABLE).is_file()
    if not named or not listed or not (run / EXTENSION).is_file():
        return config
    return config.override({"data.root": str((run / TABLE).absolute())})


def run_dataset(
    verb: str,
    run: Path,
    config: Config,
    data: Path | None,
    categories: Sequence[str] = (),
    layout: str | None = None,
) -> Dataset:
    """The pictures for a command on a run: those of ``data``, or the run's own.

    Args:
        verb: The command's name, for messages.
        data: Root of another data set; None is the run's own.
        categories: Only these; empty takes all, of the run's own those it was trained on.
        layout: How ``data`` is laid out; None finds out, or knows it of the run.

    Raises:
        ConfigError: If the run knows no data set and none is given.
        DatasetError: If it is not there any more or cannot be read.
    """
    own, config = data is None, own_list(run, config)
    if own and not config.data.root:
        raise ConfigError(f"{run} knows no data set; give one: mambaad {verb} {run} DATA")
    if own and not Path(config.data.root).expanduser().exists():
        raise DatasetError(
            f"the data set of {run} is no longer at {config.data.root}; "
            f"give its place: mambaad {verb} {run} DATA"
        )
    chosen = tuple(categories) or (config.data.categories if own else ())
    kind = layout or (config.data.layout if own else "auto")
    return read_dataset(data or config.data.root, kind, chosen)


def leave_learned_out(run: Path, config: Config, dataset: Dataset) -> Dataset:
    """The data set without those test pictures that a run has learned from.

    They are the ones that its ``data.contamination`` moved, by the names in its record; so a copy
    of the data set elsewhere is served as well, and another data set is left as it is.

    Raises:
        CheckpointError: If the run had such pictures and its record does not name them.
    """
    if config.data.contamination == 0:
        return dataset
    names = load_provenance(run).get("contamination")
    if not isinstance(names, list):
        raise CheckpointError(
            f"{run} learned from test pictures (data.contamination), and {PROVENANCE} does not say "
            "which: train it anew"
        )
    return leave_out(dataset, [str(name) for name in names])


def split_holdout(dataset: Dataset, config: Config) -> tuple[list[Sample], list[Sample]]:
    """Training pictures, and those held out of training to set thresholds on.

    Of each category a share is held out, drawn with the run's seed; a category of which that
    would be fewer than three pictures keeps them all.

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
        share = HOLDOUT_SHARE if dataset.layout in OWN_LAYOUTS else 0.0
    chosen, held_out = [], []
    for category in dataset.categories:
        own = [s for s in samples if s.category == category]
        count = round(share * len(own))
        count = count if count >= HOLDOUT_LEAST else 0
        rng = np.random.default_rng([config.train.seed, crc32(category.encode())])
        drawn = set(rng.permutation(len(own))[:count].tolist())
        held_out += [s for i, s in enumerate(own) if i in drawn]
        chosen += [s for i, s in enumerate(own) if i not in drawn]
    return chosen, held_out


def read_aside(samples: Sequence[Sample], config: Config) -> PictureStore:
    """The held-out pictures, each read once, so that a bad one is found before the training.

    They stay in memory until thresholds are set on them, unless ``config.data.cache`` is ``none``.

    Raises:
        ImageError: If a picture cannot be read.
    """
    paths, kept = [s.image for s in samples], config.data.cache != "none"
    store = PictureStore(paths, config.data.image_size, "pictures" if kept else "none")
    if kept:
        store.fill()
    else:  # one at a time in each thread, and only its count is handed on
        map_in_threads(lambda i: len(store[[i]]), range(len(store)), workers=store.workers)
    return store


def few_warning(
    samples: Sequence[Sample], steps: int, epochs: int, *, batch: str = "--batch-size"
) -> str | None:
    """One line if a training has too little to learn from or too few steps, with what to do.

    Args:
        samples: All good pictures: learned from and held out.
        steps: Of the whole training.
        epochs: In which they are made.
        batch: The option for the size of a batch.

    Returns:
        None if there are ``FEW_STEPS`` and ``FEW_PICTURES`` of each category.
    """
    counts = sorted(Counter(s.category for s in samples).items())
    few = [f"{name} ({count})" for name, count in counts if count < FEW_PICTURES]
    found, remedy = [], "more good pictures"
    if steps < FEW_STEPS:
        found.append(f"only {steps} steps in all, fewer than {FEW_STEPS}")
        enough = math.ceil(FEW_STEPS * epochs / steps)
        remedy += f", more epochs (--epochs {enough}) or a smaller batch ({batch})"
    if few:
        more = f" and {len(few) - SHOWN} more" if len(few) > SHOWN else ""
        found.append(f"fewer than {FEW_PICTURES} good pictures of {', '.join(few[:SHOWN])}{more}")
    return f"warning: {'; '.join(found)}: expect poor results; give {remedy}" if found else None


def learned_line(
    learned: int, held_out: int, source: str, run: Path, *, which: str = "thresholds"
) -> str:
    """What a training has learned from and what its thresholds rest on, in one line.

    Args:
        learned: Number of pictures learned from.
        held_out: Number of pictures held out.
        source: Which pictures the thresholds come from; see ``Calibration.source``.
        run: The run folder.
        which: The thresholds that this is true of.
    """
    line = f"{learned} learned from, {held_out} held out; {which} from {source}"
    if source == HELD_OUT:
        return line
    return (
        f"{line}: false alarms on new pictures are likely; 'mambaad calibrate {run} NEW_GOOD' "
        "sets them anew, NEW_GOOD being a folder of new good pictures"
    )


def results_folder(
    run: Path, config: Config, data: Path | None, dataset: Dataset, out: Path | None
) -> Path:
    """Where the figures of a run on a data set go, so that those on its own set stay.

    Args:
        run: The run folder.
        config: Its settings.
        data: The data set that was asked for; None is the run's own.
        dataset: What was read of it.
        out: The folder that was asked for.

    Returns:
        ``out`` if it is given; the run folder for the run's own data set, also for a copy of it
        elsewhere, known by the fingerprint in the run's record; else ``RUN/test-NAME``, with the
        name of the other data set.

    Raises:
        CheckpointError: If the record is damaged.
    """
    if out is not None:
        return out
    if data is None or _is_own(run, config, data.expanduser().resolve(), dataset):
        return run
    place = data.expanduser().resolve()
    name = place.stem if place.is_file() else place.name
    return run / f"test-{name or 'data'}"


def _is_own(run: Path, config: Config, place: Path, dataset: Dataset) -> bool:
    own, chosen = own_list(run, config).data.root, set(config.data.categories)
    if own and place == Path(own).expanduser().resolve():
        return not chosen or set(dataset.categories) <= chosen
    known = load_provenance(run).get("data_fingerprint")
    return known is not None and known == fingerprint(dataset)
