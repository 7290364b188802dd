"""The built-in encoder against ResNet-18 with given weights and against random ones.

    python benchmarks/encoders.py DATA --encoder-weights FILE --out runs/encoders > encoders.csv

First the speed of the encoders alone, on the device and on the CPU: normalised pictures in, three
maps out, as predictions run them (batch norms folded; on a GPU a replayed CUDA graph). The encoders
take turns, so that what else the machine does meets both; before timing, the maps are compared with
float64's. One CSV row for each: milliseconds (median, 20th and 80th percentile) and the median as a
share of ResNet-18's.

Then, if DATA is given, ``mambaad train`` and ``mambaad test`` as in ``end_to_end.py``, every seed
with each encoder: the same recipe, the same pictures in the same order. ``random`` is ResNet-18
with random weights and norms that change nothing. After an empty line one row for each run, after
another every metric's mean ± deviation by category, last how much of what the given weights gain
over random ones in mean mAD the built-in encoder keeps.
"""

from __future__ import annotations

import argparse
import copy
import csv
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from queue import Queue
from typing import Any

import torch
from end_to_end import Run, count_jumps, mean_rows, percent, run_all
from machine import ABOUT, about, use_device
from network import random_images
from safetensors.torch import save_file
from timing import SPREAD, graphed, refuse, relative_error, spread, timed
from torch import Tensor, nn

from mambaad.devices import exact_float32
from mambaad.metrics.report import FIELDS
from mambaad.model.encoder import FrozenEncoder, build_encoder
from mambaad.model.fold import inference_copy

REFERENCE = "resnet18"
TIMED = ("builtin", REFERENCE)
TRAINED = ("builtin", REFERENCE, "random")
LIMITS = {"float32": 1e-4, "bf16": 3e-2}
"""Largest relative error of a map; the encoders have random weights, which change no time."""

COPIES = 20
"""Calls in a CUDA graph, so that its start does not count."""


def encoder_of(name: str, device: torch.device) -> FrozenEncoder:
    """The same random network every time."""
    torch.manual_seed(0)
    return build_encoder(name).to(device)


def call_of(name: str, device: torch.device, precision: str, images: Tensor) -> Callable[[], Any]:
    """What is timed, checked first.

    Raises:
        SystemExit: If a map is wrong.
    """
    exact = encoder_of(name, device)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    network = inference_copy(exact, dtype)

    def call() -> list[Tensor]:
        with torch.inference_mode(), cast(device, dtype):
            maps: list[Tensor] = network(images)
            return maps

    truths = copy.deepcopy(exact).double()(images.double())
    for stage, (found, truth) in enumerate(zip(call(), truths, strict=True), 1):
        error = relative_error(found, truth)
        if not error <= LIMITS[precision]:
            refuse(f"map {stage} of {name} in {precision} is off by {error:.1e}")
    return call


@contextmanager
def cast(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Autocast as predictions have it; in float32 none, and no TF32 either."""
    with exact_float32(device), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        yield


def speed_rows(args: argparse.Namespace, device: torch.device) -> list[list[str]]:
    """Time every encoder at every batch size and precision on a device."""
    rows = []
    cells = about(device)
    on_gpu = device.type == "cuda"
    copies = COPIES if on_gpu else 1
    for precision in ["float32", "bf16"] if on_gpu else ["float32"]:
        for batch in args.batch:
            images = random_images(batch, args.size, device)
            images = images.contiguous(memory_format=torch.channels_last)
            calls = {name: call_of(name, device, precision, images) for name in TIMED}
            replays = {name: graphed(call, device, copies) for name, call in calls.items()}
            times: dict[str, list[float]] = {name: [] for name in TIMED}
            for _ in range(args.rounds):
                for name, replay in replays.items():
                    times[name] += [t / copies for t in timed(replay, device, args.repeats)]
            whole = statistics.median(times[REFERENCE])
            for name, measured in times.items():
                figures = spread(measured)
                size = sum(p.numel() for p in encoder_of(name, device).parameters())
                about_it = [device.type, str(torch.get_num_threads()), name, str(size)]
                what = [*about_it, str(args.size), str(batch), precision]
                shown = [*(f"{f:.3f}" for f in figures), f"{figures[0] / whole:.3f}"]
                rows.append([*what, *shown, f"{1e3 * batch / figures[0]:.1f}", *cells])
    return rows


def write_random(path: Path) -> Path:
    """Random weights of ResNet-18: those that torch draws, each norm with gain 1."""
    torch.manual_seed(0)
    network = build_encoder(REFERENCE).body
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)  # timm begins some at 0, which would leave out blocks
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: t.contiguous() for name, t in network.state_dict().items()}, path)
    return path


def quality(args: argparse.Namespace, device: torch.device, writer: Any) -> None:
    """Train and test every seed with each encoder; print runs, means and the share kept."""
    gpus: Queue[str | None] = Queue()
    for number in range(args.gpus):
        gpus.put(str(number) if device.type == "cuda" else None)
    weights = {
        "builtin": args.builtin_weights,
        REFERENCE: args.encoder_weights,
        "random": write_random(args.out / "random.safetensors"),
    }
    machine = about(device)
    runs: dict[str, list[Run]] = {name: [] for name in TRAINED}
    writer.writerow([])
    for name in TRAINED:
        settings = {
            "encoder": "builtin" if name == "builtin" else REFERENCE,
            "encoder_weights": weights[name],
            "out": args.out / name,
            "precision": [args.precision],
        }
        for run in run_all(argparse.Namespace(**{**vars(args), **settings}), gpus):
            if not any(runs.values()):
                names = [f"mAD {category}" for category in run.categories]
                header = ["encoder", "precision", "seed", "epochs", "train_s", "test_s", "jumps"]
                writer.writerow([*header, *names, *ABOUT])
            runs[name].append(run)
            scores = [percent(report["mAD"]) for report in run.categories.values()]
            took = [f"{s:.1f}" for s in (run.train_seconds, run.test_seconds)]
            jumps, _ = count_jumps(run.losses)
            cells = [name, run.precision, run.seed, args.epochs, *took, jumps, *scores]
            writer.writerow([*cells, *machine])
            sys.stdout.flush()
    writer.writerow([])
    writer.writerow(["encoder", "precision", "runs", "category", *FIELDS])
    for name in TRAINED:
        writer.writerows([name, *row] for row in mean_rows(runs[name]))
    share = kept(*([run.categories["mean"]["mAD"] for run in runs[name]] for name in TRAINED))
    writer.writerow([])
    writer.writerow(["share of the gain kept, %", f"{100 * share:.1f}"])


def kept(built_in: Sequence[float], given: Sequence[float], random: Sequence[float]) -> float:
    """(built-in - random) / (given - random), each the mean of its runs.

    >>> round(kept([0.7, 0.8], [0.8], [0.55]), 3)
    0.8
    """
    own, best, least = map(statistics.mean, (built_in, given, random))
    return (own - least) / (best - least) if best != least else float("nan")


def options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The parsed command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("data", type=Path, nargs="?", help="folder of the data set; left out: speed only")
    add("--encoder-weights", type=Path, help="of ResNet-18; default: downloaded")
    add("--builtin-weights", type=Path, help="default: the package's")
    add("--set", action="append", default=[], help="as of mambaad train")
    add("--epochs", type=int, default=30)
    add("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add("--precision", default="float32", help="of the runs")
    add("--device", default="auto", help="auto, cpu or cuda")
    add("--gpus", type=int, default=1, help="runs at once, each on its own GPU")
    add("--size", type=int, default=256, help="height and width of a picture, for the speed")
    add("--batch", type=int, nargs="+", default=[1, 16], help="for the speed")
    add("--rounds", type=int, default=5, help="turns of each encoder")
    add("--repeats", type=int, default=5, help="timed calls in a turn")
    add("--no-speed", action="store_true", help="runs only")
    add("--out", type=Path, default=Path("runs/encoders"), help="run folders")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Check, time, run, print the rows."""
    args = options(arguments)
    device = use_device(args.device)
    writer = csv.writer(sys.stdout, lineterminator="\n")
    if not args.no_speed:
        what = ("where", "threads", "encoder", "parameters", "size", "batch", "precision")
        writer.writerow([*what, *SPREAD, "share_of_resnet18", "pictures_per_second", *ABOUT])
        for place in dict.fromkeys([device, torch.device("cpu")]):
            writer.writerows(speed_rows(args, place))
            sys.stdout.flush()
    if args.data is not None:
        quality(args, device, writer)


if __name__ == "__main__":
    main()
