"""The circuit board of the procedural benchmark: a fixed layout of copper, parts and print.

The layout is data (positions in picture widths on the board); a picture shows it with a small
random shift and turn, and each part with the tolerance of a placing machine.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from mambaad.data.synthetic_canvas import (
    Array,
    Colour,
    Surface,
    Window,
    box_distance,
    cover,
    length_of,
    noise,
    rgb,
    tinted,
)
from mambaad.data.synthetic_defects import (
    Fault,
    SurfaceDefect,
    fibre,
    fine_edge,
    scratch,
    spot,
    stain,
)

Point = tuple[float, float]

_TRACES: tuple[tuple[Point, ...], ...] = (
    ((0.06, 0.1), (0.2, 0.1), (0.27, 0.17), (0.27, 0.3)),
    ((0.06, 0.135), (0.18, 0.135), (0.235, 0.19), (0.235, 0.3)),
    ((0.34, 0.3), (0.34, 0.16), (0.4, 0.1), (0.62, 0.1), (0.68, 0.16)),
    ((0.375, 0.3), (0.375, 0.2), (0.43, 0.145), (0.58, 0.145), (0.64, 0.205), (0.72, 0.205)),
    ((0.235, 0.52), (0.235, 0.62), (0.16, 0.695), (0.16, 0.76)),
    ((0.27, 0.52), (0.27, 0.66), (0.33, 0.72), (0.33, 0.78)),
    ((0.305, 0.52), (0.305, 0.63), (0.36, 0.685), (0.48, 0.685)),
    ((0.34, 0.52), (0.34, 0.59), (0.4, 0.65), (0.52, 0.65), (0.58, 0.71), (0.58, 0.8)),
    ((0.48, 0.36), (0.54, 0.36), (0.6, 0.42), (0.66, 0.42)),
    ((0.48, 0.41), (0.52, 0.41), (0.57, 0.46), (0.66, 0.46)),
    ((0.48, 0.46), (0.505, 0.46), (0.545, 0.5), (0.66, 0.5)),
    ((0.86, 0.44), (0.92, 0.44), (0.92, 0.7), (0.86, 0.76), (0.78, 0.76)),
    ((0.86, 0.5), (0.885, 0.5), (0.885, 0.64), (0.84, 0.685), (0.7, 0.685)),
    ((0.08, 0.3), (0.08, 0.62), (0.11, 0.65), (0.11, 0.9), (0.3, 0.9)),
    ((0.42, 0.92), (0.66, 0.92), (0.72, 0.86), (0.72, 0.78)),
)
_VIAS: tuple[Point, ...] = (
    (0.06, 0.1), (0.06, 0.135), (0.68, 0.16), (0.16, 0.76), (0.48, 0.685), (0.58, 0.8),
    (0.7, 0.685), (0.08, 0.3), (0.3, 0.9), (0.42, 0.92), (0.52, 0.27), (0.56, 0.3),
)  # fmt: skip
_HOLES: tuple[Point, ...] = ((0.07, 0.05), (0.93, 0.05), (0.07, 0.955), (0.93, 0.955))


@dataclass(frozen=True)
class _Part:
    at: Point
    half: tuple[float, float]
    style: str
    """``chip`` (black, with pins), ``resistor`` (black) or ``capacitor`` (brown)."""
    turn: float = 0.0
    pins: int = 0
    """Of a chip, along each of the two long sides."""


_PARTS: tuple[_Part, ...] = (
    _Part((0.33, 0.41), (0.12, 0.082), "chip", 0.0, 7),
    _Part((0.76, 0.47), (0.075, 0.075), "chip", np.pi / 2, 5),
    _Part((0.78, 0.2), (0.042, 0.022), "capacitor"),
    _Part((0.84, 0.3), (0.036, 0.018), "resistor", np.pi / 2),
    _Part((0.7, 0.3), (0.036, 0.018), "resistor", np.pi / 2),
    _Part((0.16, 0.815), (0.036, 0.018), "resistor", np.pi / 2),
    _Part((0.33, 0.83), (0.04, 0.021), "capacitor", np.pi / 2),
    _Part((0.455, 0.8), (0.036, 0.018), "resistor", np.pi / 2),
    _Part((0.58, 0.86), (0.036, 0.018), "resistor"),
    _Part((0.74, 0.735), (0.04, 0.021), "capacitor"),
    _Part((0.85, 0.87), (0.05, 0.03), "capacitor"),
    _Part((0.15, 0.21), (0.036, 0.018), "resistor"),
)
_SMALL = tuple(k for k, part in enumerate(_PARTS) if part.style != "chip")

_COPPER = rgb("3f8a52")
_TIN = rgb("c3c6c4")


@dataclass
class _Board:
    """The surface being drawn and where the layout lies on it."""

    surface: Surface
    shift: Point
    turn: float

    def to_picture(self, at: Point) -> Point:
        c, s = float(np.cos(self.turn)), float(np.sin(self.turn))
        dx, dy = at[0] - 0.5, at[1] - 0.5
        return 0.5 + c * dx - s * dy + self.shift[0], 0.5 + s * dx + c * dy + self.shift[1]

    def local(
        self, at: Point, reach: float, down: float | None = None, turn: float = 0.0
    ) -> tuple[Array, Array, Window]:
        x, y = self.to_picture(at)
        window = self.surface.window(x, y, reach, down)
        u, v = self.surface.local(window, x, y, self.turn + turn)
        return u, v, window

    def box(
        self, at: Point, half: tuple[float, float], turn: float, corner: float
    ) -> tuple[Array, Window]:
        c, t = abs(float(np.cos(turn + self.turn))), abs(float(np.sin(turn + self.turn)))
        reach = c * half[0] + t * half[1] + 0.02, c * half[1] + t * half[0] + 0.02
        u, v, window = self.local(at, *reach, turn=turn)
        return box_distance(u, v, half, corner), window

    def fill(self, distance: Array, window: Window, colour: Colour, rise: float = 0.0) -> None:
        alpha = cover(distance, fine_edge(self.surface))
        self.surface.paint(alpha, colour, window)
        height = self.surface.height[window]
        height += cover(distance + 0.002, 0.005) * (np.float32(rise) - height)


def board(n: int, rng: np.random.Generator, fault: Fault | None) -> Surface:
    """A green board with traces, vias, two chips and ten small parts."""
    surface = Surface.plain(n, tinted(rgb("1f5a3a"), rng, 0.03), gloss=0.2)
    surface.colour *= 1 + 0.05 * noise(rng, n, 3) + 0.025 * noise(rng, n, 120)
    surface.height = np.float32(0.0001) * noise(rng, n, 80)
    drawn = _Board(surface, tuple(rng.normal(0, 0.006, 2)), float(rng.normal(0, 0.012)))
    _copper(drawn, fault)
    _print(drawn)
    victim = -1
    if fault is not None and fault.kind in ("missing", "shifted"):
        victim = _SMALL[int(fault.rng.integers(len(_SMALL)))]
    for k, part in enumerate(_PARTS):
        slip, tilt, tone = rng.normal(0, 0.0012, 2), rng.normal(0, 0.015), rng.normal(0, 0.04)
        _pads(drawn, part)
        if k == victim and fault is not None:
            if fault.kind == "missing":
                continue
            slip = slip + fault.rng.normal(0, 1, 2) * fault.between(0.004, 0.01)
            tilt += fault.rng.choice([-1, 1]) * fault.between(0.25, 0.9)
        moved = replace(
            part, at=(part.at[0] + slip[0], part.at[1] + slip[1]), turn=part.turn + tilt
        )
        _part(drawn, moved, 1 + float(tone))
    if fault is not None and fault.kind == "bridge":
        _bridge(drawn, fault)
    return surface


def _copper(board: _Board, fault: Fault | None) -> None:
    surface, width = board.surface, 0.0058
    nearest = np.full((surface.n, surface.n), 1, np.float32)
    for trace in _TRACES:
        for (x0, y0), (x1, y1) in pairwise(trace):
            half = float(np.hypot(x1 - x0, y1 - y0)) / 2
            middle, turn = ((x0 + x1) / 2, (y0 + y1) / 2), float(np.arctan2(y1 - y0, x1 - x0))
            reach = abs(x1 - x0) / 2 + 0.02, abs(y1 - y0) / 2 + 0.02
            u, v, window = board.local(middle, *reach, turn=turn)
            beyond = np.maximum(np.abs(u) - np.float32(half), 0)
            found = length_of(beyond, v)
            np.minimum(nearest[window], found, out=nearest[window])
    if fault is not None and fault.kind == "open":
        trace = _TRACES[int(fault.rng.integers(len(_TRACES)))]
        x, y = board.to_picture(_along(trace, float(fault.rng.uniform(0.25, 0.75))))
        window = surface.window(x, y, 0.05)
        gap = fault.between(0.018, 0.06) / 2 + width - length_of(*surface.local(window, x, y))
        np.maximum(nearest[window], gap, out=nearest[window])
    nearest -= np.float32(width)
    board.fill(nearest, (slice(None), slice(None)), _COPPER, rise=0.0012)
    for at in _VIAS:
        u, v, window = board.local(at, 0.03)
        r = length_of(u, v)
        board.fill(r - 0.0145, window, rgb("c9a85c"), rise=0.001)
        board.fill(r - 0.006, window, rgb("20221f"), rise=-0.002)
    for at in _HOLES:
        u, v, window = board.local(at, 0.06)
        r = length_of(u, v)
        board.fill(r - 0.034, window, _TIN, rise=0.001)
        board.fill(r - 0.02, window, rgb("0f1011"), rise=-0.004)


def _along(trace: tuple[Point, ...], share: float) -> Point:
    """The point at a share of a trace's length."""
    points = np.asarray(trace)
    steps = np.hypot(*np.diff(points, axis=0).T)
    place = np.concatenate([[0], np.cumsum(steps)]) / steps.sum()
    return float(np.interp(share, place, points[:, 0])), float(
        np.interp(share, place, points[:, 1])
    )


def _print(board: _Board) -> None:
    """White lines around the parts, and a row of marks that stands for the type number."""
    white = rgb("d5dbd6")
    for part in _PARTS:
        half = (part.half[0] + 0.03, part.half[1] + 0.012)
        if part.style == "chip":
            half = (part.half[0] + 0.012, part.half[1] - 0.012)
        distance, window = board.box(part.at, half, part.turn, 0.004)
        board.surface.paint(0.8 * cover(np.abs(distance) - 0.0018, 0.004), white, window)
    for k, tall in enumerate((1, 0, 1, 1, 0, 1, 0, 1)):
        half = (0.0035, 0.0125) if tall else (0.0075, 0.0045)
        distance, window = board.box((0.42 + 0.022 * k, 0.575), half, 0.0, 0.002)
        board.surface.paint(0.85 * cover(distance, 0.004), white, window)


def _pads(board: _Board, part: _Part) -> None:
    half = part.half
    if part.style != "chip":
        u, v, window = board.local(part.at, half[0] + 0.04, turn=part.turn)
        distance = box_distance(np.abs(u) - half[0], v, (0.018, half[1] + 0.004), 0.004)
        board.fill(distance, window, rgb("b9b39a"), rise=0.001)


def _beside(part: _Part, du: float, dv: float) -> Point:
    c, s = float(np.cos(part.turn)), float(np.sin(part.turn))
    return part.at[0] + c * du - s * dv, part.at[1] + s * du + c * dv


def _pin(part: _Part, k: int, side: int) -> Point:
    pitch = 2 * part.half[0] / part.pins
    return _beside(part, (k + 0.5) * pitch - part.half[0], side * (part.half[1] + 0.014))


def _part(board: _Board, part: _Part, tone: float) -> None:
    """The part itself with its pins or caps, on its shadow."""
    surface, half = board.surface, part.half
    distance, window = board.box((part.at[0] + 0.006, part.at[1] + 0.007), half, part.turn, 0.004)
    surface.filter(0.6 * cover(distance - 0.003, 0.014), (0.2, 0.22, 0.2), window)
    if part.style == "chip":
        _pins(board, part)
        colour = rgb("2b2d30")
    else:
        colour = rgb("25262a") if part.style == "resistor" else rgb("a5825a")
    colour = (colour[0] * tone, colour[1] * tone, colour[2] * tone)
    distance, window = board.box(part.at, half, part.turn, 0.004)
    board.fill(distance, window, colour, rise=0.012)
    if part.style == "chip":
        u, v, window = board.local(_beside(part, -half[0] + 0.022, half[1] - 0.022), 0.02)
        board.fill(length_of(u, v) - 0.0085, window, rgb("17181a"), rise=0.011)
        for row, widths in enumerate((0.6, 0.42)):
            at = _beside(part, 0.0, (row - 0.6) * 0.03)
            distance, window = board.box(at, (half[0] * widths, 0.005), part.turn, 0.001)
            surface.paint(0.35 * cover(distance, 0.004), rgb("9a9c9c"), window)
        return
    u, v, window = board.local(part.at, half[0] + 0.02, turn=part.turn)
    distance = box_distance(np.abs(u) - (half[0] - 0.006), v, (0.0095, half[1]), 0.003)
    board.fill(distance, window, _TIN, rise=0.013)
    if part.style == "resistor":
        distance, window = board.box(part.at, (0.009, 0.004), part.turn, 0.001)
        surface.paint(0.6 * cover(distance, 0.004), rgb("d0d2d2"), window)


def _pins(board: _Board, part: _Part) -> None:
    """Both rows of pins at once: the coordinate along a row is folded to the nearest pin."""
    pitch = 2 * part.half[0] / part.pins
    reach = max(part.half) + 0.05
    u, v, window = board.local(part.at, reach, turn=part.turn)
    last = (part.pins - 1) / 2
    place = np.clip(np.round(u * np.float32(1 / pitch) + np.float32(last)), 0, 2 * last)
    u = u - (place - np.float32(last)) * np.float32(pitch)
    v = np.abs(v) - np.float32(part.half[1] + 0.014)
    board.fill(box_distance(u, v, (0.0075, 0.017), 0.003), window, _TIN, rise=0.003)


def _bridge(board: _Board, fault: Fault) -> None:
    """Solder that joins two neighbouring pins of a chip."""
    chip = _PARTS[int(fault.rng.integers(2))]
    side = int(fault.rng.choice([-1, 1]))
    k = int(fault.rng.integers(chip.pins - 1))
    (x0, y0), (x1, y1) = _pin(chip, k, side), _pin(chip, k + 1, side)
    turn = float(np.arctan2(y1 - y0, x1 - x0))
    half = (float(np.hypot(x1 - x0, y1 - y0)) / 2 + 0.004, fault.between(0.008, 0.015))
    distance, window = board.box(((x0 + x1) / 2, (y0 + y1) / 2), half, turn, half[1])
    distance = distance + np.float32(0.0015) * noise(fault.rng, board.surface.n, 40)[window]
    board.fill(distance, window, tinted(_TIN, fault.rng, 0.04))
    dome = np.sqrt(np.clip(-distance / np.float32(half[1]), 0, 1))
    board.surface.height[window] += np.float32(0.005) * dome


BOARD_DEFECTS: dict[str, SurfaceDefect | None] = {
    "bridge": None,
    "fibre": fibre(rgb("d9d9d2"), rgb("6a1f1f"), rgb("14161c"), length=(0.1, 0.35)),
    "missing": None,
    "open": None,
    "residue": stain(colour=(2.6, 1.6, 2.1), ring=0.6),
    "scratch": scratch(core=rgb("b98b55"), rim=rgb("7fae8c")),
    "shifted": None,
    "speck": spot(rgb("d7d3c4"), rgb("8f6a33"), rgb("101210")),
}
