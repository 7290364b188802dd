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
it is. The extended run may be moved or renamed, see ``mambaad.splits.own_list``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from mambaad import checkpoint
from mambaad.calibrate import (
    Calibration,
    Source,
    Threshold,
    calibrate,
    joined,
    load_calibration,
    save_calibration,
    with_kept,
    with_origin,
)
from mambaad.config import Config
from mambaad.data import PictureStore, Sample, read_dataset
from mambaad.data.cache import Progress, map_in_threads
from mambaad.devices import pick_device, resolve_precision
from mambaad.errors import CheckpointError, ConfigError, DatasetError, ImageError
from mambaad.extend_settings import Plan, holdout_of, new_data, read_extension, settings_of
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
    write_list,
)
from mambaad.splits import EXTENSION, few_warning, learned_line, own_list, read_pictures
from mambaad.state import make_note, save_state
from mambaad.train import Observer, check_run_folder, tiles_of, train

OLD_PICTURES = "old_pictures"


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
    record, observer = unfinished(out), observer or Observer()
    config = _in_place(out)
    if not (out / checkpoint.MODEL).is_file() or (out / checkpoint.STATE).is_file():
        warning = _few_warning(out, config, record)
        if warning is not None:
            observer.message(warning)
        train(config, out, resume=True, device=device, observer=observer)
    _finish(out, record, device, observer)
    return config


def _in_place(out: Path) -> Config:
    """The settings; if the folder was moved, they and the state, which names it too, are told.

    The settings come last: if this is interrupted, both are written again.
    """
    before = checkpoint.load_config(out)
    config, state = own_list(out, before), out / checkpoint.STATE
    if config == before:
        return config
    if state.is_file():
        tensors, note = checkpoint.load_tensors(state)
        settings = dict(note.get("config", {}))
        settings["data"] = {**settings.get("data", {}), "root": config.data.root}
        checkpoint.save_tensors(state, tensors, {**note, "config": settings})
    checkpoint.save_config(out, config)
    return config


def _few_warning(out: Path, config: Config, record: Mapping[str, Any]) -> str | None:
    """As of a training, but old products may have few pictures: they were learned before."""
    learned, _, _ = read_pictures(config)
    new = [s for s in (*learned, *_held_out(out)) if s.category in record["new"]]
    pictures, epochs = len(learned) * tiles_of(config), config.train.epochs
    steps = epochs * (pictures // min(config.train.batch_size, pictures))
    return few_warning(new, steps, epochs, batch="--set train.batch_size=NUMBER")


def _held_out(out: Path) -> tuple[Sample, ...]:
    path = out / HELD_OUT
    return read_dataset(path, "csv").samples if path.is_file() else ()


def begin(plan: Plan, out: Path, progress: Progress | None = None) -> dict[str, Any]:
    """Write the run folder of an extension whose training has not made a step; ``resume`` trains.

    Args:
        plan: What is extended by what.
        out: Folder of the extended run. It must not hold a run yet.
        progress: Called with the number of new pictures read and in all: before anything is
            written, since the written list names them. The old run has read its own.

    Returns:
        What ``extension.json`` holds.

    Raises:
        MambaADError: ConfigError, CheckpointError, DatasetError or ImageError.
    """
    check_run_folder(out, resume=False)
    base, model = checkpoint.load_model(plan.run)
    old, calibration = _old_pictures(plan), load_calibration(plan.run)
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
    config, record = settings_of(plan, base, out), checkpoint.load_provenance(plan.run)
    replayed = draw(old.learned, plan.replay, base.train.seed)
    _read_all([*learned, *held_out], config, progress)
    if old.where == "kept pictures":
        old = copy_kept(old, out / OLD_PICTURES)
        replayed = draw(old.learned, plan.replay, base.train.seed)
    write_list(out / LIST, [*replayed, *learned, *old.test, *test])
    aside = [*old.held_out, *held_out]
    if aside:
        write_list(out / HELD_OUT, aside)
    kept = calibration if plan.thresholds == "keep" else None
    extension = {
        **_record(plan, record, old, replayed, learned),
        "untested": sorted({*old.categories, *added} - {s.category for s in (*old.test, *test)}),
        "kept_thresholds": _kept(kept, old.categories),
        "holdout": holdout_of(plan.run, base),
        "fewer": {} if kept else _fewer(calibration, replayed, old.held_out),
        "finished": False,
    }
    checkpoint.save_config(out, config)
    source = str(record.get("encoder_weights", f"run {plan.run.name}"))
    checkpoint.save_provenance(out, {"encoder_weights": source})
    write_json(out / EXTENSION, extension)
    torch.manual_seed(config.train.seed)
    _, _, about = read_pictures(config)
    note = make_note(config, about["data_fingerprint"], 0, 0.0)
    save_state(out, model, build_optimizer(model, config.train), note)  # last: now it can resume
    return extension


def _read_all(samples: Sequence[Sample], config: Config, progress: Progress | None) -> None:
    """Raise at a picture that cannot be read; none is kept."""
    store = PictureStore([s.image for s in samples], config.data.image_size, "none")
    map_in_threads(
        lambda i: len(store[[i]]), range(len(store)), workers=store.workers, progress=progress
    )


def moved_list(run: Path) -> Path | None:
    """The list of an extended run that is not where its settings say; None of any other run.

    Raises:
        CheckpointError: If the folder is not a run.
    """
    before = checkpoint.load_config(run)
    config = own_list(run, before)
    return None if config == before else Path(config.data.root)


def _old_pictures(plan: Plan) -> OldPictures:
    moved = moved_list(plan.run) if plan.old_data is None else None
    if moved is not None:
        with suppress(DatasetError, ImageError):  # its pictures are gone: the kept ones
            return find_pictures(plan.run, moved)
    return find_pictures(plan.run, plan.old_data)


def _new_pictures(
    plan: Plan, base: Config
) -> tuple[list[Sample], list[Sample], tuple[Sample, ...]]:
    """Of the new product: pictures to learn from, held-out ones, and those of its test."""
    config = new_data(plan, base)
    learned, held_out, _ = read_pictures(config)
    data = config.data
    test = read_dataset(data.root, data.layout, data.categories).select(split="test").samples
    return learned, held_out, test


def _record(
    plan: Plan,
    run_provenance: Mapping[str, Any],
    old: OldPictures,
    replayed: Sequence[Sample],
    learned: Sequence[Sample],
) -> dict[str, Any]:
    return {
        "run": str(plan.run.absolute()),
        "run_provenance": dict(run_provenance),
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


def _fewer(
    calibration: Calibration | None, replayed: Sequence[Sample], held_out: Sequence[Sample]
) -> dict[str, list[int]]:
    """Old products whose thresholds will come from fewer pictures: how many before, and now."""
    known = {} if calibration is None else calibration.categories
    now = {**_counts(replayed), **_counts(held_out)}
    numbers = {name: [known[name].pictures, now[name]] for name in now if name in known}
    return {name: [before, after] for name, (before, after) in numbers.items() if after < before}


def _kept(calibration: Calibration | None, categories: Sequence[str]) -> dict[str, Any] | None:
    """The thresholds that are kept, each with its origin; None if none are."""
    if calibration is None:
        return None
    known, overall = calibration.categories, calibration.overall
    kept = {name: with_origin(known.get(name, overall), calibration) for name in categories}
    values = {name: asdict(threshold) for name, threshold in kept.items()}
    return {"precision": calibration.precision, "categories": values}


def unfinished(out: Path) -> dict[str, Any]:
    """What ``extension.json`` holds of an extension that can be resumed.

    Raises:
        CheckpointError: If there is none in the folder, or it is complete.
    """
    record = read_extension(out)
    if record["finished"]:
        raise CheckpointError(f"{out} cannot be resumed: its extension is complete")
    return record


def _finish(out: Path, record: dict[str, Any], device: str, observer: Observer) -> None:
    """Thresholds by held-out pictures and by what is kept of the old run, and the record."""
    calibration, provenance = load_calibration(out), checkpoint.load_provenance(out)
    if calibration is None:
        raise CheckpointError(f"{out} has no thresholds, though its training is complete")
    kept = _read_kept(record, calibration)
    if kept is not None:
        new = {n: t for n, t in calibration.categories.items() if n not in kept.categories}
        calibration = replace(calibration, categories=new)
    stay = () if kept is None else tuple(kept.categories)
    aside = [s for s in _held_out(out) if s.category not in stay]
    if aside:
        calibration = _with_held_out(out, calibration, aside, device, observer)
    if kept is not None and kept.precision not in (None, calibration.precision):
        observer.message(
            f"the old thresholds were set in {kept.precision}, the new product's in "
            f"{calibration.precision}: scores differ by up to 1 % or so"
        )
    save_calibration(out, with_kept(calibration, kept))
    learned = sum({**record["old"], **record["new"]}.values())
    which = "new thresholds" if stay else "thresholds"
    observer.message(learned_line(learned, len(aside), calibration.source, out, which=which))
    done = {**record, "finished": True}
    checkpoint.save_provenance(out, {**provenance, "extension": done})
    write_json(out / EXTENSION, done)


def _read_kept(record: Mapping[str, Any], new: Calibration) -> Calibration | None:
    """What ``_kept`` wrote, as a calibration that is otherwise the new one."""
    kept = record["kept_thresholds"]
    if kept is None:
        return None
    old = {name: Threshold(**values) for name, values in kept["categories"].items()}
    return replace(new, categories=old, precision=kept["precision"])


def _with_held_out(
    out: Path, calibration: Calibration, samples: Sequence[Sample], device: str, observer: Observer
) -> Calibration:
    """The thresholds, those of the products of held-out pictures set on these."""
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
    names = [s.category for s in samples]
    source: Source = "held-out training pictures"
    used = resolve_precision(config.train.precision, target)
    found = calibrate(scores, names, source, calibration.quantile, precision=used)
    rest = {n: with_origin(t, calibration) for n, t in calibration.categories.items()}
    if not set(rest) - set(found.categories):
        return found
    return joined(found, rest, f"{source}, or training pictures of categories with few")
