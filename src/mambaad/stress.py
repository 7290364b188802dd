"""The robustness card: how a run fares when pictures get darker, noisier, blurred or moved.

The threshold stays where normal pictures put it (the run's calibration); nothing is fitted on the
corrupted ones. For every kind and strength of ``mambaad.corruptions`` and every category:

    false alarms = share of good pictures above the threshold
    misses       = share of defective pictures at or below it

with the AUROC of pictures and pixels, which need no threshold, beside them; as in ``evaluate``,
a category has the latter only if all of its defective pictures have masks, and of more than
``EXACT_PIXELS`` pixels they are counted in bins (within 1e-4). A card whose AUROC
stays while false alarms rise asks for a new calibration; one whose AUROC falls, for training with
such pictures. A defective picture whose defect was moved out of sight is left out of that row.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import torch
from numpy.typing import NDArray
from rich.markup import escape
from rich.table import Table

from mambaad.calibrate import Calibration, thresholds_for
from mambaad.checkpoint import load_model, provenance
from mambaad.corruptions import Corruption, Mask, corruptions
from mambaad.data import Dataset, PictureStore, Sample, available_memory, fingerprint
from mambaad.data.cache import Progress, Store, map_in_threads, worker_count
from mambaad.data.memory import PICTURE_SHARE
from mambaad.data.samples import path_inside
from mambaad.devices import pick_device
from mambaad.errors import CheckpointError, DatasetError
from mambaad.evaluate import EXACT_PIXELS, read_masks
from mambaad.files import write_json, write_text
from mambaad.inference import Maps, Method, Scorer, Scores, batches, scoring_precision
from mambaad.metrics import auroc
from mambaad.metrics.streaming import PixelBins
from mambaad.splits import leave_learned_out, results_folder, run_dataset
from mambaad.tiling import Tiling

Score = Callable[[Store], Iterator[tuple[NDArray[np.intp], Maps, Scores]]]
"""Scores a store: indices, maps and scores of each batch."""


@dataclass(frozen=True)
class Outcome:
    """What a corruption does to one category. A rate is NaN where it is not defined."""

    false_alarms: float
    """Share of good pictures above the threshold."""

    misses: float
    """Share of defective pictures at or below it."""

    image_AUROC: float
    """Over pictures."""

    pixel_AUROC: float
    """Over pixels; NaN if any defective picture has no mask: figures that leave some out silently
    could not be compared."""


NUMBERS = tuple(field.name for field in fields(Outcome))


@dataclass(frozen=True)
class Card:
    """A run's robustness card."""

    seed: int
    """Seed of what was drawn."""

    rows: Mapping[Corruption, Mapping[str, Outcome]]
    """By corruption (none first, then kind by kind from weak to strong), then by category."""

    def mean(self, corruption: Corruption) -> Outcome:
        """The unweighted mean over the categories where a number is defined."""
        outcomes = self.rows[corruption].values()
        return Outcome(*(_mean([getattr(o, name) for o in outcomes]) for name in NUMBERS))


class CorruptedStore:
    """A store's pictures, corrupted anew each time; the same picture always in the same way."""

    def __init__(
        self, pictures: PictureStore, corruption: Corruption, seeds: Sequence[int]
    ) -> None:
        """Args: pictures; what is done to them; a seed for each."""
        self.size = pictures.size
        self._pictures = pictures
        self._corruption = corruption
        self._seeds = seeds

    def __len__(self) -> int:
        return len(self._pictures)

    def path(self, index: int) -> Path:
        """The file of a picture."""
        return self._pictures.path(index)

    def __getitem__(self, indices: Sequence[int] | NDArray[np.integer]) -> NDArray[np.uint8]:
        """Pictures by index, uint8 (n, H, W, 3)."""
        wanted = [int(i) for i in indices]
        read = self._pictures[wanted]
        return np.stack(
            map_in_threads(
                lambda place: self._corruption.picture(read[place], self._seeds[wanted[place]]),
                range(len(wanted)),
                workers=self._pictures.workers,
            )
        )


def stress(
    method: Method,
    dataset: Dataset,
    image_size: tuple[int, int],
    calibration: Calibration,
    *,
    device: torch.device,
    kinds: Sequence[str] = (),
    seed: int = 0,
    precision: str = "auto",
    tiling: Tiling | None = None,
    progress: Progress | None = None,
) -> Card:
    """Score the test pictures of a data set under every corruption.

    Args:
        method: On ``device`` and in evaluation mode.
        dataset: Its test pictures are used.
        image_size: Height and width that pictures and masks are resized to, before they are
            corrupted.
        calibration: The thresholds.
        device: Where the method is.
        kinds: Of ``mambaad.corruptions.KINDS``; empty means all.
        seed: Of noise and directions. They are drawn for each file by itself, so a card of some
            categories has the numbers of a card of all.
        precision: ``auto``, ``float32`` or ``bf16``.
        tiling: How pictures are cut into tiles; None: they are not.
        progress: Called with the number of pictures scored and in all.

    Raises:
        DatasetError: If there are no test pictures.
        ImageError: If a picture or mask cannot be read.
        ConfigError: If there is no such kind.
    """
    tests = dataset.select(split="test")
    if not tests.samples:
        raise DatasetError(
            f"no test pictures in {dataset.root}: a card needs good pictures and defective ones "
            f"(see 'mambaad check {dataset.root}')"
        )
    rows: dict[Corruption, dict[str, Outcome]] = {tried: {} for tried in corruptions(kinds)}
    done, total = 0, len(tests) * len(rows)

    scorer = Scorer(method, device, precision=precision, tiling=tiling)

    def score(store: Store) -> Iterator[tuple[NDArray[np.intp], Maps, Scores]]:
        for indices, maps, scores in batches(scorer, store):
            yield indices, maps, scores
            if progress is not None:
                progress(done + int(indices[-1]) + 1, total)

    for category in tests.categories:
        samples = tests.select(categories=[category]).samples
        level = calibration.threshold(category)
        part = _Category(samples, image_size, dataset.root, seed, level)
        for corruption in rows:
            rows[corruption][category] = part.outcome(corruption, score)
            done += len(samples)
    return Card(seed, rows)


class _Category:
    """The test pictures of a category, read once if they fit into memory, and what is known."""

    def __init__(
        self,
        samples: Sequence[Sample],
        size: tuple[int, int],
        root: Path,
        seed: int,
        threshold: float,
    ) -> None:
        fits = len(samples) * size[0] * size[1] * 3 <= PICTURE_SHARE * available_memory()
        self._store = PictureStore([s.image for s in samples], size, "pictures" if fits else "none")
        self._masks: Sequence[Mask | None] = read_masks(samples, size) or [None] * len(samples)
        self._labels = np.array([s.is_anomalous for s in samples])
        self._threshold = threshold
        self._files = [path_inside(s.image, root) for s in samples]
        self._seed = seed

    def outcome(self, corruption: Corruption, score: Score) -> Outcome:
        """Corrupt, score and count."""
        seeds = [crc32(f"{self._seed} {corruption.kind} {f}".encode()) for f in self._files]
        scores, seen = np.empty(len(seeds), np.float32), np.ones(len(seeds), np.bool_)
        pixels = _Pixels(len(seeds) * math.prod(self._store.size))
        for indices, maps, found in score(CorruptedStore(self._store, corruption, seeds)):
            masks = self._moved_masks(corruption, indices, seeds)
            for place, index in enumerate(indices):
                before, after = self._masks[index], masks[place]
                # empty now and not before: the defect has left the picture
                lost = before is not None and after is not None and before.any() and not after.any()
                seen[index] = not lost
            scores[indices], kept = found, seen[indices]
            pixels.add(
                maps[kept], [mask for mask, is_kept in zip(masks, kept, strict=True) if is_kept]
            )
        scores, labels = scores[seen], self._labels[seen]
        above = scores.astype(np.float64) > self._threshold
        return Outcome(
            false_alarms=_mean(above[~labels].tolist()),
            misses=_mean((~above[labels]).tolist()),
            image_AUROC=_auroc(labels, scores),
            pixel_AUROC=pixels.auroc(),
        )

    def _moved_masks(
        self, corruption: Corruption, indices: NDArray[np.intp], seeds: Sequence[int]
    ) -> list[Mask | None]:
        def move(index: int) -> Mask | None:
            mask = self._masks[index]
            return None if mask is None else corruption.mask(mask, seeds[index])

        return map_in_threads(move, indices.tolist(), workers=worker_count())


class _Pixels:
    """A category's maps and masks: kept, or counted in bins if they are many."""

    def __init__(self, most: int) -> None:
        """Args: most: Pixels that may come."""
        self._bins = PixelBins() if most > EXACT_PIXELS else None
        self._kept: list[tuple[NDArray[np.float32], NDArray[np.bool_]]] = []
        self._complete = True

    def add(self, maps: NDArray[np.float32], masks: Sequence[Mask | None]) -> None:
        """Args: maps: (N, H, W), copied; masks: one for each, None if there is none."""
        known = [mask for mask in masks if mask is not None]
        self._complete &= len(known) == len(masks)
        if not known or not self._complete:
            return
        if self._bins is None:
            self._kept.append((maps.copy(), np.stack(known)))
        else:
            self._bins.update(maps, np.stack(known))

    def auroc(self) -> float:
        """NaN if a mask was missing or all pixels are of one kind."""
        if self._bins is not None:
            return self._bins.summary().pixel_AUROC if self._complete else math.nan
        if not self._kept or not self._complete:
            return math.nan
        maps, masks = ([m.ravel() for m in part] for part in zip(*self._kept, strict=True))
        return _auroc(np.concatenate(masks), np.concatenate(maps))


def _auroc(labels: NDArray[np.bool_], scores: NDArray[np.float32]) -> float:
    return auroc(labels, scores) if 0 < np.count_nonzero(labels) < len(labels) else math.nan


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def run_stress(
    run: Path,
    data: Path | None = None,
    *,
    kinds: Sequence[str] = (),
    categories: Sequence[str] = (),
    layout: str | None = None,
    seed: int = 0,
    out: Path | None = None,
    device: str = "auto",
    precision: str | None = None,
    progress: Progress | None = None,
) -> tuple[Card, list[Path]]:
    """Make a run's card and write ``stress.json`` and ``stress.csv``.

    Args:
        run: The run folder.
        data: The data set; None is the run's own.
        kinds: Of ``mambaad.corruptions.KINDS``; empty means all.
        categories: Categories to test; empty means those of the run, or all of another data set.
        layout: Layout of the data set; None is the run's setting.
        seed: Of noise and directions, at least 0.
        out: Folder of the results; None: see ``results_folder``.
        device: See ``pick_device``.
        precision: See ``scoring_precision``. If the thresholds were set in another, a line is
            logged.
        progress: Called with the number of pictures scored and in all.

    Returns:
        The card, and the files written.

    Raises:
        MambaADError: ConfigError, CheckpointError or DatasetError.
    """
    corruptions(kinds)  # a mistake in a name is told before the network is read
    config, model = load_model(run)
    target = pick_device(device)
    used = scoring_precision(precision, config.train.precision, target)
    calibration = _thresholds(run, used)
    dataset = leave_learned_out(
        run, config, run_dataset("stress", run, config, data, categories, layout)
    )
    card = stress(
        model.to(target),
        dataset,
        config.data.image_size,
        calibration,
        device=target,
        kinds=kinds,
        seed=seed,
        precision=used,
        tiling=config.data.tiling,
        progress=progress,
    )
    found = {"data": str(dataset.root), "data_fingerprint": fingerprint(dataset)}
    found |= {"precision": used, "threshold_source": calibration.source}
    about = provenance(config, target, **found)
    return card, save_card(results_folder(run, config, data, dataset, out), card, about)


def _thresholds(run: Path, precision: str) -> Calibration:
    calibration = thresholds_for(run, precision)
    if calibration is None:
        raise CheckpointError(
            f"{run} has no thresholds, and a card counts what is above them; make them with "
            f"mambaad calibrate {run} DATA"
        )
    return calibration


def save_card(folder: Path, card: Card, about: Mapping[str, Any]) -> list[Path]:
    """Write ``stress.json`` and ``stress.csv``: shares in 0..1, what is undefined left empty.

    Args:
        folder: Usually the run folder.
        card: What ``stress`` returned.
        about: Added to the JSON: what the numbers belong to.

    Returns:
        The files.
    """
    rows = [
        {
            "corruption": corruption.kind,
            "strength": corruption.strength,
            "category": category,
            **{n: None if math.isnan(v) else v for n, v in asdict(outcome).items()},
        }
        for corruption, outcomes in card.rows.items()
        for category, outcome in [*outcomes.items(), ("mean", card.mean(corruption))]
    ]
    text = io.StringIO()
    table = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    files = [folder / "stress.json", folder / "stress.csv"]
    write_json(files[0], {"seed": card.seed, "rows": rows, "about": dict(about)})
    write_text(files[1], text.getvalue())
    return files


def card_table(card: Card) -> Table:
    """Means over categories in percent, and the category that fares worst.

    Worst is the one with the largest sum of false alarms and misses.
    """
    table = Table(title=f"mean over categories; percent; seed {card.seed}")
    table.add_column("corruption")
    for name in (*NUMBERS, "worst: false alarms", "misses"):
        table.add_column(name.replace("_alarms", " alarms"), justify="right")
    table.add_column("category")
    for corruption, outcomes in card.rows.items():
        means = asdict(card.mean(corruption)).values()
        name, worst = max(outcomes.items(), key=lambda item: _errors(item[1]))
        cells = [*means, worst.false_alarms, worst.misses]
        shown = ["–" if math.isnan(value) else f"{100 * value:.1f}" for value in cells]
        table.add_row(escape(corruption.name), *shown, escape(name))
    return table


def _errors(outcome: Outcome) -> float:
    return sum(v for v in (outcome.false_alarms, outcome.misses) if not math.isnan(v))
