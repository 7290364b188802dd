"""Time the cross scan at the shapes of the decoder, and refuse to time a wrong result.

    python benchmarks/scan.py >> benchmarks/scan.csv
    python benchmarks/scan.py --device cuda > benchmarks/scan_gpu.csv

The shapes are those of the decoder's four stages (256 x 256 pictures, 8 Hilbert paths); timed are
the forward pass as in prediction (nothing kept for a gradient), the forward pass in training and
the backward pass: median, 20th and 80th percentile. The last row is the sum of the medians over the
decoder's 16 blocks (3, 4, 6 and 3).

On the CPU: one row for each stage and batch size, milliseconds of ``--repeats`` calls after one
warm-up. Waiting threads spin briefly and then sleep, as the command line has it
(GOMP_SPINCOUNT=3000), unless the environment says otherwise; the rows carry what held.

On a GPU: one row for each pass, microseconds of a call in a CUDA graph of ten, and the ratio to the
limit. That is what an H200's exponential units (forward) and instruction issue (backward) need at
least, in proportion to the batch; a batch of 1 does not fill the GPU.

Before timing, result and every gradient are compared with the reference in float64 on the same
inputs. The relative L2 error may be 1e-6 and 1e-5 on the CPU. On a GPU it may be ``--error`` times
that of the plain torch path on these inputs; with bf16 inputs at least one rounding to bf16, as
gradients of float32 weights may be made from 16-bit factors. The column ``error_times`` says how
many times the plain path's error the worst was.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

# Read once, when torch is imported.
os.environ.setdefault("GOMP_SPINCOUNT", "3000")

import numba
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from helpers import STAGES, ScanInputs, scan_inputs
from machine import ABOUT, about, commit, processor, use_device
from timing import Call, graphed, refuse, relative_error, spread, timed

from mambaad.scan import Backend, cross_scan
from mambaad.scan.operator import cross_scan_backward, cross_scan_forward

BLOCKS = {"8x8": 3, "16x16": 4, "32x32": 6, "64x64": 3}
PASSES = ("forward", "training_forward", "backward")
LIMITS_US = {"8x8": (38, 75), "16x16": (75, 151), "32x32": (151, 301), "64x64": (301, 602)}
"""Least time on an H200 at batch 16, 8 paths and 16 states: forward and backward."""

PATHS = 8
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}
BF16_LIMIT = 2**-8
COPIES = 10
"""Calls in a CUDA graph."""

CPU_HEADER = (
    *("stage", "batch", "pixels", "channels", "states", "rank", "paths"),
    *(f"{name}_{part}_ms" for name in PASSES for part in ("median", "p20", "p80")),
    *("device", "cpus", "threads", "waiting", "torch", "numba", "commit"),
)
GPU_HEADER = (
    *("stage", "batch", "pixels", "channels", "states", "rank", "paths", "precision", "pass"),
    *("median_us", "p20_us", "p80_us", "limit_us", "ratio", "error_times", *ABOUT),
)


def stage_inputs(
    stage: str, batch: int, device: torch.device, precision: str, paths: int
) -> ScanInputs:
    """The decoder's inputs of the scan at a stage, pixels and projections in the precision."""
    side, channels, rank = STAGES[stage]
    inputs = scan_inputs(batch, side, side, channels, 16, rank, paths)
    inputs = inputs.map(lambda v: v.to(device))._replace(orders=inputs.orders.to(device))
    dtype = DTYPES[precision]
    return inputs._replace(x=inputs.x.to(dtype), projections=inputs.projections.to(dtype))


def upstream_of(x: Tensor) -> Tensor:
    """A made-up gradient of the output."""
    return torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).to(x)


def results(inputs: ScanInputs, upstream: Tensor, backend: Backend) -> dict[str, Tensor]:
    """The output and every gradient."""
    leaves = inputs.map(lambda v: v.detach().clone().requires_grad_())
    y = cross_scan(*leaves, backend=backend)
    named = leaves.leaves()
    gradients = torch.autograd.grad(y, list(named.values()), upstream)
    return {"y": y.detach()} | dict(zip(named, gradients, strict=True))


def check(
    stage: str,
    batch: int,
    device: torch.device,
    precision: str,
    paths: int,
    backend: Backend,
    times: float = 2.0,
) -> float:
    """Compare with the reference in float64.

    Args:
        times: How many times the plain torch path's errors Triton's may be.

    Returns:
        How many times they are; 0 for other backends.

    Raises:
        SystemExit: If the output or a gradient is too far off.
    """
    inputs = stage_inputs(stage, batch, device, precision, paths)
    if inputs.skip is not None:  # around 1 it would make up most of the output and hide its errors
        inputs = inputs._replace(skip=inputs.skip - 1)
    upstream = upstream_of(inputs.x)
    truths = results(inputs.map(lambda v: v.double()), upstream.double(), "reference")
    found = results(inputs, upstream, backend)
    limits = {name: 1e-6 if name == "y" else 1e-5 for name in truths}
    errors = {name: relative_error(found[name], truth) for name, truth in truths.items()}
    worst = 0.0
    if backend == "triton":
        others = results(inputs, upstream, "torch")
        plain = {name: relative_error(others[name], truth) for name, truth in truths.items()}
        least = BF16_LIMIT if precision == "bf16" else 0.0
        limits = {name: max(times * error, least) for name, error in plain.items()}
        worst = max(errors[name] / error for name, error in plain.items())
    for name, error in errors.items():
        if not error <= limits[name]:
            where = f"{stage}, batch {batch}, {precision}"
            refuse(f"{where}: {name} is off by {error:.1e}, not {limits[name]:.1e}")
    return worst


def passes_of(inputs: ScanInputs, backend: Backend) -> tuple[Call, ...]:
    """``PASSES`` as calls of the operators.

    Autograd is left out: it would run them on streams and in threads of its own choice.
    """
    upstream = upstream_of(inputs.x)
    _, states = cross_scan_forward(*inputs, backend, True)
    return (
        lambda: cross_scan_forward(*inputs, backend, False),
        lambda: cross_scan_forward(*inputs, backend, True),
        lambda: cross_scan_backward(upstream, *inputs, states, backend),
    )


def compile_kernels(
    stages: Sequence[str], batch: int, device: torch.device, precision: str
) -> None:
    """Run every pass of every stage once, the stages side by side: compiling takes long."""

    def run(stage: str) -> None:
        with torch.cuda.device(device):
            for call in passes_of(stage_inputs(stage, batch, device, precision, PATHS), "triton"):
                call()

    with ThreadPoolExecutor(len(stages)) as pool:
        list(pool.map(run, stages))


def time_passes(inputs: ScanInputs, backend: Backend, repeats: int) -> list[list[float]]:
    """Milliseconds of a call of each of ``PASSES``: median, 20th and 80th percentile."""
    device = inputs.x.device
    copies = COPIES if device.type == "cuda" else 1
    calls = passes_of(inputs, backend)
    times = [timed(graphed(call, device, copies), device, repeats) for call in calls]
    return [[figure / copies for figure in spread(each)] for each in times]


def shape_cells(stage: str, batch: int) -> list[object]:
    """The first cells of a row."""
    side, channels, rank = STAGES[stage]
    return [stage, batch, side**2, channels, 16, rank, PATHS]


def cpu_rows(stages: Sequence[str], batches: Sequence[int], repeats: int) -> None:
    """Check every stage, then print a row for each stage and batch size."""
    device = torch.device("cpu")
    for stage in stages:
        # the reference takes 10 s for 8 paths at the finest map
        check(stage, 1, device, "float32", PATHS if STAGES[stage][0] < 32 else 2, "numba")
    cpus = str(len(os.sched_getaffinity(0)))
    waiting = os.environ.get("OMP_WAIT_POLICY") or f"spin {os.environ['GOMP_SPINCOUNT']}"
    machine = [processor(), cpus, str(torch.get_num_threads()), waiting]
    machine += [torch.__version__, numba.__version__, commit()]
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(CPU_HEADER)
    for batch in batches:
        total = [0.0, 0.0, 0.0]
        for stage in stages:
            inputs = stage_inputs(stage, batch, device, "float32", PATHS)
            figures = time_passes(inputs, "numba", repeats)
            cells = [f"{f:.2f}" for each in figures for f in each]
            writer.writerow([*shape_cells(stage, batch), *cells, *machine])
            sys.stdout.flush()
            total = [t + BLOCKS[stage] * f[0] for t, f in zip(total, figures, strict=True)]
        cells = [cell for t in total for cell in (f"{t:.1f}", "", "")]
        writer.writerow([f"{_blocks(stages)} blocks", batch, "", "", "", "", "", *cells, *machine])


def gpu_rows(
    stages: Sequence[str],
    batches: Sequence[int],
    precisions: Sequence[str],
    repeats: int,
    device: torch.device,
    times: float,
) -> None:
    """Check and time every stage, batch size and precision; print a row for each pass."""
    machine = about(device)
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(GPU_HEADER)
    for precision in precisions:
        for batch in batches:
            total, least = [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]
            if device.type == "cuda":
                compile_kernels(stages, batch, device, precision)
            for stage in stages:
                worst = check(stage, batch, device, precision, PATHS, "triton", times)
                inputs = stage_inputs(stage, batch, device, precision, PATHS)
                forward, backward = (limit * batch / 16 for limit in LIMITS_US[stage])
                passes = time_passes(inputs, "triton", repeats)
                for i, limit in enumerate((forward, forward, backward)):
                    median, *rest = (1e3 * f for f in passes[i])
                    cells = [*(f"{f:.1f}" for f in (median, *rest)), f"{limit:.1f}"]
                    shape = [*shape_cells(stage, batch), precision, PASSES[i]]
                    writer.writerow(
                        [*shape, *cells, f"{median / limit:.2f}", f"{worst:.2f}", *machine]
                    )
                    total[i] += BLOCKS[stage] * median
                    least[i] += BLOCKS[stage] * limit
                sys.stdout.flush()
            for name, t, limit in zip(PASSES, total, least, strict=True):
                shape = [f"{_blocks(stages)} blocks", batch, "", "", "", "", "", precision, name]
                figures = [f"{t:.1f}", "", "", f"{limit:.1f}", f"{t / limit:.2f}", ""]
                writer.writerow([*shape, *figures, *machine])


def _blocks(stages: Sequence[str]) -> int:
    return sum(BLOCKS[stage] for stage in stages)


def main(arguments: Sequence[str] | None = None) -> None:
    """Check, then print the rows."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cpu", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--stage", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--batch", type=int, nargs="+", help="default: 1; on a GPU 1 16 64")
    parser.add_argument(
        "--precision", nargs="+", choices=DTYPES, default=list(DTYPES), help="GPU only"
    )
    parser.add_argument("--repeats", type=int, default=11, help="timed calls, 2 at least")
    parser.add_argument(
        "--error", type=float, default=2.0, help="GPU only: times the plain torch path's error"
    )
    args = parser.parse_args(arguments)
    device = use_device(args.device)
    if device.type == "cuda":
        batches = args.batch or [1, 16, 64]
        gpu_rows(args.stage, batches, args.precision, args.repeats, device, args.error)
    else:
        cpu_rows(args.stage, args.batch or [1], args.repeats)


if __name__ == "__main__":
    main()
