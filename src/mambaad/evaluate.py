"""Evaluation: a run against the test pictures of a data set, category by category.

The maps of a category are kept only while its metrics are computed, on the device if that is CUDA;
those of a category of more than ``EXACT_PIXELS`` are not kept at all, but counted in bins
(``metrics.streaming``), and the results say so. Both ways find the same metrics. Masks are read
while the network runs. Image labels are the data set's; under the protocol ``ader`` they come from
the resized masks, as in the paper's tables.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from mambaad import device_metrics
from mambaad.calibrate import Calibration
from mambaad.data import Dataset, PictureStore, Sample
from mambaad.data.cache import Progress
from mambaad.errors import ConfigError, DatasetError
from mambaad.examples import Example as Example
from mambaad.examples import choose, make_examples
from mambaad.grouping import joined, regroup
from mambaad.grouping import read_masks as read_masks
from mambaad.inference import Maps, Method, Scorer, Scores, batches
from mambaad.metrics import (
    Exactness,
    Extras,
    PixelMetrics,
    PixelSummary,
    Protocol,
    Report,
    extras_of,
    mean_report,
    outcomes_of,
    pixel_metrics,
    report_of,
    sample_auroc,
    score_with_summary,
)
from mambaad.metrics.report import Outcome, outcome
from mambaad.pipeline import ahead
from mambaad.tiling import Tiling

if TYPE_CHECKING:
    from mambaad.metrics.streaming import PixelBins

MetricsChoice: TypeAlias = Literal["auto", "exact", "streaming"]

EXACT_PIXELS = 100_000_000
"""Most pixels of a category whose metrics ``auto`` computes exactly: 1525 pictures of 256 x 256.
They and what is sorted take about 1.5 GB."""

MASKS_AHEAD = 64
"""Masks read at once for a category whose pixels are counted in bins."""


@dataclass(frozen=True)
class CategoryResult:
    """What evaluation found in one category."""

    category: str
    report: Report
    paths: tuple[Path, ...]
    labels: NDArray[np.int64]
    defects: tuple[str, ...]
    scores: NDArray[np.float32]
    threshold: float | None
    """The run's, or None if it has no calibration."""

    examples: tuple[Example, ...]

    pixels: PixelSummary | None = None
    """All pixel metrics; None without masks."""

    groups: tuple[str, ...] = ()
    """Which object each picture shows, if the data set has several views of one."""

    @property
    def sample_auroc(self) -> float | None:
        """AUROC of the objects, each with its views' highest score; None if it is undefined."""
        found = self._of_samples
        return None if isinstance(found, str) else found

    @property
    def _of_samples(self) -> Outcome | None:
        if not self.groups or not all(self.groups):
            return None
        return outcome(lambda: sample_auroc(self.labels, self.scores, self.groups))

    @property
    def extras(self) -> Extras:
        """What is measured beside the report."""
        missing = self.report.reasons.get("pixel_AUROC", "not computed")
        return extras_of(missing if self.pixels is None else self.pixels, self._of_samples)

    @property
    def above(self) -> NDArray[np.bool_]:
        """Which scores lie above the threshold, compared as prediction does, in float64."""
        level = np.inf if self.threshold is None else self.threshold
        return self.scores.astype(np.float64) > level

    @property
    def false_alarms(self) -> int | None:
        """Good pictures above the threshold."""
        if self.threshold is None:
            return None
        return int(((self.labels == 0) & self.above).sum())

    @property
    def misses(self) -> int | None:
        """Defective pictures at or below the threshold."""
        if self.threshold is None:
            return None
        return int(((self.labels == 1) & ~self.above).sum())


@dataclass(frozen=True)
class Evaluation:
    """What evaluation found."""

    protocol: Protocol
    categories: Mapping[str, CategoryResult]
    seconds: float
    images: int

    pooled: PixelSummary | None = None
    """The pixels of all categories together, if those of one had to be counted in bins."""

    @property
    def reports(self) -> dict[str, Report]:
        """The metrics by category."""
        return {name: result.report for name, result in self.categories.items()}

    @property
    def extras(self) -> dict[str, Extras]:
        """What is measured beside the reports, by category."""
        return {name: result.extras for name, result in self.categories.items()}

    @property
    def mean(self) -> Report:
        """The unweighted mean over categories."""
        return mean_report(self.reports)


def evaluate(
    method: Method,
    dataset: Dataset,
    image_size: tuple[int, int],
    *,
    device: torch.device,
    protocol: Protocol = "exact",
    pro_limit: float = 0.3,
    calibration: Calibration | None = None,
    progress: Progress | None = None,
    precision: str = "auto",
    tiling: Tiling | None = None,
    metrics: MetricsChoice = "auto",
) -> Evaluation:
    """Score all test pictures of a data set.

    Args:
        method: On ``device`` and in evaluation mode.
        dataset: Its test pictures are used.
        image_size: Height and width that pictures and masks are resized to.
        device: Where the method is.
        protocol: ``exact`` or ``ader``; see ``mambaad.metrics``.
        pro_limit: Largest false positive rate of AUPRO.
        calibration: The run's thresholds, to count false alarms and misses.
        progress: Called with the number of pictures done and in all.
        precision: What the network runs in: ``auto``, ``float32`` or ``bf16``.
        tiling: How pictures are cut into tiles; None: they are not.
        metrics: ``auto``, ``exact`` or ``streaming``; see ``exactness_of``.

    Raises:
        ConfigError: If ``metrics`` is ``streaming`` under the protocol ``ader``.
        DatasetError: If there are no test pictures.
        ImageError: If a picture or mask cannot be read.
    """
    began = time.monotonic()
    groups = _test_samples(dataset)
    pixels = image_size[0] * image_size[1]
    ways = {n: exactness_of(len(g) * pixels, protocol, metrics) for n, g in groups.items()}
    streamed = [name for name, way in ways.items() if way == "streaming"]
    counts = [len(part) for part in groups.values()]
    # one pass over all categories, so that pictures are decoded while metrics are computed
    scorer = Scorer(method, device, precision=precision, tiling=tiling)
    store = PictureStore([s.image for part in groups.values() for s in part], image_size, "none")
    own = pixel_metrics_for(device)
    compute = partial(score_with_summary, protocol=protocol, pro_limit=pro_limit, pixels=own)
    results: dict[str, CategoryResult] = {}
    counted: list[PixelBins] = []  # none, or those of all categories together
    runs = _runs(batches(scorer, store, progress=progress), counts)
    for name, (pieces, scores) in zip(groups, runs, strict=True):
        threshold = None if calibration is None else calibration.threshold(name)
        category = _Category(name, groups[name], image_size, threshold, scores)
        if ways[name] == "exact":
            results[name], bins = category.exact(pieces, compute, count=bool(streamed))
        else:
            results[name], bins = category.streamed(pieces, pro_limit)
        _pool(counted, bins)
    for name in streamed:
        results[name] = _with_examples(results[name], groups[name], image_size, scorer)
    pooled = _pooled(counted, results.values(), pro_limit)
    return Evaluation(protocol, results, time.monotonic() - began, sum(counts), pooled)


def _test_samples(dataset: Dataset) -> dict[str, Sequence[Sample]]:
    tests = dataset.select(split="test")
    if not tests.samples:
        raise DatasetError(
            f"no test pictures in {dataset.root}: a test needs good pictures and defective ones "
            f"(see 'mambaad check {dataset.root}')"
        )
    return {name: tests.select(categories=[name]).samples for name in tests.categories}


def _runs(
    parts: Iterable[tuple[NDArray[np.intp], Maps, Scores]], counts: Sequence[int]
) -> Iterator[tuple[Iterator[Maps], Scores]]:
    """``batches`` as ``regroup`` cuts them; scores are there once their maps have been taken."""
    scores = np.empty(sum(counts), np.float32)

    def noting() -> Iterator[Maps]:
        for indices, maps, found in parts:
            scores[indices] = found
            yield maps

    yield from zip(regroup(noting(), counts), np.split(scores, np.cumsum(counts)[:-1]), strict=True)


def exactness_of(pixels: int, protocol: Protocol, wanted: MetricsChoice) -> Exactness:
    """How a category's pixel metrics are computed.

    Args:
        pixels: How many there are in its test pictures. ``auto`` is ``exact`` up to
            ``EXACT_PIXELS``, then ``streaming``.
        protocol: ``ader`` scales by the range of all scores, which one pass does not know: it is
            always ``exact``.
        wanted: What was asked for.

    Raises:
        ConfigError: If ``wanted`` is ``streaming`` under the protocol ``ader``, or none of these.
    """
    if wanted not in get_args(MetricsChoice):
        raise ConfigError(f"metrics must be one of {list(get_args(MetricsChoice))}, got {wanted!r}")
    if wanted == "streaming" and protocol == "ader":
        raise ConfigError(
            "the protocol ader needs all scores at once: use --metrics exact, or --protocol exact"
        )
    if wanted != "auto":
        return wanted
    return "streaming" if protocol == "exact" and pixels > EXACT_PIXELS else "exact"


@dataclass(frozen=True)
class _Category:
    """The test pictures of one category."""

    name: str
    samples: Sequence[Sample]
    size: tuple[int, int]
    threshold: float | None
    scores: Scores
    """Each is there once its picture's map has been taken."""

    def exact(
        self,
        pieces: Iterable[Maps],
        compute: Callable[..., tuple[Report, PixelSummary | None]],
        *,
        count: bool,
    ) -> tuple[CategoryResult, PixelBins | None]:
        """Keep all maps, then compute; ``count`` the pixels too, for those of all categories."""
        with ThreadPoolExecutor(1) as reader:
            # the masks first: they are read while the network computes the maps
            reading = reader.submit(read_masks, self.samples, self.size)
            maps = joined(pieces, len(self.samples))
            masks = reading.result()
        labels = self._labels()
        report, summary = compute(maps, masks, labels, scores=self.scores, threshold=self.threshold)
        bins = None
        if count and masks is not None and summary is not None:
            from mambaad.metrics.streaming import PixelBins

            bins = PixelBins(threshold=self.threshold)
            bins.update(maps, np.array([mask for mask in masks if mask is not None]))
        chosen = choose(labels, self.scores)
        examples = make_examples(
            self.samples,
            chosen,
            {i: maps[i].copy() for i in chosen},
            {i: None if masks is None else masks[i] for i in chosen},
            self.scores,
        )
        return self._result(report, examples, summary), bins

    def streamed(
        self, pieces: Iterable[Maps], pro_limit: float
    ) -> tuple[CategoryResult, PixelBins | None]:
        """Count the pixels; the examples are left out, and the bins are None without masks."""
        from mambaad.metrics.streaming import PixelBins

        lost = sum(s.is_anomalous and s.mask is None for s in self.samples)
        reason = None if not lost else f"no masks for {lost} of {len(self.samples)} pictures"
        bins = PixelBins(threshold=self.threshold) if reason is None else None
        starts = range(0, len(self.samples), MASKS_AHEAD)
        blocks = (self.samples[i : i + MASKS_AHEAD] for i in starts if reason is None)
        with closing(
            ahead(lambda b: read_masks(b, self.size) or [], blocks, workers=1, limit=2)
        ) as reading:
            masks = (mask for block in reading for mask in block)
            for maps in pieces:
                if bins is not None:
                    bins.update(maps, np.array(list(islice(masks, len(maps)))))
        summary = None if bins is None else bins.summary(pro_limit=pro_limit)
        outcomes = outcomes_of(summary if summary is not None else str(reason))
        report = report_of(self._labels(), self.scores, outcomes, pro_limit=pro_limit)
        return self._result(report, (), summary), bins

    def _labels(self) -> NDArray[np.int64]:
        return np.array([s.is_anomalous for s in self.samples], dtype=np.int64)

    def _result(
        self,
        report: Report,
        examples: tuple[Example, ...],
        pixels: PixelSummary | None = None,
    ) -> CategoryResult:
        return CategoryResult(
            category=self.name,
            report=report,
            paths=tuple(s.image for s in self.samples),
            labels=self._labels(),
            defects=tuple(s.defect for s in self.samples),
            scores=self.scores,
            threshold=self.threshold,
            examples=examples,
            pixels=pixels,
            groups=tuple(s.group for s in self.samples),
        )


def _pool(pooled: list[PixelBins], bins: PixelBins | None) -> None:
    """Add a category's pixels, counted at a threshold of its own, to those of the others."""
    if bins is None:
        return
    if not pooled:
        from mambaad.metrics.streaming import PixelBins

        pooled.append(PixelBins())
    pooled[0].merge(bins)


def _pooled(
    counted: Sequence[PixelBins], results: Iterable[CategoryResult], pro_limit: float
) -> PixelSummary | None:
    """The metrics of all pixels, if they were counted and no category lacks masks."""
    whole = counted and all(result.pixels is not None for result in results)
    return counted[0].summary(pro_limit=pro_limit) if whole else None


def _with_examples(
    result: CategoryResult, samples: Sequence[Sample], size: tuple[int, int], scorer: Scorer
) -> CategoryResult:
    """Compute the maps of the examples once more: which they are is known at the end only."""
    chosen = choose(result.labels, result.scores)
    picked = [samples[i] for i in chosen]
    store = PictureStore([s.image for s in picked], size, "none")
    maps = np.concatenate([part.copy() for _, part, _ in batches(scorer, store)])
    masks = read_masks(picked, size) or [None] * len(picked)
    examples = make_examples(
        samples,
        chosen,
        dict(zip(chosen, maps, strict=True)),
        dict(zip(chosen, masks, strict=True)),
        result.scores,
    )
    return replace(result, examples=examples)


def pixel_metrics_for(device: torch.device) -> PixelMetrics:
    """Sorting on the device if it is CUDA; numpy otherwise, which sorts faster than torch."""
    if device.type == "cuda":
        return partial(device_metrics.pixel_metrics, device=device)
    return pixel_metrics
