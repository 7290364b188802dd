"""Thresholds from good pictures alone, kept in a text file that may be edited.

A picture is called defective if its score is above the threshold of its category, a pixel if its
anomaly is. The threshold is a quantile of the scores of good pictures: those held out of training
or, if none were, the training pictures themselves. The network has seen the latter, so it scores
them lower than new good pictures, and the threshold errs on the side of false alarms; the file says
which pictures it comes from. Test pictures are never used.

New thresholds of some products leave those of the others as they were: ``kept_beside`` says which
they are, ``with_kept`` joins the two. In such a file each says which pictures it comes from.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mambaad.checkpoint import CALIBRATION
from mambaad.errors import CheckpointError, ConfigError
from mambaad.files import write_json

Source = Literal[
    "held-out training pictures",
    "training pictures",
    "held-out training pictures, or training pictures of categories with few",
    "good pictures given afterwards",
    "good pictures, some of them training pictures",
    "given",
]

QUANTILE = 0.99

SHOWN = 3
"""Categories that a line names."""

PRECISIONS = ("float32", "bf16")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Threshold:
    """One category's threshold and the good scores it comes from."""

    threshold: float
    """Scores above it are called defective."""

    pictures: int
    """Number of good pictures."""

    mean: float
    """Their mean score."""

    maximum: float
    """Their highest score."""

    source: str | None = None
    """Which good pictures they are, where the calibration's thresholds differ in it."""

    quantile: float | None = None
    """Share of their scores at or below the threshold, likewise."""


@dataclass(frozen=True)
class Calibration:
    """The thresholds of a run."""

    source: str
    """Which good pictures the scores are of."""

    quantile: float
    """Share of those scores that lie at or below the threshold."""

    overall: Threshold
    """For pictures whose category is not known."""

    categories: Mapping[str, Threshold]
    """By category."""

    precision: str | None = None
    """``float32`` or ``bf16``: what the scores were computed in; None if that is not known."""

    kept: tuple[str, ...] = ()
    """Categories whose thresholds stayed when those of others were last set anew."""

    def threshold(self, category: str | None = None) -> float:
        """The threshold of a category; the overall one if it is None or not known."""
        found = self.categories.get(category) if category is not None else None
        return (found or self.overall).threshold


def calibrate(
    scores: Sequence[float],
    categories: Sequence[str],
    source: Source,
    quantile: float = QUANTILE,
    *,
    precision: str | None = None,
) -> Calibration:
    """Make thresholds from the scores of good pictures.

    The quantile is one of the scores (the next higher), so with up to 100 pictures it is the
    highest at 0.99; ``highest_note`` says so. The overall threshold is the highest of the
    categories': a picture of unknown category must not be called defective for being of a category
    with high scores.

    Args:
        scores: (n,), of good pictures.
        categories: (n,), their categories.
        source: Which pictures they are.
        quantile: In 0..1.
        precision: ``float32`` or ``bf16``: what the scores were computed in; None: not known.

    Raises:
        ValueError: If there are no scores.
    """
    if len(scores) == 0:
        raise ValueError("calibrate needs at least one score, got none")
    values, names = np.asarray(scores, dtype=np.float64), np.asarray(categories)
    by_category = {
        str(name): _threshold(values[names == name], quantile)
        for name in sorted(set(names.tolist()))
    }
    highest = max(t.threshold for t in by_category.values())
    overall = Threshold(highest, len(values), float(values.mean()), float(values.max()))
    return Calibration(source, quantile, overall, by_category, precision)


def highest_note(calibration: Calibration) -> str | None:
    """One line if thresholds are the highest score for want of pictures; else None.

    A quantile of 1 asks for the highest score, so that is not worth a line.
    """
    quantile = calibration.quantile
    few = [
        f"{name} ({t.pictures} picture{'' if t.pictures == 1 else 's'})"
        for name, t in calibration.categories.items()
        if quantile < 1 and _rank(t.pictures, quantile) == t.pictures
    ]
    if not few:
        return None
    more = f" and {len(few) - SHOWN} more" if len(few) > SHOWN else ""
    return (
        f"{', '.join(few[:SHOWN])}{more}: the threshold is their highest score; the "
        f"{quantile:g} quantile needs more pictures"
    )


def set_by_hand(threshold: Threshold, quantile: float) -> bool:
    """Whether a threshold cannot be the quantile of the scores that it is said to come from.

    Where the quantile is the highest score, that is known exactly. Elsewhere a threshold must not
    be above the highest score, nor so low that the scores could not have their mean; a change
    between the two is not seen.
    """
    level, count, maximum = threshold.threshold, threshold.pictures, threshold.maximum
    if count < 1 or not 0 <= quantile <= 1:
        return False  # nothing is said of where it comes from
    rank = _rank(count, quantile)
    if rank == count:
        return level != maximum
    lowest = (count * threshold.mean - (count - rank) * maximum) / rank
    return level > maximum or level < lowest - 1e-9 * abs(maximum)


def _rank(count: int, quantile: float) -> int:
    """Which of so many scores the quantile is, from 1, the lowest."""
    return math.ceil((count - 1) * quantile) + 1


def manual(
    threshold: float, known: Calibration | None = None, category: str | None = None
) -> Calibration:
    """One given threshold for every category.

    Args:
        threshold: Scores above it are called defective.
        known: The run's calibration, whose categories are kept.
        category: One more category; only without ``known``, which knows its own.

    Raises:
        ConfigError: If it is not a finite number.
    """
    if not math.isfinite(threshold):
        raise ConfigError(f"the threshold must be a finite number, got {threshold}")
    same = Threshold(threshold, 0, math.nan, math.nan)
    names = known.categories if known else [category] if category else []
    return Calibration("given", math.nan, same, dict.fromkeys(names, same))


def kept_beside(
    old: Calibration | None,
    categories: Collection[str],
    precision: str,
    products: Collection[str] = (),
) -> Calibration | None:
    """The thresholds that stay when those of some categories are set anew.

    Logs a line where a user may be surprised: the precision changes or is not known, a threshold
    is of no product of the run, or a product is left without one.

    Args:
        old: The run's calibration; None: it has none.
        categories: Those that are set anew.
        precision: ``float32`` or ``bf16``: what the new scores are computed in.
        products: What the run was trained on; thresholds of others are dropped. Empty: not known,
            and all are kept.

    Returns:
        The old calibration with the categories that stay, each with its source and quantile; None
        if none stays.

    Raises:
        ConfigError: If those that stay were set in another precision.
    """
    before = {} if old is None else dict(old.categories)
    stay = {n: t for n, t in before.items() if n not in categories and n in (products or before)}
    dropped = sorted(set(before) - set(stay) - set(categories))
    if dropped:
        _log.warning("the thresholds of %s are dropped: no products of this run", dropped)
    without = sorted(set(products) - set(stay) - set(categories))
    if without:
        _log.warning("%s have no threshold: the overall one, the highest, serves them", without)
    if old is None:
        return None
    if old.precision not in (None, precision):
        if stay:
            raise ConfigError(
                f"the thresholds of {sorted(stay)} were set in {old.precision}, the new ones would "
                f"be in {precision}, and the two must not be mixed: take --precision "
                f"{old.precision}, or give good pictures of all: {sorted({*stay, *categories})}"
            )
        _log.warning("all thresholds are set in %s now, before in %s", precision, old.precision)
    if not stay:
        return None
    if old.precision is None:
        _log.warning(
            "the file does not say in which precision the thresholds of %s were set; the new ones "
            "are in %s",
            sorted(stay),
            precision,
        )
    return replace(old, categories={n: with_origin(t, old) for n, t in stay.items()})


def with_kept(new: Calibration, kept: Calibration | None) -> Calibration:
    """New thresholds, and those that ``kept_beside`` found to stay; ``overall`` is of all.

    Args:
        new: What ``calibrate`` gave.
        kept: What ``kept_beside`` gave for its categories.
    """
    if kept is None:
        return new
    return replace(
        joined(new, kept.categories, f"{new.source}, or kept from before"),
        precision=new.precision if new.precision == kept.precision else None,
        kept=tuple(sorted(set(kept.categories) - set(new.categories))),
    )


def joined(new: Calibration, others: Mapping[str, Threshold], source: str) -> Calibration:
    """A calibration with the thresholds of other products beside its own; ``overall`` is of all.

    Args:
        new: Where both have a product, its threshold is taken.
        others: By category, each with its own source and quantile, see ``with_origin``.
        source: What is said of all of them.
    """
    own = {n: with_origin(t, new) for n, t in new.categories.items()}
    categories = dict(sorted({**others, **own}.items()))
    parts = list(categories.values())
    pictures = sum(t.pictures for t in parts)
    mean = sum(t.mean * t.pictures for t in parts) / max(1, pictures)
    level, maximum = max(t.threshold for t in parts), max(t.maximum for t in parts)
    overall = Threshold(level, pictures, mean, maximum)
    return replace(new, source=source, overall=overall, categories=categories)


def with_origin(threshold: Threshold, calibration: Calibration) -> Threshold:
    """A threshold with its calibration's source and quantile where it has none of its own."""
    source, quantile = threshold.source, threshold.quantile
    return replace(
        threshold,
        source=calibration.source if source is None else source,
        quantile=calibration.quantile if quantile is None else quantile,
    )


def _threshold(values: Any, quantile: float) -> Threshold:
    level = float(np.quantile(values, quantile, method="higher"))
    return Threshold(level, len(values), float(values.mean()), float(values.max()))


def save_calibration(run: Path, calibration: Calibration) -> None:
    """Write ``calibration.json`` into a run folder."""
    values = asdict(calibration)
    values["overall"] = _written(calibration.overall)
    values["categories"] = {n: _written(t) for n, t in calibration.categories.items()}
    if not calibration.kept:
        del values["kept"]
    write_json(run / CALIBRATION, values)


def _written(threshold: Threshold) -> dict[str, Any]:
    """Without what the calibration says for all."""
    return {name: value for name, value in asdict(threshold).items() if value is not None}


def load_calibration(run: Path) -> Calibration | None:
    """Read ``calibration.json``; None if a run has none (a converted one, say).

    Raises:
        CheckpointError: If the file is not what ``save_calibration`` writes, for example after a
            slip in editing.
    """
    path = run / CALIBRATION
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return Calibration(
            source=str(values["source"]),
            quantile=float(values["quantile"]),
            overall=_read(values["overall"]),
            categories={name: _read(v) for name, v in values["categories"].items()},
            precision=_read_precision(values.get("precision")),  # older files have none
            kept=tuple(str(name) for name in values.get("kept", ())),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path} is not a calibration file ({type(error).__name__}: {error}); mend it, "
            "or remove it and predict with --threshold"
        ) from error


def precision_note(calibration: Calibration | None, precision: str) -> str | None:
    """One line if scores in ``precision`` are held against thresholds of another; else None."""
    if calibration is None or calibration.precision in (None, precision):
        return None
    return (
        f"the thresholds were set in {calibration.precision}, and this runs in {precision}: scores "
        "differ by up to 1 % or so, and a picture close to a threshold may be decided otherwise; "
        f"take --precision {calibration.precision}, or set them anew with mambaad calibrate"
    )


def thresholds_for(run: Path, precision: str) -> Calibration | None:
    """``load_calibration``; logs ``precision_note`` if there is one.

    Raises:
        CheckpointError: See ``load_calibration``.
    """
    calibration = load_calibration(run)
    note = precision_note(calibration, precision)
    if note is not None:
        _log.warning("%s", note)
    return calibration


def _read_precision(value: Any) -> str | None:
    if value is None or value in PRECISIONS:
        return None if value is None else str(value)
    raise ValueError(f"precision must be one of {list(PRECISIONS)} or null, got {value!r}")


def _read(values: Mapping[str, Any]) -> Threshold:
    level = float(values["threshold"])
    if not math.isfinite(level):
        raise ValueError(f"threshold must be a finite number, got {level}")
    source, quantile = values.get("source"), values.get("quantile")
    return Threshold(
        threshold=level,
        pictures=int(values["pictures"]),
        mean=float(values["mean"]),
        maximum=float(values["maximum"]),
        source=None if source is None else str(source),
        quantile=None if quantile is None else float(quantile),
    )
