"""Time one training step of MambaAD, and refuse to time a wrong result.

    python benchmarks/training.py > benchmarks/training.csv

A step is ``mambaad.fit``'s: a CUDA graph on a GPU, from features that were kept on the device or
from pictures that were. One CSV row for each batch size, precision and source: milliseconds
(median, 20th and 80th percentile), pictures a second, peak GiB of tensors and of torch in all,
kernels and copies of a step, and the scan's share of their time in percent. Before timing, loss and
gradients of two pictures are compared with the same network in float64, whose scan is the equation.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Sequence

from machine import ABOUT, about, use_device
from network import Case, check_training, time_training
from timing import SPREAD, spread

from mambaad.config import ModelConfig

HEADER = (
    *("encoder", "depths", "directions", "size", "batch", "precision", "source"),
    *(*SPREAD, "pictures_per_second", "peak_gib", "peak_reserved_gib"),
    *("kernels", "copies", "scan_percent", *ABOUT),
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Check, then print the rows."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--encoder", default="resnet34")
    parser.add_argument("--depths", type=int, nargs=4, default=[3, 4, 6, 3])
    parser.add_argument("--directions", type=int, default=8)
    parser.add_argument("--size", type=int, default=256, help="height and width of a picture")
    parser.add_argument("--batch", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--precision", nargs="+", default=["float32", "bf16"])
    parser.add_argument("--source", nargs="+", default=["features", "pictures"])
    parser.add_argument("--repeats", type=int, default=30, help="timed steps, 2 at least")
    args = parser.parse_args(arguments)
    device = use_device(args.device)
    model = ModelConfig(args.encoder, tuple(args.depths), directions=args.directions)
    cases = [
        Case(model, args.size, batch, precision, source)
        for precision in args.precision
        for batch in args.batch
        for source in args.source
    ]
    for precision in args.precision:
        check_training(Case(model, args.size, 2, precision), device)
    machine = about(device)
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(HEADER)
    for case in cases:
        result = time_training(case, device, args.repeats)
        figures = spread(result.times)
        seen = ["", "", ""]
        if result.kernels is not None:
            kernels, copies, share = result.kernels
            seen = [str(kernels), str(copies), f"{100 * share:.1f}"]
        writer.writerow(
            [
                *(args.encoder, "-".join(map(str, args.depths)), args.directions),
                *(case.size, case.batch, case.precision, case.source),
                *(f"{f:.3f}" for f in figures),
                *(f"{1e3 * case.batch / figures[0]:.1f}", *result.memory, *seen, *machine),
            ]
        )
        sys.stdout.flush()


if __name__ == "__main__":
    main()
