"""The decoder's building blocks: HSS (global) and LSS (global beside local).

``HSSBlock``, the Hybrid State Space block (paper, equation 8 and Figure 2c), scans a feature map
along K paths with a selective state space model. ``LSSModule``, the Locality-enhanced State Space
module (equations 4 to 7 and Figure 2b), runs some of them in a cascade beside depth-wise
convolutions and adds the joined result to its input.

Feature maps here are channels last: (B, H, W, C). Letters as in ``mambaad.scan.reference``.
Source: He et al., MambaAD, arXiv 2404.06564; initial values as in the published code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mambaad.model import gated_scan, joined
from mambaad.model.layers import (
    DepthwiseConv,
    DropPath,
    InstanceNormSiLU,
    LayerNorm,
    PointwiseConv,
    SumLayerNorm,
)
from mambaad.scan import Backend, cross_scan

STATE_SIZE = 16
EXPAND = 2
DT_MIN, DT_MAX, DT_FLOOR = 1e-3, 1e-1, 1e-4


class HSSBlock(nn.Module):
    """x + DropPath(Linear(LN(scan(SiLU(DWConv(Linear(LN x))))) · SiLU(gate))).

    Args:
        channels: C of the feature map.
        paths: K, the number of scan paths.
        drop_path: Probability of skipping the branch while training.
        backend: Home of the scan; see ``mambaad.scan.cross_scan``.
    """

    autocast_parameters = ("scan_proj",)

    def __init__(
        self, channels: int, paths: int, *, drop_path: float = 0.0, backend: Backend = "auto"
    ) -> None:
        super().__init__()
        inner, rank = EXPAND * channels, math.ceil(channels / 16)
        self.backend = backend
        self.norm = SumLayerNorm(channels)
        self.in_proj = nn.Linear(channels, 2 * inner, bias=False)
        self.conv = DepthwiseConv(inner, 3, bias=True, silu=True)
        self.scan_proj = nn.Parameter(torch.empty(paths, rank + 2 * STATE_SIZE, inner))
        self.dt_weight = nn.Parameter(torch.empty(paths, inner, rank))
        self.dt_bias = nn.Parameter(torch.empty(paths, inner))
        self.a_log = nn.Parameter(torch.empty(paths, inner, STATE_SIZE))
        self.skip = nn.Parameter(torch.empty(paths, inner))
        self.out_norm = LayerNorm(inner)
        self.out_proj = nn.Linear(inner, channels, bias=False)
        self.drop_path = DropPath(drop_path)
        self._initialise(inner, rank)

    def _initialise(self, inner: int, rank: int) -> None:
        nn.init.uniform_(self.scan_proj, -(inner**-0.5), inner**-0.5)
        nn.init.uniform_(self.dt_weight, -(rank**-0.5), rank**-0.5)
        with torch.no_grad():
            low, high = math.log(DT_MIN), math.log(DT_MAX)
            dt = torch.exp(torch.empty_like(self.dt_bias).uniform_(low, high)).clamp_min(DT_FLOOR)
            self.dt_bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # the inverse of softplus
            self.a_log.copy_(torch.log(torch.arange(1, STATE_SIZE + 1.0)).expand_as(self.a_log))
            self.skip.fill_(1.0)

    def forward(self, x: Tensor, orders: Tensor) -> Tensor:
        """Args: x (B, H, W, C); orders int32 (K, H·W). Returns: (B, H, W, C)."""
        _, normal = self.norm(x)
        out: Tensor = x + self.drop_path(self.branch(normal, orders))
        return out

    def branch(self, normal: Tensor, orders: Tensor) -> Tensor:
        """What is added to x, before drop path.

        Args:
            normal: LN(x), (B, H, W, C).
            orders: int32 (K, H·W).
        """
        batch, height, width, _ = normal.shape
        projected = self.in_proj(normal)
        if self.conv.bias is not None and gated_scan.runs(projected, self.a_log, self.backend):
            gated = gated_scan.gated_scan(
                projected,
                (self.conv.weight, self.conv.bias),
                (self.scan_proj, self.a_log, self.dt_weight, self.dt_bias, self.skip),
                orders,
                (self.out_norm.weight, self.out_norm.bias, self.out_norm.eps),
            )
            y: Tensor = self.out_proj(gated)
            return y
        inner, gate = projected.chunk(2, dim=-1)
        pixels = self.conv(inner).reshape(batch, height * width, -1)
        # One matrix product in raster order: a point-wise map commutes with every path.
        projections = F.linear(pixels, self.scan_proj.flatten(0, 1))
        scanned = cross_scan(
            pixels,
            projections.unflatten(-1, self.scan_proj.shape[:2]),
            self.a_log,
            self.dt_weight,
            self.dt_bias,
            self.skip,
            orders,
            backend=self.backend,
        )
        out: Tensor = self.out_proj(self.out_norm(scanned.reshape(gate.shape), gate))
        return out


class LSSModule(nn.Module):
    """x + Conv1x1([global branch, local branches]).

    The global branch is a cascade of HSS blocks. A local branch is Conv1x1, DWConv kxk, Conv1x1,
    each followed by instance normalisation and SiLU.

    Args:
        channels: C of the feature map.
        paths: K, the number of scan paths.
        blocks: HSS blocks in the cascade (the paper's M); 0 leaves the global branch out.
        kernels: One local branch for each size; empty leaves them out.
        pointwise: Whether local branches have their 1x1 convolutions.
        residual: Whether the input is added.
        drop_path: Probability of skipping an HSS block's branch while training.
        backend: Home of the scan.
    """

    def __init__(
        self,
        channels: int,
        paths: int,
        *,
        blocks: int,
        kernels: tuple[int, ...],
        pointwise: bool = True,
        residual: bool = True,
        drop_path: float = 0.0,
        backend: Backend = "auto",
    ) -> None:
        super().__init__()
        self.residual = residual
        self.blocks = nn.ModuleList(
            HSSBlock(channels, paths, drop_path=drop_path, backend=backend) for _ in range(blocks)
        )
        self.local = nn.ModuleDict(
            {f"kernel{size}": _local_branch(channels, size, pointwise) for size in kernels}
        )
        wide = channels * ((blocks > 0) + len(kernels))
        self.fuse = PointwiseConv(wide, channels)

    def forward(self, x: Tensor, orders: Tensor, factors: Tensor | None = None) -> Tensor:
        """The module on a map.

        Args:
            x: (B, H, W, C).
            orders: int32 (K, H·W).
            factors: (blocks, B, 1, 1, 1) as x, what each branch of the cascade is multiplied by; by
                default drop path draws them.

        Returns:
            (B, H, W, C).
        """
        weights = self._weights() if self.blocks and joined.runs(x) else None
        if weights is not None:
            parts = self._cascade_parts(x, orders, factors)
            if parts[0].dtype == parts[1].dtype == x.dtype:
                return joined.join(x, *parts, weights, residual=self.residual)
            branches = [_sum_of(*parts)]
        else:
            branches = [self._cascade(x, orders, factors)] if self.blocks else []
        branches += self._local_branches(x)
        fused: Tensor = self.fuse(torch.cat(branches, dim=-1))
        return x + fused if self.residual else fused

    def _weights(self) -> joined.Weights | None:
        """What the operator reads; None if the local branches are not those that it knows."""
        branches = [list(cast(nn.Sequential, branch)) for branch in self.local.values()]
        if not 1 <= len(branches) <= joined.MOST_BRANCHES:
            return None
        if any([type(layer) for layer in layers] != LOCAL for layers in branches):
            return None
        firsts, filters, seconds = zip(*(layers[::2] for layers in branches), strict=True)
        return joined.Weights(
            [first.weight for first in firsts],
            [middle.weight for middle in filters],
            [second.weight for second in seconds],
            self.fuse.weight,
            cast(Tensor, self.fuse.bias),
        )

    def _local_branches(self, x: Tensor) -> list[Tensor]:
        """The local branches of x.

        All begin with a 1x1 convolution of x and a norm of each channel by itself. In training they
        share one matrix product and one norm; without gradients joining the weights does not pay.
        """
        branches = [list(cast(nn.Sequential, branch)) for branch in self.local.values()]
        parts: Sequence[Tensor] = [x] * len(branches)
        firsts = [layer for layer, *_ in branches if isinstance(layer, PointwiseConv)]
        if self.training and len(firsts) > 1:
            weight = torch.cat([layer.weight.flatten(1) for layer in firsts])
            bias = torch.cat([cast(Tensor, layer.bias) for layer in firsts])
            parts = branches[0][1](F.linear(x, weight, bias)).chunk(len(branches), dim=-1)
            branches = [layers[2:] for layers in branches]
        results = []
        for y, layers in zip(parts, branches, strict=True):
            for layer in layers:
                y = layer(y)
            results.append(y)
        return results

    def _cascade(self, x: Tensor, orders: Tensor, factors: Tensor | None = None) -> Tensor:
        """What the HSS blocks make of x, one after the other."""
        return _sum_of(*self._cascade_parts(x, orders, factors))

    def _cascade_parts(
        self, x: Tensor, orders: Tensor, factors: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """The sum before the last block, that block's branch, and the branch's factor.

        Each block's sum is taken with the next one's norm.
        """
        blocks = [cast(HSSBlock, block) for block in self.blocks]
        if factors is None:
            factors = blocks[0].drop_path.factors(x, len(blocks))  # at once; they share a rate
        each = [None] * len(blocks) if factors is None else factors.unbind()
        _, normal = blocks[0].norm(x)
        branch = blocks[0].branch(normal, orders)
        for block, factor in zip(blocks[1:], each, strict=False):
            x, normal = block.norm(x, branch, factor)
            branch = block.branch(normal, orders)
        return x, branch, each[-1]


LOCAL: list[type[nn.Module]] = [
    PointwiseConv,
    InstanceNormSiLU,
    DepthwiseConv,
    InstanceNormSiLU,
    PointwiseConv,
    InstanceNormSiLU,
]
"""The layers of a local branch with its 1x1 convolutions."""


def _sum_of(x: Tensor, branch: Tensor, factor: Tensor | None) -> Tensor:
    return x + (branch if factor is None else branch * factor)


def _local_branch(channels: int, size: int, pointwise: bool) -> nn.Sequential:
    convolutions: list[nn.Module] = [DepthwiseConv(channels, size)]
    if pointwise:
        before, after = PointwiseConv(channels, channels), PointwiseConv(channels, channels)
        convolutions = [before, *convolutions, after]
    layers: list[nn.Module] = []
    for convolution in convolutions:
        layers += [convolution, InstanceNormSiLU()]
    return nn.Sequential(*layers)


def initialise_decoder(module: nn.Module) -> None:
    """The published initial values of the decoder's plain layers (``nn.Module.apply`` it).

    Linear: truncated normal, deviation 0.02. Convolution: normal, variance 2 / (k² C_out / groups),
    bias 0. LayerNorm: 1 and 0, which is torch's own.
    """
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
    elif isinstance(module, nn.Conv2d):
        fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
        # Drawn in the order of the indices, however the weight lies in memory.
        drawn = torch.empty(module.weight.shape, device=module.weight.device)
        module.weight.data.copy_(nn.init.normal_(drawn, std=math.sqrt(2 / fan_out)))
        if module.bias is not None:
            nn.init.zeros_(module.bias)
