"""What each part of the ``plus`` recipe does: added to ``paper`` alone, and taken from ``plus``.

    python benchmarks/recipes.py DATA --encoder-weights FILE --out runs/recipes --gpus 2

Rows are data: the two recipes, ``paper+PART``, ``plus-PART`` for every part in which they differ,
and ``plus>IDEA`` for ideas that are not in it. Each row with each seed is ``mambaad train`` and
``mambaad test`` in a run folder of its own, on the next free GPU; what is done already is left
alone, so the same command continues. The tables are made anew from the run folders:

    OUT/runs.csv      one line a run: mAD by category in percent, loss jumps, seconds, commit
    OUT/recipes.md    mean ± deviation over the seeds by category; how many runs jumped, and the
                      worst jump; the gain over the row's recipe, and the least gain that is left
                      when any one category is left out

Loss jumps are those of ``end_to_end.py``. ``--only paper plus`` runs some rows.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue
from typing import Any

import end_to_end

from mambaad.ablate import Job, commands, plan, state_of
from mambaad.checkpoint import PROVENANCE
from mambaad.compare import read_result
from mambaad.config import Config, parse_setting
from mambaad.files import write_text
from mambaad.grids import Row
from mambaad.presets import configure
from mambaad.recipes import PAPER, PLUS

PROTOCOL = "exact"

PARTS: Mapping[str, tuple[str, ...]] = {
    "loss": ("train.loss", "train.loss_weight"),
    "mining": ("train.mining", "train.mining_share", "train.mining_ramp"),
    "scales": ("train.scale_weights",),
    "optimizer": ("train.optimizer", "train.learning_rate"),
    "schedule": ("train.schedule", "train.warmup", "train.decay_factor"),
    "states": ("train.decay_states",),
    "mean": ("train.ema_decay",),
    "dropout": ("model.neck_dropout",),
    "noise": ("model.neck_noise",),
    "masking": ("model.neck_masking",),
    "recentre": ("model.recentre", "model.damping"),
    "map": ("model.fine_pooling", "model.map_weights"),
    "score": ("model.score_top",),
}
"""Settings that are changed together."""

IDEAS: Mapping[str, Mapping[str, Any]] = {
    "no-damping": {"model.damping": 0.0},
    "damping-0.25": {"model.damping": 0.25},
    "dropout-0.2": {"model.neck_dropout": 0.2},
    "noise": {"model.neck_masking": 0.0, "model.neck_noise": 20.0},
    "adaptive": {"train.mining": "adaptive"},
    "global-cosine": {"train.loss": "global-cosine"},
    "fine-scales": {"train.scale_weights": (2.0, 1.0, 1.0)},
    "coarse-scales": {"train.scale_weights": (1.0, 1.0, 2.0)},
    "rate-0.005": {"train.learning_rate": 0.005},
    "rate-0.001": {"train.learning_rate": 0.001},
    "ema-0.998": {"train.ema_decay": 0.998},
    "masking-0.5": {"model.neck_masking": 0.5},
    "no-pooling": {"model.fine_pooling": 1, "model.map_weights": (0.5, 0.7, 1.8)},
    "equal-scales": {"model.map_weights": (1.0, 1.0, 1.0)},
    "top-0.001": {"model.score_top": 0.001},
}
"""What else may be put upon ``plus``. One that it has already is left out."""


def all_rows() -> list[Row]:
    """The recipes, then what is added and taken away.

    >>> [row.name for row in all_rows()][:2]
    ['paper', 'plus']
    """
    rows = [Row(name, {"train.recipe": name}) for name in ("paper", "plus")]
    parts = {p: names for p, names in PARTS.items() if any(PAPER[n] != PLUS[n] for n in names)}
    for part, names in parts.items():
        added = {name: PLUS[name] for name in names}
        rows.append(Row(f"paper+{part}", {"train.recipe": "paper", **added}))
    for part, names in parts.items():
        removed = {name: PAPER[name] for name in names}
        rows.append(Row(f"plus-{part}", {"train.recipe": "plus", **removed}))
    for idea, settings in IDEAS.items():
        if any(PLUS[name] != value for name, value in settings.items()):
            rows.append(Row(f"plus>{idea}", {"train.recipe": "plus", **settings}))
    return rows


def base_of(name: str) -> str:
    """The recipe that a row is held against; itself for a recipe."""
    return "paper" if name.startswith("paper") else "plus"


def run_job(job: Job, args: argparse.Namespace, gpus: Queue[str | None]) -> None:
    """Train and test as far as it is not done, on the next free GPU."""
    gpu = gpus.get()
    try:
        environment = dict(os.environ)
        if gpu is not None:
            environment["CUDA_VISIBLE_DEVICES"] = gpu
        for arguments in commands(job, PROTOCOL, args.encoder_weights):
            end_to_end.call([*arguments, "--device", args.device], environment)
    finally:
        gpus.put(gpu)


def run_all(jobs: Sequence[Job], args: argparse.Namespace) -> None:
    """All that is to do; after a failure no other run begins."""
    gpus: Queue[str | None] = Queue()
    for number in range(args.gpus):
        gpus.put(str(number) if args.gpus > 1 else None)
    with ThreadPoolExecutor(args.gpus) as pool:
        waiting = {pool.submit(run_job, job, args, gpus): job for job in jobs}
        try:
            for number, (future, job) in enumerate(waiting.items(), 1):
                future.result()
                print(f"{number} of {len(jobs)}: {job}", file=sys.stderr, flush=True)
        finally:
            pool.shutdown(cancel_futures=True)


def run_cells(job: Job) -> dict[str, Any]:
    """A finished run's line: mAD in percent by category, jumps and where it comes from."""
    result = read_result(job.run)
    lines = (job.run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    jumps, ratio = end_to_end.count_jumps([json.loads(line)["loss"] for line in lines])
    about = json.loads((job.run / PROVENANCE).read_text(encoding="utf-8"))
    return {
        "row": job.row.name,
        "seed": job.seed,
        "epochs": job.config.train.epochs,
        "steps": len(lines),
        "jumps": jumps,
        "worst_ratio": round(ratio, 2),
        **{f"mAD {name}": round(100 * v["mAD"], 3) for name, v in result.values.items()},
        "train_s": result.training_seconds,
        "test_s": result.test_seconds,
        "device": about["device"],
        "commit": about["commit"],
    }


def spread(values: Sequence[float]) -> str:
    """Mean ± sample deviation with one digit.

    >>> spread([1.0, 2.0])
    '1.5 ± 0.7'
    """
    around = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{around}"


def markdown(runs: Sequence[Mapping[str, Any]]) -> str:
    """The table of means; a row's gain is left empty until its recipe has been run."""
    keys = [key for key in runs[0] if key.startswith("mAD ")]
    names = [key.removeprefix("mAD ") for key in keys]
    heads = ["row", "seeds", *names, "gain", "least gain", "runs that jumped", "worst jump"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    by_row: dict[str, list[Mapping[str, Any]]] = {}
    for run in runs:
        by_row.setdefault(str(run["row"]), []).append(run)
    for name, own in by_row.items():
        base = by_row.get(base_of(name), [])
        means = [spread([run[key] for run in own]) for key in keys]
        jumped = f"{sum(run['jumps'] > 0 for run in own)} of {len(own)}"
        worst = f"{max(run['worst_ratio'] for run in own):.1f}"
        cells = [name, str(len(own)), *means, *gains(own, base, keys[:-1]), jumped, worst]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def gains(
    own: Sequence[Mapping[str, Any]], base: Sequence[Mapping[str, Any]], keys: Sequence[str]
) -> list[str]:
    """Mean gain over the base in points of mAD, and the least when a category is left out."""
    if not base or base is own:
        return ["", ""]
    found = [
        statistics.mean(run[key] for run in own) - statistics.mean(run[key] for run in base)
        for key in keys
    ]
    total = sum(found)
    without = [(total - gain) / (len(found) - 1) for gain in found] if len(found) > 1 else found
    return [f"{total / len(found):+.1f}", f"{min(without):+.1f}"]


def options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The parsed command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path, help="folder of the data set")
    parser.add_argument("--encoder-weights", type=Path, help="default: downloaded")
    parser.add_argument("--encoder", default="resnet18")
    parser.add_argument("--set", action="append", default=[], help="of all rows; recipes win")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--only", nargs="+", default=[], help="these rows")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--gpus", type=int, default=1, help="runs at once, each on its own GPU")
    parser.add_argument("--list", action="store_true", help="only say what is to do")
    parser.add_argument("--out", type=Path, default=Path("runs/recipes"), help="run folders")
    args = parser.parse_args(arguments)
    unknown = sorted(set(args.only) - {row.name for row in all_rows()})
    if unknown:
        parser.error(f"no row {unknown}; there are {[row.name for row in all_rows()]}")
    return args


def shared(args: argparse.Namespace) -> Config:
    """The settings that all rows have."""
    flags = {
        "data.root": str(args.data.expanduser().absolute()),
        "model.encoder": args.encoder,
        "train.epochs": args.epochs,
        "train.precision": args.precision,
    }
    return configure(None, {**dict(parse_setting(s) for s in args.set), **flags})


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is to do, then write and print the table."""
    args = options(arguments)
    rows = [row for row in all_rows() if not args.only or row.name in args.only]
    jobs = plan(shared(args), rows, args.seeds, args.out)
    states = {job.run: state_of(job, PROTOCOL) for job in jobs}
    if args.list:
        print(*(f"{job}: {states[job.run]}" for job in jobs), sep="\n")
        return
    run_all([job for job in jobs if states[job.run] != "done"], args)
    runs = [run_cells(job) for job in sorted(jobs, key=lambda job: rows.index(job.row))]
    with (args.out / "runs.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(runs[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(runs)
    table = markdown(runs)
    write_text(args.out / "recipes.md", table)
    print(table, end="")


if __name__ == "__main__":
    main()
