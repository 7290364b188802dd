"""The report of a run: ``report.html``, one file that shows what an evaluation found.

It holds the metrics, the quality of the decisions, the scores, the training's loss, telling
pictures with their heat maps, the settings and where the numbers come from. Charts are inline SVG
and pictures are inside the file, so it can be sent by mail, opened without a network, and kept.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from mambaad import report_page as page
from mambaad.calibrate import Calibration, load_calibration, set_by_hand, with_origin
from mambaad.checkpoint import METRICS, load_config, load_provenance
from mambaad.config import Config
from mambaad.evaluate import CategoryResult, Evaluation
from mambaad.files import write_text
from mambaad.heatmap import scale_top
from mambaad.report_charts import Numbers, bin_scores, loss_chart, number, score_chart, thin

REPORT = "report.html"

_PROTOCOLS = {
    "exact": "every distinct score is a threshold",
    "ader": "as in the paper's tables: 21 thresholds for F1-max, 100 steps for AUPRO",
}


@dataclass(frozen=True)
class Losses:
    """What ``metrics.jsonl`` says of a training."""

    steps: Numbers
    """(n,), ascending, n at least 1."""

    curves: Mapping[str, Numbers]
    """The total loss, then its parts by scale, (n,) each."""

    drops: tuple[tuple[float, str], ...]
    """Steps at which the learning rate changes, and how; empty if it does so all the time."""

    seconds: float
    """Time that the training took; NaN if it was not recorded."""

    images_per_second: float
    """Median over the steps; NaN if it was not recorded."""


def write_report(
    run: Path, evaluation: Evaluation, *, name: str | None = None, folder: Path | None = None
) -> Path:
    """Write ``report.html`` into a run folder, all or nothing.

    Args:
        run: A run folder. Its calibration, training log and provenance are shown if they exist.
        evaluation: What ``evaluate`` returned for this run.
        name: The data set's name; by default the last part of the path in the run's settings.
        folder: Where the file goes; by default the run folder.

    Returns:
        The file.

    Raises:
        CheckpointError: If ``run`` is not a run folder, or one of its files is damaged.
    """
    config = load_config(run)
    calibration = load_calibration(run)
    record = load_provenance(run)
    losses = read_losses(run / METRICS)
    title = name or Path(config.data.root).name or "a data set"
    anchors = {category: f"category-{i}" for i, category in enumerate(evaluation.categories)}
    sections = [
        _metrics_section(evaluation, anchors),
        _decision_section(evaluation, calibration),
        _score_section(evaluation),
        _picture_section(evaluation, anchors),
        _training_section(losses, config),
        _settings_section(config, record),
    ]
    mean = page.percent(evaluation.mean.mAD)
    text = page.document(
        f"{title}: mAD {mean} – mambaad",
        _header(title, run, evaluation, config, record),
        sections,
        "Written by mambaad. This file needs no network and holds all it shows, "
        "pictures of the data set among it.",
    )
    target = (folder or run) / REPORT
    write_text(target, text)
    return target


def read_losses(path: Path) -> Losses | None:
    """Read a training log.

    A line that is not a record with a finite loss is left out, and so is a part of the loss that
    some record lacks.

    Returns:
        None if there is no file or no such line in it.
    """
    if not path.is_file():
        return None
    records: dict[int, dict[str, Any]] = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            values = json.loads(line)
            if math.isfinite(values["loss"]):
                records[int(values["step"])] = values
        except (ValueError, KeyError, TypeError):
            continue  # half a line, from the moment of an interruption
    if not records:
        return None
    ordered = [records[step] for step in sorted(records)]
    parts = [k for k in ordered[0] if k.startswith("loss_")]
    table = np.array([[_finite(r.get(k)) for k in ["loss", *parts]] for r in ordered])
    whole = np.isfinite(table).all(axis=0)
    names = ["total", *(part.removeprefix("loss_").replace("stride", "stride ") for part in parts)]
    rates = [_finite(r.get("learning_rate")) for r in ordered]
    return Losses(
        steps=np.array(sorted(records), dtype=np.float64),
        curves={n: table[:, i] for i, n in enumerate(names) if whole[i]},
        drops=_drops(sorted(records), rates),
        seconds=_finite(ordered[-1].get("seconds")),
        images_per_second=float(np.median([_finite(r.get("images_per_second")) for r in ordered])),
    )


def _finite(value: object) -> float:
    is_number = isinstance(value, (int, float)) and math.isfinite(value)
    return float(value) if is_number else math.nan  # type: ignore[arg-type]


def _drops(steps: Sequence[int], rates: Sequence[float]) -> tuple[tuple[float, str], ...]:
    found = [
        (float(step), f"learning rate {number(before)} → {number(after)}")
        for step, before, after in zip(steps[1:], rates, rates[1:], strict=False)
        if not math.isclose(before, after) and math.isfinite(before + after)
    ]
    # a rate that changes at every step has no drop to mark
    return tuple(found) if len(found) <= 3 else ()


def _header(
    title: str, run: Path, evaluation: Evaluation, config: Config, record: Mapping[str, Any]
) -> str:
    mean = evaluation.mean
    height, width = config.data.image_size
    facts = [f"run {run.resolve().name}", config.model.encoder, f"{width} × {height} pixels"]
    facts += [str(record["date"])[:10]] if "date" in record else []
    decided = [r for r in evaluation.categories.values() if r.threshold is not None]
    good = sum(int((r.labels == 0).sum()) for r in decided)
    bad = sum(int((r.labels == 1).sum()) for r in decided)
    alarms, misses = sum(r.false_alarms or 0 for r in decided), sum(r.misses or 0 for r in decided)
    count, pictures = len(evaluation.categories), evaluation.images
    per_picture = 1000 * evaluation.seconds / max(pictures, 1)
    numbers = [
        ("mAD", page.percent(mean.mAD), "mean of the seven metrics"),
        ("Image AUROC", page.percent(mean.image_AUROC), "which pictures"),
        ("Pixel AUROC", page.percent(mean.pixel_AUROC), "which pixels"),
        ("Pixel AUPRO", page.percent(mean.pixel_AUPRO), "which regions"),
        _tile("False alarms", alarms, good if decided else None, "good pictures"),
        _tile("Missed", misses, bad if decided else None, "defective pictures"),
        ("Test pictures", str(pictures), f"{count} categor{'y' if count == 1 else 'ies'}"),
        ("Time a picture", f"{number(per_picture)} ms", "reading and metrics included"),
    ]
    links = [("metrics", "Metrics"), ("decisions", "Decisions"), ("scores", "Scores")]
    links += [("pictures", "Pictures"), ("training", "Training"), ("settings", "Settings")]
    anchors = "".join(f'<a href="#{target}">{text}</a>' for target, text in links)
    return (
        f"<h1>{escape(title)} <span>mAD {page.percent(mean.mAD)}</span></h1>"
        f'<p class="soft">{escape(" · ".join(facts))} · protocol {escape(mean.protocol)}</p>'
        f'<nav aria-label="Sections">{anchors}</nav>{page.tiles(numbers)}'
    )


def _tile(name: str, part: int, whole: int | None, what: str) -> tuple[str, str, str]:
    if whole is None:
        return name, "–", "the run has no thresholds"
    share = f", {page.percent(part / whole)} %" if whole else ""
    return name, str(part), f"of {whole} {what}{share}"


def _metrics_section(evaluation: Evaluation, anchors: Mapping[str, str]) -> str:
    mean = evaluation.mean
    lead = (
        f"In percent, higher is better. Protocol {mean.protocol}: {_PROTOCOLS[mean.protocol]}. "
        f"AUPRO goes up to a false positive rate of {mean.pro_limit:g}."
    )
    return f'<h2 id="metrics">Metrics</h2><p class="lead">{escape(lead)}</p>' + page.metrics_table(
        evaluation, anchors
    )


def _decision_section(evaluation: Evaluation, calibration: Calibration | None) -> str:
    results = list(evaluation.categories.values())
    lead = "A picture is called defective if its score is above the threshold of its category. "
    remarks: dict[str, str] = {}
    if calibration is not None:
        origin, remarks = _origins(calibration, list(evaluation.categories))
        lead += origin
    if all(r.threshold is None for r in results):
        lead = "This run has no thresholds (no calibration.json), so nothing was decided."
        return f'<h2 id="decisions">Decisions</h2><p class="lead">{lead}</p>'
    return (
        f'<h2 id="decisions">Decisions</h2><p class="lead">{escape(lead)}</p>'
        + page.decision_table(results, remarks)
    )


def _origins(calibration: Calibration, categories: Sequence[str]) -> tuple[str, dict[str, str]]:
    """Which good pictures thresholds come from: in words for all, and by category if they differ.

    The second also marks the categories that the calibration does not know, and those whose
    threshold somebody has changed in the file.
    """
    remarks = {name: "overall" for name in categories if name not in calibration.categories}
    known = [name for name in categories if name in calibration.categories]
    parts = {name: with_origin(calibration.categories[name], calibration) for name in known}
    edited = [n for n, t in parts.items() if t.quantile is not None and set_by_hand(t, t.quantile)]
    remarks |= dict.fromkeys(edited, "set by hand")
    parts = {name: t for name, t in parts.items() if name not in edited}
    whole = calibration.source, calibration.quantile
    if edited and len(edited) == len(categories):
        return "It was set by hand in calibration.json. ", remarks
    if all((t.source, t.quantile) == whole for t in parts.values()):
        text = (
            f"The threshold is the {calibration.quantile:g} quantile of the scores of "
            f"{calibration.overall.pictures} {calibration.source}, all good; "
            "calibration.json holds it and may be edited. "
        )
        sources = {calibration.source}
    else:
        text = (
            "The thresholds were not all set alike: under each is said which quantile it is of "
            "the scores of which good pictures; calibration.json holds them and may be edited. "
        )
        for name, t in parts.items():
            remarks[name] = f"{t.quantile:g} quantile of {t.pictures} {t.source}"
        sources = {str(t.source) for t in parts.values()}
    if edited:
        text += "Where 'set by hand' stands under it, somebody has changed it there. "
    if any(source.startswith("training pictures") for source in sources):
        text += (
            "The network has learned from its training pictures and scores them lower than new "
            "ones, so expect more false alarms there than the quantile says. "
        )
    return text, remarks


def _score_section(evaluation: Evaluation) -> str:
    panels = []
    for category, result in evaluation.categories.items():
        scores = result.scores.astype(np.float64)
        histogram = bin_scores(
            scores[result.labels == 0], scores[result.labels == 1], result.threshold
        )
        chart = score_chart(histogram, result.threshold, category)
        panels.append(f'<div class="panel"><h3>{escape(category)}</h3>{chart}</div>')
    entries = [("good", "good pictures, upwards"), ("bad", "defective pictures, downwards")]
    if any(r.threshold is not None for r in evaluation.categories.values()):
        entries.append(("dash", "threshold"))
    return (
        '<h2 id="scores">Scores</h2><p class="lead">How many pictures got which score. Good and '
        "defective ones should not meet, and the threshold should lie between them.</p>"
        f'{page.key(entries)}<div class="charts">{"".join(panels)}</div>'
    )


def _picture_section(evaluation: Evaluation, anchors: Mapping[str, str]) -> str:
    lead = (
        "The defective pictures with the highest, the median and the lowest score, and the good "
        "one with the highest. The colours are not stretched to each picture: the middle of the "
        "scale is the category's threshold; half of it and less is not coloured."
    )
    if all(r.threshold is None for r in evaluation.categories.values()):
        lead = lead[: lead.index(" The colours")] + (
            " Without a threshold, the hottest colour is the highest score of the category."
        )
    groups = []
    for category, result in evaluation.categories.items():
        top = _top(result)
        cards = "".join(page.example_card(e, top, result.threshold) for e in result.examples)
        threshold = result.threshold if result.threshold and result.threshold > 0 else None
        groups.append(
            f'<div class="category" id="{anchors[category]}"><div><h3>{escape(category)}</h3>'
            f'{page.colour_scale(top, threshold)}</div><div class="examples">{cards}</div></div>'
        )
    return f'<h2 id="pictures">Pictures</h2><p class="lead">{lead}</p>{"".join(groups)}'


def _top(result: CategoryResult) -> float:
    if result.threshold is not None and result.threshold > 0:
        return scale_top(result.threshold)
    highest = float(result.scores.max())
    return highest if highest > 0 else 1.0


def _training_section(losses: Losses | None, config: Config) -> str:
    if losses is None:
        return (
            '<h2 id="training">Training</h2><p class="lead">This run has no training log '
            f"({METRICS}); a converted run has none.</p>"
        )
    count = int(losses.steps[-1])
    facts = [f"{count} steps", f"{config.train.epochs} epochs"]
    if math.isfinite(losses.seconds):
        facts.append(_duration(losses.seconds))
    if math.isfinite(losses.images_per_second):
        facts.append(f"{number(losses.images_per_second)} pictures a second")
    lead = ", ".join(facts) + "."
    if len(losses.steps) > len(thin(losses.steps)):
        lead += f" Each point is a mean over about {round(count / len(thin(losses.steps)))} steps."
    names = list(losses.curves)
    thinned = thin(np.stack([losses.steps, *losses.curves.values()], axis=1))
    curves = {name: thinned[:, i + 1] for i, name in enumerate(names)}
    charts = "".join(
        f'<div class="{kind}">{loss_chart(thinned[:, 0], curves, losses.drops, width)}</div>'
        for kind, width in (("wide", 1000), ("narrow", 360))
    )
    entries = [
        (f"line series-{i}", "loss" if name == "total" else f"at {name}")
        for i, name in enumerate(names)
    ]
    return (
        f'<h2 id="training">Training</h2><p class="lead">{escape(lead)}</p>'
        f'<div class="panel">{page.key(entries)}{charts}</div>'
    )


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{number(seconds)} seconds"
    minutes = round(seconds / 60)
    return f"{minutes} minutes" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def _settings_section(config: Config, record: Mapping[str, Any]) -> str:
    settings = {
        table: {name: _plain(value) for name, value in values.items()}
        for table, values in config.to_mapping().items()
    }
    parts = [page.folded("Settings", settings)]
    if record:
        parts.append(page.folded("Provenance", {"": {k: _plain(v) for k, v in record.items()}}))
    return f'<h2 id="settings">Settings and provenance</h2>{"".join(parts)}'


def _plain(value: Any) -> str:
    if value is None:
        return "–"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
