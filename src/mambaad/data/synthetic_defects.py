"""Defects that lie on a surface, whatever the product: they change its colour and its height.

Each takes the defect-free ``Surface`` and a ``Fault`` (how plain, how large, its own random
numbers) and changes the surface in place. Defects of structure (a missing part) are made where the
product is built.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mambaad.data.synthetic_canvas import (
    Array,
    Colour,
    Surface,
    Window,
    bell,
    cover,
    line_distance,
    noise,
    smoothstep,
    walk,
)


@dataclass(frozen=True)
class Fault:
    """Which defect, and how it comes out this time."""

    kind: str
    """Name of the defect."""

    rng: np.random.Generator
    """Its own random numbers: the product's are the same with and without the defect."""

    strength: float
    """0 barely visible, 1 plain."""

    extent: float
    """0 the smallest the kind allows, 1 the largest."""

    def between(self, low: float, high: float) -> float:
        """A size between the smallest and the largest."""
        return low + (high - low) * self.extent

    def contrast(self, faint: float, plain: float) -> float:
        """A contrast between faint and plain."""
        return faint + (plain - faint) * self.strength


SurfaceDefect = Callable[[Surface, Fault], None]


def place(surface: Surface, fault: Fault, margin: float = 0.1) -> tuple[float, float]:
    """A point of the product, x and y, at least ``margin`` inside the picture."""
    x = y = 0.5
    for _ in range(200):
        x, y = (float(v) for v in fault.rng.uniform(margin, 1 - margin, 2))
        if surface.region is None:
            break
        if surface.region[int(y * surface.n), int(x * surface.n)] > 0.5:
            break
    return x, y


def blob(
    surface: Surface, fault: Fault, x: float, y: float, radius: float, ragged: float = 0.3
) -> tuple[Array, Window]:
    """Signed distance to an irregular, slightly oblong blob, in a window around it."""
    window = surface.window(x, y, 2.0 * radius)
    u, v = surface.local(window, x, y, float(fault.rng.uniform(0, np.pi)))
    aspect = float(fault.rng.uniform(0.75, 1.0))
    waves = fault.rng.normal(0, 1, 4) * (1.0, 0.7, 0.5, 0.35)
    phases = fault.rng.uniform(0, 2 * np.pi, 4)
    around = np.arctan2(v, u)
    edge = sum(
        (np.float32(w) * np.cos((k + 2) * around + np.float32(p)))
        for k, (w, p) in enumerate(zip(waves, phases, strict=True))
    )
    shape = np.clip(1 + 0.3 * ragged * edge, 0.6, 1.6)
    return np.sqrt(u * u + (v / aspect) ** 2) - np.float32(radius) * shape, window


def fine_edge(surface: Surface) -> float:
    """Width of an edge that is sharp on the fine grid."""
    return 1.5 / surface.n


def scratch(*, core: Colour, rim: Colour, along: float | None = None) -> SurfaceDefect:
    """A thin, nearly straight groove with a bright lip; ``along`` fixes its usual direction."""

    def apply(surface: Surface, fault: Fault) -> None:
        rng = fault.rng
        angle = rng.uniform(0, np.pi) if along is None else along + rng.normal(0, 0.35)
        path = walk(
            rng, place(surface, fault, 0.2), angle, fault.between(0.1, 0.45), turn=0.04, steps=10
        )
        width = float(rng.uniform(0.0045, 0.0085))
        distance, t = line_distance(surface, path, 4 * width)
        taper = np.sqrt(np.clip(4 * t * (1 - t), 0.05, 1)) * inside(surface)
        opacity = np.float32(fault.contrast(0.3, 0.95))
        surface.paint(opacity * taper * cover(distance - width * 1.3, width * 1.2), rim)
        surface.paint(opacity * taper * cover(distance - width * 0.6, width * 0.8), core)

    return apply


def inside(surface: Surface) -> Array | np.float32:
    """Where a long defect may go: it ends at the product's edge."""
    return np.float32(1) if surface.region is None else surface.region


def crack(*, colour: Colour, along: float | None = None, depth: float = 0.002) -> SurfaceDefect:
    """A jagged dark line with a branch, opening towards its middle."""

    def apply(surface: Surface, fault: Fault) -> None:
        rng = fault.rng
        angle = rng.uniform(0, np.pi) if along is None else along + rng.normal(0, 0.06)
        jag = 0.45 if along is None else 0.12
        length = fault.between(0.12, 0.45)
        path = walk(rng, place(surface, fault, 0.25), angle, length, turn=jag, steps=14)
        branch = walk(
            rng, path[9], angle + rng.choice([-0.7, 0.7]), length * 0.5, turn=jag, steps=7
        )
        start = len(branch) // 2
        width = fault.contrast(0.0035, 0.008)
        distance, t = line_distance(surface, path, 5 * width)
        side, u = line_distance(surface, branch[start:], 5 * width)
        opening = width * np.sqrt(np.clip(4 * t * (1 - t), 0.06, 1))
        narrow = width * 0.6 * np.sqrt(np.clip(1 - u, 0.06, 1))
        gap = np.minimum(distance - opening, side - narrow) * 1.0
        alpha = cover(gap, width * 0.8) * inside(surface)
        surface.paint(np.float32(fault.contrast(0.45, 0.95)) * alpha, colour)
        surface.height -= np.float32(depth) * cover(gap - width, 2 * width) * inside(surface)

    return apply


def stain(*, colour: Colour, ring: float = 0.5, smallest: float = 0.03) -> SurfaceDefect:
    """A dried liquid: it multiplies the colour, more at its rim."""

    def apply(surface: Surface, fault: Fault) -> None:
        radius = fault.between(smallest, 0.13)
        distance, window = blob(surface, fault, *place(surface, fault, 0.12), radius, 0.5)
        edge = cover(distance, max(0.25 * radius, 0.012))
        rim = bell(distance + np.float32(0.12 * radius), 0.14 * radius)
        patchy = noise(fault.rng, surface.n, 14)[window]
        alpha = edge * (1 - ring + ring * rim) * (1 + 0.2 * patchy)
        alpha = np.clip(alpha, 0, 1) * np.float32(fault.contrast(0.3, 1.0))
        if surface.region is not None:
            alpha = alpha * surface.region[window]
        surface.filter(alpha, colour, window)

    return apply


def spot(*colours: Colour, smallest: float = 0.017, largest: float = 0.04) -> SurfaceDefect:
    """A small solid particle with a shadow; its colour is one of several."""

    def apply(surface: Surface, fault: Fault) -> None:
        colour = colours[int(fault.rng.integers(len(colours)))]
        radius = fault.between(smallest, largest)
        distance, window = blob(surface, fault, *place(surface, fault), radius, 0.8)
        surface.filter(
            np.float32(fault.contrast(0.1, 0.5)) * cover(distance - 0.2 * radius, radius),
            (0.3, 0.3, 0.3),
            window,
        )
        alpha = cover(distance, 2 * fine_edge(surface) + 0.2 * radius)
        surface.paint(np.float32(fault.contrast(0.3, 0.95)) * alpha, colour, window)
        dome = np.sqrt(np.clip(-distance / np.float32(radius), 0, 1))
        surface.height[window] += np.float32(0.15 * radius) * dome

    return apply


def hole(
    *,
    colour: Colour,
    rim: Colour,
    smallest: float = 0.02,
    largest: float = 0.07,
    ragged: float = 0.6,
) -> SurfaceDefect:
    """A hole through the material: dark inside, a lighter torn edge around it."""

    def apply(surface: Surface, fault: Fault) -> None:
        radius = fault.between(smallest, largest)
        distance, window = blob(surface, fault, *place(surface, fault), radius, ragged)
        band = bell(distance - np.float32(0.1 * radius), 0.23 * radius)
        surface.paint(np.float32(0.55 * fault.contrast(0.3, 1)) * band, rim, window)
        alpha = cover(distance, 2 * fine_edge(surface))
        surface.paint(np.float32(fault.contrast(0.45, 1)) * alpha, colour, window)
        surface.height[window] *= 1 - alpha
        surface.height[window] -= np.float32(0.1 * radius) * cover(distance, 0.5 * radius)

    return apply


def dent(*, depth: float, smallest: float = 0.03, largest: float = 0.1) -> SurfaceDefect:
    """A smooth hollow that only the shading shows; its bottom is ``depth`` radii deep at most."""

    def apply(surface: Surface, fault: Fault) -> None:
        radius = fault.between(smallest, largest)
        x, y = place(surface, fault, 0.12)
        window = surface.window(x, y, 2.4 * radius)
        u, v = surface.local(window, x, y, float(fault.rng.uniform(0, np.pi)))
        r2 = (u / np.float32(radius)) ** 2 + (v / np.float32(0.75 * radius)) ** 2
        bowl = np.exp(-1.5 * r2) * (1 - 0.35 * r2)  # the lip stands a little above the sheet
        down = np.float32(radius * depth * fault.contrast(0.35, 1))
        surface.height[window] -= down * bowl
        surface.filter(np.exp(-2 * r2) * np.float32(fault.contrast(0.04, 0.12)), (0, 0, 0), window)

    return apply


def fibre(*colours: Colour, length: tuple[float, float] = (0.15, 0.5)) -> SurfaceDefect:
    """A hair or thread that lies on the product, with its shadow."""

    def apply(surface: Surface, fault: Fault) -> None:
        rng = fault.rng
        colour = colours[int(rng.integers(len(colours)))]
        path = walk(
            rng,
            place(surface, fault, 0.2),
            rng.uniform(0, 2 * np.pi),
            fault.between(*length),
            turn=0.28,
            steps=22,
        )
        width = float(rng.uniform(0.003, 0.0055))
        shadow, _ = line_distance(surface, path + np.array([0.004, 0.005]), 4 * width)
        distance, _ = line_distance(surface, path, 4 * width)
        opacity = fault.contrast(0.35, 1)
        surface.filter(np.float32(0.5 * opacity) * cover(shadow - width, 3 * width), (0.3,) * 3)
        round_ = np.sqrt(np.clip(1 - (distance / np.float32(width)) ** 2, 0, 1))
        surface.paint(np.float32(opacity) * cover(distance - width, width * 0.7), colour)
        surface.height += np.float32(0.4 * width * opacity) * round_

    return apply


def rust(*, colour: Colour) -> SurfaceDefect:
    """A cluster of corroded specks."""

    def apply(surface: Surface, fault: Fault) -> None:
        radius = fault.between(0.035, 0.13)
        distance, window = blob(surface, fault, *place(surface, fault, 0.12), radius, 0.6)
        specks = 0.7 * noise(fault.rng, surface.n, 70)[window]
        specks += 0.5 * noise(fault.rng, surface.n, 25)[window]
        alpha = smoothstep(-0.1, 0.7, specks * 0.6 - distance / np.float32(0.6 * radius))
        alpha = alpha * cover(distance - 0.3 * radius, 0.3 * radius)
        surface.paint(alpha * np.float32(fault.contrast(0.25, 0.85)), colour, window)
        surface.filter(alpha * smoothstep(-0.2, 1.2, specks), (0.45, 0.4, 0.35), window)
        surface.height[window] += alpha * specks * np.float32(0.0012 * fault.contrast(0.4, 1))
        surface.gloss[window] *= 1 - alpha

    return apply


def fingerprint(*, colour: Colour) -> SurfaceDefect:
    """A greasy print: curved ridges in an oval."""

    def apply(surface: Surface, fault: Fault) -> None:
        radius = fault.between(0.06, 0.11)
        x, y = place(surface, fault, 0.15)
        window = surface.window(x, y, 1.6 * radius)
        u, v = surface.local(window, x, y, float(fault.rng.normal(0, 0.5)))
        oval = np.sqrt((u / np.float32(0.75)) ** 2 + v**2) - np.float32(radius)
        bend = noise(fault.rng, surface.n, 9)[window] * np.float32(0.004)
        whorl = np.sqrt(u**2 * 1.6 + (v + np.float32(0.3 * radius)) ** 2) + bend
        ridges = 0.5 + 0.5 * np.cos(whorl * np.float32(2 * np.pi / 0.0155))
        patchy = np.clip(0.85 + 0.3 * noise(fault.rng, surface.n, 16)[window], 0, 1)
        alpha = cover(oval, 0.35 * radius) * (0.3 + 0.7 * ridges) * patchy
        surface.paint(alpha * np.float32(fault.contrast(0.2, 0.6)), colour, window)

    return apply


def tint(*colours: Colour, smallest: float = 0.03, largest: float = 0.12) -> SurfaceDefect:
    """A patch of another shade: dye, bleach or burn, with a soft edge."""

    def apply(surface: Surface, fault: Fault) -> None:
        radius = fault.between(smallest, largest)
        distance, window = blob(surface, fault, *place(surface, fault, 0.12), radius, 0.5)
        wave = noise(fault.rng, surface.n, 30)[window] * np.float32(0.12 * radius)
        alpha = smoothstep(-0.45 * radius, 0.45 * radius, -(distance + wave))
        if surface.region is not None:
            alpha = alpha * surface.region[window]
        colour = colours[int(fault.rng.integers(len(colours)))]
        surface.filter(alpha * np.float32(fault.contrast(0.25, 0.9)), colour, window)

    return apply
