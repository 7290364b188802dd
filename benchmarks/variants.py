"""The named variants in one table: parameters, multiply-adds, latency, and mAD on a data set.

    python benchmarks/variants.py --data DATA --weights resnet18=FILE > variants.csv

Rows are the published network (``paper``), the variants of ``mambaad train --variant``, and any
``--row "NAME=SETTING;SETTING"`` beside them, such as ``"mine=variant:fast;model.encoder=builtin"``.
Latency is that of ``mambaad.inference.Scorer``, a batch of one, on the CPU in float32 and on a GPU
in each precision, with random weights: the rows take turns, round after round, so that ratios hold
on a machine with other work; median and fastest are given. With ``--data`` each row is trained and
tested by the command line, once for each seed, as ``benchmarks/end_to_end.py`` does; rows whose
encoder's weights are not given by ``--weights ENCODER=FILE`` are trained as their encoder comes:
downloaded, or refused. Without ``--data`` the columns of quality are empty. ``--set`` is of
training only, and wins over a row's settings; a recipe, ``--set train.recipe=plus``, goes under
them. The other columns are the row's alone.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from end_to_end import call, percent
from machine import ABOUT, about, use_device
from network import make, random_images
from timing import timed

from mambaad.config import Config, parse_setting
from mambaad.counting import count_parts, sum_counts
from mambaad.inference import Scorer
from mambaad.model import build
from mambaad.presets import VARIANTS, variant_settings

HEADER = (
    *("row", "encoder", "depths", "directions", "size", "trainable_m", "frozen_m"),
    *("g_multiply_adds", "g_with_scan", "cpu_ms", "cpu_fastest_ms", "threads"),
    *("gpu_float32_ms", "gpu_bf16_ms", "seeds", "train_s", "mAD", "mAD_deviation"),
)


def settings_of(text: str) -> tuple[str, dict[str, Any]]:
    """A row's name and settings, from ``NAME`` of a variant or ``NAME=SETTING;...``.

    >>> settings_of("mine=variant:fast;model.encoder=builtin")[1]["model.encoder"]
    'builtin'
    """
    name, equals, rest = text.partition("=")
    if not equals:
        return name, {} if name == "paper" else variant_settings(name)
    settings: dict[str, Any] = {}
    for part in rest.split(";"):
        kind, colon, variant = part.partition(":")
        if colon and kind == "variant":
            settings |= variant_settings(variant)
        else:
            key, value = parse_setting(part)
            settings[key] = value
    return name, settings


def latencies(
    configs: Mapping[str, Config], size: int, device: torch.device, precision: str, rounds: int
) -> dict[str, list[float]]:
    """Milliseconds of a picture by row, every row once a round."""
    images = random_images(1, size, device)
    scorers = {
        name: Scorer(make(config.model, device).eval(), device, precision=precision)
        for name, config in configs.items()
    }
    times: dict[str, list[float]] = {name: [] for name in configs}
    for _ in range(rounds):
        for name, scorer in scorers.items():
            times[name] += timed(lambda s=scorer: s.on_device(images), device, 2)  # type: ignore[misc]
    return times


def quality(
    args: argparse.Namespace, name: str, settings: Mapping[str, Any], encoder: str
) -> list[str]:
    """Seeds, seconds of training, and mean and deviation of mAD, each in percent."""
    if args.data is None:
        return [""] * 4
    files = dict(text.split("=", 1) for text in args.weights)
    scores, seconds = [], []
    for seed in args.seeds:
        folder = args.out / f"{name}-{seed}"
        if not (folder / "evaluation.json").is_file():
            verb = ["train", str(args.data), "--out", str(folder), "--seed", str(seed)]
            verb += [w for s in _as_options(settings, args) for w in ("--set", s)]
            file = files.get(encoder)
            verb += [] if file is None else ["--encoder-weights", file]
            for words in (verb, ["test", str(folder)]):
                call([*words, "--device", args.device], dict(os.environ))
        evaluation = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
        record = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
        scores.append(100 * evaluation["mean"]["mAD"])
        seconds.append(record["training_seconds"])
    deviation = f"{statistics.stdev(scores):.2f}" if len(scores) > 1 else ""
    means = (statistics.mean(seconds), percent(statistics.mean(scores) / 100))
    return [str(len(scores)), f"{means[0]:.1f}", means[1], deviation]


def _as_options(settings: Mapping[str, Any], args: argparse.Namespace) -> list[str]:
    """The row's own settings, then what all rows share, as ``--set`` takes them.

    No others: what is said in so many words wins over a recipe.
    """
    # JSON is TOML here but for the sign in a mapping, as a hybrid scan is
    signs = (", ", " = ")
    row = [f"{key}={json.dumps(value, separators=signs)}" for key, value in settings.items()]
    shared = [f"data.image_size={args.size}", f"train.epochs={args.epochs}"]
    return [*row, *shared, *args.set]


def options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The parsed command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--row", nargs="+", default=["paper", *VARIANTS])
    parser.add_argument("--size", type=int, default=256, help="height and width of a picture")
    parser.add_argument("--rounds", type=int, default=15, help="of timing, 1 at least")
    parser.add_argument("--threads", type=int, default=2, help="of the CPU")
    parser.add_argument("--device", default="auto", help="of training; a GPU is timed too")
    parser.add_argument("--data", type=Path, help="folder of a data set; default: no quality")
    parser.add_argument("--weights", nargs="+", default=[], help="ENCODER=FILE")
    parser.add_argument("--set", action="append", default=[], help="as of mambaad train")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, default=Path("runs/variants"), help="run folders")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Count, time, train, print the rows."""
    args = options(arguments)
    device, cpu = use_device(args.device), torch.device("cpu")
    chosen = dict(map(settings_of, args.row))
    configs = {name: Config().override(settings) for name, settings in chosen.items()}
    torch.set_num_threads(args.threads)
    on_cpu = latencies(configs, args.size, cpu, "float32", args.rounds)
    gpu = device.type == "cuda"
    on_gpu = [
        latencies(configs, args.size, device, precision, args.rounds) if gpu else {}
        for precision in ("float32", "bf16")
    ]
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow([*HEADER, *ABOUT])
    for name, config in configs.items():
        model = config.model
        with torch.device("meta"):
            count = sum_counts(count_parts(build(model).eval(), args.size, args.size))
        figures = [
            count.trainable / 1e6,
            count.frozen / 1e6,
            count.products / 1e9,
            (count.products + count.scan_products) / 1e9,
            statistics.median(on_cpu[name]),
            min(on_cpu[name]),
        ]
        times = [f"{statistics.median(t[name]):.3f}" if t else "" for t in on_gpu]
        what = [name, model.encoder, "-".join(map(str, model.depths)), model.directions, args.size]
        cells = [*what, *(f"{f:.3f}" for f in figures), args.threads, *times]
        found = quality(args, name, chosen[name], model.encoder)
        writer.writerow([*cells, *found, *about(device)])
        sys.stdout.flush()


if __name__ == "__main__":
    main()
