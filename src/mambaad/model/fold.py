"""A copy of a network for inference only: batch norms folded, weights in 16 bits beforehand.

A batch norm in evaluation mode is a line y = (x - mean) · gain / √(variance + ε) + bias for every
channel, so a convolution whose result goes nowhere else can do it itself:

    W' = W · gain / √(variance + ε)        b' = (b - mean) · gain / √(variance + ε) + bias

Autocast casts float32 weights at every call, a hundred small kernels that a CUDA graph would
replay each time; weights that are 16-bit already need none. Norms, the scan's step size, decay and
skip keep their dtype: they are never cast. The copy does not follow later changes of the original.
"""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from mambaad.model.blocks import HSSBlock
from mambaad.model.encoder import FrozenEncoder
from mambaad.model.layers import DepthwiseConv
from mambaad.model.neck import HalfFPN

_Network = TypeVar("_Network", bound=nn.Module)

CAST = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d)
"""Layers that autocast runs in 16 bits, weights and biases alike."""


def inference_copy(model: _Network, dtype: torch.dtype) -> _Network:
    """A frozen copy of a network, to be run under autocast if ``dtype`` has 16 bits.

    Convolutions' weights are laid out channels last, as tensor cores want them.

    Args:
        model: MambaAD, or any other; folding looks into frozen encoders and Half-FPNs only.
        dtype: Of the weights of linear and convolution layers and of the scan's projection;
            others, depth-wise convolutions among them, keep theirs.

    Returns:
        In evaluation mode, on the same device, without gradients.
    """
    twin = copy.deepcopy(model).eval().requires_grad_(False)
    for module in list(twin.modules()):
        if isinstance(module, (FrozenEncoder, HalfFPN)):
            _fold(module.body if isinstance(module, FrozenEncoder) else module)
    for module in twin.modules():
        if isinstance(module, CAST) and not isinstance(module, DepthwiseConv):
            module.to(dtype)  # depth-wise kernels take float32 weights, as in training
        elif isinstance(module, HSSBlock):
            module.scan_proj.data = module.scan_proj.to(dtype)
    twin.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return twin


def _fold(network: nn.Module) -> None:
    """Fold every batch norm into the convolution before it where nothing else reads that."""
    modules = dict(network.named_modules())
    for convolution, norm in _pairs(network, modules):
        wide = [copy.deepcopy(modules[name]).double() for name in (convolution, norm)]
        fused = fuse_conv_bn_eval(*wide).to(modules[convolution].weight.dtype)
        _replace(network, convolution, fused)
        _replace(network, norm, nn.Identity())


def _pairs(network: nn.Module, modules: dict[str, nn.Module]) -> list[tuple[str, str]]:
    """Names of convolutions and the batch norms that alone read them, each called only once."""
    try:
        nodes = list(fx.Tracer().trace(network).nodes)
    except (fx.proxy.TraceError, TypeError, ValueError, RuntimeError, AttributeError, KeyError):
        return []  # its forward pass depends on values, so who reads what is not known
    calls = [str(node.target) for node in nodes if node.op == "call_module"]
    found = []
    for node in nodes:
        source = node.args[0] if node.args else None
        if node.op != "call_module" or not isinstance(source, fx.Node):
            continue
        if source.op != "call_module" or len(source.users) != 1:
            continue
        pair = str(source.target), str(node.target)
        # exact types: a subclass may do more, timm's applies an activation too
        kinds = tuple(type(modules[name]) for name in pair)
        if kinds == (nn.Conv2d, nn.BatchNorm2d) and all(calls.count(name) == 1 for name in pair):
            norm = modules[pair[1]]
            if isinstance(norm, nn.BatchNorm2d) and norm.track_running_stats:
                found.append(pair)
    return found


def _replace(network: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(network.get_submodule(parent), child, module)
