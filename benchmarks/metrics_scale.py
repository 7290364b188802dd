"""Pixel metrics at the size of whole data sets, beside those of other packages.

    python benchmarks/metrics_scale.py >> benchmarks/metrics_scale.csv

One CSV row per tool and number of maps: values, seconds and memory side by side.

    --pictures  every tool on the same maps: mambaad exact and streaming, scikit-learn,
                torchmetrics, anomalib's AUPRO and AUPIMO, adeval. What is not installed, or fails
                (adeval does with NumPy 2, which has no trapz any more), says why
    --large     mambaad alone, streaming (1725 is the size of MVTec AD's test set)
    --simulate  streaming, with maps made on the fly that are thrown away at once, in 30 categories
                of other scales, pooled at the end (114585 is the size of Real-IAD's test set)

Each row is one timed call in a fresh process, after one call on a few maps. Its peak memory is what
the process grew by after that, the maps included. Seconds of ``--simulate`` leave out the making of
maps. ``worst_error`` is the largest difference to the exact metrics that a tool gives as well.
"""

from __future__ import annotations

import argparse
import csv
import math
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from machine import commit
from metrics import Maps, Masks, make_data, peak_mb

from mambaad.metrics import SUMMARY_FIELDS, PixelSummary, summarise
from mambaad.metrics.streaming import PixelBins

Values = dict[str, float]

VALUES = SUMMARY_FIELDS
THRESHOLD = 2.0
"""Of SegF1; the defects of the maps are raised by as much."""

HEADER = (
    *("tool", "pictures", "size", "seconds", "peak_rss_mb", *VALUES),
    *("worst_error", "note", "numpy", "cpus", "commit"),
)
CATEGORIES = 30


def values_of(summary: PixelSummary) -> Values:
    """The metrics by name."""
    return {name: getattr(summary, name) for name in VALUES}


def exact(maps: Maps, masks: Masks) -> Values:
    """This package, all pixels at once."""
    return values_of(summarise(maps, masks, threshold=THRESHOLD))


def streaming(maps: Maps, masks: Masks) -> Values:
    """This package, in one pass."""
    bins = PixelBins(threshold=THRESHOLD)
    bins.update(maps, masks)
    return values_of(bins.summary())


def scikit_learn(maps: Maps, masks: Masks) -> Values:
    """Its exact AUROC, average precision and precision-recall curve."""
    from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

    labels, scores = masks.ravel(), maps.ravel()
    precision, recall, _ = precision_recall_curve(labels, scores)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-300)
    return {
        "pixel_AUROC": float(roc_auc_score(labels, scores)),
        "pixel_AP": float(average_precision_score(labels, scores)),
        "pixel_F1max": float(f1.max()),
    }


def torchmetrics(maps: Maps, masks: Masks) -> Values:
    """Its exact AUROC and average precision, on the CPU."""
    import torch

    from mambaad.model.encoder import import_timm

    import_timm()  # makes torchvision, which torchmetrics imports, usable beside a CPU-only torch
    from torchmetrics.functional.classification import binary_auroc, binary_average_precision

    scores = torch.from_numpy(maps).flatten()
    # it takes numbers outside 0..1 for logits, and rounds them by a sigmoid
    scores = (scores - scores.min()) / (scores.max() - scores.min())
    labels = torch.from_numpy(masks).flatten().long()
    return {
        "pixel_AUROC": float(binary_auroc(scores, labels)),
        "pixel_AP": float(binary_average_precision(scores, labels)),
    }


def anomalib_aupro(maps: Maps, masks: Masks) -> Values:
    """Its AUPRO with its default thresholds."""
    import torch

    from mambaad.model.encoder import import_timm

    import_timm()
    from anomalib.metrics.aupro import _AUPRO

    metric = _AUPRO(fpr_limit=0.3)
    metric.update(torch.from_numpy(maps), torch.from_numpy(masks).int())
    return {"pixel_AUPRO": float(metric.compute())}


def anomalib_aupimo(maps: Maps, masks: Masks) -> Values:
    """Its AUPIMO with its default thresholds, mean over the anomalous pictures."""
    import torch

    from mambaad.model.encoder import import_timm

    import_timm()
    from anomalib.metrics.pimo.functional import aupimo_scores

    found = aupimo_scores(torch.from_numpy(maps), torch.from_numpy(masks))
    return {"pixel_AUPIMO": float(np.nanmean(found[4].numpy()))}


def adeval(maps: Maps, masks: Masks) -> Values:
    """Its AUROC, AUPR and AUPRO, with its default number of strips."""
    from adeval import EvalAccumulator

    low, high = float(maps.min()), float(maps.max())
    tool = EvalAccumulator(low, high, low, high)
    for picture, mask in zip(maps, masks, strict=True):
        tool.add_anomap(picture, mask.astype(np.uint8))
        tool.add_image(float(picture.max()), bool(mask.any()))
    found = tool.summary()
    names = {"p_auroc": "pixel_AUROC", "p_aupr": "pixel_AP", "p_aupro": "pixel_AUPRO"}
    return {ours: float(found[theirs]) for theirs, ours in names.items() if theirs in found}


TOOLS: Mapping[str, Callable[[Maps, Masks], Values]] = {
    "mambaad exact": exact,
    "mambaad streaming": streaming,
    "scikit-learn": scikit_learn,
    "torchmetrics": torchmetrics,
    "anomalib AUPRO": anomalib_aupro,
    "anomalib AUPIMO": anomalib_aupimo,
    "adeval": adeval,
}


def measure(tool: str, count: int, size: int) -> tuple[float, float, Values, str]:
    """Seconds, MB, values and a note of one tool, in this process."""
    compute = TOOLS[tool]
    try:
        compute(*make_data(12, size))
        before = peak_mb()
        maps, masks = make_data(count, size)
        begin = time.perf_counter()
        values = compute(maps, masks)
        return time.perf_counter() - begin, peak_mb() - before, values, ""
    except Exception as error:  # noqa: BLE001  # another package may fail in any way: that is a row
        return math.nan, math.nan, {}, f"{type(error).__name__}: {error}".splitlines()[0][:120]


def simulate(count: int, size: int) -> tuple[float, float, Values, str]:
    """The streamed metrics of maps made on the fly, by category and pooled."""
    streaming(*make_data(6, 64))
    before = peak_mb()
    maps, masks = make_data(96, size)
    draw = np.random.default_rng(0)
    pooled = PixelBins(threshold=THRESHOLD)
    spent, batch = 0.0, 32
    for category in range(CATEGORIES):
        bins = PixelBins(threshold=THRESHOLD)
        first, last = (count * (category + i) // CATEGORIES for i in range(2))
        for start in range(first, last, batch):
            picked = draw.integers(0, len(maps), min(batch, last - start))
            shift = int(draw.integers(0, size))
            part = np.roll(maps[picked], shift, axis=2)
            truth = np.roll(masks[picked], shift, axis=2)
            noise = np.float32(draw.uniform(0.98, 1.02))
            # every third category has heavy tails, every third a narrow range far from 0
            part = (np.exp(part * noise), 0.3 + 1e-3 * part * noise, part * noise)[category % 3]
            begin = time.perf_counter()
            bins.update(part.astype(np.float32, copy=False), truth)
            spent += time.perf_counter() - begin
        begin = time.perf_counter()
        bins.summary()
        pooled.merge(bins)
        spent += time.perf_counter() - begin
    begin = time.perf_counter()
    summary = pooled.summary()
    spent += time.perf_counter() - begin
    if summary.pixels != count * size * size:
        raise RuntimeError(f"{summary.pixels} pixels were counted, not {count * size * size}")
    note = f"{CATEGORIES} categories and pooled; made on the fly"
    return spent, peak_mb() - before, values_of(summary), note


def apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call in a fresh process, so that its peak memory is its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def main(arguments: list[str] | None = None) -> None:
    """Print the rows."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pictures", type=int, default=200, help="0: no comparison")
    parser.add_argument("--large", type=int, default=1725, help="0: none")
    parser.add_argument("--simulate", type=int, default=114_585, help="0: none")
    parser.add_argument("--size", type=int, default=256, help="height and width of a map")
    parser.add_argument("--tool", nargs="+", choices=TOOLS, default=list(TOOLS))
    args = parser.parse_args(arguments)
    machine = [np.__version__, str(os.cpu_count()), commit()]
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(HEADER)
    reference = "mambaad exact"
    # in a process of its own too: what this one has held would count as the others' memory
    known = apart(measure, reference, args.pictures, args.size) if args.pictures else None
    truth = known[2] if known else {}

    def row(tool: str, count: int, found: tuple[float, float, Values, str]) -> None:
        seconds, memory, values, note = found
        compared = truth if count == args.pictures else {}
        errors = [abs(value - compared[name]) for name, value in values.items() if name in compared]
        numbers = ["" if math.isnan(n) else f"{n:.{d}f}" for n, d in ((seconds, 3), (memory, 0))]
        cells = [f"{values[name]:.6f}" if name in values else "" for name in VALUES]
        worst = f"{max(errors):.1e}" if errors else ""
        writer.writerow([tool, count, args.size, *numbers, *cells, worst, note, *machine])
        sys.stdout.flush()

    for tool in args.tool if known else []:
        found = known if tool == reference else apart(measure, tool, args.pictures, args.size)
        row(tool, args.pictures, found)
    if args.large:
        tool = "mambaad streaming"
        row(tool, args.large, apart(measure, tool, args.large, args.size))
    if args.simulate:
        row("mambaad streaming", args.simulate, apart(simulate, args.simulate, args.size))


if __name__ == "__main__":
    main()
