"""Reports as a table with a row per category and the row ``mean``: Markdown, CSV, or for JSON.

Markdown is for reading: percent, one decimal, ``–`` where a metric is undefined. CSV and JSON are
for programs: 0 to 1 at full precision, empty or None where undefined. Each states the protocol.
Columns of what is measured beside the reports (``extras``) follow mAD.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping
from typing import Any

from mambaad.metrics.extras import EXTRA_FIELDS, Extras, mean_extras, value_of
from mambaad.metrics.report import FIELDS, Report, mean_report

MEAN = "mean"
"""Name of the last row."""


def to_markdown(reports: Mapping[str, Report], extras: Mapping[str, Extras] | None = None) -> str:
    """A Markdown table in percent, with a line that states the protocol and one per reason.

    Args:
        reports: By category, in the order of the rows.
        extras: Of the same categories; columns for those that apply to one of them.

    Returns:
        Text that ends in a line break.

    Raises:
        ValueError: If there is no report, or two differ in protocol or limit.
    """
    mean = mean_report(reports)
    more, reasons = _with_mean(extras or {})
    columns = [f for f in EXTRA_FIELDS if f in more.get(MEAN, {})]
    rows = [
        [
            _escape(name),
            *(_percent(getattr(report, f)) for f in FIELDS),
            *(_percent(value_of(more[name], f)) for f in columns),
        ]
        for name, report in _rows(reports, mean)
    ]
    lines = [
        f"Protocol `{mean.protocol}`, AUPRO up to a false positive rate of {mean.pro_limit:g}, "
        f"in percent; {_pictures(mean)}.",
        "",
        _line(["category", *FIELDS, *columns]),
        _line(["---", *("---:" for _ in (*FIELDS, *columns))]),
        *(_line(row) for row in rows),
    ]
    notes = _notes(reports, mean, reasons)
    if columns and mean.protocol != "exact":
        notes.append("- the columns after mAD are defined alike under both protocols")
    return "\n".join([*lines, *(["", *notes] if notes else [])]) + "\n"


def to_csv(reports: Mapping[str, Report], extras: Mapping[str, Extras] | None = None) -> str:
    """Comma-separated values, 0 to 1, that read back to the same numbers; empty if undefined.

    Columns: category, protocol, pro_limit, images, anomalous_images, the seven metrics, mAD; with
    extras, all ``EXTRA_FIELDS``.

    Args:
        reports: By category, in the order of the rows.
        extras: Of the same categories.

    Raises:
        ValueError: If there is no report, or two differ in protocol or limit.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    facts = ("protocol", "pro_limit", "images", "anomalous_images")
    more, _ = _with_mean(extras or {})
    columns = EXTRA_FIELDS if more else ()
    writer.writerow(["category", *facts, *FIELDS, *columns])
    for name, report in _rows(reports, mean_report(reports)):
        cells = report.to_mapping()
        values = (value_of(more[name], column) for column in columns)
        writer.writerow(
            [
                name,
                *(cells[column] for column in (*facts, *FIELDS)),
                *("" if math.isnan(value) else value for value in values),
            ]
        )
    return text.getvalue()


def to_json_mapping(reports: Mapping[str, Report]) -> dict[str, Any]:
    """``{"protocol", "pro_limit", "categories": {name: report}, "mean": report}`` for JSON.

    A report is ``Report.to_mapping()``: 0 to 1, None where undefined, and the reasons.

    Raises:
        ValueError: If there is no report, or two differ in protocol or limit.
    """
    mean = mean_report(reports)
    return {
        "protocol": mean.protocol,
        "pro_limit": mean.pro_limit,
        "categories": {name: report.to_mapping() for name, report in reports.items()},
        MEAN: mean.to_mapping(),
    }


def _rows(reports: Mapping[str, Report], mean: Report) -> list[tuple[str, Report]]:
    return [*reports.items(), (MEAN, mean)]


def _with_mean(
    extras: Mapping[str, Extras],
) -> tuple[dict[str, Extras], dict[str, dict[str, str]]]:
    """Extras by row, and the reasons for those that are undefined; both empty if there are none."""
    if not extras:
        return {}, {}
    mean, left_out = mean_extras(extras)
    reasons = {
        name: {f: why for f, why in found.items() if isinstance(why, str)}
        for name, found in extras.items()
    }
    return {**extras, MEAN: mean}, {**reasons, MEAN: left_out}


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _escape(name: str) -> str:
    return name.replace("|", "\\|")


def _percent(value: float) -> str:
    return "–" if math.isnan(value) else f"{100 * value:.1f}"


def _pictures(mean: Report) -> str:
    known = mean.anomalous_images
    return f"{mean.images} pictures" + ("" if known is None else f", {known} anomalous")


def _notes(
    reports: Mapping[str, Report], mean: Report, more: Mapping[str, Mapping[str, str]]
) -> list[str]:
    notes = []
    binned = [_escape(name) for name, report in reports.items() if report.method != "exact"]
    if binned:
        notes.append(f"- pixel metrics from bins, within 1e-4 of exact: {', '.join(binned)}")
    # mAD's reason only repeats the others'
    for name, report in _rows(reports, mean):
        by_reason: dict[str, list[str]] = {}
        for field, reason in {**report.reasons, **more.get(name, {})}.items():
            if field != "mAD" or name == MEAN:
                by_reason.setdefault(reason, []).append(field)
        notes += [f"- {_escape(name)}: {', '.join(f)}: {why}" for why, f in by_reason.items()]
    return notes
