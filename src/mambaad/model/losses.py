"""What training makes small: how far the student's maps s are from the teacher's t, by scale.

    mse             mean over all values of (s - t)²                    as published
    cosine          mean over pixels of 1 - cos(s, t)                   what the anomaly map shows
    global-cosine   mean over pictures of 1 - cos(s, t), a picture's map as one long vector

The cosine distances are damped as those of the anomaly map are (``ModelConfig.damping``). A scale's
loss is multiplied by its own weight and by ``loss_weight``. Mining lets points that are
rebuilt badly pull more. It scales the gradient that reaches a point x of the student and leaves
the loss as it is; with d the cosine distance of x:

    none       1                                                         as published
    hardest    ``EASY`` for the ``mining_share`` of a batch's points with the smallest d, else 1;
               the share rises linearly over the first ``mining_ramp`` of the steps
    adaptive   min(d / mean d, ``LARGEST``)

Sources: global cosine and ``hardest`` after Guo et al. 2023, ReContrast, arXiv 2306.02602, and Guo
et al. 2025, Dinomaly, arXiv 2405.14325; ``adaptive`` after Luo et al. 2025, INP-Former, arXiv
2503.02424.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mambaad.fused.cosine import cosine_distance
from mambaad.train_config import LossName, Mining, TrainConfig

EASY = 0.1
"""What the gradient of an easy point is multiplied by."""

LARGEST = 10.0
"""Most that adaptive mining multiplies a gradient by."""


class RebuildingLoss(nn.Module):
    """The loss of three scales. Nothing in it reads a value back from the device."""

    def __init__(
        self,
        kind: LossName = "mse",
        *,
        weight: float = 5.0,
        scale_weights: Sequence[float] = (1.0, 1.0, 1.0),
        mining: Mining = "none",
        mining_share: float = 0.9,
        mining_ramp: float = 0.1,
        damping: float = 0.0,
    ) -> None:
        """Choose a loss.

        Args:
            kind: ``mse``, ``cosine`` or ``global-cosine``.
            weight: Factor on the sum of the scales.
            scale_weights: Factor on each scale, strides 4, 8 and 16.
            mining: ``none``, ``hardest`` or ``adaptive``.
            mining_share: Share of the points that ``hardest`` calls easy, 0 to 1.
            mining_ramp: Share of the steps until that many are, 0 to 1.
            damping: See ``ModelConfig.damping``; of ``cosine`` and of the distances of mining.
        """
        super().__init__()
        self.kind, self.weight = kind, weight
        self.scale_weights = tuple(scale_weights)
        self.mining, self.damping = mining, damping
        self._full_share, self._ramp = mining_share, mining_ramp
        self._shown = 0.0 if mining_ramp else mining_share
        # a tensor, because a CUDA graph holds the loss and the share rises
        self._share: Tensor
        self.register_buffer("_share", torch.tensor(self._shown), persistent=False)

    def set_progress(self, done: float) -> None:
        """Say how far the training is, 0 to 1, before a step."""
        share = self._full_share * (min(1.0, done / self._ramp) if self._ramp else 1.0)
        if self.mining == "hardest" and share != self._shown:
            self._shown = share
            self._share.fill_(share)

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> dict[str, Tensor]:
        """The loss by scale, weighted; its sum is the loss.

        Args:
            student: Maps (B, C_i, H_i, W_i), finest first.
            teacher: Maps of the same shapes.
        """
        return {
            f"stride{4 * 2**i}": self.weight * own * self._of_scale(s, t)
            for i, (own, s, t) in enumerate(zip(self.scale_weights, student, teacher, strict=True))
        }

    def _of_scale(self, student: Tensor, teacher: Tensor) -> Tensor:
        with torch.autocast(student.device.type, enabled=False):
            s, t = student, teacher.to(torch.promote_types(teacher.dtype, torch.float32))
            damping = self.damping * t.shape[1]
            if self.mining != "none":
                distance = cosine_distance(t, s.detach(), damping=damping)
                s = scale_gradient(s, self._pull(distance).unsqueeze(1))
            if self.kind == "mse":
                return F.mse_loss(s.to(t.dtype), t)
            if self.kind == "global-cosine":  # each picture as one pixel of many channels
                s, t = (m.flatten(1)[:, :, None, None] for m in (s, t))
                return cosine_distance(t, s).mean()
            return cosine_distance(t, s, damping=damping).mean()

    def _pull(self, distance: Tensor) -> Tensor:
        """What the gradient of each point is multiplied by; distance (B, H, W)."""
        if self.mining == "adaptive":
            return (distance / distance.mean().clamp_min(1e-12)).clamp(0.0, LARGEST)
        ordered = distance.flatten().sort().values
        place = (self._share * (len(ordered) - 1)).long()
        return torch.where(distance < ordered.index_select(0, place.view(1)), EASY, 1.0)


def rebuilding_loss(config: TrainConfig, damping: float = 0.0) -> RebuildingLoss | None:
    """The loss of a recipe; None if it is the published one, which ``MambaAD`` has itself.

    Args:
        config: What is trained, and how.
        damping: The network's.
    """
    published = config.loss == "mse" and config.mining == "none"
    if published and config.scale_weights == (1.0, 1.0, 1.0):
        return None
    return RebuildingLoss(
        config.loss,
        weight=config.loss_weight,
        scale_weights=config.scale_weights,
        mining=config.mining,
        mining_share=config.mining_share,
        mining_ramp=config.mining_ramp,
        damping=damping,
    )


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: Tensor) -> Tensor:
        ctx.save_for_backward(factor)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (factor,) = ctx.saved_tensors
        return gradient * factor.to(gradient.dtype), None


def scale_gradient(x: Tensor, factor: Tensor) -> Tensor:
    """x itself, whose gradient is multiplied by a factor on its way back.

    Args:
        x: Any shape.
        factor: Of a shape that goes with it; it gets no gradient.
    """
    scaled: Tensor = _ScaleGradient.apply(x, factor)  # type: ignore[no-untyped-call]
    return scaled
