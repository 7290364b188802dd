"""Time the scoring of a batch by MambaAD, and refuse to time a wrong result.

    python benchmarks/inference.py > benchmarks/inference.csv

Normalised images on the device go in, anomaly maps and scores on the device come out, through
``mambaad.inference.Scorer``: a CUDA graph on a GPU. One CSV row for each precision and batch size:
milliseconds (median, 20th and 80th percentile), pictures a second, and peak GiB of tensors and of
torch in all. Before timing, the map of one picture is compared with the same network in float64,
whose scan is the equation.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Sequence

from machine import ABOUT, about, use_device
from network import Case, check_scoring, time_scoring
from timing import SPREAD, spread

from mambaad.config import ModelConfig

HEADER = (
    *("encoder", "depths", "directions", "size", "batch", "precision"),
    *(*SPREAD, "pictures_per_second", "peak_gib", "peak_reserved_gib", *ABOUT),
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Check, then print the rows."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--encoder", default="resnet34")
    parser.add_argument("--depths", type=int, nargs=4, default=[3, 4, 6, 3])
    parser.add_argument("--directions", type=int, default=8)
    parser.add_argument("--size", type=int, default=256, help="height and width of a picture")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--precision", nargs="+", default=["float32", "bf16"])
    parser.add_argument("--repeats", type=int, default=50, help="timed calls, 2 at least")
    args = parser.parse_args(arguments)
    device = use_device(args.device)
    model = ModelConfig(args.encoder, tuple(args.depths), directions=args.directions)
    for precision in args.precision:
        check_scoring(Case(model, args.size, 1, precision), device)
    machine = about(device)
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(HEADER)
    for precision in args.precision:
        for batch in args.batch:
            case = Case(model, args.size, batch, precision)
            result = time_scoring(case, device, args.repeats)
            figures = spread(result.times)
            writer.writerow(
                [
                    *(args.encoder, "-".join(map(str, args.depths)), args.directions),
                    *(args.size, batch, precision, *(f"{f:.3f}" for f in figures)),
                    *(f"{1e3 * batch / figures[0]:.1f}", *result.memory, *machine),
                ]
            )
            sys.stdout.flush()


if __name__ == "__main__":
    main()
