"""The Mamba decoder: four stages of LSS modules, each after the first on a map twice as fine.

The stages' widths mirror the encoder's maps (512, 256, 128, 64 for ResNet-18 and 34 with a
256x256 picture at 8x8, 16x16, 32x32, 64x64); the last three stages' outputs are the student's maps.
Source: He et al., MambaAD, arXiv 2404.06564, section 3.1 and Figure 2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from mambaad.config import ModelConfig
from mambaad.constants import constant_result
from mambaad.model.blocks import HSSBlock, LSSModule, initialise_decoder
from mambaad.model.layers import LayerNorm
from mambaad.scan import Backend, direction_orders


class PatchExpand(nn.Module):
    """Twice the height and width: Linear, depth to space, LayerNorm.

    Args:
        inputs: Channels of the map that comes in, (B, H, W, inputs).
        outputs: Channels of the map that goes out, (B, 2H, 2W, outputs).
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.expand = nn.Linear(inputs, 4 * outputs, bias=False)
        self.norm = LayerNorm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        batch, height, width, _ = x.shape
        parts = self.expand(x).reshape(batch, height, width, 2, 2, -1)
        finer = parts.permute(0, 1, 3, 2, 4, 5).reshape(batch, 2 * height, 2 * width, -1)
        out: Tensor = self.norm(finer)
        return out


class Decoder(nn.Module):
    """Rebuilds the encoder's three maps from the neck's one.

    Args:
        config: Depths, scan, and the make-up of the LSS modules.
        channels: Channels of the encoder's maps, finest first.
        in_channels: Channels of the neck's map.
        backend: Home of the scan.
    """

    def __init__(
        self,
        config: ModelConfig,
        channels: Sequence[int],
        in_channels: int,
        *,
        backend: Backend = "auto",
    ) -> None:
        super().__init__()
        self.config = config
        self._tables: dict[tuple[int, int, torch.device], Tensor] = {}
        self._keep: dict[tuple[object, ...], Tensor] = {}
        widths = [in_channels, *reversed(channels)]
        rates = drop_path_rates(config.depths, config.drop_path)
        self.expands = nn.ModuleList(
            [nn.Identity()] + [PatchExpand(wide, narrow) for wide, narrow in pairwise(widths)]
        )
        self.stages = nn.ModuleList()
        for stage, (depth, width) in enumerate(zip(config.depths, widths, strict=True)):
            sizes = lss_sizes(depth, config.hss_per_lss)
            self.stages.append(
                nn.ModuleList(
                    LSSModule(
                        width,
                        config.direction_count,
                        blocks=0 if config.branches == "local" else size,
                        kernels=() if config.branches == "global" else config.kernels,
                        pointwise=config.pointwise,
                        residual=config.residual,
                        drop_path=rates[stage][i],
                        backend=backend,
                    )
                    for i, size in enumerate(sizes)
                )
            )
        self.apply(initialise_decoder)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Args: x (B, C, H, W). Returns: three maps (B, C_i, H_i, W_i), finest first."""
        x = x.permute(0, 2, 3, 1)
        sizes = [(x.shape[1] << i, x.shape[2] << i) for i in range(len(self.stages))]
        self._make_tables(sizes, x.device)
        maps = []
        together = self.training and x.is_cuda and not torch.compiler.is_compiling()
        drawn = iter(self._draw(x) if together else ())
        for expand, stage in zip(self.expands, self.stages, strict=True):
            x = expand(x)
            orders = self.orders(x.shape[1], x.shape[2], x.device)
            for module in stage:  # type: ignore[attr-defined]
                x = module(x, orders, next(drawn, None))
            maps.append(x.permute(0, 3, 1, 2))
        return maps[:0:-1]  # the coarsest map has no counterpart in the encoder

    @torch.no_grad()
    def _draw(self, x: Tensor) -> list[Tensor | None]:
        """Drop path's factors of every module, all drawn by one kernel. None for one that draws its
        own: where nothing is dropped, it does without."""
        modules = [cast(LSSModule, m) for s in self.stages for m in cast(nn.ModuleList, s)]
        counts = [len(module.blocks) for module in modules]
        rates = [cast(HSSBlock, m.blocks[0]).drop_path.rate if m.blocks else 0.0 for m in modules]
        key = (*zip(counts, rates, strict=True), x.device)
        if key not in self._keep:
            line = np.repeat(1 - np.array(rates), counts)
            self._keep[key] = torch.from_numpy(line).to(x.device, torch.float32)
        keep = self._keep[key].view(-1, 1, 1, 1, 1)
        kept = torch.bernoulli(keep.expand(-1, len(x), -1, -1, -1))
        factors = torch.div(kept, keep, out=empty_factors(len(kept), x))
        parts = factors.split(counts)
        return [p if rate else None for p, rate in zip(parts, rates, strict=True)]

    def orders(self, height: int, width: int, device: torch.device) -> Tensor:
        """The scan paths over a map of this size, int32 (K, H·W); made once per size."""
        self._make_tables([(height, width)], device)
        return self._tables[height, width, device]

    def _make_tables(self, sizes: Sequence[tuple[int, int]], device: torch.device) -> None:
        missing = [size for size in sizes if (*size, device) not in self._tables]
        if not missing:
            return
        with torch.inference_mode(False):  # so that a later training can use the tables too
            made = _tables(self.config.scan, self.config.directions, tuple(missing))
            for size, table in zip(missing, made, strict=True):
                self._tables[(*size, device)] = table.to(device)


def empty_factors(count: int, x: Tensor) -> Tensor:
    """Room for drop path's factors of ``count`` blocks, (count, B, 1, 1, 1), for maps x (B, ...).

    Each block's begin at a multiple of 16 bytes: a kernel is compiled for such addresses or for
    others, and so what is compiled for one block does for all.
    """
    wide = -(-len(x) // 16) * 16
    return x.new_empty(count, wide, 1, 1, 1)[:, : len(x)]


# All at once: torch.compile (2.13) takes the results of one call, not of several, for constants.
@constant_result
def _tables(
    method: str | Mapping[str, int],
    directions: int | Literal["distinct"],
    sizes: tuple[tuple[int, int], ...],
) -> tuple[Tensor, ...]:
    orders = (direction_orders(method, directions, *size) for size in sizes)
    return tuple(torch.from_numpy(order) for order in orders)


def lss_sizes(depth: int, hss_per_lss: int | None = None) -> list[int]:
    """How many HSS blocks each LSS module of a stage has.

    The published rule is threes where the depth is a multiple of 3, else twos where it is even.
    Other depths, which the published code cannot build, are threes followed by twos; 1 is a one.

    >>> [lss_sizes(d) for d in (1, 2, 3, 4, 5, 6, 7, 9)]
    [[1], [2], [3], [2, 2], [3, 2], [3, 3], [3, 2, 2], [3, 3, 3]]
    >>> lss_sizes(3, hss_per_lss=1)
    [1, 1, 1]
    """
    if hss_per_lss is not None:
        return [hss_per_lss] * (depth // hss_per_lss)
    if depth == 1:
        return [1]
    if depth % 3 == 0:
        return [3] * (depth // 3)
    if depth % 2 == 0:
        return [2] * (depth // 2)
    threes = next(n for n in range(depth // 3, -1, -1) if (depth - 3 * n) % 2 == 0)
    return [3] * threes + [2] * ((depth - 3 * threes) // 2)


def drop_path_rates(depths: Sequence[int], highest: float) -> list[list[float]]:
    """The drop path rate of each LSS, per stage, as published.

    The rates fall evenly to 0 over all blocks; a stage has a stretch of them as long as its depth,
    and its LSS modules use the first ones of that stretch.
    """
    rates = np.linspace(highest, 0, sum(depths)).tolist()
    starts = np.cumsum([0, *depths]).tolist()
    return [rates[start:end] for start, end in pairwise(starts)]
