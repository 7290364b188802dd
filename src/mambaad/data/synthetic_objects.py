"""Two objects of the procedural benchmark: a biscuit on a belt and a blister of capsules.

Each builder draws all of the product's random numbers in one fixed order, with and without a
fault, so that the two renderings differ by the fault alone.
"""

from __future__ import annotations

import numpy as np

from mambaad.data.synthetic_canvas import (
    Array,
    Colour,
    Surface,
    axes,
    bell,
    blend,
    box_distance,
    cover,
    length_of,
    noise,
    rgb,
    smoothstep,
    tinted,
)
from mambaad.data.synthetic_defects import (
    Fault,
    SurfaceDefect,
    crack,
    fibre,
    fine_edge,
    hole,
    scratch,
    spot,
    tint,
)

_SCALLOPS = 26


def biscuit(n: int, rng: np.random.Generator, fault: Fault | None) -> Surface:
    """A round biscuit with a scalloped rim, a groove and docking holes, on a dark belt."""
    surface = _belt(n, rng)
    x, y = 0.5 + rng.normal(0, 0.012, 2)
    turn, radius = rng.uniform(0, 2 * np.pi), 0.4 + rng.normal(0, 0.006)
    everywhere = (slice(None), slice(None))
    u, v = surface.local(everywhere, x, y, turn)
    r = np.sqrt(u * u + v * v)
    lumps = noise(rng, n, 9)
    scallops = np.cos(np.float32(_SCALLOPS) * np.arctan2(v, u))
    distance = r - np.float32(0.02 * radius) * scallops + np.float32(0.0025) * lumps
    distance -= np.float32(radius)
    if fault is not None and fault.kind == "broken":
        distance = _bitten(distance, u, v, radius, fault)
    body = cover(distance, 2 / n)
    surface.filter(0.75 * cover(_moved(distance, 0.012) - 0.004, 0.03), (0.2, 0.2, 0.2))

    crumb = np.float32(0.55) * noise(rng, n, 45) + np.float32(0.45) * noise(rng, n, 110)
    pores = smoothstep(1.3, 2.2, noise(rng, n, 60))
    bake = smoothstep(-0.11, 0.0, distance) * np.float32(0.75) + np.float32(0.2)
    bake += np.float32(0.16) * lumps + np.float32(0.1) * noise(rng, n, 22)
    np.clip(bake, 0, 1.2, out=bake)
    light, dark = tinted(rgb("dfb677"), rng, 0.03), tinted(rgb("a5672c"), rng, 0.03)
    groove = bell(r - np.float32(0.8 * radius), 0.007)
    shade = (1 + np.float32(0.035) * crumb) * (1 - np.float32(0.22) * pores)
    shade *= 1 - np.float32(0.16) * groove
    height = np.float32(0.014) * smoothstep(0.0, 0.03, -distance) + np.float32(0.0009) * crumb
    height -= np.float32(0.0022) * groove + np.float32(0.0012) * pores
    surface.cover_with(Surface.toned(bake, light, dark, shade, height=height, gloss=0.0), body)
    _dock(surface, rng, fault, (x, y, turn), radius)
    surface.region = cover(distance + 0.02, 2 / n)
    return surface


def _belt(n: int, rng: np.random.Generator) -> Surface:
    x, y = axes(n)
    grey = tinted(rgb("39424d"), rng, 0.03)
    ribs = np.cos(np.float32(2 * np.pi * 36) * (x + y) + np.float32(rng.uniform(0, 6)))
    ribs *= np.cos(np.float32(2 * np.pi * 36) * (x - y) + np.float32(rng.uniform(0, 6)))
    shade = 1 + np.float32(0.06) * noise(rng, n, 6) + np.float32(0.05) * ribs
    ribs *= np.float32(0.0006)
    ribs += np.float32(0.0004) * noise(rng, n, 90)
    return Surface.toned(ribs, grey, grey, shade, height=ribs, gloss=0.0)


def _moved(distance: Array, by: float) -> Array:
    """The shape's distance seen from a little up and left: where its shadow falls."""
    cells = max(1, round(by * distance.shape[0]))
    return np.roll(distance, (cells, cells), axis=(0, 1))


def _bitten(distance: Array, u: Array, v: Array, radius: float, fault: Fault) -> Array:
    """A piece of the rim broken off along a rough line."""
    at = fault.rng.uniform(0, 2 * np.pi)
    depth = fault.between(0.018, 0.13)
    rough = noise(fault.rng, distance.shape[0], 26) * np.float32(0.006)
    rough += noise(fault.rng, distance.shape[0], 8) * np.float32(0.006)
    beyond = u * np.float32(np.cos(at)) + v * np.float32(np.sin(at)) - np.float32(radius - depth)
    return np.maximum(distance, beyond + rough)


def _dock(
    surface: Surface,
    rng: np.random.Generator,
    fault: Fault | None,
    pose: tuple[float, float, float],
    radius: float,
) -> None:
    """The pricked holes: one in the middle, rings of six and twelve."""
    missing = -1
    if fault is not None and fault.kind == "hole_missing":
        missing = int(fault.rng.integers(19))
    spots = [(0.0, 0.0)]
    spots += [(0.29, k * np.pi / 3) for k in range(6)]
    spots += [(0.57, (k + 0.5) * np.pi / 6) for k in range(12)]
    for k, (ring, angle) in enumerate(spots):
        jitter, size = rng.normal(0, 0.003, 2), 0.0135 * (1 + rng.normal(0, 0.06))
        if k == missing:
            continue
        hx = pose[0] + ring * radius * np.cos(angle + pose[2]) + jitter[0]
        hy = pose[1] + ring * radius * np.sin(angle + pose[2]) + jitter[1]
        window = surface.window(hx, hy, 3 * size)
        u, v = surface.local(window, hx, hy)
        distance = length_of(u, v) - np.float32(size)
        surface.height[window] -= np.float32(0.3 * size) * cover(distance - 0.3 * size, 1.5 * size)
        surface.paint(0.8 * cover(distance, 0.7 * size), rgb("5a3517"), window)


BISCUIT_DEFECTS: dict[str, SurfaceDefect | None] = {
    "broken": None,
    "burnt": tint((0.55, 0.42, 0.35), smallest=0.035, largest=0.12),
    "crack": crack(colour=rgb("5b3717"), depth=0.003),
    "fibre": fibre(rgb("3c6fb0"), rgb("3a3a3a"), rgb("e8e6df"), length=(0.1, 0.35)),
    "hole_missing": None,
    "speck": spot(rgb("3a2413"), rgb("e9ead8"), rgb("4a6d3a")),
}

_CARD = (0.455, 0.465)
_COLUMNS, _ROWS = 3, 4
_PITCH = (0.29, 0.218)


def blister(n: int, rng: np.random.Generator, fault: Fault | None) -> Surface:
    """A foil card with three by four two-coloured capsules under clear domes."""
    surface = Surface.plain(n, tinted(rgb("26292e"), rng, 0.05))
    surface.colour *= 1 + 0.05 * noise(rng, n, 60) + 0.05 * noise(rng, n, 4)
    x, y = 0.5 + rng.normal(0, 0.007, 2)
    turn = float(rng.normal(0, 0.02))
    u, v = surface.local((slice(None), slice(None)), x, y, turn)
    distance = box_distance(u, v, _CARD, corner=0.035)
    surface.filter(0.6 * cover(_moved(distance, 0.008), 0.02), (0.2, 0.2, 0.2))
    card = cover(distance, 2 / n)

    knurl = np.cos(np.float32(2 * np.pi * 42) * (u + v))
    knurl *= np.cos(np.float32(2 * np.pi * 42) * (u - v))
    tone = np.float32(0.68) + np.float32(0.06) * noise(rng, n, 3) + np.float32(0.025) * knurl
    tone += np.float32(0.012) * noise(rng, n, 130)
    dome = _dome_distance(u, v)
    tone *= 1 - np.float32(0.2) * cover(dome - 0.006, 0.014)
    tone *= 1 - np.float32(0.25) * cover(dome, 0.012)
    height = np.float32(0.0005) * knurl + np.float32(0.0006) * noise(rng, n, 7)
    height *= 1 - np.float32(0.9) * cover(dome, 0.02)
    height += np.float32(0.004)
    foil = tinted((0.98, 1.0, 1.03), rng, 0.01)
    surface.cover_with(Surface.toned(tone, foil, foil, tone, height=height, gloss=0.4), card)

    victim = -1 if fault is None else int(fault.rng.integers(_COLUMNS * _ROWS))
    for k in range(_COLUMNS * _ROWS):
        row, column = divmod(k, _COLUMNS)
        du, dv = (column - 1) * _PITCH[0], (row - 1.5) * _PITCH[1]
        slip, tilt = rng.normal(0, 0.0035, 2), float(rng.normal(0, 0.05))
        at = (
            x + du * np.cos(turn) - dv * np.sin(turn) + slip[0],
            y + du * np.sin(turn) + dv * np.cos(turn) + slip[1],
        )
        colours = tinted(rgb("a8322d"), rng, 0.02), tinted(rgb("e6dcc4"), rng, 0.02)
        _capsule(surface, colours, (*at, turn + tilt), fault if k == victim else None)
    _glints(surface, u, v, dome)
    surface.region = cover(distance + 0.03, 2 / n)
    return surface


def _folded(u: Array, v: Array) -> tuple[Array, Array]:
    """Coordinates from the centre of the nearest pocket."""
    column: Array = np.clip(np.round(u * np.float32(1 / _PITCH[0])), -1, 1)
    row: Array = np.clip(np.floor(v * np.float32(1 / _PITCH[1])), -2, 1)
    row += np.float32(0.5)
    return u - column * np.float32(_PITCH[0]), v - row * np.float32(_PITCH[1])


def _dome_distance(u: Array, v: Array) -> Array:
    return box_distance(*_folded(u, v), (0.122, 0.073), corner=0.072)


def _glints(surface: Surface, u: Array, v: Array, dome: Array) -> None:
    """The clear domes: a bright streak along the upper edge and a weaker one below."""
    u, v = _folded(u, v)
    streak = bell(dome + np.float32(0.012), 0.005)
    towards = (u + np.float32(1.6) * v) * np.float32(10)
    alpha = np.float32(0.5) * smoothstep(0.1, 0.8, -towards)
    alpha += np.float32(0.2) * smoothstep(0.3, 1.0, towards)
    alpha *= streak
    surface.paint(alpha, (0.97, 0.98, 1.0))


def _capsule(
    surface: Surface,
    colours: tuple[Colour, Colour],
    pose: tuple[float, float, float],
    fault: Fault | None,
) -> None:
    """A capsule of a red and an ivory half (``colours``)."""
    x, y, turn = pose
    half, radius = 0.098, 0.046
    red, ivory = colours
    kind = "" if fault is None else fault.kind
    if kind == "missing":
        return
    if fault is not None and kind == "shifted":
        turn += float(fault.rng.choice([-1, 1])) * fault.between(0.12, 0.32)
        x, y = (float(p + e) for p, e in zip((x, y), fault.rng.normal(0, 0.006, 2), strict=True))
    if fault is not None and kind == "colour":
        wrong = [rgb("b8642a"), rgb("7d2450"), rgb("c4545a"), rgb("3f6d46")]
        other = wrong[int(fault.rng.integers(len(wrong)))]
        mix = fault.contrast(0.25, 1)
        red = blend(red, other, mix)
    window = surface.window(x, y, 0.12, 0.1)
    u, v = surface.local(window, x, y, turn)
    body = box_distance(u, v, (half, radius), corner=radius)
    if fault is not None and kind == "broken":
        cut = half - fault.between(0.03, 0.11)
        rough = noise(fault.rng, surface.n, 40)[window] * np.float32(0.006)
        body = np.maximum(body, np.float32(fault.rng.choice([-1, 1])) * u - np.float32(cut) + rough)
    surface.filter(0.6 * cover(np.roll(body, 4, axis=0) - 0.006, 0.02), (0.25, 0.25, 0.27), window)
    alpha = cover(body, fine_edge(surface))
    cap = cover(u - 0.012, fine_edge(surface))
    surface.paint(alpha, ivory, window)
    surface.paint(alpha * cap, red, window)
    seam = bell(u - np.float32(0.012), 0.0028)
    surface.filter(0.35 * alpha * seam, (0.3, 0.25, 0.25), window)

    # a cylinder with round ends, lit from above left
    across = np.clip(v / np.float32(radius), -1, 1)
    ends = np.clip((np.abs(u) - np.float32(half - radius)) / np.float32(radius), 0, 1)
    bulge = np.clip(1 - across**2 - ends**2, 0, 1)
    tone = 0.62 + 0.42 * np.sqrt(bulge) - 0.14 * across - 0.08 * u / np.float32(half)
    glint = bell(across + np.float32(0.42), 0.134) * smoothstep(0.05, 0.5, bulge)
    for channel in surface.colour[:, window[0], window[1]]:
        channel *= 1 + alpha * (tone - 1)
        channel += alpha * 0.4 * glint * (1 - channel)


BLISTER_DEFECTS: dict[str, SurfaceDefect | None] = {
    "broken": None,
    "colour": None,
    "missing": None,
    "puncture": hole(
        colour=rgb("17181b"), rim=rgb("eceef0"), smallest=0.017, largest=0.035, ragged=0.8
    ),
    "scratch": scratch(core=rgb("4d5056"), rim=rgb("f2f4f6")),
    "shifted": None,
    "speck": spot(rgb("2c241c"), rgb("6b5a33"), rgb("34507a")),
}
