"""The decoder's plain layers, for feature maps that are channels last: (B, H, W, C).

Each is torch's module of that kind with its parameters and names; what it computes is in
``mambaad.fused``, in one or two kernels on a GPU.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from mambaad.fused.depthwise import depthwise_conv
from mambaad.fused.instance import instance_norm_silu
from mambaad.fused.norm import layer_norm


class DropPath(nn.Module):
    """Drops the whole branch of a random picture while training, and scales up the others."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        kept = x.new_empty(x.shape[0], *[1] * (x.dim() - 1)).bernoulli_(1 - self.rate)
        return x * (kept / (1 - self.rate))


class LayerNorm(nn.LayerNorm):
    """Layer normalisation of the channels."""

    def forward(self, x: Tensor, gate: Tensor | None = None) -> Tensor:
        """LN(x), times SiLU(gate) if there is a gate.

        Args:
            x: (..., C).
            gate: Of the same shape.
        """
        return layer_norm(x, self.weight, self.bias, self.eps, gate=gate)


class PointwiseConv(nn.Conv2d):
    """A 1x1 convolution with bias: a matrix product."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Args: x (B, H, W, inputs). Returns: (B, H, W, outputs)."""
        return F.linear(x, self.weight.flatten(1), self.bias)


class DepthwiseConv(nn.Conv2d):
    """A convolution of every channel with its own k x k filter, zeros around the map.

    Args:
        channels: C.
        size: k, odd.
        bias: Whether there is one.
        silu: Whether SiLU follows.
    """

    def __init__(self, channels: int, size: int, *, bias: bool = False, silu: bool = False) -> None:
        super().__init__(channels, channels, size, padding=size // 2, groups=channels, bias=bias)
        self.silu = silu

    def forward(self, x: Tensor) -> Tensor:
        """Args: x (B, H, W, C). Returns: (B, H, W, C)."""
        return depthwise_conv(x, self.weight, self.bias, silu=self.silu)


class InstanceNormSiLU(nn.Module):
    """SiLU of the instance normalisation without weights; a map of one pixel becomes 0."""

    def forward(self, x: Tensor) -> Tensor:
        """Args: x (B, H, W, C). Returns: (B, H, W, C)."""
        return instance_norm_silu(x)
