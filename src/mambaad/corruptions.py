"""What may happen to a picture between training and use, at named strengths s.

    brightness  times 1 + s               contrast  1 + s times, around the picture's mean grey
    blur        Gaussian, deviation s     noise     Gaussian, deviation s, each value by itself
    shift       s of height and width     rotation  s degrees about the middle
    jpeg        saved with quality s

They are applied to pictures as the network gets them. Values are clipped to 0..255. ``shift`` and
``rotation`` draw the direction for each picture, and move its mask along; what comes in from
outside is the mirror image, of the mask too.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from mambaad.errors import ConfigError

Picture = NDArray[np.uint8]
Mask = NDArray[np.bool_]

MOVING = ("shift", "rotation")
"""The kinds that move the mask."""


@dataclass(frozen=True)
class Corruption:
    """One kind at one strength."""

    kind: str
    """A key of ``KINDS``."""

    strength: float
    """In the unit of its kind."""

    @property
    def name(self) -> str:
        """For tables.

        >>> Corruption("brightness", -0.2).name, Corruption("jpeg", 25).name
        ('brightness -20%', 'jpeg quality 25')
        """
        return f"{self.kind} {KINDS[self.kind].text.format(self.strength)}".rstrip()

    def picture(self, picture: Picture, seed: int) -> Picture:
        """The corrupted picture.

        Args:
            picture: (H, W, 3).
            seed: Of what is drawn, at least 0. The same for another strength of the kind draws the
                same pattern or direction.

        Returns:
            (H, W, 3), a new array.
        """
        return KINDS[self.kind].apply(picture, self.strength, np.random.default_rng(seed))

    def mask(self, mask: Mask, seed: int) -> Mask:
        """Where the defect is in the corrupted picture, (H, W), for the picture's seed."""
        if self.kind not in MOVING:
            return mask
        grey = mask.astype(np.uint8) * np.uint8(255)
        moved = KINDS[self.kind].apply(grey, self.strength, np.random.default_rng(seed))
        return moved > 127


@dataclass(frozen=True)
class Kind:
    """A kind of corruption."""

    apply: Callable[[NDArray[np.uint8], float, np.random.Generator], NDArray[np.uint8]]
    """From (H, W, 3), or (H, W) for a mask, to the same shape."""

    strengths: tuple[float, ...]
    """What the card tries, from weak to strong."""

    text: str
    """How a strength is written."""


def _bytes(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _brighten(
    picture: NDArray[np.uint8], strength: float, _: np.random.Generator
) -> NDArray[np.uint8]:
    return _bytes(picture * np.float32(1 + strength))


def _contrast(
    picture: NDArray[np.uint8], strength: float, _: np.random.Generator
) -> NDArray[np.uint8]:
    middle = np.float32(picture.mean())
    return _bytes((picture - middle) * np.float32(1 + strength) + middle)


def _blur(picture: NDArray[np.uint8], strength: float, _: np.random.Generator) -> NDArray[np.uint8]:
    values = picture.astype(np.float32)
    return _bytes(ndimage.gaussian_filter(values, (strength, strength, 0), mode="reflect"))


def _noise(
    picture: NDArray[np.uint8], strength: float, rng: np.random.Generator
) -> NDArray[np.uint8]:
    drawn = rng.standard_normal(picture.shape, dtype=np.float32)
    return _bytes(picture + np.float32(strength) * drawn)


def _shift(
    picture: NDArray[np.uint8], strength: float, rng: np.random.Generator
) -> NDArray[np.uint8]:
    down, right = rng.choice([-1.0, 1.0], 2) * strength * np.array(picture.shape[:2])
    return _moved(picture, 0.0, float(np.rint(down)), float(np.rint(right)))


def _rotate(
    picture: NDArray[np.uint8], strength: float, rng: np.random.Generator
) -> NDArray[np.uint8]:
    return _moved(picture, float(rng.choice([-1.0, 1.0])) * math.radians(strength), 0.0, 0.0)


def _moved(
    picture: NDArray[np.uint8], angle: float, down: float, right: float
) -> NDArray[np.uint8]:
    """Turned about the middle by an angle in radians, then shifted; bilinear."""
    height, width = picture.shape[:2]
    cosine, sine = math.cos(angle), math.sin(angle)
    # beyond the border lies the mirror image, as far as the motion can reach
    reach = abs(sine) * max(height, width) / 2 + max(abs(down), abs(right)) + 2
    edge = math.ceil(reach)
    around = [(edge, edge), (edge, edge)] + [(0, 0)] * (picture.ndim - 2)
    padded = Image.fromarray(np.pad(picture, around, mode="symmetric"))
    # PIL asks where a pixel of the result comes from, and counts from the pixels' corners
    x, y = width / 2 + right, height / 2 + down
    across = width / 2 + edge - cosine * x - sine * y
    along = height / 2 + edge + sine * x - cosine * y
    coefficients = (cosine, sine, across, -sine, cosine, along)
    turned = padded.transform(
        (width, height), Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR
    )
    return np.array(turned)


def _jpeg(picture: NDArray[np.uint8], strength: float, _: np.random.Generator) -> NDArray[np.uint8]:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=int(strength))
    return np.array(Image.open(file))


def _leave(
    picture: NDArray[np.uint8], _strength: float, _: np.random.Generator
) -> NDArray[np.uint8]:
    return picture.copy()


KINDS = {
    "none": Kind(_leave, (0.0,), ""),
    "brightness": Kind(_brighten, (-0.1, 0.1, -0.2, 0.2, -0.4, 0.4), "{:+.0%}"),
    "contrast": Kind(_contrast, (-0.1, 0.1, -0.2, 0.2, -0.4, 0.4), "{:+.0%}"),
    "blur": Kind(_blur, (0.5, 1.0, 2.0), "{:g} px"),
    "noise": Kind(_noise, (4.0, 8.0, 16.0), "{:g} of 255"),
    "shift": Kind(_shift, (0.02, 0.05, 0.1), "{:.0%}"),
    "rotation": Kind(_rotate, (2.0, 5.0, 10.0), "{:g} degrees"),
    "jpeg": Kind(_jpeg, (75.0, 50.0, 25.0), "quality {:g}"),
}
"""By name."""


def corruptions(kinds: Sequence[str] = ()) -> list[Corruption]:
    """None at all, then every strength of the named kinds, or of all if none is named.

    Raises:
        ConfigError: If there is no such kind.
    """
    unknown = sorted(set(kinds) - set(KINDS))
    if unknown:
        raise ConfigError(f"a kind of corruption is one of {list(KINDS)}, got {unknown}")
    chosen = {"none", *(kinds or KINDS)}
    return [Corruption(k, s) for k in KINDS if k in chosen for s in KINDS[k].strengths]
