"""MambaAD: a frozen encoder is the teacher, Half-FPN and Mamba decoder are the student.

The student learns to rebuild the teacher's three feature maps from good pictures only. Where it
fails on a new picture, measured by the cosine distance of the two, something is unusual:

    loss = weight · Σ_scales mean (student - teacher)²
    map  = smooth( 1/9 Σ_scales resize(1 - cos(student, teacher)) )       score = max map

The factor 1/9, the bilinear resize with aligned corners and the Gaussian (deviation 4 pixels) are
the published code's. Source: He et al., MambaAD, arXiv 2404.06564, sections 3.1 and 4.1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from mambaad.config import TOTAL_STRIDE, ModelConfig
from mambaad.model.decoder import Decoder
from mambaad.model.encoder import FrozenEncoder, build_encoder
from mambaad.model.neck import HalfFPN
from mambaad.scan import Backend

SMOOTHING = 4.0
"""Deviation of the Gaussian over the anomaly map, in pixels of the prepared picture."""

TINY = 1e-8
"""Shorter feature vectors count as this long, so that a vector of zeros has a distance (of 1)."""


class MambaAD(nn.Module):
    """The whole network. Pictures are (B, 3, H, W), normalised, with sides multiples of 32."""

    def __init__(
        self, encoder: FrozenEncoder, neck: HalfFPN, decoder: Decoder, *, loss_weight: float = 5.0
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.neck = neck
        self.decoder = decoder
        self.loss_weight = loss_weight

    def forward(self, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Teacher's and student's maps, each three (B, C_i, H_i, W_i), strides 4, 8 and 16.

        Raises:
            ValueError: If the pictures' sides are not multiples of 32.
        """
        teacher = self.encode(images)
        return teacher, self.decode(teacher)

    def encode(self, images: Tensor) -> list[Tensor]:
        """The teacher's maps. They do not change in training, so they may be kept."""
        if (
            images.dim() != 4
            or images.shape[1] != 3
            or any(s % TOTAL_STRIDE for s in images.shape[2:])
        ):
            raise ValueError(
                f"images must be (B, 3, H, W) with H and W multiples of {TOTAL_STRIDE}, "
                f"got {tuple(images.shape)}"
            )
        maps: list[Tensor] = self.encoder(images)
        return maps

    def decode(self, teacher: Sequence[Tensor]) -> list[Tensor]:
        """The student's maps for the teacher's."""
        maps: list[Tensor] = self.decoder(self.neck(teacher))
        return maps

    def loss_parts(
        self, images: Tensor | None, features: Sequence[Tensor] | None = None
    ) -> dict[str, Tensor]:
        """The loss by scale, weighted; its sum is the loss.

        Args:
            images: The pictures; not read when ``features`` are given.
            features: What ``encode(images)`` returns, from a caller that has kept it.
        """
        if features is None:
            if images is None:
                raise ValueError("loss_parts needs images or features, got neither")
            features = self.encode(images)
        student = self.decode(features)
        return {
            f"stride{4 * 2**i}": self.loss_weight * F.mse_loss(s, t)
            for i, (s, t) in enumerate(zip(student, features, strict=True))
        }

    def loss(self, images: Tensor) -> Tensor:
        """The training loss, a scalar."""
        return torch.stack(list(self.loss_parts(images).values())).sum()

    def anomaly_maps(self, images: Tensor) -> Tensor:
        """How unusual each pixel is: float32, (B, H, W), at least 0 and at most 2/3."""
        teacher, student = self(images)
        return anomaly_maps(teacher, student, (images.shape[2], images.shape[3]))


def anomaly_maps(
    teacher: Sequence[Tensor], student: Sequence[Tensor], size: tuple[int, int]
) -> Tensor:
    """The cosine distances of all scales, resized, summed, divided by 9 and smoothed.

    Resizing and smoothing are linear along each axis, so a scale's share is one pair of matrix
    products. They run in float32, under autocast too.

    Args:
        teacher: Maps (B, C_i, H_i, W_i), of 16 bits or more.
        student: Maps of the same shapes.
        size: Height and width of the result.

    Returns:
        float32 (float64 for such maps), (B, height, width).
    """
    with torch.autocast(teacher[0].device.type, enabled=False):
        distances = [_cosine_distance(t, s) for t, s in zip(teacher, student, strict=True)]
        total = _resize_and_smooth(distances, size, SMOOTHING)
    return total / len(teacher) ** 2


def gaussian_smooth(maps: Tensor, sigma: float) -> Tensor:
    """A Gaussian filter as scipy's: cut off at 4 sigma, mirrored at the border (edge repeated).

    Args:
        maps: (B, H, W), any size, float32 or float64.
        sigma: Deviation in pixels.
    """
    return _resize_and_smooth([maps], (maps.shape[1], maps.shape[2]), sigma)


def _cosine_distance(teacher: Tensor, student: Tensor) -> Tensor:
    """1 - cos of two maps (B, C, H, W) at every pixel, (B, H, W), summed in 32 bits or more."""
    wide = torch.promote_types(torch.promote_types(teacher.dtype, student.dtype), torch.float32)
    dot = (teacher.to(wide) * student).sum(dim=1)
    first: Tensor = torch.linalg.vector_norm(teacher, dim=1, dtype=wide).clamp_min(TINY)
    second: Tensor = torch.linalg.vector_norm(student, dim=1, dtype=wide).clamp_min(TINY)
    return 1 - dot / (first * second)


def _resize_and_smooth(maps: Sequence[Tensor], size: tuple[int, int], sigma: float) -> Tensor:
    """Σ_i (S R_i) M_i (S R_i)ᵀ of maps M_i (B, H_i, W_i): the first R resizes rows, the other
    columns, and S smooths. Returns (B, height, width)."""
    height, width = size
    dtype, device = maps[0].dtype, maps[0].device
    columns = [m @ _line_filter(m.shape[2], width, sigma, dtype, device).T for m in maps]
    rows = [_line_filter(m.shape[1], height, sigma, dtype, device) for m in maps]
    left = torch.cat(rows, dim=1).expand(len(maps[0]), -1, -1)
    return torch.bmm(left, torch.cat(columns, dim=1))


# Never dropped: a CUDA graph reads the matrices at the address they had when it was captured.
_filters: dict[tuple[int, int, float, torch.dtype, torch.device], Tensor] = {}


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _line_filter(
    length: int, target: int, sigma: float, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Resize a line bilinearly with aligned ends, then smooth it: a matrix (target, length)."""
    key = (length, target, sigma, dtype, device)
    if key in _filters:
        return _filters[key]
    matrix = torch.from_numpy(_smoothing(target, sigma) @ _resizing(length, target))
    with torch.inference_mode(False):  # so that training can use what prediction made first
        matrix = matrix.to(device, dtype, copy=True)
    if type(matrix) is Tensor:  # torch.export's stand-ins hold no values
        _filters[key] = matrix
    return matrix


def _resizing(length: int, target: int) -> NDArray[np.float64]:
    place = np.linspace(0, length - 1, target)
    lower = np.minimum(place.astype(np.intp), max(length - 2, 0))
    upper, row = np.minimum(lower + 1, length - 1), np.arange(target)
    resize = np.zeros((target, length))
    resize[row, lower] = 1 - (place - lower)
    resize[row, upper] += place - lower
    return resize


def _smoothing(length: int, sigma: float) -> NDArray[np.float64]:
    radius = int(4 * sigma + 0.5)
    offsets = np.arange(-radius, radius + 1)
    weights = np.exp(-0.5 * (offsets / sigma) ** 2)
    row, smooth = np.arange(length), np.zeros((length, length))
    for offset, weight in zip(offsets, weights / weights.sum(), strict=True):
        mirrored = (row + offset) % (2 * length)
        smooth[row, np.minimum(mirrored, 2 * length - 1 - mirrored)] += weight
    return smooth


def build(config: ModelConfig, *, loss_weight: float = 5.0, backend: Backend = "auto") -> MambaAD:
    """The network of a configuration, with the encoder's weights still random.

    ``mambaad.model.encoder.load_pretrained`` or a run folder's file fills them.

    Raises:
        ConfigError: If the encoder is not known, or has no maps at strides 4, 8 and 16.
    """
    encoder = build_encoder(config.encoder)
    neck = HalfFPN(encoder.channels)
    decoder = Decoder(config, encoder.channels, neck.out_channels, backend=backend)
    return MambaAD(encoder, neck, decoder, loss_weight=loss_weight)


def parameter_count(model: nn.Module) -> int:
    """All parameters, frozen ones included."""
    return sum(math.prod(p.shape) for p in model.parameters())
