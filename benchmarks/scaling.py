"""How a training step and scoring grow with picture size, batch and number of directions.

    python benchmarks/scaling.py > benchmarks/scaling.csv

One CSV row for each point of three series, around the first ``--size``, the first ``--batch`` and
the last of ``--directions``; training starts from kept features. "Linear in pixels" means that
``ms_per_megapixel`` does not grow along the series of sizes. Before timing, the network is compared
with float64 at the smallest size for every number of directions: loss, gradients (of float32) and
anomaly map.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterator, Sequence

from machine import ABOUT, about, use_device
from network import Case, check_scoring, check_training, time_scoring, time_training
from timing import SPREAD, spread

from mambaad.config import ModelConfig

TIMERS = {"training": time_training, "inference": time_scoring}
HEADER = (
    *("series", "what", "size", "batch", "directions", "precision", *SPREAD),
    *("ms_per_megapixel", "pictures_per_second", "peak_gib", "peak_reserved_gib", *ABOUT),
)


def points(
    sizes: Sequence[int], batches: Sequence[int], directions: Sequence[int]
) -> Iterator[tuple[str, int, int, int]]:
    """Series, size, batch and directions of every row."""
    size, batch, paths = sizes[0], batches[0], directions[-1]
    yield from (("size", value, batch, paths) for value in sizes)
    yield from (("batch", size, value, paths) for value in sorted(batches))
    yield from (("directions", size, batch, value) for value in directions)


def main(arguments: Sequence[str] | None = None) -> None:
    """Check, then print the rows."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--encoder", default="resnet34")
    parser.add_argument("--depths", type=int, nargs=4, default=[3, 4, 6, 3])
    parser.add_argument("--size", type=int, nargs="+", default=[256, 512, 1024])
    parser.add_argument("--batch", type=int, nargs="+", default=[16, 1, 4, 64])
    parser.add_argument("--directions", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--precision", default="bf16", help="float32 or bf16")
    parser.add_argument("--repeats", type=int, default=15, help="timed calls, 2 at least")
    args = parser.parse_args(arguments)
    device = use_device(args.device)
    models = {
        paths: ModelConfig(args.encoder, tuple(args.depths), directions=paths)
        for paths in args.directions
    }
    for model in models.values():
        case = Case(model, min(args.size), 2, args.precision)
        check_training(case, device)
        check_scoring(case, device)
    machine = about(device)
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(HEADER)
    for what, measure in TIMERS.items():
        for series, size, batch, paths in points(args.size, args.batch, args.directions):
            case = Case(models[paths], size, batch, args.precision)
            result = measure(case, device, args.repeats)
            figures = spread(result.times)
            density = figures[0] / (batch * size * size / 1e6)
            writer.writerow(
                [
                    *(series, what, size, batch, paths, args.precision),
                    *(*(f"{f:.3f}" for f in figures), f"{density:.2f}"),
                    *(f"{1e3 * batch / figures[0]:.1f}", *result.memory, *machine),
                ]
            )
            sys.stdout.flush()


if __name__ == "__main__":
    main()
