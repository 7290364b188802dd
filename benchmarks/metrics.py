"""Time the metrics of one category, and refuse to time a wrong result.

    python benchmarks/metrics.py >> benchmarks/metrics.csv

One CSV row per metric set: the seven metrics under each protocol, and the image metrics alone.
Seconds are the median, 20th and 80th percentile of ``--repeats`` calls after one warm-up. Each
row is measured in a fresh process; its peak memory is what that process grew by after importing
everything, so it holds the maps and masks themselves. Before any timing, AUROC and AP are compared
with scikit-learn, and F1-max and AUPRO with a direct computation, at a size that those can handle.
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing
import os
import resource
import statistics
import sys
import time

import numpy as np
from machine import commit
from numpy.typing import NDArray
from scipy import ndimage
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from mambaad.metrics import Protocol, score

Maps = NDArray[np.float32]
Masks = NDArray[np.bool_]

METRIC_SETS = ("exact", "ader", "exact, image metrics only")
HEADER = (
    "metric_set,pictures,size,anomalous_pixels,median_s,p20_s,p80_s,peak_rss_mb,numpy,cpus,commit"
)


def make_data(count: int, size: int, seed: int = 0) -> tuple[Maps, Masks]:
    """Smooth maps as a detector makes them; two pictures of three have one or two defects."""
    draw = np.random.default_rng(seed)
    maps = np.empty((count, size, size), np.float32)
    masks = np.zeros(maps.shape, np.bool_)
    for n in range(count):
        noise = draw.standard_normal((size, size), dtype=np.float32)
        maps[n] = ndimage.gaussian_filter(noise, 4) * 14
        for _ in range(0 if n % 3 == 0 else 1 + n % 2):
            side = int(draw.integers(size // 16, size // 4))
            y, x = draw.integers(0, size - side, 2)
            masks[n, y : y + side, x : x + side] = True
        maps[n][masks[n]] += 2
    return maps, masks


def direct_aupro(maps: Maps, masks: Masks, limit: float) -> float:
    """AUPRO by its definition, with every distinct score as a threshold."""
    regions = []
    for picture, mask in zip(maps, masks, strict=True):
        numbers, found = ndimage.label(mask, np.ones((3, 3)))
        regions += [np.sort(picture[numbers == i + 1]) for i in range(found)]
    thresholds = np.unique(maps)[::-1]
    normal = np.sort(maps[~masks])
    fpr = np.append(0.0, 1 - np.searchsorted(normal, thresholds) / normal.size)
    overlaps = [1 - np.searchsorted(region, thresholds) / region.size for region in regions]
    pro = np.append(0.0, np.mean(overlaps, axis=0))
    kept = fpr <= limit
    x = np.append(fpr[kept], limit)
    y = np.append(pro[kept], np.interp(limit, fpr, pro))
    return float(np.diff(x) @ (y[1:] + y[:-1])) / (2 * limit)


def check() -> None:
    """Compare with scikit-learn and the direct AUPRO.

    Raises:
        SystemExit: If a metric is off by more than 1e-9.
    """
    maps, masks = make_data(24, 64, seed=1)
    maps = np.round(maps, 2)  # ties
    report = score(maps, masks)
    pairs = {
        "image": (masks.any(axis=(1, 2)), maps.max(axis=(1, 2))),
        "pixel": (masks.ravel(), maps.ravel()),
    }
    expected = {"pixel_AUPRO": direct_aupro(maps, masks, 0.3)}
    for level, (labels, values) in pairs.items():
        precision, recall, _ = precision_recall_curve(labels, values)
        f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-300)
        expected[f"{level}_AUROC"] = roc_auc_score(labels, values)
        expected[f"{level}_AP"] = average_precision_score(labels, values)
        expected[f"{level}_F1max"] = f1.max()
    for name, value in expected.items():
        if not abs(getattr(report, name) - value) <= 1e-9:
            sys.exit(f"{name} is {getattr(report, name)!r}, expected {value!r}: nothing was timed")


def peak_mb() -> float:
    """The largest resident size that this process has had, in MB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def measure(metric_set: str, count: int, size: int, repeats: int) -> list[str]:
    """Time one metric set in this process; the first cells of its row."""
    before = peak_mb()
    maps, masks = make_data(count, size)
    labels = masks.any(axis=(1, 2))
    protocol: Protocol = "ader" if metric_set == "ader" else "exact"
    truth = None if metric_set.endswith("only") else masks
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        score(maps, truth, labels, protocol=protocol)
        times.append(time.perf_counter() - start)
    p20, _, _, p80 = statistics.quantiles(times[1:], n=5)
    numbers = [f"{t:.4f}" for t in (statistics.median(times[1:]), p20, p80)]
    anomalous = f"{masks.mean():.4f}"
    return [
        *(metric_set, str(count), str(size), anomalous),
        *(*numbers, f"{peak_mb() - before:.0f}"),
    ]


def main() -> None:
    """Check, then print the rows."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pictures", type=int, default=200)
    parser.add_argument("--size", type=int, default=256, help="height and width of a map")
    parser.add_argument("--repeats", type=int, default=7, help="timed calls, 2 at least")
    args = parser.parse_args()
    check()
    machine = [np.__version__, str(os.cpu_count()), commit()]
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(HEADER.split(","))
    for metric_set in METRIC_SETS:
        # spawned, so that its peak memory is its own
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            row = pool.apply(measure, (metric_set, args.pictures, args.size, args.repeats))
        writer.writerow([*row, *machine])
        sys.stdout.flush()


if __name__ == "__main__":
    main()
