"""A new product for a trained network without starting over: what ``mambaad extend`` does.

The extended run begins with the weights of the old one and learns from the good pictures of the
new product, and again from some of the old products', so that those are not forgotten (replay;
where their pictures come from is in ``mambaad.kept_pictures``).

    OUT/samples.csv      its data set: old pictures replayed, new ones, and the test pictures
    OUT/held_out.csv     good pictures that neither training saw, which thresholds are set on
    OUT/extension.json   what was extended by what, and whether all is done
    OUT/old_pictures/    copies of the old run's kept pictures, where they were needed

It is made as a training that was interrupted before its first step, so it is trained, logged, saved
and resumed as any other. ``mambaad test OUT`` evaluates old products and new; the old run stays as
it is.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import torch

from mambaad import checkpoint
from mambaad.calibrate import (
    Calibration,
    Threshold,
    calibrate,
    load_calibration,
    save_calibration,
)
from mambaad.checks import check_choice
from mambaad.config import Config
from mambaad.data import PictureStore, Sample, read_dataset
from mambaad.devices import pick_device, resolve_precision
from mambaad.errors import CheckpointError, ConfigError
from mambaad.files import write_json
from mambaad.fit import build_optimizer
from mambaad.inference import score_pictures
from mambaad.kept_pictures import (
    HELD_OUT,
    LIST,
    OldPictures,
    copy_kept,
    draw,
    find_pictures,
    untested_line,
    write_list,
)
from mambaad.splits import read_pictures
from mambaad.state import make_note, save_state
from mambaad.train import Observer, check_run_folder, train

Thresholds = Literal["anew", "keep"]

RECORD, OLD_PICTURES = "extension.json", "old_pictures"

EPOCH_SHARE = 0.2
"""Epochs of an extension where none are given, as a share of the old run's."""


@dataclass(frozen=True)
class Plan:
    """What to extend, by what, and how."""

    run: Path
    """The trained run. It is only read."""

    data: Path
    """The new product's data set; it may have several."""

    categories: tuple[str, ...] = ()
    """Which of them; empty: all."""

    layout: str = "auto"
    """How that data set is laid out."""

    replay: int | None = None
    """Pictures of each old product that are learned from again; None: all. With few of them, a
    lower ``train.learning_rate`` forgets less."""

    old_data: Path | None = None
    """Where the old run's data set is now; None: where it was."""

    thresholds: Thresholds = "anew"
    """Of the old products: set anew on the extended network's scores, or as the old run has
    them. The new product's are always new."""

    epochs: int | None = None
    """Passes over the pictures; None: ``EPOCH_SHARE`` of the old run's, at least one."""

    settings: Mapping[str, Any] | None = None
    """Other settings of the training: ``train.…`` and ``data.cache``."""

    def __post_init__(self) -> None:
        check_choice("thresholds", self.thresholds, Thresholds)
        if self.replay is not None and self.replay < 1:
            raise ConfigError(f"replay must be at least 1 picture a product, got {self.replay}")
        for name in self.settings or {}:
            if not name.startswith("train.") and name != "data.cache":
                raise ConfigError(
                    f"network and pictures of an extension are the old run's; {name} cannot be "
                    "set, only train.… and data.cache"
                )


def resume(out: Path, *, device: str = "auto", observer: Observer | None = None) -> Config:
    """Train an extension that ``begin`` has written, from wherever it was left.

    Args:
        out: Its folder.
        device: See ``pick_device``.
        observer: Told how it goes.

    Returns:
        Its settings.

    Raises:
        CheckpointError: If there is none in the folder, or it is complete.
        MambaADError: Whatever training raises.
        KeyboardInterrupt: Passed on, after the state has been saved; called again, this goes on.
    """
    record = unfinished(out)
    config = checkpoint.load_config(out)
    if not (out / checkpoint.MODEL).is_file() or (out / checkpoint.STATE).is_file():
        train(config, out, resume=True, device=device, observer=observer)
    _finish(out, record, device, observer or Observer())
    return config


def begin(plan: Plan, out: Path) -> dict[str, Any]:
    """Write the run folder of an extension whose training has not made a step; ``resume`` trains.

    Args:
        plan: What is extended by what.
        out: Folder of the extended run. It must not hold a run yet.

    Returns:
        What ``extension.json`` holds.

    Raises:
        MambaADError: ConfigError, CheckpointError, DatasetError or ImageError.
    """
    check_run_folder(out, resume=False)
    base, model = checkpoint.load_model(plan.run)
    old, calibration = find_pictures(plan.run, plan.old_data), load_calibration(plan.run)
    learned, held_out, test = _new_pictures(plan, base)
    added = sorted({s.category for s in learned})
    known = sorted(set(added) & set(old.categories))
    if known:
        raise ConfigError(
            f"{plan.run} knows {known} already: rename the new product, or choose others with "
            "--category"
        )
    if plan.thresholds == "keep" and calibration is None:
        raise ConfigError(f"{plan.run} has no thresholds to keep; leave out --thresholds keep")
    if old.where == "kept pictures":
        old = copy_kept(old, out / OLD_PICTURES)
    replayed = draw(old.learned, plan.replay, base.train.seed)
    write_list(out / LIST, [*replayed, *learned, *old.test, *test])
    aside = [*old.held_out, *held_out]
    if aside:
        write_list(out / HELD_OUT, aside)
    kept = calibration if plan.thresholds == "keep" else None
    config = _settings(plan, base, out)
    record = {
        **_record(plan, old, replayed, learned),
        "untested": sorted({*old.categories, *added} - {s.category for s in (*old.test, *test)}),
        "kept_thresholds": _kept(kept, old.categories),
        "finished": False,
    }
    checkpoint.save_config(out, config)
    checkpoint.save_provenance(out, {"encoder_weights": _encoder_source(plan.run)})
    write_json(out / RECORD, record)
    torch.manual_seed(config.train.seed)
    _, _, about = read_pictures(config)
    note = make_note(config, about["data_fingerprint"], 0, 0.0)
    save_state(out, model, build_optimizer(model, config.train), note)  # last: now it can resume
    return record


def _new_pictures(
    plan: Plan, base: Config
) -> tuple[list[Sample], list[Sample], tuple[Sample, ...]]:
    """Of the new product: pictures to learn from, held-out ones, and those of its test."""
    source = {
        "data.root": str(plan.data.expanduser().absolute()),
        "data.layout": plan.layout,
        "data.categories": plan.categories,
    }
    config = base.override(source)
    learned, held_out, _ = read_pictures(config)
    data = config.data
    test = read_dataset(data.root, data.layout, data.categories).select(split="test").samples
    return learned, held_out, test


def _settings(plan: Plan, base: Config, out: Path) -> Config:
    """The old run's, with the list as its data set; that names held-out pictures elsewhere."""
    epochs = plan.epochs or max(1, math.ceil(EPOCH_SHARE * base.train.epochs))
    return base.override(
        {
            "train.epochs": epochs,
            **(plan.settings or {}),
            "data.root": str((out / LIST).absolute()),
            "data.layout": "csv",
            "data.categories": (),
            "data.holdout": 0.0,
        }
    )


def _record(
    plan: Plan, old: OldPictures, replayed: Sequence[Sample], learned: Sequence[Sample]
) -> dict[str, Any]:
    return {
        "run": str(plan.run.absolute()),
        "run_provenance": _provenance(plan.run),
        "data": str(plan.data.expanduser().absolute()),
        "old": _counts(replayed),
        "new": _counts(learned),
        "replayed_from": old.where,
        "old_pictures": len(old.learned),
        "thresholds": plan.thresholds,
    }


def _counts(samples: Sequence[Sample]) -> dict[str, int]:
    names = sorted({s.category for s in samples})
    return {name: sum(s.category == name for s in samples) for name in names}


def _kept(calibration: Calibration | None, categories: Sequence[str]) -> dict[str, Any] | None:
    if calibration is None:
        return None
    known = calibration.categories
    values = {name: asdict(known.get(name, calibration.overall)) for name in categories}
    return {"precision": calibration.precision, "categories": values}


def summary(record: Mapping[str, Any], out: Path) -> list[str]:
    """Lines of what a user should know of an extension before it starts.

    Args:
        record: What ``begin`` gave.
        out: Folder of the extended run.
    """
    old, new = record["old"], record["new"]
    lines = [
        f"new: {', '.join(f'{name} ({count} pictures)' for name, count in new.items())}",
        f"replayed: {sum(old.values())} of {record['old_pictures']} pictures of {len(old)} old "
        f"products, from {record['replayed_from']}",
    ]
    if record["untested"]:
        lines.append(untested_line(record["untested"], out))
    return lines


def _provenance(run: Path) -> dict[str, Any]:
    """What the old run's record says; empty for a run without one."""
    try:
        return dict(json.loads((run / checkpoint.PROVENANCE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def _encoder_source(run: Path) -> str:
    return str(_provenance(run).get("encoder_weights", f"run {run.name}"))


def unfinished(out: Path) -> dict[str, Any]:
    """What ``extension.json`` holds of an extension that can be resumed.

    Raises:
        CheckpointError: If there is none in the folder, or it is complete.
    """
    path = out / RECORD
    if not path.is_file():
        raise CheckpointError(f"{out} cannot be resumed: there is no {RECORD} in it")
    try:
        record = dict(json.loads(path.read_text(encoding="utf-8")))
        finished = bool(record["finished"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error
    if finished:
        raise CheckpointError(f"{out} cannot be resumed: its extension is complete")
    return record


def _finish(out: Path, record: dict[str, Any], device: str, observer: Observer) -> None:
    """Thresholds by held-out pictures and by what is kept of the old run, and the record."""
    calibration = load_calibration(out)
    if calibration is None:
        raise CheckpointError(f"{out} has no thresholds, though its training is complete")
    if (out / HELD_OUT).is_file():
        calibration = _with_held_out(out, calibration, device, observer)
    kept = record["kept_thresholds"]
    if kept is not None:
        if kept["precision"] not in (None, calibration.precision):
            observer.message(
                f"the old thresholds were set in {kept['precision']}, the new product's in "
                f"{calibration.precision}: scores differ by up to 1 % or so"
            )
        old = {name: Threshold(**values) for name, values in kept["categories"].items()}
        calibration = _joined(calibration, old, f"{calibration.source}; of the old products kept")
    save_calibration(out, calibration)
    done = {**record, "finished": True}
    checkpoint.save_provenance(out, {**_provenance(out), "extension": done})
    write_json(out / RECORD, done)


def _with_held_out(
    out: Path, calibration: Calibration, device: str, observer: Observer
) -> Calibration:
    """Thresholds of products that have held-out pictures, set on those."""
    samples = read_dataset(out / HELD_OUT, "csv").samples
    config, model = checkpoint.load_model(out)
    target = pick_device(device)
    scores = score_pictures(
        model.to(target),
        PictureStore([s.image for s in samples], config.data.image_size, "none"),
        target,
        precision=config.train.precision,
        tiling=config.data.tiling,
        progress=lambda done, total: observer.progress("calibrating held-out", done, total),
    )
    names, source = [s.category for s in samples], "held-out training pictures"
    used = resolve_precision(config.train.precision, target)
    found = calibrate(scores, names, cast(Any, source), calibration.quantile, precision=used)
    if set(calibration.categories) - set(found.categories):
        source += ", or training pictures of categories with few"
    return _joined(calibration, found.categories, source)


def _joined(calibration: Calibration, others: Mapping[str, Threshold], source: str) -> Calibration:
    """With other thresholds for some products; the overall one is the highest of all."""
    categories = {**calibration.categories, **others}
    parts = list(categories.values())
    pictures = sum(t.pictures for t in parts)
    mean = sum(t.mean * t.pictures for t in parts) / max(1, pictures)
    overall = Threshold(
        max(t.threshold for t in parts), pictures, mean, max(t.maximum for t in parts)
    )
    ordered = dict(sorted(categories.items()))
    return replace(calibration, source=source, overall=overall, categories=ordered)
