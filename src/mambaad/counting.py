"""What a network consists of, part by part: parameters, and multiply-adds of one picture.

Parts are the encoder, the neck (Half-FPN with its bottlenecks) and the decoder's four stages, named
by the size of their maps. Multiply-adds are counted as in the published table, by fvcore's rule: a
multiply-add is one; a norm costs 4 for each number and one more with weights, a BatchNorm at rest 1
and one more; biases, activations, sums and resizing nothing. (fvcore reads einsum products off a
text of four digits; these are exact, which is up to 3e-5 less in all.) That rule leaves the scan
out, so it is counted beside it:

    scan = 9 L K D N        for each HSS block

with L pixels, K paths, D inner channels and N states, as in state-spaces/mamba, discussion 110.
Sources: He et al., MambaAD, arXiv 2404.06564, its table of depths; for the rule fvcore's
``jit_handles.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mambaad.model import MambaAD
from mambaad.model.blocks import HSSBlock, LSSModule

NORMS = (
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.LayerNorm,
    nn.GroupNorm,
)


@dataclass(frozen=True)
class Count:
    """What one part of the network consists of.

    Args:
        part: Its name.
        trainable: Parameters that training changes.
        frozen: Parameters that it does not.
        products: Multiply-adds of one picture, those of the scan left out.
        scan_products: Those of the scan.
    """

    part: str
    trainable: int
    frozen: int
    products: int
    scan_products: int


def count_parts(model: MambaAD, height: int, width: int) -> list[Count]:
    """Parameters, and the multiply-adds of one picture of that size, by part.

    Encoder and neck are run once on an empty picture, on whatever device they are (torch's
    ``meta`` too, which computes nothing); the decoder is counted from its layers and map sizes.
    """
    device = next(model.parameters()).device
    with torch.no_grad():
        picture = torch.zeros(1, 3, height, width, device=device)
        teacher, encoder = _run_and_count(model.encoder, picture)
        first, neck = _run_and_count(model.neck, teacher)
    counts = [
        Count("encoder", *_parameters(model.encoder), encoder, 0),
        Count("neck", *_parameters(model.neck), neck, 0),
    ]
    height, width = first.shape[2:]
    for expand, stage in zip(model.decoder.expands, model.decoder.stages, strict=True):
        products = 0
        if any(True for _ in expand.parameters()):  # the first stage has nothing to expand
            products = _expand_products(expand, height * width)
            height, width = 2 * height, 2 * width
        modules = cast("nn.ModuleList", stage)
        products += sum(_lss_products(cast(LSSModule, m), height * width) for m in modules)
        blocks = hss_blocks(modules)
        scans = sum(9 * height * width * block.a_log.numel() for block in blocks)
        parameters = _parameters(expand, stage)
        counts.append(Count(f"decoder {height}x{width}", *parameters, products, scans))
    return counts


def sum_counts(counts: Sequence[Count]) -> Count:
    """The whole of some parts."""
    names = ("trainable", "frozen", "products", "scan_products")
    return Count("in all", *(sum(getattr(count, name) for count in counts) for name in names))


def _parameters(*modules: nn.Module) -> tuple[int, int]:
    """Trainable and frozen."""
    numbers = [(p.numel(), p.requires_grad) for m in modules for p in m.parameters()]
    trainable = sum(n for n, trained in numbers if trained)
    return trainable, sum(n for n, _ in numbers) - trainable


def _run_and_count(module: nn.Module, *inputs: Any) -> tuple[Any, int]:
    """The module's result and its multiply-adds.

    torch counts products and convolutions as it runs them, whoever calls them, and two for a
    multiply-add; norms are counted by the layers' hooks.
    """
    norms = 0

    def norm(layer: nn.Module, taken: tuple[Tensor, ...], _: Any) -> None:
        nonlocal norms
        at_rest = isinstance(layer, nn.modules.batchnorm._BatchNorm) and not layer.training
        norms += taken[0].numel() * ((1 if at_rest else 4) + (layer.weight is not None))

    with ExitStack() as stack:
        for layer in module.modules():
            if isinstance(layer, NORMS):
                stack.callback(layer.register_forward_hook(norm).remove)
        counter = stack.enter_context(FlopCounterMode(display=False))
        result = module(*inputs)
    return result, counter.get_total_flops() // 2 + norms


def _expand_products(expand: nn.Module, pixels: int) -> int:
    """Of a ``PatchExpand`` over a coarse map: the product there, the norm over the fine map."""
    linear, norm = cast(nn.Linear, expand.expand), cast(nn.LayerNorm, expand.norm)
    return pixels * linear.weight.numel() + 5 * 4 * pixels * norm.weight.numel()


def _lss_products(module: LSSModule, pixels: int) -> int:
    """Without the scan. From the layers' weights, since fused code calls no hooks."""
    products = pixels * module.fuse.weight.numel()
    products += sum(_hss_products(block, pixels) for block in hss_blocks([module]))
    for layer in module.local.modules():
        if isinstance(layer, nn.Conv2d):  # an instance norm follows each
            products += pixels * (layer.weight.numel() + 4 * layer.out_channels)
    return products


def _hss_products(block: HSSBlock, pixels: int) -> int:
    """Without the scan, but with its projections: of x, and of the low-rank step sizes."""
    layers = (block.in_proj, block.conv, block.out_proj)
    weights = sum(layer.weight.numel() for layer in layers)
    norms = 5 * (block.norm.weight.numel() + block.out_norm.weight.numel())
    return pixels * (weights + norms + block.scan_proj.numel() + block.dt_weight.numel())


def hss_blocks(modules: Any) -> list[HSSBlock]:
    """All HSS blocks of some LSS modules."""
    return [block for module in modules for block in module.blocks]
