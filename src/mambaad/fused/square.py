"""The weighted mean squared difference of pairs of maps, as student and teacher have them.

    loss_i = weight · mean (first_i - second_i)²

MambaAD's training loss by scale (He et al., arXiv 2404.06564, section 3.1). ``_plain`` is the
definition; for 16- and 32-bit CUDA tensors a Triton kernel for each pair (``square_kernels``) reads
both maps as they are, and one more writes the gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mambaad.fused import triton_runs

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""What the kernels take."""

PROGRAMS = 528
"""Programs that share a pair, four on each processor of an H200. A constant, so that sums are taken
in the same order on every GPU."""

BLOCK = 1024
"""Elements of a tile, and of what a program of the gradient writes."""


def square_losses(
    firsts: Sequence[Tensor],
    seconds: Sequence[Tensor],
    weight: float = 1.0,
    *,
    kernel: bool | None = None,
) -> Tensor:
    """The losses of all pairs.

    Args:
        firsts: Maps of any shape, strides and floating dtype; quickest in the layout of its second.
        seconds: One of each first's shape.
        weight: What each mean is multiplied by.
        kernel: Whether the Triton kernels run. By default they do for CUDA tensors of 16 or 32
            bits where Triton runs and the seconds want no gradient.

    Returns:
        (pairs,), float32; float64 if a map is. Differentiable in the firsts, in plain torch in the
        seconds too.

    Raises:
        ValueError: If there is no pair, or the shapes of one disagree.
    """
    shapes, others = [[tuple(m.shape) for m in maps] for maps in (firsts, seconds)]
    if not shapes or shapes != others:
        raise ValueError(f"seconds must have shapes {shapes}, at least one, got {others}")
    if kernel is None:
        maps = [*firsts, *seconds]
        fits = all(m.is_cuda and m.dtype in DTYPES and m.numel() > 0 for m in maps)
        kernel = fits and not any(m.requires_grad for m in seconds) and triton_runs()
    if not kernel:
        return _plain(firsts, seconds, weight)
    losses: Tensor = square_forward(list(firsts), list(seconds), weight)
    return losses


def _plain(firsts: Sequence[Tensor], seconds: Sequence[Tensor], weight: float) -> Tensor:
    """The definition, in 32 bits or more."""
    losses = []
    for a, b in zip(firsts, seconds, strict=True):
        wide = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
        losses.append(weight * F.mse_loss(a.to(wide), b.to(wide)))
    return torch.stack(losses)


@torch.library.custom_op("mambaad::square_losses", mutates_args=())
def square_forward(firsts: Sequence[Tensor], seconds: Sequence[Tensor], weight: float) -> Tensor:
    """The losses by the kernel."""
    from mambaad.fused.square_kernels import square_sums_kernel

    parts = firsts[0].new_empty((len(firsts), PROGRAMS), dtype=torch.float32)
    with torch.cuda.device_of(parts):
        for first, second, out in zip(firsts, seconds, parts, strict=True):
            a, b, size = *_lines(first, second), first.numel()
            steps = -(-size // (BLOCK * PROGRAMS))
            square_sums_kernel[(PROGRAMS,)](
                a,
                b,
                out,
                size,
                weight / size,
                steps,
                BLOCK=BLOCK,
                num_warps=4,
                enable_fp_fusion=True,
            )
    return parts.sum(dim=1)


@square_forward.register_fake
def _(
    firsts: Sequence[Tensor],
    seconds: Sequence[Tensor],  # noqa: ARG001 - the operator's signature
    weight: float,  # noqa: ARG001
) -> Tensor:
    return firsts[0].new_empty(len(firsts), dtype=torch.float32)


@torch.library.custom_op("mambaad::square_losses_backward", mutates_args=())
def square_backward(
    dy: Tensor, firsts: Sequence[Tensor], seconds: Sequence[Tensor], weight: float
) -> list[Tensor]:
    """The gradients of the firsts."""
    from mambaad.fused.square_kernels import square_gradient_kernel

    found = []
    with torch.cuda.device_of(dy):
        for upstream, first, second in zip(dy.contiguous(), firsts, seconds, strict=True):
            a, b, size = *_lines(first, second), first.numel()
            out = torch.empty_like(a)
            square_gradient_kernel[(-(-size // BLOCK),)](
                upstream,
                a,
                b,
                out,
                size,
                2 * weight / size,
                BLOCK=BLOCK,
                num_warps=4,
                enable_fp_fusion=True,
            )
            found.append(out)
    return found


@square_backward.register_fake
def _(
    dy: Tensor,  # noqa: ARG001 - the operator's signature
    firsts: Sequence[Tensor],
    seconds: Sequence[Tensor],  # noqa: ARG001
    weight: float,  # noqa: ARG001
) -> list[Tensor]:
    return [torch.empty_like(_dense(first)) for first in firsts]


def _lines(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Both without gaps and in the same order in memory; copies if they are not."""
    first = _dense(first)
    if second.stride() != first.stride():
        second = torch.empty_like(first, dtype=second.dtype).copy_(second)
    return first, second


def _dense(x: Tensor) -> Tensor:
    dense = x.is_contiguous() or (
        x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
    )
    return x if dense else x.contiguous()


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
    firsts, seconds, ctx.weight = inputs
    ctx.save_for_backward(*firsts, *seconds)


def _gradient(ctx: Any, dy: Tensor) -> tuple[list[Tensor], list[None], None]:
    half = len(ctx.saved_tensors) // 2
    firsts, seconds = ctx.saved_tensors[:half], ctx.saved_tensors[half:]
    return square_backward(dy, firsts, seconds, ctx.weight), [None] * half, None


square_forward.register_autograd(_gradient, setup_context=_setup_context)
