"""The two charts of the report, as inline SVG: the loss of a training, and the scores of pictures.

Text and lines take their colours from classes that the page's style sheet defines, so that a chart
follows the page into the dark. What is drawn is worked out by ``thin`` and ``bin_scores``; the rest
turns numbers into marks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]

POINTS = 400
"""Most points of a curve."""

BINS = 40
"""Most bins of a histogram, but for one at each end."""


def thin(values: Numbers, points: int = POINTS) -> Numbers:
    """Average a curve in consecutive bins of nearly equal size.

    Args:
        values: (n, ...), averaged over the first axis.
        points: Most rows that may come out, at least 1.

    Returns:
        (min(n, points), ...); ``values`` itself if it is short enough.

    >>> thin(np.array([1.0, 3.0, 5.0, 7.0, 9.0]), 2)
    array([2., 7.])
    """
    count = len(values)
    if count <= points:
        return values
    starts = np.arange(points) * count // points
    lengths = np.diff(starts, append=count)
    sums: Numbers = np.add.reduceat(values, starts, axis=0)
    return sums / lengths.reshape(-1, *[1] * (values.ndim - 1))


@dataclass(frozen=True)
class Histogram:
    """Counts of good and defective pictures in the same bins."""

    edges: Numbers
    """(n + 1,), ascending. A bin holds what is above its lower and at or below its upper edge."""

    good: NDArray[np.int64]
    """(n,)."""

    bad: NDArray[np.int64]
    """(n,)."""


def bin_scores(good: Numbers, bad: Numbers, threshold: float | None) -> Histogram:
    """Count scores in bins of a round width, of which one begins at the threshold.

    So the bars to the right of the threshold are the pictures called defective, no more and no
    less.

    Args:
        good: Scores of good pictures, finite.
        bad: Scores of defective pictures, finite. One of the two must not be empty.
        threshold: Where an edge must be; None puts one at 0.
    """
    origin = 0.0 if threshold is None else threshold
    everything = np.concatenate([good, bad])
    marks = everything if threshold is None else np.append(everything, threshold)
    low, high = float(marks.min()), float(marks.max())
    step = _round_step((high - low) / BINS) if high > low else max(abs(high), 1.0) / BINS
    place = np.ceil((everything - origin) / step).astype(np.int64) - 1
    first, last = int(place.min()), int(place.max())
    if threshold is not None:
        first, last = min(first, -1), max(last, 0)
    size = last - first + 1
    counts = np.stack(
        [
            np.bincount(place[: len(good)] - first, minlength=size),
            np.bincount(place[len(good) :] - first, minlength=size),
        ]
    )
    edges = origin + step * np.arange(first, last + 2, dtype=np.float64)
    return Histogram(edges, counts[0], counts[1])


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round numbers inside [low, high], about ``wanted`` of them.

    >>> ticks(0, 100)
    [0.0, 20.0, 40.0, 60.0, 80.0, 100.0]
    """
    if high <= low:
        return [low]
    step = _round_step((high - low) / wanted)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{k * step:.12g}") for k in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten inside [low, high], with their 2- and 5-fold where there are few.

    >>> log_ticks(0.02, 3)
    [0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0]
    """
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if math.log10(high / low) < 3 else (1,)
    found = [float(f"{f}e{d}") for d in decades for f in factors]
    return [v for v in found if low * (1 - 1e-9) <= v <= high * (1 + 1e-9)]


@dataclass(frozen=True)
class _Frame:
    """The area that marks are drawn in, and the two scales."""

    left: float
    top: float
    right: float
    bottom: float
    x: Callable[[float], float]
    """From a value to 0..1."""
    y: Callable[[float], float]
    """From a value to 0..1, upwards."""

    def px(self, value: float) -> float:
        return self.left + (self.right - self.left) * self.x(value)

    def py(self, value: float) -> float:
        return self.bottom - (self.bottom - self.top) * self.y(value)

    def horizontal(self, value: float, kind: str, label: str) -> str:
        y = self.py(value)
        return (
            f'<line class="{kind}" x1="{self.left:g}" x2="{self.right:g}" y1="{y:.1f}" '
            f'y2="{y:.1f}"/>' + _text(self.left - 8, y + 4, label, "end")
        )

    def bottom_axis(self, values: Sequence[float], name: str) -> str:
        labels = "".join(
            f'<line class="axis" x1="{self.px(v):.1f}" x2="{self.px(v):.1f}" '
            f'y1="{self.bottom:g}" y2="{self.bottom + 4:g}"/>'
            + _text(self.px(v), self.bottom + 18, number(v), "middle")
            for v in values
        )
        axis = (
            f'<line class="axis" x1="{self.left:g}" x2="{self.right:g}" '
            f'y1="{self.bottom:g}" y2="{self.bottom:g}"/>'
        )
        middle = (self.left + self.right) / 2
        return axis + labels + _text(middle, self.bottom + 36, name, "middle", "axis-name")


def loss_chart(
    steps: Numbers,
    curves: Mapping[str, Numbers],
    drops: Sequence[tuple[float, str]],
    width: int,
) -> str:
    """Loss over training steps, the scale logarithmic if the values span more than one decade.

    Args:
        steps: (n,), ascending, n at least 1.
        curves: By name, (n,) each, finite; drawn in this order with the classes ``series-0`` on.
        drops: Steps at which the learning rate changes, each with what to write there.
        width: Of the drawing, in its own units, which are CSS pixels at full size.
    """
    height = 300 if width > 500 else 260
    values = np.concatenate(list(curves.values()))
    low, high = float(values.min()), float(values.max())
    # a quantile, because one spike must not turn a flat curve into a logarithmic one
    logarithmic = low > max(high / 1e12, 0) and float(np.quantile(values, 0.99)) > 10 * low
    if logarithmic:
        base, span = math.log10(low), math.log10(high / low) or 1.0
        marks = log_ticks(low, high)
        vertical = _linear(base - 0.04 * span, base + 1.04 * span, math.log10)
    else:
        high += 0.05 * ((high - min(low, 0.0)) or 1.0)
        marks = ticks(min(low, 0.0), high)
        vertical = _linear(min(low, 0.0), high)
    first, last = float(steps[0]), float(steps[-1])
    frame = _Frame(
        58,
        26,
        width - 14,
        height - 46,
        _linear(min(first, 0.0), last if last > 0 else 1.0),
        vertical,
    )
    parts = [frame.horizontal(v, "grid", number(v)) for v in marks]
    parts.append(frame.bottom_axis(ticks(min(first, 0.0), last, 6 if width > 500 else 5), "step"))
    for step, label in drops:
        x = frame.px(step)
        # written on the side where there is room
        anchor, shift = ("end", -6) if frame.x(step) > 0.5 else ("start", 6)
        parts.append(_rule(x, frame.top - 12, frame.bottom))
        parts.append(_text(x + shift, frame.top - 4, label, anchor, "note"))
    for index, line in enumerate(curves.values()):
        points = " ".join(
            f"{frame.px(float(s)):.1f},{frame.py(float(v)):.1f}"
            for s, v in zip(steps, line, strict=True)
        )
        parts.append(f'<polyline class="series-{index}" points="{points}"/>')
    scale = "logarithmic scale" if logarithmic else "linear scale"
    total = next(iter(curves.values()))
    label = (
        f"Training loss over {int(last)} steps, {scale}: "
        f"from {number(float(total[0]))} to {number(float(total[-1]))}"
    )
    return _svg(width, height, label, parts)


def score_chart(histogram: Histogram, threshold: float | None, name: str) -> str:
    """Good pictures' scores as bars upwards, defective ones' downwards, the threshold as a rule.

    Both directions have the same scale, pictures per bin.
    """
    width, height = 340, 210
    edges = histogram.edges
    most_good, most_bad = int(histogram.good.max()), int(histogram.bad.max())
    # the smaller side keeps a sixth of the height, or it could not be seen
    most = max(most_good, most_bad, 1)
    above, below = max(most_good, most / 5), max(most_bad, most / 5)
    frame = _Frame(
        38, 24, width - 12, height - 46, _linear(float(edges[0]), float(edges[-1])),
        _linear(-below * 1.05, above * 1.05),
    )  # fmt: skip
    marks = [v for v in ticks(-below, above, 4) if v == int(v)]
    parts = [frame.horizontal(v, "grid", number(abs(v))) for v in marks]
    for low, high, good, bad in zip(
        edges[:-1], edges[1:], histogram.good, histogram.bad, strict=True
    ):
        span = f"{number(float(low))} to {number(float(high))}"
        parts.append(_bar(frame, float(low), float(high), int(good), "good", span))
        parts.append(_bar(frame, float(low), float(high), -int(bad), "bad", span))
    zero = frame.py(0)
    parts.append(
        f'<line class="axis" x1="{frame.left:g}" x2="{frame.right:g}" y1="{zero:.1f}" '
        f'y2="{zero:.1f}"/>'
    )
    parts.append(frame.bottom_axis(ticks(float(edges[0]), float(edges[-1])), "score"))
    if threshold is not None:
        x = frame.px(threshold)
        anchor, shift = ("end", -5) if frame.x(threshold) > 0.5 else ("start", 5)
        parts.append(_rule(x, frame.top - 14, frame.bottom))
        parts.append(
            _text(x + shift, frame.top - 5, f"threshold {number(threshold)}", anchor, "note")
        )
    label = (
        f"Scores of {name}: {histogram.good.sum()} good pictures upwards, "
        f"{histogram.bad.sum()} defective ones downwards"
    )
    return _svg(width, height, label, parts)


def number(value: float) -> str:
    """A number in three significant digits, without an exponent where that is short.

    >>> number(0.05), number(12000), number(0.000012)
    ('0.05', '12000', '1.2e-05')
    """
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _bar(frame: _Frame, low: float, high: float, count: int, kind: str, span: str) -> str:
    if count == 0:
        return ""
    left, right = frame.px(low) + 0.5, frame.px(high) - 0.5
    ends = sorted((frame.py(0), frame.py(count)))
    width, height = max(right - left, 1), ends[1] - ends[0]
    return (
        f'<rect class="{kind}" x="{left:.1f}" y="{ends[0]:.1f}" width="{width:.1f}" '
        f'height="{height:.1f}"><title>{abs(count)} {_NAMES[kind]}, {span}</title></rect>'
    )


_NAMES = {"good": "good", "bad": "defective"}


def _rule(x: float, top: float, bottom: float) -> str:
    return f'<line class="rule" x1="{x:.1f}" x2="{x:.1f}" y1="{top:.1f}" y2="{bottom:.1f}"/>'


def _text(x: float, y: float, text: str, anchor: str, kind: str = "tick") -> str:
    return (
        f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
    )


def _svg(width: int, height: int, label: str, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}">'
        f"{''.join(parts)}</svg>"
    )


def _linear(
    low: float, high: float, transform: Callable[[float], float] = float
) -> Callable[[float], float]:
    span = (high - low) or 1.0
    return lambda value: (transform(value) - low) / span


def _round_step(rough: float) -> float:
    """The next larger of 1, 2 and 5 times a power of ten."""
    power: Any = 10.0 ** math.floor(math.log10(rough))
    factor = next(f for f in (1, 2, 5, 10) if f * power >= rough * (1 - 1e-9))
    return float(f"{factor * power:.12g}")
