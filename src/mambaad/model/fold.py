"""A copy of a network for inference only: batch norms folded, convolutions joined with what
follows them, weights in 16 bits beforehand.

A batch norm in evaluation mode is a line y = (x - mean) · gain / √(variance + ε) + bias for every
channel, so a convolution whose result goes nowhere else can do it itself:

    W' = W · gain / √(variance + ε)        b' = (b - mean) · gain / √(variance + ε) + bias

What follows, ReLU(W' ∗ x + b') and ReLU(W' ∗ x + b' + shortcut), is one call of cuDNN for 16-bit
tensors (``ConvReLU``): it rounds once, where three kernels round after each step.

Autocast casts float32 weights at every call, a hundred small kernels that a CUDA graph would
replay each time; weights that are 16-bit already need none. Norms, the scan's step size, decay and
skip keep their dtype: they are never cast; depth-wise filters lie as their kernel reads them, which
else copies them each time. The first 1x1 convolutions of an LSS module's local branches are one
matrix product, and the norms behind them one norm, as in training (``JoinedLSS``); their weights
are joined once, here. The copy does not follow later changes of the original.
"""

from __future__ import annotations

import copy
import operator
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from mambaad.model.blocks import HSSBlock, LSSModule
from mambaad.model.encoder import FrozenEncoder
from mambaad.model.layers import DepthwiseConv, PointwiseConv
from mambaad.model.neck import Bottleneck, HalfFPN

_Network = TypeVar("_Network", bound=nn.Module)

CAST = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d)
"""Layers that autocast runs in 16 bits, weights and biases alike."""

TIMM_BLOCKS = {("timm.models.resnet", name) for name in ("BasicBlock", "Bottleneck")}
"""Module and name of the kinds of timm's blocks that ``Residual`` may replace."""


def inference_copy(model: _Network, dtype: torch.dtype) -> _Network:
    """A frozen copy of a network, to be run under autocast if ``dtype`` has 16 bits.

    Convolutions' weights are laid out channels last, as tensor cores want them. On a CUDA device
    a convolution with its ReLU, and in residual blocks the sum too, is one kernel in 16 bits.

    Args:
        model: MambaAD, or any other; folding looks into frozen encoders and Half-FPNs only.
        dtype: Of the weights of linear and convolution layers and of the scan's projection;
            others, depth-wise convolutions among them, keep theirs.

    Returns:
        In evaluation mode, on the same device, without gradients.
    """
    twin = folded_copy(model)
    _join_branches(twin)
    for module in twin.modules():
        if isinstance(module, CAST) and not isinstance(module, DepthwiseConv):
            module.to(dtype)  # depth-wise kernels take float32 weights, as in training
        elif isinstance(module, HSSBlock):
            module.scan_proj.data = module.scan_proj.to(dtype)
    twin.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for module in twin.modules():
        if isinstance(module, DepthwiseConv):
            weight = module.weight
            weight.data = weight.permute(2, 3, 1, 0).contiguous().permute(3, 2, 0, 1)
    return twin


def folded_copy(model: _Network) -> _Network:
    """A frozen copy with batch norms, ReLUs and sums of residual blocks in the convolutions.

    Args:
        model: Any network; only its frozen encoders and Half-FPNs are looked into.

    Returns:
        In evaluation mode, on the same device, every weight in its dtype.
    """
    twin = copy.deepcopy(model).eval().requires_grad_(False)
    for module in list(twin.modules()):
        if isinstance(module, (FrozenEncoder, HalfFPN)):
            network = module.body if isinstance(module, FrozenEncoder) else module
            _fold(network)
            _join_activations(network)
            _join_residuals(network)
    return twin


class ConvReLU(nn.Module):
    """ReLU(convolution(x) + z), for inference. On CUDA in 16 bits one call of cuDNN, elsewhere or
    where cuDNN has no such kernel the three steps.

    Args:
        convolution: Used as it is; any dtype.
    """

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.convolution = convolution
        self.refused = False

    def forward(self, x: Tensor, z: Tensor | None = None) -> Tensor:
        """Args: x (B, C, H, W); z of the result's shape. Returns: (B, C_out, H_out, W_out)."""
        if self._has_one_call(x):
            try:
                return self._one_call(x, z)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError:  # no engine for these sizes; a graph's warm-up finds that out
                self.refused = True
        y = self.convolution(x)
        return F.relu(y if z is None else y + z, inplace=True)

    def _has_one_call(self, x: Tensor) -> bool:
        convolution = self.convolution
        return (
            x.is_cuda
            and not self.refused
            and not torch.compiler.is_compiling()  # it has its own way to join them
            and not (torch.is_grad_enabled() and x.requires_grad)  # the call has no gradient
            and torch.version.cuda is not None
            and torch.backends.cudnn.enabled
            and convolution.weight.dtype in (torch.bfloat16, torch.float16)
            and convolution.bias is not None
            and convolution.padding_mode == "zeros"
            and not isinstance(convolution.padding, str)
        )

    def _one_call(self, x: Tensor, z: Tensor | None) -> Tensor:
        c = self.convolution
        dtype, last = c.weight.dtype, torch.channels_last
        x = x.to(dtype, memory_format=last)  # pictures come as float32
        sizes = (c.stride, cast("tuple[int, ...]", c.padding), c.dilation, c.groups)
        if z is None:
            y: Tensor = torch.cudnn_convolution_relu(x, c.weight, c.bias, *sizes)
        else:
            z = z.to(dtype, memory_format=last)
            y = torch.cudnn_convolution_add_relu(x, c.weight, z, 1.0, c.bias, *sizes)
        return y


class JoinedLSS(LSSModule):
    """An LSS module whose local branches begin together, with weights that are joined already.

    Args:
        module: Two or more local branches, all of which begin with a 1x1 convolution. Its parts
            are used as they are, apart from those convolutions.
    """

    def __init__(self, module: LSSModule) -> None:
        nn.Module.__init__(self)
        self.residual, self.blocks, self.fuse = module.residual, module.blocks, module.fuse
        branches = [cast(nn.Sequential, branch) for branch in module.local.values()]
        firsts = [cast(PointwiseConv, branch[0]) for branch in branches]
        self.norm = branches[0][1]
        self.local = nn.ModuleDict({n: b[2:] for n, b in zip(module.local, branches, strict=True)})
        with torch.device("meta"):  # no random numbers are drawn for values that are replaced
            self.first = PointwiseConv(firsts[0].in_channels, sum(f.out_channels for f in firsts))
        weight = torch.cat([first.weight for first in firsts]).detach()
        bias = torch.cat([cast(Tensor, first.bias) for first in firsts]).detach()
        self.first.weight = nn.Parameter(weight, requires_grad=False)
        self.first.bias = nn.Parameter(bias, requires_grad=False)

    def _local_branches(self, x: Tensor) -> list[Tensor]:
        parts = self.norm(self.first(x)).chunk(len(self.local), dim=-1)
        return [rest(part) for rest, part in zip(self.local.values(), parts, strict=True)]


class Residual(nn.Module):
    """ReLU(last(body(x)) + shortcut(x)), the sum in ``last``."""

    def __init__(self, body: nn.Module, last: ConvReLU, shortcut: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.last = last
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.body(x), self.shortcut(x))
        return y


class _Call(NamedTuple):
    """A module that a network calls, and what that reads."""

    name: str
    module: nn.Module
    source: fx.Node


def _join_branches(network: nn.Module) -> None:
    """Replace every LSS module that ``JoinedLSS`` may."""
    for name, module in list(network.named_modules()):
        if type(module) is not LSSModule or not name or len(module.local) < 2:
            continue
        branches = [cast(nn.Sequential, branch) for branch in module.local.values()]
        if all(isinstance(branch[0], PointwiseConv) for branch in branches):
            _replace(network, name, JoinedLSS(module).eval())


def _fold(network: nn.Module) -> None:
    """Fold every batch norm into the convolution before it where nothing else reads that."""
    calls = _calls(network, _trace(network))
    for name, norm, source in calls.values():
        before = calls.get(source)
        # exact types: a subclass may do more, timm's applies an activation too
        if before is None or len(source.users) != 1 or type(before.module) is not nn.Conv2d:
            continue
        if type(norm) is nn.BatchNorm2d and norm.track_running_stats:
            exact = copy.deepcopy(before.module).double(), copy.deepcopy(norm).double()
            fused = fuse_conv_bn_eval(*exact).to(before.module.weight.dtype)
            _replace(network, before.name, fused)
            _replace(network, name, nn.Identity())


def _join_activations(network: nn.Module) -> None:
    """Put every ReLU into the convolution before it where nothing else reads that."""
    calls = _calls(network, _trace(network))
    for name, activation, source in calls.values():
        if type(activation) is not nn.ReLU:
            continue
        before = [call for call in _way(source, calls) if type(call.module) is not nn.Identity]
        if before and type(before[-1].module) is nn.Conv2d:
            _replace(network, before[-1].name, ConvReLU(before[-1].module))
            _replace(network, name, nn.Identity())


def _join_residuals(network: nn.Module) -> None:
    """Replace residual blocks of timm's ResNets and of the neck that are nothing more.

    Only these kinds: in others the summands may differ in shape, which cuDNN does not take.
    """
    for name, block in list(network.named_modules()):
        kind = type(block)
        if kind is not Bottleneck and (kind.__module__, kind.__name__) not in TIMM_BLOCKS:
            continue
        joined = _residual(block) if name and not hooked(block) else None
        if joined is not None:
            _replace(network, name, joined)


def _residual(block: nn.Module) -> Residual | None:
    """The block, if all it computes is ReLU(body(x) + shortcut(x)), a convolution last in body."""
    nodes = _trace(block)
    calls = _calls(block, nodes)
    relu = nodes[-1].args[0] if nodes else None
    if not isinstance(relu, fx.Node):
        return None
    known = relu in calls and type(calls[relu].module) is nn.ReLU
    total = relu.args[0] if known or relu.target is F.relu else None
    if not isinstance(total, fx.Node) or total.target not in (operator.add, operator.iadd):
        return None
    ways = [[call.module for call in _way(summand, calls)] for summand in total.args]
    if len(nodes) != sum(map(len, ways)) + 4:  # what comes in, the sum, the ReLU, what goes out
        return None
    body, shortcut = ([m for m in way if type(m) is not nn.Identity] for way in ways)
    last = body.pop() if body else None
    if type(last) is not nn.Conv2d:
        return None
    if shortcut and type(shortcut[-1]) is nn.Conv2d:
        _move_bias(shortcut[-1], last)
    return Residual(nn.Sequential(*body), ConvReLU(last), nn.Sequential(*shortcut))


def _move_bias(source: nn.Conv2d, target: nn.Conv2d) -> None:
    """Let the bias of one summand be added with the other's, which saves a kernel."""
    if source.bias is not None and target.bias is not None:
        target.bias.data = target.bias + source.bias
        source.bias = None


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, ConvReLU) or super().is_leaf_module(m, module_qualified_name)


def _trace(network: nn.Module) -> list[fx.Node]:
    """What the network computes, step by step; nothing if that depends on values."""
    try:
        return list(_Tracer().trace(network).nodes)
    except (fx.proxy.TraceError, TypeError, ValueError, RuntimeError, AttributeError, KeyError):
        return []


def _calls(network: nn.Module, nodes: Sequence[fx.Node]) -> dict[fx.Node, _Call]:
    """The calls of modules that may be replaced: of one argument, called once, known by one name,
    without hooks."""
    modules = dict(network.named_modules())
    names = Counter(module for _, module in network.named_modules(remove_duplicate=False))
    times = Counter(node.target for node in nodes if node.op == "call_module")
    found = {}
    for node in nodes:
        if node.op != "call_module" or times[node.target] != 1 or len(node.args) != 1:
            continue
        source, module = node.args[0], modules[str(node.target)]
        if not isinstance(source, fx.Node) or node.kwargs:
            continue
        if names[module] == 1 and not hooked(module):
            found[node] = _Call(str(node.target), module, source)
    return found


def hooked(module: nn.Module) -> bool:
    """Whether something is called with the module's results, or before it runs."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _way(end: object, calls: Mapping[fx.Node, _Call]) -> list[_Call]:
    """The calls, one after the other, that lead to a node and nowhere else."""
    way: list[_Call] = []
    while isinstance(end, fx.Node) and end in calls and len(end.users) == 1:
        way.insert(0, calls[end])
        end = calls[end].source
    return way


def _replace(network: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(network.get_submodule(parent), child, module)
