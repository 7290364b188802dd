"""Half-FPN and its bottleneck: three maps of the encoder in, the decoder's first map out.

The Half-FPN goes one way only, from fine to coarse: the finest map is brought down by strided
convolutions, the other two are added on the way. Three residual bottlenecks (the first with
stride 2) then make the small map from which the decoder has to rebuild all three. The paper
(section 3.1) names the Half-FPN; the bottlenecks are in the published code only.

Feature maps here are channels first: (B, C, H, W).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mambaad.fused import batch

MOMENTUM = 0.1
"""Weight of a batch in the running statistics, torch's own."""

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
        fused = _FusedNorms.of(self, coarse)
        if fused is not None:
            return self._train_on_gpu(fused, fine, middle, coarse)
        middle = self.side1(middle) + self.down1(fine)
        coarse = self.side2(coarse) + self.down2(middle)
        out: Tensor = self.bottlenecks(self.join(coarse))
        return out

    def _train_on_gpu(
        self, fused: _FusedNorms, fine: Tensor, middle: Tensor, coarse: Tensor
    ) -> Tensor:
        middle = fused.layer(self.side1, middle) + fused.layer(self.down1, fine)
        coarse = fused.layer(self.side2, coarse) + fused.layer(self.down2, middle)
        x = fused.layer(self.join, coarse)
        for block in self.bottlenecks:
            x = fused.bottleneck(cast(Bottleneck, block), x)
        fused.follow()
        return x


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


class _FusedNorms:
    """Runs the neck's layers in training with each norm, sum and ReLU in one kernel.

    A convolution's bias before a norm is left out: the norm takes it away. It counts in the running
    mean, and gets no gradient: that is zero, and only rounding would make it something else.
    """

    def __init__(self) -> None:
        self._seen: list[tuple[nn.BatchNorm2d, batch.Moments]] = []

    @classmethod
    def of(cls, neck: HalfFPN, x: Tensor) -> _FusedNorms | None:
        """None where the layers have to run by themselves: not training, no GPU, other norms."""
        if not (neck.training and torch.is_grad_enabled() and batch.runs(x)):
            return None
        norms = [m for m in neck.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        usual = all(
            type(m) is nn.BatchNorm2d
            and m.training
            and m.affine
            and m.track_running_stats
            and m.momentum == MOMENTUM
            for m in norms
        )
        pixels = x.shape[0] * x.shape[2] * x.shape[3] // 4  # of the smallest map
        return cls() if usual and pixels > 1 else None

    def layer(
        self, layers: nn.Module, x: Tensor, *, residual: Tensor | None = None, relu: bool = True
    ) -> Tensor:
        """A convolution and its norm, the first two of ``layers``; then the sum and the ReLU."""
        convolution, norm, *_ = cast(nn.Sequential, layers)
        convolution, norm = cast(nn.Conv2d, convolution), cast(nn.BatchNorm2d, norm)
        x = F.conv2d(x, convolution.weight, None, convolution.stride, convolution.padding)
        y, moments = batch.batch_norm(
            x, norm.weight, norm.bias, norm.eps,
            shift=convolution.bias, residual=residual, relu=relu,
        )  # fmt: skip
        self._seen.append((norm, moments))
        return y

    def bottleneck(self, block: Bottleneck, x: Tensor) -> Tensor:
        """The residual block."""
        body, shortcut = block.body, x
        if not isinstance(block.shortcut, nn.Identity):
            shortcut = self.layer(block.shortcut, x, relu=False)
        y = self.layer(body[3:6], self.layer(body[:3], x))
        return self.layer(body[6:], y, residual=shortcut)

    @torch.no_grad()
    def follow(self) -> None:
        """Move the running statistics of all norms, at once."""
        running = [cast(Tensor, norm.running_mean) for norm, _ in self._seen]
        running += [cast(Tensor, norm.running_var) for norm, _ in self._seen]
        found = [moments.mean for _, moments in self._seen]
        found += [moments.variance for _, moments in self._seen]
        torch._foreach_lerp_(running, found, MOMENTUM)
        torch._foreach_add_([cast(Tensor, norm.num_batches_tracked) for norm, _ in self._seen], 1)


def _conv(
    inputs: int, outputs: int, size: int, *, stride: int = 1, bias: bool = False
) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, size, stride=stride, padding=size // 2, bias=bias),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )
