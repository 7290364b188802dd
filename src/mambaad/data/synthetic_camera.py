"""The camera of the procedural benchmark: from a ``Surface`` to a picture.

    image = blur(mean_cells(colour (1 + l · ∇height) light + gloss max(0, l · ∇height)³)) + noise

with l the direction of the light and ``mean_cells`` the average over the cells of a pixel. The
noise is drawn once for a picture, so a defect does not change it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from mambaad.data.synthetic_canvas import Array, Colour, Surface, axes


@dataclass(frozen=True)
class Camera:
    """Light and sensor of one picture."""

    direction: tuple[float, float]
    """Where the light comes from; its length is how strongly slopes are shaded."""

    light: tuple[float, float, float, float]
    """Exposure, its change across and down the picture, and the fall-off to the corners."""

    white: Colour
    """White balance."""

    blur: float
    """Standard deviation of the lens, in pixels of a 256 picture."""

    sensor: float
    """Standard deviation of the sensor's noise at mid grey, in [0, 1] display values."""

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Camera:
        """A camera with the usual spread between two pictures of one line."""
        angle = np.deg2rad(225 + rng.normal(0, 6))
        exposure = 1 + rng.normal(0, 0.03)
        across, down = rng.normal(0, 0.05, 2)
        balance = 1 + rng.normal(0, 0.004, 3)
        return cls(
            direction=(float(np.cos(angle)), float(np.sin(angle))),
            light=(float(exposure), float(across), float(down), float(rng.uniform(0.05, 0.16))),
            white=(float(balance[0]), float(balance[1]), float(balance[2])),
            blur=float(rng.uniform(0.45, 0.75)),
            sensor=float(rng.uniform(0.006, 0.011)),
        )

    def expose(self, surface: Surface, size: int) -> Array:
        """The picture before sensor noise: (3, size, size), display values."""
        n = surface.n
        x, y = axes(n)
        exposure, across, down, corners = (np.float32(v) for v in self.light)
        light = exposure + across * (x - 0.5) + down * (y - 0.5)
        light = light - corners * ((x - 0.5) ** 2 + (y - 0.5) ** 2)
        slope = np.zeros((n, n), np.float32)
        h = surface.height
        slope[:, 1:-1] = h[:, 2:] - h[:, :-2]
        slope[:, (0, -1)] = slope[:, (1, -2)]
        slope *= np.float32(-self.direction[0] * n / 2)
        down_slope = h[2:] - h[:-2]
        down_slope *= np.float32(-self.direction[1] * n / 2)
        slope[1:-1] += down_slope
        slope[0] += down_slope[0]
        slope[-1] += down_slope[-1]
        np.clip(slope, -0.85, 1.2, out=slope)
        shine = np.maximum(slope, 0)
        shine *= shine * surface.gloss
        slope += 1
        slope *= light
        fine = surface.colour * slope
        fine += shine
        image = _cells(fine, n // size)
        sigma = self.blur * size / 256
        if sigma > 0.2:
            ndimage.gaussian_filter1d(image, sigma, axis=1, truncate=2.5, output=image)
            ndimage.gaussian_filter1d(image, sigma, axis=2, truncate=2.5, output=image)
        np.clip(image, 0, 1, out=image)
        image *= np.asarray(self.white, np.float32)[:, None, None]
        return image

    def grain(self, rng: np.random.Generator, image: Array) -> Array:
        """Sensor noise for a picture: (3, size, size), partly shot noise (growing with light)."""
        deviation: Array = np.sqrt(0.4 + 1.2 * image)
        deviation *= np.float32(self.sensor)
        deviation *= rng.standard_normal(image.shape, dtype=np.float32)
        return deviation


def _cells(fine: Array, factor: int) -> Array:
    """Mean over ``factor`` x ``factor`` cells of the last two axes."""
    if factor == 1:
        return fine
    rows: Array = fine[:, ::factor].copy()
    for k in range(1, factor):
        rows += fine[:, k::factor]
    columns: Array = rows[:, :, ::factor].copy()
    for k in range(1, factor):
        columns += rows[:, :, k::factor]
    columns *= np.float32(1 / factor**2)
    return columns


def quantise(image: Array) -> NDArray[np.uint8]:
    """Display values (3, h, w) as bytes (h, w, 3)."""
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8).transpose(1, 2, 0).copy()
