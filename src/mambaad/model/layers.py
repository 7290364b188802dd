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
from mambaad.fused.norm_add import add_layer_norm


class DropPath(nn.Module):
    """Drops the whole branch of a random picture while training, and scales up the others."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        factors = self.factors(x, 1)
        return x if factors is None else x * factors[0]

    def factors(self, x: Tensor, count: int) -> Tensor | None:
        """What ``count`` branches like ``x``, (B, ...), are multiplied by; None if all are kept.

        Returns:
            (count, B, 1, ...): 0 or 1 / (1 - rate).
        """
        if not self.training or self.rate == 0:
            return None
        kept = x.new_empty(count, x.shape[0], *[1] * (x.dim() - 1)).bernoulli_(1 - self.rate)
        return kept / (1 - self.rate)


class LayerNorm(nn.LayerNorm):
    """Layer normalisation of the channels."""

    def forward(self, x: Tensor, gate: Tensor | None = None) -> Tensor:
        """LN(x), times SiLU(gate) if there is a gate.

        Args:
            x: (..., C).
            gate: Of the same shape.
        """
        return layer_norm(x, self.weight, self.bias, self.eps, gate=gate)


class SumLayerNorm(nn.LayerNorm):
    """Layer normalisation of a residual sum, which it also returns."""

    def forward(  # type: ignore[override]
        self, x: Tensor, branch: Tensor | None = None, factor: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """s = x + factor · branch and LN(s).

        Args:
            x: (B, ..., C).
            branch: As x; without it s is x.
            factor: (B, 1, ..., 1), or None for 1.
        """
        if branch is None:
            return x, layer_norm(x, self.weight, self.bias, self.eps)
        return add_layer_norm(x, branch, factor, self.weight, self.bias, self.eps)


class PointwiseConv(nn.Conv2d):
    """A 1x1 convolution with bias: a matrix product."""

    autocast_parameters = ("weight", "bias")

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
        self.lay_out_weight()

    def lay_out_weight(self) -> None:
        """Put channels side by side in memory, as the kernels read them; not a value changes."""
        beside = self.weight.detach().permute(2, 3, 1, 0).contiguous().permute(3, 2, 0, 1)
        self.weight = nn.Parameter(beside, requires_grad=self.weight.requires_grad)

    def forward(self, x: Tensor) -> Tensor:
        """Args: x (B, H, W, C). Returns: (B, H, W, C)."""
        return depthwise_conv(x, self.weight, self.bias, silu=self.silu)


class InstanceNormSiLU(nn.Module):
    """SiLU of the instance normalisation without weights; a map of one pixel becomes 0."""

    def forward(self, x: Tensor) -> Tensor:
        """Args: x (B, H, W, C). Returns: (B, H, W, C)."""
        return instance_norm_silu(x)
