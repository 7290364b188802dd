"""A copy of MambaAD for prediction on a CPU in float32: fewer passes over the maps.

In the encoder and the neck norms are folded as on a GPU (``mambaad.model.fold``), and convolutions
read maps channels last. In the decoder

    products are oneDNN's, by the operator that torch's own compiler calls on a CPU; what torch
    takes by itself needs a fifth more time for maps as narrow as these;
    the first product of an HSS block is two, so that no half is copied out of the whole;
    branches of an LSS module are written side by side, where the product that joins them reads
    them, and that product adds the module's input.

Weights are not packed beforehand. It gains 2 to 5 % of a product, and a convolution whose weights
are packed for maps of another size than those that come can take ten times as long. ReLU and SiLU
within oneDNN's operators gain nothing either: they are as long as the passes that they save.
"""

from __future__ import annotations

import platform
from typing import TypeGuard, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mambaad.fused.instance import normalised
from mambaad.model.blocks import LOCAL, HSSBlock, LSSModule
from mambaad.model.fold import folded_copy, hooked
from mambaad.model.layers import PointwiseConv
from mambaad.model.mambaad import MambaAD
from mambaad.scan import cross_scan

OPERATOR = "_linear_pointwise"
"""Of torch.ops.mkldnn since 2.0, for torch's own use: it need not stay."""

LOCAL_KINDS = (LOCAL, LOCAL[2:4])
"""The layers of a local branch, with and without its 1x1 convolutions."""


def runs(model: object) -> TypeGuard[MambaAD]:
    """Whether ``cpu_copy`` takes the network here: MambaAD, all in float32 on an x86 CPU."""
    return (
        isinstance(model, MambaAD)
        and all(p.device.type == "cpu" and p.dtype == torch.float32 for p in model.parameters())
        and platform.machine().lower() in ("x86_64", "amd64")
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, OPERATOR)
    )


def cpu_copy(model: MambaAD) -> MambaAD:
    """A frozen copy for prediction only; later changes of the original do not reach it.

    Args:
        model: One that ``runs`` takes.

    Returns:
        In evaluation mode. Its maps differ from the original's by rounding.
    """
    twin = folded_copy(model)
    for part in (twin.encoder, twin.neck):
        part.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    _replace_parts(twin.decoder)
    return twin


class Product(nn.Module):
    """W x + b, or W x + b + z.

    Args:
        weight: (outputs, inputs).
        bias: (outputs,) or None.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach().contiguous(), requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)

    def forward(self, x: Tensor, z: Tensor | None = None) -> Tensor:
        """Args: x (..., inputs); z of the result's shape. Returns: (..., outputs), contiguous."""
        product = torch.ops.mkldnn._linear_pointwise
        if z is None:
            y: Tensor = product(x, self.weight, self.bias, "none", [], "")
        else:
            y = product.binary(x, z, self.weight, self.bias, "add")
        return y


class SplitHSS(HSSBlock):
    """An HSS block whose first product is two.

    Args:
        block: Its parts are shared where they stay as they are.
    """

    def __init__(self, block: HSSBlock) -> None:
        nn.Module.__init__(self)
        self.backend, self.drop_path = block.backend, block.drop_path
        self.norm, self.conv, self.out_norm = block.norm, block.conv, block.out_norm
        inner, gate = block.in_proj.weight.chunk(2)
        self.inner, self.gate = Product(inner), Product(gate)
        self.project = Product(block.scan_proj.flatten(0, 1))
        self.rows = block.scan_proj.shape[:2]
        self.a_log, self.dt_weight = block.a_log, block.dt_weight
        self.dt_bias, self.skip = block.dt_bias, block.skip
        self.out = Product(block.out_proj.weight)

    def branch(self, normal: Tensor, orders: Tensor) -> Tensor:
        """As the original's."""
        pixels = self.conv(self.inner(normal)).flatten(1, 2)
        scanned = cross_scan(
            pixels,
            self.project(pixels).unflatten(-1, self.rows),
            self.a_log,
            self.dt_weight,
            self.dt_bias,
            self.skip,
            orders,
            backend=self.backend,
        )
        gate = F.silu(self.gate(normal), inplace=True)
        gated = self.out_norm(scanned.view(gate.shape)).mul_(gate)
        out: Tensor = self.out(gated)
        return out


class BesideLSS(LSSModule):
    """An LSS module whose branches are written side by side.

    Args:
        module: With HSS blocks and local branches of ``LOCAL_KINDS``, replaced already.
    """

    def __init__(self, module: LSSModule) -> None:
        nn.Module.__init__(self)
        self.residual, self.blocks, self.fuse = module.residual, module.blocks, module.fuse
        self.local = module.local

    def forward(self, x: Tensor, orders: Tensor, factors: Tensor | None = None) -> Tensor:
        """As the original's."""
        x, channels = x.contiguous(), x.shape[3]
        joined = x.new_empty(*x.shape[:3], channels * (1 + len(self.local)))
        own, *places = joined.split(channels, dim=-1)
        total, branch, _ = self._cascade_parts(x, orders, factors)
        torch.add(total, branch, out=own)
        for layers, place in zip(self.local.values(), places, strict=True):
            y = x
            for layer in list(cast(nn.Sequential, layers))[:-1]:
                y = layer(y)
            torch.ops.aten.silu.out(normalised(y), out=place)
        fused: Tensor = self.fuse(joined, x) if self.residual else self.fuse(joined)
        return fused


def _replace_parts(parent: nn.Module) -> None:
    """Put others in the place of a module's products, HSS blocks and LSS modules.

    Exact types only, since a subclass may do more; and what has hooks stays, with all within.
    """
    for name, child in list(parent.named_children()):
        if any(hooked(module) for module in child.modules()):
            if not hooked(child):
                _replace_parts(child)
            continue
        if type(child) is PointwiseConv:
            new: nn.Module = Product(child.weight.flatten(1), child.bias)
        elif type(child) is nn.Linear:
            new = Product(child.weight, child.bias)
        elif type(child) is HSSBlock:
            new = SplitHSS(child)
        else:
            beside = type(child) is LSSModule and _joins(child)
            _replace_parts(child)
            new = BesideLSS(cast(LSSModule, child)) if beside else child
        setattr(parent, name, new)


def _joins(module: LSSModule) -> bool:
    """Whether the module has both kinds of branches, the local ones as ``BesideLSS`` runs them."""
    kinds = [[type(layer) for layer in cast(nn.Sequential, b)] for b in module.local.values()]
    return bool(module.blocks) and bool(kinds) and all(kind in LOCAL_KINDS for kind in kinds)
