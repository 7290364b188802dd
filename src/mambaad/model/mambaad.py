"""MambaAD: a frozen encoder is the teacher, Half-FPN and Mamba decoder are the student.

The student learns to rebuild the teacher's three feature maps from good pictures only. Where it
fails on a new picture, measured by the cosine distance of the two, something is unusual:

    loss = weight · Σ_scales mean (student - teacher)²
    map  = smooth( 1/9 Σ_scales resize(1 - cos(student, teacher)) )       score = max map

Other losses are in ``mambaad.model.losses``, other scores in ``mambaad.scores``.

The factor 1/9, the bilinear resize with aligned corners and the Gaussian (deviation 4 pixels) are
the published code's. Source: He et al., MambaAD, arXiv 2404.06564, sections 3.1 and 4.1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from mambaad.config import TOTAL_STRIDE, ModelConfig
from mambaad.constants import constant_result
from mambaad.fused.cosine import cosine_distance
from mambaad.fused.square import square_losses
from mambaad.model.decoder import Decoder
from mambaad.model.encoder import FrozenEncoder, build_encoder
from mambaad.model.losses import RebuildingLoss
from mambaad.model.neck import HalfFPN
from mambaad.model.recentre import Recentring
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
        self.objective: RebuildingLoss | None = None
        """Another loss than the published one."""
        self.recentring: Recentring | None = None
        self.neck_dropout = 0.0
        self.neck_noise = 0.0
        self.neck_masking = 0.0
        self.damping = 0.0
        self.fine_pooling = 1
        self.map_weights: tuple[float, ...] = (1.0, 1.0, 1.0)
        self.score_top = 0.0
        """How pictures are scored; see ``ModelConfig.score_top``."""

    def forward(self, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Teacher's and student's maps, each three (B, C_i, H_i, W_i), strides 4, 8 and 16.

        Raises:
            ValueError: If the pictures' sides are not multiples of 32.
        """
        teacher = self.targets(self.encode(images))
        return list(teacher), self.decode(teacher)

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

    def targets(self, maps: Sequence[Tensor]) -> Sequence[Tensor]:
        """The encoder's maps as the student gets and rebuilds them: recentred, or as they are."""
        if self.recentring is None:
            return maps
        recentred: list[Tensor] = self.recentring(maps)
        return recentred

    def decode(self, teacher: Sequence[Tensor]) -> list[Tensor]:
        """The student's maps for the teacher's; in training with the neck's noise and dropout."""
        if self.training and self.neck_noise:
            teacher = [_add_noise(t, self.neck_noise) for t in teacher]
        narrow = self.neck(teacher)
        if self.training and self.neck_dropout:
            narrow = F.dropout(narrow, self.neck_dropout)
        if self.training and self.neck_masking:
            narrow = narrow * _seen(narrow, self.neck_masking)
        maps: list[Tensor] = self.decoder(narrow)
        return maps

    def set_progress(self, done: float) -> None:
        """Args: share of the training's steps done, before each step; the loss may depend on it."""
        if self.objective is not None:
            self.objective.set_progress(done)

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
        features = self.targets(features)
        student = self.decode(features)
        if self.objective is not None:
            parts: dict[str, Tensor] = self.objective(student, features)
            return parts
        losses = square_losses(student, features, self.loss_weight)
        return {f"stride{4 * 2**i}": loss for i, loss in enumerate(losses.unbind())}

    def loss(self, images: Tensor) -> Tensor:
        """The training loss, a scalar."""
        return torch.stack(list(self.loss_parts(images).values())).sum()

    def anomaly_maps(self, images: Tensor) -> Tensor:
        """How unusual each pixel is: float32, (B, H, W), from 0 to 2/3 (2/9 of the sum of
        ``map_weights``) up to rounding."""
        teacher, student = self(images)
        size = images.shape[2], images.shape[3]
        return self.compare(teacher, student, size)

    def compare(
        self, teacher: Sequence[Tensor], student: Sequence[Tensor], size: tuple[int, int]
    ) -> Tensor:
        """``anomaly_maps`` of the function of that name, with this network's settings."""
        return anomaly_maps(
            teacher,
            student,
            size,
            damping=self.damping,
            pooling=self.fine_pooling,
            weights=self.map_weights,
        )


def _add_noise(maps: Tensor, strength: float) -> Tensor:
    """Gaussian noise on maps (B, C, H, W): in a pixel of deviation strength · |its vector| / C."""
    length = torch.linalg.vector_norm(maps, dim=1, keepdim=True, dtype=torch.float32)
    noise = torch.randn_like(maps) * (length * (strength / maps.shape[1]))
    noisy: Tensor = maps + noise.to(maps.dtype)
    return noisy


def _seen(x: Tensor, hidden: float) -> Tensor:
    """Of which positions of x (B, C, H, W) the decoder sees something: (B, 1, H, W), 0 or 1.

    One of each picture is always seen: a small picture has few, and from nothing a map of zeros is
    rebuilt, where the cosine's gradient has no bound.
    """
    draws = torch.rand_like(x[:, :1], dtype=torch.float32)
    return (draws >= draws.amax((2, 3), keepdim=True).clamp_max(hidden)).to(x.dtype)


def anomaly_maps(
    teacher: Sequence[Tensor],
    student: Sequence[Tensor],
    size: tuple[int, int],
    *,
    damping: float = 0.0,
    pooling: int = 1,
    weights: Sequence[float] | None = None,
) -> Tensor:
    """The cosine distances of all scales, resized, summed, divided by 9 and smoothed.

    Resizing and smoothing are linear along each axis, so a scale's share is one pair of matrix
    products. They run in float32, under autocast too.

    Args:
        teacher: Maps (B, C_i, H_i, W_i), of 16 bits or more.
        student: Maps of the same shapes.
        size: Height and width of the result.
        damping: See ``ModelConfig.damping``.
        pooling: See ``ModelConfig.fine_pooling``.
        weights: Of the scales; None: 1 each.

    Returns:
        float32 (float64 for such maps), (B, height, width).
    """
    with torch.autocast(teacher[0].device.type, enabled=False):
        distances = [
            cosine_distance(t, s, damping=damping * t.shape[1])
            for t, s in zip(teacher, student, strict=True)
        ]
        if pooling > 1:
            # No student knows the exact place of a texture's grain: in averages it does not count.
            finest = [_average(maps[0], pooling) for maps in (teacher, student)]
            smooth = cosine_distance(*finest, damping=damping * finest[0].shape[1])
            distances[0] = (distances[0].clamp_min(0) * smooth.clamp_min(0)).sqrt()
        count = len(teacher)
        scales = [weight / count**2 for weight in weights or [1.0] * count]
        return _resize_and_smooth(distances, size, SMOOTHING, scales)


def _average(maps: Tensor, side: int) -> Tensor:
    """The means over squares of odd side, at the border over what there is of them."""
    return F.avg_pool2d(maps, side, stride=1, padding=side // 2, count_include_pad=False)


def gaussian_smooth(maps: Tensor, sigma: float) -> Tensor:
    """A Gaussian filter as scipy's: cut off at 4 sigma, mirrored at the border (edge repeated).

    Args:
        maps: (B, H, W), any size, float32 or float64.
        sigma: Deviation in pixels.
    """
    return _resize_and_smooth([maps], (maps.shape[1], maps.shape[2]), sigma, [1.0])


def _resize_and_smooth(
    maps: Sequence[Tensor], size: tuple[int, int], sigma: float, scales: Sequence[float]
) -> Tensor:
    """Σ_i scale_i (S R_i) M_i (S R_i)ᵀ of maps M_i (B, H_i, W_i): the first R resizes rows, the
    other columns, and S smooths. Returns (B, height, width)."""
    shapes, device = tuple((m.shape[1], m.shape[2]) for m in maps), maps[0].device
    left, *right = _line_filters(shapes, size, sigma, tuple(scales), maps[0].dtype, device)
    columns = [m @ r for m, r in zip(maps, right, strict=True)]
    return torch.bmm(left.expand(len(maps[0]), -1, -1), torch.cat(columns, dim=1))


# Never dropped: a CUDA graph reads the matrices at the address they had when it was captured.
_filters: dict[tuple[object, ...], tuple[Tensor, ...]] = {}


@constant_result
def _line_filters(
    shapes: tuple[tuple[int, int], ...],
    size: tuple[int, int],
    sigma: float,
    scales: tuple[float, ...],
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[Tensor, ...]:
    """What resizes lines bilinearly with aligned ends, then smooths them.

    All in one call: torch.compile takes a constant function's results apart by its name alone.

    Returns:
        S [scale_1 R_1 scale_2 R_2 ..] for the rows, (height, Σ H_i), then (S R_i)ᵀ, (W_i, width),
        for the columns of every map.
    """
    key = (shapes, size, sigma, scales, dtype, device)
    if key in _filters:
        return _filters[key]
    height, width = size
    rows, columns = _smoothing(height, sigma), _smoothing(width, sigma)
    parts = zip(scales, shapes, strict=True)
    arrays = [np.concatenate([(s * rows) @ _resizing(h, height) for s, (h, _) in parts], axis=1)]
    arrays += [columns @ _resizing(wide, width) for _, wide in shapes]
    with torch.inference_mode(False):  # so that training can use what prediction made first
        left, *right = (torch.from_numpy(a).to(device, dtype, copy=True) for a in arrays)
    matrices = left, *(r.T for r in right)
    if type(left) is Tensor:  # torch.export's stand-ins hold no values
        _filters[key] = matrices
    return matrices


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


def build(
    config: ModelConfig,
    *,
    loss_weight: float = 5.0,
    backend: Backend = "auto",
    drawn: bool = True,
) -> MambaAD:
    """The network of a configuration, with the encoder's weights still random.

    ``mambaad.model.encoder.load_pretrained`` or a run folder's file fills them.

    Args:
        config: The settings.
        loss_weight: What the published loss is multiplied by.
        backend: Home of the scan.
        drawn: Whether neck and decoder get their random first values. Without, their weights are
            whatever their memory holds, and all of them have to be loaded.

    Raises:
        ConfigError: If the encoder is not known, or has no maps at strides 4, 8 and 16.
    """
    encoder = build_encoder(config.encoder)
    with nullcontext() if drawn else torch.device("meta"):
        neck = HalfFPN(encoder.channels)
        decoder = Decoder(config, encoder.channels, neck.out_channels, backend=backend)
    if not drawn:
        neck, decoder = neck.to_empty(device="cpu"), decoder.to_empty(device="cpu")
    model = MambaAD(encoder, neck, decoder, loss_weight=loss_weight)
    model.neck_dropout, model.neck_noise = config.neck_dropout, config.neck_noise
    model.neck_masking, model.damping = config.neck_masking, config.damping
    model.fine_pooling, model.map_weights = config.fine_pooling, config.map_weights
    model.recentring = Recentring(encoder.channels) if config.recentre else None
    model.score_top = config.score_top
    return model


def parameter_count(model: nn.Module) -> int:
    """All parameters, frozen ones included."""
    return sum(math.prod(p.shape) for p in model.parameters())
