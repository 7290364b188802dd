"""Depth-wise convolution of a channels-last map with bias and SiLU.

    y[b, h, w, c] = act(bias[c] + sum over i, j of weight[c, 0, i, j] x[b, h + i - p, w + j - p, c])

with p = k // 2, zeros outside of the map, and act the identity or SiLU(z) = z / (1 + e^-z) (the
convolution of Mamba's block, Gu and Dao, arXiv 2312.00752, in two dimensions; the local branches
of MambaAD, arXiv 2404.06564, equation 6). ``definition`` is plain torch; the Triton kernels for
CUDA tensors are in ``depthwise_kernels``, behind one ``torch.library`` operator. Their gradient
keeps nothing but the inputs and computes the value before the activation again.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mambaad.fused import triton_runs

__all__ = ["definition", "depthwise_conv"]

SIZES = (1, 3, 5, 7)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""What the kernels take."""


def depthwise_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    silu: bool = False,
    kernel: bool | None = None,
) -> Tensor:
    """Convolve every channel with its own k x k kernel, stride 1, zeros outside of the map.

    All sums are float32 (float64 if ``x`` is). On CUDA the weights are read with channels side by
    side: a parameter with the strides of ``empty(k, k, 1, C).permute(3, 2, 0, 1)`` saves a small
    copy in each direction.

    Args:
        x: (B, H, W, C), any strides; quickest with channels side by side, of a larger map too.
        weight: (C, 1, k, k) with k one of 1, 3, 5, 7; may be float32 beside a 16-bit ``x``.
        bias: (C,) or None.
        silu: Whether SiLU follows.
        kernel: Whether the Triton kernels run; None takes them for CUDA tensors of 16 or 32
            bits where Triton runs.

    Returns:
        (B, H, W, C), contiguous, in the dtype of ``x``. Differentiable once in all inputs (in
        plain torch as often as you like).

    Raises:
        ValueError: If a shape is wrong, or the kernels are asked for and cannot take ``x``.
    """
    _check_shapes(x, weight, bias)
    if kernel is None:
        kernel = x.is_cuda and x.dtype in DTYPES and _span(x) < 2**31 and triton_runs()
    elif kernel and (x.dtype not in DTYPES or _span(x) >= 2**31):
        raise ValueError(
            "x must be float32, bfloat16 or float16 and one picture of it within 2^31 elements "
            f"for kernel=True, got {x.dtype} {tuple(x.shape)}"
        )
    if not kernel:
        return definition(x, weight, bias, silu=silu)
    y: Tensor = depthwise_forward(x, weight, bias, silu)
    return y


def definition(x: Tensor, weight: Tensor, bias: Tensor | None, *, silu: bool) -> Tensor:
    """``depthwise_conv`` in plain torch: any device, any floating dtype."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    z = F.conv2d(
        x.permute(0, 3, 1, 2).to(wide),
        weight.to(wide),
        None if bias is None else bias.to(wide),
        padding=weight.shape[-1] // 2,
        groups=weight.shape[0],
    )
    y = F.silu(z) if silu else z
    return y.permute(0, 2, 3, 1).to(x.dtype).contiguous()


@torch.library.custom_op("mambaad::depthwise_conv", mutates_args=())
def depthwise_forward(x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool) -> Tensor:
    """y by the Triton kernels."""
    from mambaad.fused import depthwise_kernels

    return depthwise_kernels.forward(_channels_last(x), weight, bias, silu=silu)


@depthwise_forward.register_fake
def _(
    x: Tensor,
    weight: Tensor,  # noqa: ARG001 - the operator's signature
    bias: Tensor | None,  # noqa: ARG001
    silu: bool,  # noqa: ARG001
) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.custom_op("mambaad::depthwise_conv_backward", mutates_args=())
def depthwise_backward(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, weight and bias; the last one empty if there is no bias."""
    from mambaad.fused import depthwise_kernels

    dx, dweight, dbias = depthwise_kernels.backward(
        dy.contiguous(), _channels_last(x), weight, bias, silu=silu
    )
    return dx, dweight, weight.new_empty(0) if dbias is None else dbias


@depthwise_backward.register_fake
def _(
    dy: Tensor,  # noqa: ARG001 - the operator's signature
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    silu: bool,  # noqa: ARG001
) -> tuple[Tensor, Tensor, Tensor]:
    dbias = weight.new_empty(0) if bias is None else torch.empty_like(bias)
    return x.new_empty(x.shape), torch.empty_like(weight), dbias


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
    *tensors, silu = inputs
    ctx.save_for_backward(*tensors)
    ctx.silu = silu


def _gradient(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, bias = ctx.saved_tensors
    dx, dweight, dbias = depthwise_backward(dy, x, weight, bias, ctx.silu)
    return dx, dweight, None if bias is None else dbias, None


depthwise_forward.register_autograd(_gradient, setup_context=_setup_context)


def _channels_last(x: Tensor) -> Tensor:
    return x if x.stride(3) == 1 else x.contiguous()


def _span(x: Tensor) -> int:
    """Elements from the first to the last of one picture in memory, or of its contiguous copy."""
    steps = sum((n - 1) * step for n, step in zip(x.shape[1:], x.stride()[1:], strict=True))
    return max(steps + 1, x.shape[1:].numel())


def _check_shapes(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    if x.dim() != 4:
        raise ValueError(f"x must have shape (B, H, W, C), got {tuple(x.shape)}")
    size, channels = weight.shape[-1], x.shape[3]
    if size not in SIZES or weight.shape != (channels, 1, size, size):
        raise ValueError(
            f"weight must have shape ({channels}, 1, k, k) with k one of {list(SIZES)}, "
            f"got {tuple(weight.shape)}"
        )
    if bias is not None and bias.shape != (channels,):
        raise ValueError(f"bias must have shape ({channels},), got {tuple(bias.shape)}")
