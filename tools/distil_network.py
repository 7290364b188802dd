"""What is trained: the built-in network with batch norms, its mean over time, and its loss.

For a stage with the teacher's map t, the student's z and the deviation σ_c of t's channel c

    loss = mean ((z - t) / σ_c)²  +  ANGLE · mean (1 - cos(z, t))

where the cosine is over the channels of a pixel, as anomaly scores are.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from mambaad.model.builtin import BuiltinNetwork

ANGLE = 2.0
"""Weight of the cosine's part of the loss."""

WARM_UP = 0.03
"""Share of the training after which the rate is full."""


class Student(nn.Module):
    """The built-in network with a batch norm behind every convolution instead of its bias."""

    def __init__(self) -> None:
        super().__init__()
        self.body = BuiltinNetwork()
        for name, plain in list(self.body.named_modules()):
            if isinstance(plain, nn.Conv2d):
                sizes = plain.in_channels, plain.out_channels, 3, plain.stride[0], 1
                bare = nn.Conv2d(*sizes, bias=False)
                nn.init.kaiming_normal_(bare.weight, nonlinearity="relu")
                _replace(self.body, name, nn.Sequential(bare, nn.BatchNorm2d(bare.out_channels)))

    def forward(self, images: Tensor) -> list[Tensor]:
        """As the built-in network."""
        maps: list[Tensor] = self.body(images)
        return maps

    @torch.no_grad()
    def start_near(self, means: Sequence[Tensor], deviations: Sequence[Tensor]) -> None:
        """Give each stage's last norm the teacher's means and deviations to begin with."""
        for stage, mean, deviation in zip(self.body.stages, means, deviations, strict=True):
            # a stage ends with convolution and norm, then ReLU
            norm = cast(nn.BatchNorm2d, cast(nn.Sequential, cast(nn.Sequential, stage)[-2])[1])
            norm.weight.copy_(deviation)
            norm.bias.copy_(mean)

    def folded(self) -> BuiltinNetwork:
        """The network as it ships: the norms' running statistics folded in, in float64."""
        plain = BuiltinNetwork()
        twin = copy.deepcopy(self.body).cpu().double().eval()
        for name, module in list(plain.named_modules()):
            if isinstance(module, nn.Conv2d):
                bare, norm = twin.get_submodule(name).children()
                both = cast(nn.Conv2d, bare), cast(nn.BatchNorm2d, norm)
                _replace(plain, name, fuse_conv_bn_eval(*both).float())
        return plain


def _replace(network: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(network.get_submodule(parent), child, module)


class Average:
    """The exponential mean of a network's weights and statistics.

    Args:
        network: Whose.
        decay: What is kept of the mean at each step, once it has seen enough of them.
    """

    def __init__(self, network: Student, decay: float) -> None:
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.decay = decay
        self._steps = 0

    @torch.no_grad()
    def follow(self, network: Student) -> None:
        """Take a step towards the network."""
        self._steps += 1
        share = 1 - min(self.decay, self._steps / (self._steps + 10))
        mine = self.network.state_dict().values()
        pairs = [
            (m, t)
            for m, t in zip(mine, network.state_dict().values(), strict=True)
            if m.is_floating_point()
        ]
        torch._foreach_lerp_([m for m, _ in pairs], [t for _, t in pairs], share)


def stage_loss(found: Tensor, wanted: Tensor, deviation: Tensor) -> Tensor:
    """The loss of one stage.

    Args:
        found: The student's map, (B, C, h, w).
        wanted: The teacher's.
        deviation: The teacher's, of each channel, (C,).
    """
    found, wanted = found.float(), wanted.float()
    error = F.mse_loss(found / deviation.view(-1, 1, 1), wanted / deviation.view(-1, 1, 1))
    return error + ANGLE * (1 - F.cosine_similarity(found, wanted, dim=1).mean())


def rate(progress: float) -> float:
    """Share of the full learning rate: rising, then half a cosine to zero.

    >>> [round(rate(p), 3) for p in (0.0, WARM_UP, 0.515, 1.0)]
    [0.01, 1.0, 0.5, 0.0]
    """
    if progress < WARM_UP:
        return max(0.01, progress / WARM_UP)
    return 0.5 + 0.5 * math.cos(math.pi * min(1.0, (progress - WARM_UP) / (1 - WARM_UP)))
