"""Endless pictures out of few, made where the network is: crops, colours, blur, noise, mixtures.

All of it is batched torch on one device, from pictures held there as bytes. Two kinds of pictures
are drawn besides, so that the teacher is also asked about shapes and textures that no source has:

    clouds   noise whose spectrum falls as 1 / f^a, a in 0.4..2.2, coloured at random
    leaves   discs, boxes and bars that cover one another, each filled with a piece of a picture,
             a cloud or one colour: occlusion, edges at every angle and scale. The dead leaves
             model of natural pictures: Lee, Mumford & Huang 2001, IJCV 41.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

FACTORS = (0.45, 1.7)
"""Side of a window, in sides of the crop it becomes: below 1 it is enlarged, above 1 reduced."""


class Draw:
    """Random numbers on a device, from a seed."""

    def __init__(self, device: torch.device, seed: int) -> None:
        self.device = device
        self.generator = torch.Generator(device).manual_seed(seed)
        self.host = random.Random(seed)
        """For numbers that the host must know: reading one from a GPU would wait for it."""

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """Even between two numbers."""
        found = torch.rand(shape, device=self.device, generator=self.generator)
        return found * (high - low) + low

    def normal(self, *shape: int) -> Tensor:
        """Of mean 0 and deviation 1."""
        return torch.randn(shape, device=self.device, generator=self.generator)

    def chance(self, share: float, count: int) -> Tensor:
        """(count, 1, 1, 1): 1.0 for so large a share, else 0.0."""
        return (self.uniform(0, 1, count) < share).float().view(-1, 1, 1, 1)

    def below(self, limit: int, count: int) -> Tensor:
        """``count`` whole numbers of 0..limit-1."""
        return torch.randint(limit, (count,), device=self.device, generator=self.generator)


def clouds(count: int, side: int, draw: Draw) -> Tensor:
    """Coloured noise, (count, 3, side, side), 0..1."""
    frequency = torch.hypot(
        torch.fft.fftfreq(side, device=draw.device)[:, None],
        torch.fft.rfftfreq(side, device=draw.device)[None, :],
    ).clamp_min(1 / side)
    # some drawn out in one direction, as grain, brushed metal and cloth are
    angle = draw.uniform(0, math.pi, count, 1, 1, 1)
    across = torch.fft.rfftfreq(side, device=draw.device)[None, :] * torch.cos(angle)
    across = across + torch.fft.fftfreq(side, device=draw.device)[:, None] * torch.sin(angle)
    across = across.abs().clamp_min(1 / side) / frequency
    drawn_out = draw.uniform(0, 1, count, 1, 1, 1) * draw.chance(0.4, count)
    steepness = draw.uniform(0.4, 2.2, count, 1, 1, 1)
    weight = (frequency * across.pow(drawn_out)).pow(-steepness)
    spectrum = torch.fft.rfft2(draw.normal(count, 3, side, side)) * weight
    noise: Tensor = torch.fft.irfft2(spectrum, s=(side, side))
    noise = noise / noise.std(dim=(2, 3), keepdim=True).clamp_min(1e-6)
    tint = torch.eye(3, device=draw.device) + 0.5 * draw.normal(count, 3, 3)
    grey = draw.chance(0.3, count)
    mixed = torch.einsum("nij,njhw->nihw", tint, noise)
    noise = grey * noise[:, :1] + (1 - grey) * mixed
    middle, contrast = draw.uniform(0.2, 0.8, count, 3, 1, 1), draw.uniform(0.03, 0.3, count)
    return (middle + contrast.view(-1, 1, 1, 1) * noise).clamp(0, 1)


def leaves(textures: Tensor, layers: int, draw: Draw) -> Tensor:
    """Shapes that cover one another, filled with ``textures`` in other orders.

    Args:
        textures: (N, 3, side, side), 0..1.
        layers: How many shapes lie on each picture.
        draw: Random numbers.

    Returns:
        As ``textures``.
    """
    count, side = len(textures), textures.shape[-1]
    line = torch.linspace(-1, 1, side, device=draw.device)
    y, x = line.view(1, 1, -1, 1), line.view(1, 1, 1, -1)
    picture = textures.clone()
    for _ in range(layers):
        centre_x, centre_y = (draw.uniform(-1.1, 1.1, count).view(-1, 1, 1, 1) for _ in "xy")
        angle = draw.uniform(0, math.pi, count).view(-1, 1, 1, 1)
        # sizes from 1/25 to 2/3 of the picture, small ones oftener
        radius = (0.04 * 16 ** draw.uniform(0, 1, count)).view(-1, 1, 1, 1)
        across = torch.cos(angle) * (x - centre_x) + torch.sin(angle) * (y - centre_y)
        along = torch.cos(angle) * (y - centre_y) - torch.sin(angle) * (x - centre_x)
        along = along * 2 ** draw.uniform(-2, 2, count).view(-1, 1, 1, 1)
        disc = torch.hypot(across, along)
        box = torch.maximum(across.abs(), along.abs())
        shape = torch.where(draw.chance(0.5, count) > 0, disc, box)
        # one pixel of soft edge: a hard one would be a picture that no camera takes
        mask = ((radius - shape) * side / 2 + 0.5).clamp(0, 1)
        plain = draw.uniform(0, 1, count, 3, 1, 1)
        share = 0.6 * draw.chance(0.5, count) + 0.4 * draw.chance(0.3, count)
        filling = textures.roll(draw.host.randrange(count), 0)
        filling = share * plain + (1 - share) * filling
        picture = mask * filling + (1 - mask) * picture
    return picture


def drawn_pool(tiles: Tensor, count: int, draw: Draw, *, layers: int = 40) -> Tensor:
    """``count`` clouds and leaves, uint8, of the size of ``tiles``, on their device."""
    side, step = tiles.shape[-1], 64
    parts = []
    for start in range(0, count, step):
        size = min(step, count - start)
        noise = clouds(size, side, draw)
        real = tiles[draw.below(len(tiles), size)].float() / 255
        kind = draw.chance(0.5, size)
        textures = kind * noise + (1 - kind) * real
        cloud = draw.chance(0.2, size)
        found = cloud * noise + (1 - cloud) * leaves(textures, layers, draw)
        parts.append((255 * found).round().to(torch.uint8))
    return torch.cat(parts)


class Augment:
    """Batches of changed crops.

    Args:
        sources: Pictures by source, uint8, (N_i, 3, side, side), on one device. Sources are drawn
            from with a probability that grows with the square root of their size.
        draw: Random numbers.
    """

    def __init__(self, sources: Sequence[Tensor], draw: Draw) -> None:
        self.draw = draw
        self.tiles = torch.cat(list(sources))
        weights = [torch.full((len(s),), len(s) ** -0.5) for s in sources]
        shares = torch.cat(weights).double().cumsum(0)
        self.shares = (shares / shares[-1]).float().to(draw.device)

    def batch(self, count: int, crop: int) -> Tensor:
        """(count, 3, crop, crop), 0..1, float32."""
        draw = self.draw
        chosen = torch.searchsorted(self.shares, draw.uniform(0, 1, count))
        pictures = self.tiles[chosen.clamp_max(len(self.tiles) - 1)].float() / 255
        x = recolour(self._crop(pictures, crop), draw)
        x = mix(x, draw)
        return noisy(soften(x, draw), draw)

    def _crop(self, pictures: Tensor, crop: int) -> Tensor:
        """Windows of any place, scale, flip and mild shear; a fifth of them turned by any angle."""
        draw, count, side = self.draw, len(pictures), pictures.shape[-1]
        low, high = (math.log(factor * crop / side) for factor in FACTORS)
        scale = draw.uniform(low, high, count).exp().view(-1, 1)
        aspect = draw.uniform(-0.25, 0.25, count).exp().view(-1, 1)
        turned = draw.chance(0.2, count).view(-1)
        angle = turned * draw.uniform(-math.pi, math.pi, count)
        cosine, sine = (f(angle).view(-1, 1) for f in (torch.cos, torch.sin))
        flip = 1 - 2 * draw.chance(0.5, count).view(-1, 1)
        shear = draw.uniform(-0.1, 0.1, count).view(-1, 1)
        room = (1 - scale).clamp_min(0)
        shift = room * draw.uniform(-1, 1, count, 2)
        across, down = scale * aspect * flip, scale / aspect
        first = torch.cat([across * cosine, down * (shear - sine), shift[:, :1]], 1)
        second = torch.cat([across * sine, down * cosine, shift[:, 1:]], 1)
        grid = F.affine_grid(torch.stack([first, second], 1), [count, 3, crop, crop], False)
        return F.grid_sample(pictures, grid, "bilinear", "reflection", False)


def recolour(x: Tensor, draw: Draw) -> Tensor:
    """Other light: gamma, contrast, brightness, channels mixed, some grey, some as negatives."""
    count = len(x)
    x = x.clamp(1e-3, 1) ** draw.uniform(-0.5, 0.5, count, 1, 1, 1).exp()
    strong = draw.chance(0.5, count).view(-1, 1, 1)
    tint = torch.eye(3, device=x.device) + (0.03 + 0.2 * strong) * draw.normal(count, 3, 3)
    tint = tint / tint.sum(2, keepdim=True).clamp_min(0.3)
    x = torch.einsum("nij,njhw->nihw", tint, x)
    grey, negative = draw.chance(0.1, count), draw.chance(0.05, count)
    x = grey * x.mean(1, keepdim=True) + (1 - grey) * x
    x = negative * (1 - x) + (1 - negative) * x
    middle = x.mean((1, 2, 3), keepdim=True)
    contrast = draw.uniform(-0.7, 0.4, count, 1, 1, 1).exp()
    x = (x - middle) * contrast + middle + draw.uniform(-0.2, 0.2, count, 1, 1, 1)
    return x.clamp(0, 1)


def mix(x: Tensor, draw: Draw, share: float = 0.35) -> Tensor:
    """A part of the pictures get pieces of others, or become a blend with them."""
    count, side = len(x), x.shape[-1]
    other = x.roll(draw.host.randrange(1, max(2, count)), 0)
    coarse = draw.normal(count, 1, 6, 6)
    field = F.interpolate(coarse, size=(side, side), mode="bicubic", align_corners=False)
    sharp = (2 ** draw.uniform(0, 6, count)).view(-1, 1, 1, 1)
    pieces = torch.sigmoid(sharp * (field - draw.uniform(-0.5, 0.5, count, 1, 1, 1)))
    blend = draw.uniform(0, 0.5, count, 1, 1, 1)
    even = draw.chance(0.3, count)
    weight = (even * blend + (1 - even) * pieces) * draw.chance(share, count)
    return x + weight * (other - x)


def soften(x: Tensor, draw: Draw) -> Tensor:
    """Blur, or sharpen, by parts of two Gaussians' differences from the picture."""
    count = len(x)
    for sigma, share in ((0.8, 0.35), (2.0, 0.2)):
        amount = draw.uniform(-0.6, 1.0, count, 1, 1, 1) * draw.chance(share, count)
        x = x + amount * (_gauss(x, sigma) - x)
    return x.clamp(0, 1)


def _gauss(x: Tensor, sigma: float) -> Tensor:
    reach = math.ceil(2.5 * sigma)
    places = torch.arange(-reach, reach + 1, device=x.device, dtype=x.dtype)
    line = torch.exp(-(places**2) / (2 * sigma**2))
    line = (line / line.sum()).expand(3, 1, -1)
    x = F.pad(x, (reach, reach, reach, reach), mode="reflect")
    return F.conv2d(F.conv2d(x, line[:, :, None], groups=3), line[:, :, :, None], groups=3)


def noisy(x: Tensor, draw: Draw) -> Tensor:
    """Half of the pictures with grain of up to 0.06, then rounded to 8 bits as files are."""
    count = len(x)
    level = draw.uniform(0, 0.06, count, 1, 1, 1) * draw.chance(0.5, count)
    x = (x + level * draw.normal(*x.shape)).clamp(0, 1)
    return (255 * x).round() / 255
