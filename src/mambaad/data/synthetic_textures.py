"""The textures of the procedural benchmark: twill fabric, wood grain and brushed metal.

Each builder draws all of the product's random numbers in one fixed order, with and without a
fault, so that the two renderings differ by the fault alone.
"""

from __future__ import annotations

import numpy as np

from mambaad.data.synthetic_canvas import Array, Surface, axes, bell, noise, rgb, smoothstep, tinted
from mambaad.data.synthetic_defects import (
    Fault,
    SurfaceDefect,
    crack,
    dent,
    fibre,
    fingerprint,
    hole,
    rust,
    scratch,
    spot,
    stain,
    tint,
)

_THREADS = 30
"""Threads across the fabric's picture: 8.5 pixels each at 256, 2.1 at 64."""


def fabric(n: int, rng: np.random.Generator, fault: Fault | None) -> Surface:
    """Twill: each indigo warp thread passes over two pale weft threads and under one."""
    x, y = axes(n)
    angle = rng.normal(0, 0.025)
    c, s = np.float32(_THREADS * np.cos(angle)), np.float32(_THREADS * np.sin(angle))
    phase = rng.uniform(40, 70, 2).astype(np.float32)  # thread numbers stay within 0 and 255
    u = np.float32(0.3) * noise(rng, n, 4) + (c * x + s * y + phase[0])
    v = np.float32(0.3) * noise(rng, n, 4) + (c * y - s * x + phase[1])
    column, row = np.floor(u), np.floor(v)
    fu, fv = u - column, v - row
    fu -= np.float32(0.5)
    fv -= np.float32(0.5)
    step = column + row
    if fault is not None and fault.kind == "misweave":
        step += _misweave(column, row, fault)
    step -= 3 * np.floor(step * np.float32(1 / 3) + np.float32(0.1))  # 0, 1 or 2
    over = np.minimum(step, 1)  # 1 where the warp is on top

    # a float ends where the thread dives under the next one
    along = fv + np.float32(1.5) - step
    along *= along
    warp = (1 - np.float32(3.2) * fu * fu) * (1 - np.float32(0.75) * along * along)
    weft = (1 - np.float32(3.2) * fv * fv) * (np.float32(0.85) - np.float32(2.2) * fu * fu)
    profile = _chosen(over, warp, weft)

    shades = (1 + 0.06 * rng.standard_normal((2, 256), dtype=np.float32)).astype(np.float32)
    shade = _chosen(over, shades[0][column.astype(np.uint8)], shades[1][row.astype(np.uint8)])
    fibres = _chosen(over, 1.5 * fu + 0.9 * v, 1.5 * fv + 0.9 * u)
    fibres = np.float32(0.06) * np.cos(np.float32(2 * np.pi) * fibres)
    fibres += np.float32(0.07) * noise(rng, n, 16, 90)
    fibres += np.float32(0.05) * noise(rng, n, 150)
    fibres += np.float32(0.04) * noise(rng, n, 5)
    fibres += 1
    shade *= fibres
    shade *= np.float32(0.5) + np.float32(0.5) * profile

    indigo, pale = tinted(rgb("4d668f"), rng, 0.03), tinted(rgb("b9bcc0"), rng, 0.03)
    return Surface.toned(over, pale, indigo, shade, height=profile * np.float32(0.0035), gloss=0.0)


def _chosen(over: Array, first: Array, second: Array) -> Array:
    """``first`` where ``over`` is 1, ``second`` where it is 0; several times quicker than where."""
    first -= second
    first *= over
    first += second
    return first


def _misweave(column: Array, row: Array, fault: Fault) -> Array:
    """One to three neighbouring threads that cross the others in the wrong order for a stretch."""
    at_x, at_y = (int(v) for v in fault.rng.uniform(0.2, 0.8, 2) * column.shape[0])
    length = round(fault.between(5, 16))
    width = 1 + int(fault.strength * 2.4)
    across, along = column - column[at_y, at_x], row - row[at_y, at_x]
    if fault.rng.random() < 0.5:
        across, along = along, across
    wrong = (across >= 0) & (across < width) & (np.abs(along) <= length // 2)
    moved: Array = wrong.astype(np.float32)
    return moved


def wood(n: int, rng: np.random.Generator, _fault: Fault | None) -> Surface:
    """A planed softwood board: growth rings, fibres and pores along the grain (downwards)."""
    x, y = axes(n)
    lean, rings = rng.normal(0, 0.05), rng.uniform(8, 11)
    centre, arch = rng.uniform(0.2, 0.8), rng.uniform(0.8, 2.2)
    bow = np.sqrt((x - centre - lean * (y - 0.5)) ** 2 + 0.004).astype(np.float32)
    ring = np.float32(rings) * bow + np.float32(arch) * (y - np.float32(rng.uniform(0, 1))) * bow
    ring = ring + np.float32(0.5) * noise(rng, n, 2, 3) + np.float32(0.07) * noise(rng, n, 5, 16)
    ring += np.float32(rng.uniform(10, 20))
    index = np.floor(ring)
    f = ring - index
    darkness = 0.75 + 0.16 * rng.standard_normal(64, dtype=np.float32)
    late = f**2.6 * (1 - smoothstep(0.92, 1.0, f)) * darkness[index.astype(np.intp) % 64]

    fibres = 0.6 * noise(rng, n, 5, 150) + 0.6 * noise(rng, n, 9, 260)
    pores = smoothstep(1.5, 2.4, noise(rng, n, 26, 210))
    broad = noise(rng, n, 2, 6)
    light, dark = tinted(rgb("d9b284"), rng, 0.025), tinted(rgb("a06c3c"), rng, 0.025)
    mix = np.clip(late + 0.13 * fibres + 0.1 * broad + 0.12, 0, 1.2)
    shade = (1 + 0.045 * fibres) * (1 - 0.28 * pores)
    height = 0.0001 * fibres - 0.0006 * pores
    return Surface.toned(mix, light, dark, shade, height=height, gloss=0.2)


def metal(n: int, rng: np.random.Generator, _fault: Fault | None) -> Surface:
    """Brushed stainless steel: streaks along the brush (across the picture), a soft reflection."""
    x, y = axes(n)
    streaks = 0.5 * noise(rng, n, 220, 3) + 0.55 * noise(rng, n, 120, 5)
    streaks += 0.45 * noise(rng, n, 300, 12)
    lean = rng.normal(0, 0.02)
    shift = np.round(lean * np.arange(n) + 0.003 * n * np.sin(3 * x[0])).astype(np.intp)
    streaks = _sheared(streaks, shift)
    grit = noise(rng, n, 240, 40)
    band = np.float32(rng.uniform(0.2, 0.8))
    sheen = bell(x - band + np.float32(0.25) * (y - np.float32(0.5)), 0.3)
    tone = 0.56 + 0.15 * sheen + 0.03 * noise(rng, n, 2)
    tone = tone * (1 + 0.075 * streaks + 0.03 * grit)
    steel = tinted((0.985, 1.0, 1.02), rng, 0.012)
    flat = np.zeros((n, n), np.float32)
    return Surface.toned(flat, steel, steel, tone, height=flat, gloss=0.25)


def _sheared(field: Array, shift: np.ndarray[tuple[int, ...], np.dtype[np.intp]]) -> Array:
    """Every column moved down by its own number of cells; what leaves below enters above."""
    n = field.shape[0]
    rows = (np.arange(n)[:, None] - shift[None, :]) % n
    return np.take_along_axis(field, rows, axis=0)


FABRIC_DEFECTS: dict[str, SurfaceDefect | None] = {
    "colour": tint((0.55, 0.75, 1.25), (1.45, 1.3, 1.15), (1.2, 0.8, 0.75)),
    "hole": hole(colour=rgb("16161a"), rim=rgb("c8c9cc")),
    "misweave": None,
    "stain": stain(colour=(0.42, 0.38, 0.32)),
    "thread": fibre(rgb("d8d8d4"), rgb("8a2f2f"), rgb("2b3448")),
}

WOOD_DEFECTS: dict[str, SurfaceDefect | None] = {
    "crack": crack(colour=rgb("2e1c10"), along=np.pi / 2),
    "dent": dent(depth=0.16),
    "hole": hole(
        colour=rgb("24150c"), rim=rgb("7d5430"), smallest=0.017, largest=0.035, ragged=0.25
    ),
    "scratch": scratch(core=rgb("5e3a1c"), rim=rgb("f6e2c2")),
    "stain": stain(colour=(0.5, 0.45, 0.45)),
}

METAL_DEFECTS: dict[str, SurfaceDefect | None] = {
    "dent": dent(depth=0.4),
    "fingerprint": fingerprint(colour=rgb("5c5a55")),
    "pit": spot(rgb("2a2a2c"), rgb("45403a")),
    "rust": rust(colour=rgb("7a4a26")),
    "scratch": scratch(core=rgb("3c3e42"), rim=rgb("f4f6f8")),
}
