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

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mambaad.config import TOTAL_STRIDE, ModelConfig
from mambaad.model.decoder import Decoder
from mambaad.model.encoder import FrozenEncoder, build_encoder
from mambaad.model.neck import HalfFPN
from mambaad.scan import Backend

SMOOTHING = 4.0
"""Deviation of the Gaussian over the anomaly map, in pixels of the prepared picture."""


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

    Args:
        teacher: Maps (B, C_i, H_i, W_i).
        student: Maps of the same shapes.
        size: Height and width of the result.

    Returns:
        float32, (B, height, width).
    """
    total = torch.zeros((), device=teacher[0].device)
    for t, s in zip(teacher, student, strict=True):
        distance = 1 - F.cosine_similarity(t.float(), s.float(), dim=1)
        resized = F.interpolate(distance[:, None], size, mode="bilinear", align_corners=True)
        total = total + resized[:, 0]
    return gaussian_smooth(total / len(teacher) ** 2, SMOOTHING)


def gaussian_smooth(maps: Tensor, sigma: float) -> Tensor:
    """A Gaussian filter as scipy's: cut off at 4 sigma, mirrored at the border (edge repeated).

    Args:
        maps: (B, H, W), any size.
        sigma: Deviation in pixels.
    """
    radius = int(4 * sigma + 0.5)
    offsets = torch.arange(-radius, radius + 1, device=maps.device, dtype=torch.float64)
    weights = torch.exp(-0.5 * (offsets / sigma) ** 2)
    weights = (weights / weights.sum()).to(maps.dtype)
    smoothed = maps[:, None]
    smoothed = F.conv2d(
        smoothed[:, :, _mirror(maps.shape[1], radius, maps)], weights[None, None, :, None]
    )
    smoothed = F.conv2d(
        smoothed[..., _mirror(maps.shape[2], radius, maps)], weights[None, None, None]
    )
    return smoothed[:, 0]


def _mirror(length: int, radius: int, like: Tensor) -> Tensor:
    """Indices -radius .. length + radius - 1 folded back into 0 .. length - 1."""
    index = torch.arange(-radius, length + radius, device=like.device) % (2 * length)
    return torch.where(index < length, index, 2 * length - 1 - index)


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
