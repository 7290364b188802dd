"""Train and test on a data set from start to end, several seeds in each precision.

    python benchmarks/end_to_end.py DATA --encoder-weights FILE --out runs/ad6 > ad6.csv

Each run is ``mambaad train`` and ``mambaad test`` as a user starts them, timed by the wall clock
with everything they do: starting, decoding, encoding, training, thresholds, exact metrics, report.
With ``--gpus N`` N runs go on at once, each on a GPU of its own. One CSV row for each run: seconds,
loss jumps, and mAD by category in percent. After an empty line, one row for each precision and
category: every metric's mean ± standard deviation over the seeds.

A step jumps if its loss is at least 3 times the median of the 20 before it; steps that jump one
after the other count once. Before any run, loss, gradients and anomaly map of the same network are
compared with float64, whose scan is the equation, on the device.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import Queue
from typing import Any

from machine import ABOUT, about, use_device
from network import Case, check_scoring, check_training

from mambaad.config import Config, parse_setting
from mambaad.metrics.report import FIELDS

WINDOW = 20
"""Steps before a step that its loss is compared with."""

JUMP = 3.0
"""How many times their median makes a jump."""


@dataclass(frozen=True)
class Run:
    """What one run gave."""

    precision: str
    seed: int
    train_seconds: float
    test_seconds: float
    losses: list[float]
    categories: dict[str, dict[str, Any]]
    """Metrics by category, 0 to 1, the mean last."""


def count_jumps(losses: Sequence[float]) -> tuple[int, float]:
    """How often the loss jumped, and the largest ratio of a loss to the median before it.

    >>> count_jumps([1.0] * 20 + [3.0, 4.0, 1.0, 2.9])
    (1, 4.0)
    """
    ratios = [
        losses[i] / statistics.median(losses[i - WINDOW : i]) for i in range(WINDOW, len(losses))
    ]
    jumps = [ratio >= JUMP for ratio in ratios]
    starts = sum(now and not before for before, now in zip([False, *jumps], jumps, strict=False))
    return starts, max(ratios, default=1.0)


def call(arguments: Sequence[str], environment: dict[str, str]) -> float:
    """Run the command line; the seconds that it took.

    Raises:
        SystemExit: If it fails, with its last line.
    """
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "mambaad", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
        sys.exit(f"mambaad {arguments[0]} ended with status {done.returncode}: {last}")
    return time.perf_counter() - began


def run_once(args: argparse.Namespace, precision: str, seed: int, gpus: Queue[str | None]) -> Run:
    """Train and test one seed on the next free GPU."""
    folder = args.out / f"{precision}-{seed}"
    training = ["train", str(args.data), "--out", str(folder), "--encoder", args.encoder]
    training += ["--seed", str(seed), "--precision", precision, "--epochs", str(args.epochs)]
    training += [word for setting in args.set for word in ("--set", setting)]
    if args.encoder_weights is not None:
        training += ["--encoder-weights", str(args.encoder_weights)]
    gpu = gpus.get()
    try:
        environment = dict(os.environ)
        if gpu is not None:
            environment["CUDA_VISIBLE_DEVICES"] = gpu
        device = ["--device", args.device]
        trained = call([*training, *device], environment)
        tested = call(["test", str(folder), *device], environment)
    finally:
        gpus.put(gpu)
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    evaluation = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    return Run(
        *(precision, seed, trained, tested),
        losses=[json.loads(line)["loss"] for line in lines],
        categories={**evaluation["categories"], "mean": evaluation["mean"]},
    )


def run_all(args: argparse.Namespace, gpus: Queue[str | None]) -> Iterator[Run]:
    """Every seed in every precision, in order; after a failure no other run begins."""
    with ThreadPoolExecutor(args.gpus) as pool:
        waiting = [
            pool.submit(run_once, args, precision, seed, gpus)
            for seed in args.seeds
            for precision in args.precision
        ]
        try:
            for future in waiting:
                yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def percent(value: float | None) -> str:
    """A metric in percent; empty where it is undefined."""
    return "" if value is None else f"{100 * value:.2f}"


def mean_rows(runs: Sequence[Run]) -> list[list[str]]:
    """Precision, runs and category, then mean ± deviation of every metric over the seeds."""
    rows = []
    for precision in dict.fromkeys(run.precision for run in runs):
        chosen = [run for run in runs if run.precision == precision]
        for category in chosen[0].categories:
            cells = [precision, str(len(chosen)), category]
            for field in FIELDS:
                values = [run.categories[category][field] for run in chosen]
                known = [100 * value for value in values if value is not None]
                middle = f"{statistics.mean(known):.1f}" if known else ""
                around = f" ± {statistics.stdev(known):.1f}" if len(known) > 1 else ""
                cells.append(middle + around)
            rows.append(cells)
    return rows


def options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The parsed command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path, help="folder of the data set")
    parser.add_argument("--encoder-weights", type=Path, help="default: downloaded")
    parser.add_argument("--encoder", default="resnet18")
    parser.add_argument("--set", action="append", default=[], help="as of mambaad train")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--precision", nargs="+", default=["float32", "bf16"])
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--gpus", type=int, default=1, help="runs at once, each on its own GPU")
    parser.add_argument("--check-size", type=int, default=256, help="picture size of the check")
    parser.add_argument("--out", type=Path, default=Path("runs/end_to_end"), help="run folders")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Check, run, print the rows."""
    args = options(arguments)
    device = use_device(args.device)
    settings = dict(parse_setting(text) for text in args.set)
    model = Config().override({**settings, "model.encoder": args.encoder}).model
    for precision in args.precision:
        case = Case(model, args.check_size, 2, precision)
        check_training(case, device)
        check_scoring(case, device)
    machine = about(device)
    gpus: Queue[str | None] = Queue()
    on_gpu = device.type == "cuda"
    for number in range(args.gpus):
        gpus.put(str(number) if on_gpu else None)
    writer = csv.writer(sys.stdout, lineterminator="\n")
    runs: list[Run] = []
    for run in run_all(args, gpus):
        if not runs:
            names = [f"mAD {name}" for name in run.categories]
            header = ["precision", "seed", "epochs", "steps", "train_s", "test_s", "wall_s"]
            writer.writerow([*header, "at_once", "jumps", "worst_ratio", *names, *ABOUT])
        runs.append(run)
        jumps, ratio = count_jumps(run.losses)
        whole = run.train_seconds + run.test_seconds
        times = [f"{s:.1f}" for s in (run.train_seconds, run.test_seconds, whole)]
        scores = [percent(report["mAD"]) for report in run.categories.values()]
        row = [run.precision, run.seed, args.epochs, len(run.losses), *times, args.gpus]
        writer.writerow([*row, jumps, f"{ratio:.2f}", *scores, *machine])
        sys.stdout.flush()
    writer.writerow([])
    writer.writerow(["precision", "runs", "category", *FIELDS])
    writer.writerows(mean_rows(runs))


if __name__ == "__main__":
    main()
