"""Time the cross scan on the CPU at the shapes of the decoder, and refuse to time a wrong result.

    python benchmarks/scan.py >> benchmarks/scan.csv

One CSV row for each of the decoder's four stages (256 x 256 pictures, 8 Hilbert paths) and batch
size: milliseconds of the forward pass as in prediction (nothing kept for a gradient), of the
forward pass in training and of the backward pass; median, 20th and 80th percentile of
``--repeats`` calls after one warm-up. The last row of a batch is the sum of the medians over the
decoder's 16 blocks (3, 4, 6 and 3). Before any timing, result and every gradient are compared with
the reference in float64: relative L2 error at most 1e-6 and 1e-5.

Waiting threads spin briefly and then sleep, as the command line has it (GOMP_SPINCOUNT=3000),
unless the environment says otherwise; the rows carry what held.
"""

from __future__ import annotations

import argparse
import csv
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

# Read once, when torch is imported.
os.environ.setdefault("GOMP_SPINCOUNT", "3000")

import numba
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from helpers import STAGES, ScanInputs, deviation, run_scan, scan_inputs
from machine import commit

from mambaad.scan import cross_scan

BLOCKS = {"8x8": 3, "16x16": 4, "32x32": 6, "64x64": 3}
PASSES = ("forward", "training_forward", "backward")
HEADER = (
    "stage,batch,pixels,channels,states,rank,paths",
    *(f"{name}_{part}_ms" for name in PASSES for part in ("median", "p20", "p80")),
    "device,cpus,threads,waiting,torch,numba,commit",
)


def stage_inputs(stage: str, batch: int, paths: int = 8) -> ScanInputs:
    """The decoder's inputs of the scan at a stage."""
    side, channels, rank = STAGES[stage]
    return scan_inputs(batch, side, side, channels, 16, rank, paths)


def check() -> None:
    """Compare with the reference in float64.

    Raises:
        SystemExit: If the result is off by more than 1e-6, or a gradient by more than 1e-5.
    """
    for stage in STAGES:
        # the reference takes 10 s for 8 paths at the finest map
        inputs = stage_inputs(stage, 1, paths=8 if STAGES[stage][0] < 32 else 2)
        truth = run_scan(inputs.to(torch.float64), "reference")
        for name, value in run_scan(inputs, "numba").items():
            error, allowed = deviation(value, truth[name]), 1e-6 if name == "y" else 1e-5
            if not error <= allowed:
                sys.exit(f"{stage}: {name} is off by {error:.1e}, not {allowed}: nothing was timed")


def measure(call: Callable[[], object], repeats: int) -> list[float]:
    """Median, 20th and 80th percentile in milliseconds."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        call()
        times.append((time.perf_counter() - start) * 1e3)
    p20, _, _, p80 = statistics.quantiles(times[1:], n=5)
    return [statistics.median(times[1:]), p20, p80]


def time_stage(stage: str, batch: int, repeats: int) -> list[float]:
    """The nine figures of a row."""
    inputs = stage_inputs(stage, batch)
    leaves = list(inputs.leaves().values())

    def predict() -> Tensor:
        with torch.no_grad():
            return cross_scan(*inputs, backend="numba")

    def train() -> Tensor:
        return cross_scan(*inputs, backend="numba")

    y = train()
    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))

    def backward() -> tuple[Tensor, ...]:
        return torch.autograd.grad(y, leaves, upstream, retain_graph=True)

    return [figure for call in (predict, train, backward) for figure in measure(call, repeats)]


def processor() -> str:
    """The model name that Linux knows, or the architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def main() -> None:
    """Check, then print the rows."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--batch", type=int, nargs="+", default=[1], help="batch sizes")
    parser.add_argument("--repeats", type=int, default=11, help="timed calls, 2 at least")
    args = parser.parse_args()
    check()
    cpus = str(len(os.sched_getaffinity(0)))
    waiting = os.environ.get("OMP_WAIT_POLICY") or f"spin {os.environ['GOMP_SPINCOUNT']}"
    machine = [processor(), cpus, str(torch.get_num_threads()), waiting]
    machine += [torch.__version__, numba.__version__, commit()]
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(",".join(HEADER).split(","))
    for batch in args.batch:
        total = [0.0, 0.0, 0.0]
        for stage, (side, channels, rank) in STAGES.items():
            figures = time_stage(stage, batch, args.repeats)
            shape = [stage, batch, side**2, channels, 16, rank, 8]
            writer.writerow([*shape, *(f"{f:.2f}" for f in figures), *machine])
            sys.stdout.flush()
            total = [t + BLOCKS[stage] * f for t, f in zip(total, figures[::3], strict=True)]
        cells = [cell for t in total for cell in (f"{t:.1f}", "", "")]
        writer.writerow(["16 blocks", batch, "", "", "", "", "", *cells, *machine])


if __name__ == "__main__":
    main()
