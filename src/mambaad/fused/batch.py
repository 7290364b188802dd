"""Batch normalisation of a map in training, with the sum and the ReLU that follow it.

    y = act((x - mean) / sqrt(var + eps) · weight + bias [+ residual])

with mean and biased variance of every channel over all pixels of the batch, and act the identity or
ReLU (Ioffe and Szegedy 2015, arXiv 1502.03167). ``definition`` is plain torch; for 16- and 32-bit
CUDA tensors it is one Triton kernel each way if a channel's pixels fit one program, else two
(``batch_kernels``). The caller moves its running statistics by the moments that come with y: all
layers' at once cost what one layer's would.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mambaad.fused import triton_runs

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""What the kernels take."""

WHOLE = 1024
"""Most pixels that one program holds: 32 bytes of each are 32 KB."""

TILE = 128
"""Pixels of a tile of more."""

SPANS = 64
"""Most parts of them. Every program reads the sums of all."""

PROGRAMS = 264
"""Programs wanted: two on each processor of an H200."""


class Moments(NamedTuple):
    """Of a layer's input in a batch; float32 (C,), without gradient."""

    mean: Tensor
    variance: Tensor
    """Unbiased, as running statistics want it."""


def runs(x: Tensor) -> bool:
    """Whether the kernels take such maps."""
    return x.is_cuda and x.dtype in DTYPES and x.numel() < 2**31 and triton_runs()


def batch_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float = 1e-5,
    *,
    shift: Tensor | None = None,
    residual: Tensor | None = None,
    relu: bool = True,
    kernel: bool | None = None,
) -> tuple[Tensor, Moments]:
    """The batch normalisation of ``x``, and its moments.

    Args:
        x: (B, C, H, W) with more than one pixel, any floating dtype; the kernels read it as it is
            if it is in channels-last format.
        weight: (C,). May be float32 beside a 16-bit x.
        bias: (C,).
        eps: Added to the variance.
        shift: (C,), counts as added to x. It changes only the mean that is returned.
        residual: As x: added before the ReLU.
        relu: Whether ReLU follows.
        kernel: Whether the Triton kernels run. By default where ``runs`` says so.

    Returns:
        y as x, and the moments. Differentiable once in x, weight, bias and residual.

    Raises:
        ValueError: If a shape disagrees with that of x.
    """
    if x.dim() != 4 or x.numel() <= x.shape[1]:
        raise ValueError(f"x must be (B, C, H, W) of more than one pixel, got {tuple(x.shape)}")
    line = x.shape[1:2]
    expected = {
        "weight": (weight, line),
        "bias": (bias, line),
        "shift": (shift, line),
        "residual": (residual, x.shape),
    }
    for name, (tensor, shape) in expected.items():
        if tensor is not None and tensor.shape != shape:
            raise ValueError(f"{name} must have shape {tuple(shape)}, got {tuple(tensor.shape)}")
    if not (runs(x) if kernel is None else kernel):
        return definition(x, weight, bias, eps, shift=shift, residual=residual, relu=relu)
    last = x.permute(0, 2, 3, 1)
    beside = None if residual is None else residual.permute(0, 2, 3, 1)
    if shift is not None:
        shift = shift.detach()
    y, _, _, moments = batch_norm_forward(last, weight, bias, shift, beside, relu, eps)
    return y.permute(0, 3, 1, 2), Moments(*moments.unbind())


def definition(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    *,
    shift: Tensor | None,
    residual: Tensor | None,
    relu: bool,
) -> tuple[Tensor, Moments]:
    """``batch_norm`` in plain torch: any device, any floating dtype."""
    y = F.batch_norm(x, None, None, weight, bias, training=True, eps=eps)
    if residual is not None:
        y = y + residual
    wide = x.detach().to(torch.promote_types(x.dtype, torch.float32))
    variance, mean = torch.var_mean(wide, dim=(0, 2, 3))
    if shift is not None:
        mean = mean + shift.detach()
    return F.relu(y) if relu else y, Moments(mean, variance)


class Tiling(NamedTuple):
    """How programs share the pixels; letters as in ``batch_kernels``."""

    pixels: int
    channels: int
    steps: int
    spans: int
    warps: int


def tiling(rows: int, channels: int, itemsize: int) -> Tiling:
    """For ``channels`` channels of ``rows`` pixels. Few pixels are one tile, 32 bytes wide, which
    is the least that memory serves whole; of more, tiles are 64 bytes wide."""
    power = _power_of_2(rows)
    if power <= WHOLE:
        wide = min(32 // itemsize, _power_of_2(channels))
        return Tiling(power, wide, 1, 1, min(max(power * wide // 512, 1), 16))
    wide = min(64 // itemsize, _power_of_2(channels))
    tiles = -(-rows // TILE)
    wanted = min(max(PROGRAMS // -(-channels // wide), 1), SPANS)
    steps = _power_of_2(-(-tiles // wanted))
    return Tiling(TILE, wide, steps, -(-tiles // steps), max(TILE * wide // 512, 1))


def _power_of_2(n: int) -> int:
    """The smallest one that is not below n."""
    return 1 << (n - 1).bit_length()


@torch.library.custom_op("mambaad::batch_norm", mutates_args=())
def batch_norm_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    shift: Tensor | None,
    residual: Tensor | None,
    relu: bool,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """y (B, H, W, C) by the kernels; float32: mean and 1/deviation (C,), and the moments (2, C)."""
    from mambaad.fused import batch_kernels
    from mambaad.fused.instance_kernels import instance_moments_kernel

    x = x.contiguous()
    y = torch.empty_like(x)
    rows, channels = x.numel() // x.shape[3], x.shape[3]
    mean = x.new_empty(channels, dtype=torch.float32)
    rstd, moments = torch.empty_like(mean), mean.new_empty((2, channels))
    tiles, grid, sizes = _launch(x)
    whole = tiles.pixels >= rows
    with torch.cuda.device_of(x):
        partial = None if whole else mean.new_empty((tiles.spans, 2, channels))
        if not whole:
            instance_moments_kernel[(*grid, 1)](
                x, partial, rows, C=channels, STEPS=tiles.steps, **sizes
            )
        batch_kernels.batch_norm_kernel[grid](
            x,
            partial,
            weight.contiguous(),
            bias.contiguous(),
            shift,
            None if residual is None else residual.contiguous(),
            y,
            mean,
            rstd,
            moments,
            rows,
            channels,
            tiles.steps,
            eps,
            SPANS=_power_of_2(SPANS),
            WHOLE=whole,
            RELU=relu,
            **sizes,
        )
    return y, mean, rstd, moments


@batch_norm_forward.register_fake
def _(
    x: Tensor,
    weight: Tensor,  # noqa: ARG001 - the operator's signature
    bias: Tensor,  # noqa: ARG001
    shift: Tensor | None,  # noqa: ARG001
    residual: Tensor | None,  # noqa: ARG001
    relu: bool,  # noqa: ARG001
    eps: float,  # noqa: ARG001
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    mean = x.new_empty(x.shape[3], dtype=torch.float32)
    return x.new_empty(x.shape), mean, torch.empty_like(mean), mean.new_empty((2, x.shape[3]))


@torch.library.custom_op("mambaad::batch_norm_backward", mutates_args=())
def batch_norm_backward(
    dy: Tensor,
    y: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor,
    relu: bool,
    residual: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x and of the residual (empty without one); (2, C): of weight and bias."""
    from mambaad.fused import batch_kernels

    dy, x = dy.contiguous(), x.contiguous()
    rows, channels = x.numel() // x.shape[3], x.shape[3]
    dx = torch.empty_like(x)
    dresidual = x.new_empty(x.shape if residual else 0)
    sums = mean.new_empty((2, channels))
    tiles, grid, sizes = _launch(x)
    whole = tiles.pixels >= rows
    with torch.cuda.device_of(x):
        partial = None if whole else mean.new_empty((tiles.spans, 2, channels))
        if not whole:
            batch_kernels.batch_sums_kernel[grid](
                dy, y, x, mean, rstd, partial, rows, channels, tiles.steps, RELU=relu, **sizes
            )
        batch_kernels.batch_gradient_kernel[grid](
            dy,
            y,
            x,
            mean,
            rstd,
            weight.contiguous(),
            partial,
            dx,
            dresidual if residual else None,
            sums,
            rows,
            channels,
            tiles.steps,
            SPANS=_power_of_2(SPANS),
            WHOLE=whole,
            RELU=relu,
            **sizes,
        )
    return dx, dresidual, sums


@batch_norm_backward.register_fake
def _(
    dy: Tensor,  # noqa: ARG001 - the operator's signature
    y: Tensor,  # noqa: ARG001
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,  # noqa: ARG001
    weight: Tensor,  # noqa: ARG001
    relu: bool,  # noqa: ARG001
    residual: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    dresidual = x.new_empty(x.shape if residual else 0)
    return x.new_empty(x.shape), dresidual, mean.new_empty((2, x.shape[3]))


def _launch(x: Tensor) -> tuple[Tiling, tuple[int, int], dict[str, int]]:
    """The tiling of x, the grid, and what all its kernels are told."""
    channels = x.shape[3]
    tiles = tiling(x.numel() // channels, channels, x.element_size())
    sizes = {
        "CHANNELS": tiles.channels,
        "PIXELS": tiles.pixels,
        "num_warps": tiles.warps,
        "enable_fp_fusion": True,
    }
    return tiles, (-(-channels // tiles.channels), tiles.spans), sizes


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, bias, _, residual, relu, _ = inputs
    y, mean, rstd, moments = output
    ctx.save_for_backward(y, x, mean, rstd, weight)
    ctx.relu, ctx.residual, ctx.bias_dtype = relu, residual is not None, bias.dtype
    ctx.mark_non_differentiable(mean, rstd, moments)
    ctx.set_materialize_grads(False)  # no zeros for them


def _gradient(ctx: Any, dy: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    if dy is None:
        return (None,) * 7
    weight = ctx.saved_tensors[4]
    dx, dresidual, sums = batch_norm_backward(dy, *ctx.saved_tensors, ctx.relu, ctx.residual)
    dweight, dbias = sums.unbind()
    return (
        dx,
        dweight.to(weight.dtype),
        dbias.to(ctx.bias_dtype),
        None,
        dresidual if ctx.residual else None,
        None,
        None,
    )


batch_norm_forward.register_autograd(_gradient, setup_context=_setup_context)
