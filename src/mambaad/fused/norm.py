"""Layer normalisation over the channels, times SiLU of a gate.

    y = LN(x) · SiLU(g)        LN(x) = (x - mean) / sqrt(var + eps) · weight + bias
                               SiLU(g) = g · sigmoid(g)

with the biased variance, as torch's. It closes the scan of an HSS block (He et al., MambaAD,
arXiv 2404.06564, Figure 2c). ``_plain`` is the definition; for 16- and 32-bit CUDA tensors one
kernel computes y and one all gradients (``norm_kernels``). The mean and 1/deviation of every row
are kept for the gradient, everything else is computed again.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mambaad.fused import triton_runs
from mambaad.fused.sums import column_sums

PROGRAMS = 528
"""Most programs of the backward kernel: four on each processor of an H200.

A constant, so that sums are taken in the same order on every GPU.
"""


def layer_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float = 1e-5,
    *,
    gate: Tensor | None = None,
    kernel: bool | None = None,
) -> Tensor:
    """LayerNorm over the last dimension, times SiLU(gate) if there is a gate.

    Args:
        x: (..., D), any floating dtype. Statistics and arithmetic are at least float32 in the
            kernels; they read x once if it is contiguous.
        weight: (D,). May be float32 beside a 16-bit x.
        bias: (D,).
        eps: Added to the variance.
        gate: (..., D) as x. Its pixels may lie apart, as in one half of a wider tensor.
        kernel: Whether the Triton kernels run. By default they do for CUDA tensors of 16 or 32
            bits where Triton runs.

    Returns:
        (..., D), in the dtype of the gate if there is one, else of x.

    Raises:
        ValueError: If a shape disagrees with that of x.
    """
    channels = x.shape[-1]
    expected = {
        "weight": (weight, (channels,)),
        "bias": (bias, (channels,)),
        "gate": (gate, tuple(x.shape)),
    }
    for name, (tensor, shape) in expected.items():
        if tensor is not None and tuple(tensor.shape) != shape:
            raise ValueError(f"{name} must have shape {shape}, got {tuple(tensor.shape)}")
    if kernel is None:
        kernel = x.is_cuda and x.dtype != torch.float64 and triton_runs()
    if not kernel:
        return _plain(x, weight, bias, gate, eps)
    y: Tensor = layer_norm_forward(x, weight, bias, gate, eps)[0]
    return y


def _plain(x: Tensor, weight: Tensor, bias: Tensor, gate: Tensor | None, eps: float) -> Tensor:
    """The definition. Mixed dtypes meet in the widest, since torch wants one."""
    wide = torch.promote_types(x.dtype, weight.dtype)
    y = F.layer_norm(x.to(wide), weight.shape, weight.to(wide), bias.to(wide), eps)
    if gate is None:
        return y.to(x.dtype)
    return (y * F.silu(gate)).to(gate.dtype)


class Tiling(NamedTuple):
    """Rows of a tile, and the warps that work on it."""

    rows: int
    warps: int


def forward_tiling(block: int, itemsize: int) -> Tiling:
    """For rows of ``block`` channels (a power of two) of ``itemsize`` bytes each.

    A row within one warp needs no shared memory for its sums. Up to 512 bytes every lane has one
    16-byte piece of a row and four warps share a tile of 2048 elements: 16 for each thread, two to
    four loads of each tensor on their way. Longer rows have a warp, longer than 2 KB four, to
    themselves.
    """
    if block * itemsize <= 512:
        return Tiling(max(1, 2048 // block), 4)
    return Tiling(max(1, 512 // block), 1 if block <= 1024 else 4)


def backward_tiling(block: int, itemsize: int) -> Tiling:
    """As above. Five float32 tiles live in registers: no more than two pieces of each a thread."""
    return Tiling(max(1, 4096 // (block * itemsize)), 4)


def backward_steps(tiles: int) -> int:
    """Tiles that one program of the backward kernel takes, a power of two to keep kernels few.

    At least two: a partial sum costs as much to write as a tile's rows.
    """
    steps = 2
    while tiles > steps * PROGRAMS:
        steps *= 2
    return steps


@torch.library.custom_op("mambaad::layer_norm", mutates_args=())
def layer_norm_forward(
    x: Tensor, weight: Tensor, bias: Tensor, gate: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """y as x, and mean and 1/deviation, float32 (rows,), by the kernel."""
    import triton

    from mambaad.fused.norm_kernels import layer_norm_kernel

    x, channels = x.contiguous(), x.shape[-1]
    rows = x.numel() // channels
    y = torch.empty_like(x, dtype=x.dtype if gate is None else gate.dtype)
    mean = x.new_empty(rows, dtype=torch.float32)
    rstd = torch.empty_like(mean)
    if rows == 0:
        return y, mean, rstd
    flat, stride = _gate_rows(gate, channels)
    block = triton.next_power_of_2(channels)
    tiling = forward_tiling(block, x.element_size())
    with torch.cuda.device_of(x):
        layer_norm_kernel[(triton.cdiv(rows, tiling.rows),)](
            x,
            weight.contiguous(),
            bias.contiguous(),
            flat,
            y,
            mean,
            rstd,
            rows,
            stride,
            eps,
            None,
            None,
            None,
            1,
            D=channels,
            BLOCK=block,
            ROWS=tiling.rows,
            GATED=gate is not None,
            num_warps=tiling.warps,
            enable_fp_fusion=True,
        )
    return y, mean, rstd


@layer_norm_forward.register_fake
def _(
    x: Tensor,
    weight: Tensor,  # noqa: ARG001 - the operator's signature
    bias: Tensor,  # noqa: ARG001
    gate: Tensor | None,
    eps: float,  # noqa: ARG001
) -> tuple[Tensor, Tensor, Tensor]:
    y = x.new_empty(x.shape, dtype=x.dtype if gate is None else gate.dtype)
    mean = x.new_empty(x.numel() // x.shape[-1], dtype=torch.float32)
    return y, mean, torch.empty_like(mean)


@torch.library.custom_op("mambaad::layer_norm_backward", mutates_args=())
def layer_norm_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    gate: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x and of the gate (empty without one), and (2, D): of weight and bias."""
    dgate = x.new_empty(0) if gate is None else x.new_empty(x.shape, dtype=gate.dtype)
    dx, partial = layer_norm_gradients(dy, x, weight, bias, gate, mean, rstd, dgate)
    sums = column_sums(partial, torch.float32)
    return dx, dgate, sums.view(2, -1)


def layer_norm_gradients(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    gate: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    dgate: Tensor,
) -> tuple[Tensor, Tensor]:
    """The gradient of x, and parts whose sum is that of weight and bias: (parts, 2 D), float32.

    Args:
        dgate: Is filled with the gate's gradient; its rows lie evenly, as in a half of a wider map.
    """
    import triton

    from mambaad.fused.norm_kernels import layer_norm_backward_kernel

    x, channels, rows = x.contiguous(), x.shape[-1], mean.shape[0]
    dx = torch.empty_like(x)
    block = triton.next_power_of_2(channels)
    tiling = backward_tiling(block, x.element_size())
    tiles = triton.cdiv(rows, tiling.rows)
    steps = backward_steps(tiles)
    programs = triton.cdiv(tiles, steps)
    partial = x.new_empty((programs, 2 * channels), dtype=torch.float32)
    if rows > 0:
        flat, stride = _gate_rows(gate, channels)
        with torch.cuda.device_of(x):
            layer_norm_backward_kernel[(programs,)](
                dy.contiguous(),
                x,
                weight.contiguous(),
                bias.contiguous(),
                flat,
                mean,
                rstd,
                dx,
                dgate,
                partial,
                rows,
                stride,
                None,
                0,
                None,
                None,
                1,
                0 if gate is None else dgate.view(-1, channels).stride(0),
                D=channels,
                BLOCK=block,
                ROWS=tiling.rows,
                STEPS=steps,
                GATED=gate is not None,
                num_warps=tiling.warps,
                enable_fp_fusion=True,
            )
    return dx, partial


@layer_norm_backward.register_fake
def _(
    dy: Tensor,  # noqa: ARG001 - the operator's signature
    x: Tensor,
    weight: Tensor,  # noqa: ARG001
    bias: Tensor,  # noqa: ARG001
    gate: Tensor | None,
    mean: Tensor,
    rstd: Tensor,  # noqa: ARG001
) -> tuple[Tensor, Tensor, Tensor]:
    dgate = x.new_empty(0) if gate is None else x.new_empty(x.shape, dtype=gate.dtype)
    return x.new_empty(x.shape), dgate, mean.new_empty((2, x.shape[-1]))


def _gate_rows(gate: Tensor | None, channels: int) -> tuple[Tensor | None, int]:
    """The gate as (rows, D) and its row stride: a view if its rows lie evenly, else a copy."""
    if gate is None:
        return None, 0
    flat = gate.reshape(-1, channels)
    if flat.stride(-1) != 1:
        flat = flat.contiguous()
    return flat, flat.stride(0)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, _ = inputs
    ctx.save_for_backward(*tensors, *output[1:])
    ctx.set_materialize_grads(False)  # no zeros for mean and rstd, which have no gradient


def _gradient(ctx: Any, dy: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    _, weight, bias, gate, *_ = tensors = ctx.saved_tensors
    dx, dgate, sums = layer_norm_backward(dy, *tensors)
    dweight, dbias = sums.unbind()
    return (
        dx,
        dweight.to(weight.dtype),
        dbias.to(bias.dtype),
        None if gate is None else dgate,
        None,
    )


layer_norm_forward.register_autograd(_gradient, setup_context=_setup_context)
