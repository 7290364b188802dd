"""Half-FPN and its bottleneck: three maps of the encoder in, the decoder's first map out.

The Half-FPN goes one way only, from fine to coarse: the finest map is brought down by strided
convolutions, the other two are added on the way. Three residual bottlenecks (the first with
stride 2) then make the small map from which the decoder has to rebuild all three. The paper
(section 3.1) names the Half-FPN; the bottlenecks are in the published code only.

Feature maps here are channels first: (B, C, H, W).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

BOTTLENECKS = 3
EXPANSION = 4


class HalfFPN(nn.Module):
    """Joins three maps of strides 4, 8 and 16 into one of stride 32.

    Args:
        channels: Channels of the three maps, finest first. The output has twice the last.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        fine, middle, coarse = channels
        self.out_channels = 2 * coarse
        self.down1 = _conv(fine, middle, 3, stride=2)
        self.side1 = _conv(middle, middle, 1, bias=True)
        self.down2 = _conv(middle, coarse, 3, stride=2)
        self.side2 = _conv(coarse, coarse, 1, bias=True)
        self.join = _conv(coarse, coarse, 1, bias=True)
        width = self.out_channels // EXPANSION
        self.bottlenecks = nn.Sequential(
            Bottleneck(coarse, width, stride=2),
            *[Bottleneck(self.out_channels, width) for _ in range(BOTTLENECKS - 1)],
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Args: three (B, C_i, H_i, W_i), finest first. Returns: (B, 2 C_3, H_3 / 2, W_3 / 2)."""
        fine, middle, coarse = maps
        middle = self.side1(middle) + self.down1(fine)
        coarse = self.side2(coarse) + self.down2(middle)
        out: Tensor = self.bottlenecks(self.join(coarse))
        return out


class Bottleneck(nn.Module):
    """The residual bottleneck of He et al. 2016: 1x1, 3x3, 1x1, with ReLU after the sum."""

    def __init__(self, channels: int, width: int, *, stride: int = 1) -> None:
        super().__init__()
        out = EXPANSION * width
        self.body = nn.Sequential(
            *_conv(channels, width, 1),
            *_conv(width, width, 3, stride=stride),
            nn.Conv2d(width, out, 1, bias=False),
            nn.BatchNorm2d(out),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels, out, 1, stride=stride, bias=False), nn.BatchNorm2d(out)
            )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.shortcut(x))


def _conv(
    inputs: int, outputs: int, size: int, *, stride: int = 1, bias: bool = False
) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, size, stride=stride, padding=size // 2, bias=bias),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )
