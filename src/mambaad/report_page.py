"""Pieces of the report's page: text, tables, legends, pictures. Each function returns HTML.

Arguments are plain text and are escaped here, unless they are said to be HTML.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mambaad.evaluate import CategoryResult, Evaluation, Example
from mambaad.heatmap import BOTTOM, outlined, overlay
from mambaad.metrics import EXTRA_FIELDS, FIELDS, Extras, Report, mean_extras, value_of
from mambaad.metrics.tables import MEAN
from mambaad.report_style import style

SIDE = 256
"""Pictures are shown with at most so many pixels a side."""

QUALITY = 85

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"

_SHORT = {
    "image_AUROC": "AUROC", "image_AP": "AP", "image_F1max": "F1-max",
    "pixel_AUROC": "AUROC", "pixel_AP": "AP", "pixel_F1max": "F1-max", "pixel_AUPRO": "AUPRO",
    "pixel_IoUmax": "IoU-max", "pixel_AUPRO05": "AUPRO to 0.05", "pixel_SegF1": "F1 at threshold",
    "pixel_AUPIMO": "AUPIMO", "sample_AUROC": "AUROC of objects",
}  # fmt: skip

_KINDS = {
    "best": "Defective, highest score",
    "median": "Defective, median score",
    "worst": "Defective, lowest score",
    "false alarm": "Good, highest score",
}


def document(title: str, header: str, sections: Iterable[str], footer: str) -> str:
    """A whole page. All but ``title`` are HTML.

    The content security policy makes a browser refuse whatever is not in the file itself.
    """
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        f"<title>{escape(title)}</title>\n<style>{style()}</style>\n</head>\n<body>\n"
        f"<header>\n{header}\n</header>\n<main>\n"
        + "\n".join(f"<section>\n{section}\n</section>" for section in sections if section)
        + f"\n</main>\n<footer>\n{footer}\n</footer>\n</body>\n</html>\n"
    )


def tiles(values: Sequence[tuple[str, str, str]]) -> str:
    """Headline numbers: name, value and a remark each."""
    cells = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}<small>{escape(remark)}</small></dd></div>"
        for name, value, remark in values
    )
    return f'<dl class="tiles">{cells}</dl>'


def facts(values: Mapping[str, str]) -> str:
    """Names and values, one a line."""
    rows = (f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in values.items())
    return f'<dl class="facts">{"".join(rows)}</dl>'


def folded(summary: str, parts: Mapping[str, Mapping[str, str]]) -> str:
    """Facts under headings, folded away behind a line."""
    inside = "".join(
        f"<div>{f'<h3>{escape(name)}</h3>' if name else ''}{facts(values)}</div>"
        for name, values in parts.items()
    )
    return (
        f'<details class="panel"><summary>{escape(summary)}</summary>'
        f'<div class="inside">{inside}</div></details>'
    )


def key(entries: Sequence[tuple[str, str]]) -> str:
    """A chart's legend: class of the mark, and what it is."""
    marks = (f'<li><i class="{kind}"></i>{escape(text)}</li>' for kind, text in entries)
    return f'<ul class="key">{"".join(marks)}</ul>'


def metrics_table(evaluation: Evaluation, anchors: Mapping[str, str]) -> str:
    """A row per category and the mean, in percent; why a value is missing is said in a note.

    What is measured beside the seven metrics is in a table of its own.
    """
    notes: list[str] = []
    rows = [
        f'<tr><th scope="row"><a href="#{anchors[name]}">{escape(name)}</a></th>'
        f"{_metrics(report, notes)}</tr>"
        for name, report in evaluation.reports.items()
    ]
    rows.append(
        f'<tr class="total"><th scope="row">{MEAN}</th>{_metrics(evaluation.mean, notes)}</tr>'
    )
    names = "".join(f'<th scope="col"{_start(f)}>{_SHORT[f]}</th>' for f in FIELDS[:-1])
    head = (
        '<tr><th rowspan="2" scope="col">category</th><th colspan="3" scope="colgroup">image</th>'
        '<th colspan="4" scope="colgroup">pixel</th>'
        f'<th rowspan="2" scope="col" class="start">mAD</th></tr><tr>{names}</tr>'
    )
    more = _extras_table(evaluation, notes)
    below = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return (
        table("Metrics by category, in percent", head, rows, "metrics")
        + more
        + (f'<ol class="notes">{below}</ol>' if notes else "")
    )


def _extras_table(evaluation: Evaluation, notes: list[str]) -> str:
    extras = evaluation.extras
    mean, left_out = mean_extras(extras)
    fields = [f for f in EXTRA_FIELDS if f in mean]
    rows = [
        f'<tr><th scope="row">{escape(name)}</th>{_extras(found, {}, fields, notes)}</tr>'
        for name, found in extras.items()
    ]
    cells = _extras(mean, left_out, fields, notes)
    rows.append(f'<tr class="total"><th scope="row">{MEAN}</th>{cells}</tr>')
    names = "".join(f'<th scope="col">{_SHORT[f]}</th>' for f in fields)
    head = f'<tr><th scope="col">category</th>{names}</tr>'
    title = "Further metrics of pixels and objects"
    return f"<h3>{title}</h3>" + table(f"{title}, in percent", head, rows, "extras")


def _extras(
    extras: Extras, left_out: Mapping[str, str], fields: Sequence[str], notes: list[str]
) -> str:
    reasons = {f: why for f, why in extras.items() if isinstance(why, str)} | dict(left_out)
    return "".join(_metric(value_of(extras, f), reasons.get(f), f, notes) for f in fields)


def decision_table(results: Iterable[CategoryResult], remarks: Mapping[str, str]) -> str:
    """False alarms and misses by category and in all; ``remarks`` go under a threshold."""
    rows = []
    sums = [0, 0, 0, 0]
    for result in results:
        good, bad = int((result.labels == 0).sum()), int((result.labels == 1).sum())
        start = f'<tr><th scope="row">{escape(result.category)}</th>'
        if result.threshold is None or result.false_alarms is None or result.misses is None:
            empty = '<td title="no threshold">–</td>'
            rows.append(
                f'{start}{empty}<td class="start">{good}</td>{empty * 2}'
                f'<td class="start">{bad}</td>{empty * 2}</tr>'
            )
            continue
        counts = [good, result.false_alarms, bad, result.misses]
        sums = [a + b for a, b in zip(sums, counts, strict=True)]
        remark = remarks.get(result.category, "")
        note = f'<br><span class="soft small">{escape(remark)}</span>' if remark else ""
        rows.append(f"{start}<td>{significant(result.threshold)}{note}</td>{_counts(counts)}</tr>")
    rows.append(f'<tr class="total"><th scope="row">all</th><td></td>{_counts(sums)}</tr>')
    head = (
        '<tr><th rowspan="2" scope="col">category</th><th rowspan="2" scope="col">threshold</th>'
        '<th colspan="3" scope="colgroup">good pictures</th>'
        '<th colspan="3" scope="colgroup">defective pictures</th></tr><tr>'
        '<th scope="col" class="start">tested</th><th scope="col">false alarms</th>'
        '<th scope="col">share</th><th scope="col" class="start">tested</th>'
        '<th scope="col">missed</th><th scope="col">share</th></tr>'
    )
    return table("False alarms and misses by category", head, rows, "decisions")


def table(caption: str, head: str, rows: Sequence[str], kind: str) -> str:
    """A table that scrolls sideways where it is too wide; ``head`` and ``rows`` are HTML."""
    text = escape(caption)
    return (
        f'<div class="scroll" role="region" aria-label="{text}" tabindex="0"><table class="{kind}">'
        f"<caption>{text}</caption><thead>{head}</thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def colour_scale(top: float, threshold: float | None) -> str:
    """The legend of a category's heat maps: from its lower end over the threshold to the top."""
    middle = "" if threshold is None else f"threshold {significant(threshold)}"
    return (
        '<div class="scale"><i></i><div>'
        f"<span>{significant(top * BOTTOM)}</span>"
        f"<span>{middle}</span><span>{significant(top)}</span></div></div>"
    )


def example_card(example: Example, top: float, threshold: float | None) -> str:
    """One picture as it is, with its defect outlined, and under its heat map."""
    what = f"{example.defect} of {example.path.name}" if example.label else example.path.name
    picture, mask = shrunk(example.picture, example.mask)
    shown = [_figure(picture, f"picture {example.path.name}", "picture")]
    if mask is not None and mask.any():
        shown.append(_figure(outlined(picture, mask), f"outline of {what}", "defect outlined"))
    else:
        note = "no defect" if not example.label else "no mask"
        height, width = picture.shape[:2]
        shown.append(
            f'<figure><div class="empty" style="aspect-ratio:{width}/{height}"></div>'
            f"<figcaption>{note}</figcaption></figure>"
        )
    shown.append(_figure(overlay(picture, example.map, top), f"heat map of {what}", "heat map"))
    kind = _KINDS.get(example.kind, example.kind)
    file = "/".join(example.path.parts[-2:])
    defect = f"{example.defect} · " if example.label else ""
    return (
        f'<article class="panel example"><header><h4>{escape(kind)}</h4>'
        f"<span>{significant(example.score)}{_verdict(example, threshold)}</span></header>"
        f'<div class="three">{"".join(shown)}</div>'
        f"<p>{escape(defect)}<code>{escape(file)}</code></p></article>"
    )


def shrunk(
    picture: NDArray[np.uint8], mask: NDArray[np.bool_] | None
) -> tuple[NDArray[np.uint8], NDArray[np.bool_] | None]:
    """A picture, (H, W, 3), and its mask, (H, W), with no side longer than ``SIDE``.

    A pixel of the mask is kept however small it gets.
    """
    scale = SIDE / max(picture.shape[:2])
    if scale >= 1:
        return picture, mask
    height, width = (max(1, round(side * scale)) for side in picture.shape[:2])
    small = Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS)
    if mask is None:
        return np.asarray(small), None
    marked = Image.fromarray(mask.astype(np.float32)).resize((width, height), Image.Resampling.BOX)
    return np.asarray(small), np.asarray(marked) > 0


def percent(value: float) -> str:
    """One decimal, without a sign; – if undefined."""
    return "–" if math.isnan(value) else f"{100 * value:.1f}"


def significant(value: float) -> str:
    """A score in three significant digits, trailing zeros kept."""
    if value == 0 or not 1e-4 <= abs(value) < 1e4:
        return f"{value:.3g}"
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def _metrics(report: Report, notes: list[str]) -> str:
    return "".join(
        _metric(getattr(report, field), report.reasons.get(field), field, notes) for field in FIELDS
    )


def _metric(value: float, reason: str | None, field: str, notes: list[str]) -> str:
    if not reason:
        return f"<td{_start(field)}>{percent(value)}</td>"
    if reason not in notes:
        notes.append(reason)
    mark = f"<sup>{notes.index(reason) + 1}</sup>"
    return f'<td{_start(field)} title="{escape(reason)}">{percent(value)}{mark}</td>'


def _start(field: str) -> str:
    # a wider gap where the next group of columns begins
    return ' class="start"' if field in ("image_AUROC", "pixel_AUROC", "mAD") else ""


def _counts(counts: Sequence[int]) -> str:
    cells = []
    for total, wrong in (counts[:2], counts[2:]):
        share = percent(wrong / total) + " %" if total else "–"
        cells.append(f'<td class="start">{total}</td><td>{wrong}</td><td>{share}</td>')
    return "".join(cells)


def _verdict(example: Example, threshold: float | None) -> str:
    if threshold is None:
        return ""
    flagged = example.score > threshold
    word = ("found" if flagged else "missed") if example.label else "passed"
    word = "false alarm" if flagged and not example.label else word
    kind = "well" if flagged == bool(example.label) else "ill"
    return f'<span class="pill {kind}">{word}</span>'


def _figure(picture: NDArray[np.uint8], alt: str, caption: str) -> str:
    height, width = picture.shape[:2]
    return (
        f'<figure><img src="{data_uri(picture)}" width="{width}" height="{height}" '
        f'alt="{escape(alt)}" decoding="async"><figcaption>{escape(caption)}</figcaption></figure>'
    )


def data_uri(picture: NDArray[np.uint8]) -> str:
    """A picture, uint8 (H, W, 3), as a JPEG inside a ``data:`` address."""
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "JPEG", quality=QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode("ascii")
