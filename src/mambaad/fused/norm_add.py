"""A residual sum and its layer normalisation, as at the seam of two HSS blocks.

    s = x + f · branch        y = LN(s)

f, a number for each picture, is drop path's. The values are those of the three steps one after the
other, each rounded to the dtype of its tensors. ``_plain`` is the definition; for 16- and 32-bit
CUDA tensors one kernel computes s and y and one all gradients (``norm_kernels``), that of s
included. LN is that of ``mambaad.fused.norm``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mambaad.fused import triton_runs
from mambaad.fused.norm import backward_steps, backward_tiling, forward_tiling, layer_norm
from mambaad.fused.sums import column_sums


def add_layer_norm(
    x: Tensor,
    branch: Tensor,
    factor: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float = 1e-5,
    *,
    kernel: bool | None = None,
) -> tuple[Tensor, Tensor]:
    """``x + factor · branch``, and its layer normalisation over the last dimension.

    Args:
        x: (B, ..., D), any floating dtype.
        branch: As x, of the same dtype or another.
        factor: (B, 1, ..., 1) with as many dimensions as x, in the dtype of the branch, or None
            for 1. It gets no gradient.
        weight: (D,). May be float32 beside a 16-bit x.
        bias: (D,).
        eps: Added to the variance.
        kernel: Whether the Triton kernels run. By default they do for CUDA tensors of 16 or 32
            bits where Triton runs.

    Returns:
        The sum and its normalisation, both (B, ..., D), in the wider dtype of x and branch.

    Raises:
        ValueError: If a shape disagrees with that of x.
    """
    channels = x.shape[-1:]
    expected = {
        "branch": (branch, x.shape),
        "factor": (factor, torch.Size([*x.shape[:1], *[1] * (x.dim() - 1)])),
        "weight": (weight, channels),
        "bias": (bias, channels),
    }
    for name, (tensor, shape) in expected.items():
        if tensor is not None and tensor.shape != shape:
            raise ValueError(f"{name} must have shape {tuple(shape)}, got {tuple(tensor.shape)}")
    if kernel is None:
        kernel = x.is_cuda and torch.float64 not in (x.dtype, branch.dtype) and triton_runs()
    if not kernel:
        return _plain(x, branch, factor, weight, bias, eps)
    total, y, _, _ = add_layer_norm_forward(x, branch, factor, weight, bias, eps)
    return total, y


def _plain(
    x: Tensor, branch: Tensor, factor: Tensor | None, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    total = x + (branch if factor is None else branch * factor)
    return total, layer_norm(total, weight, bias, eps, kernel=False)


@torch.library.custom_op("mambaad::add_layer_norm", mutates_args=())
def add_layer_norm_forward(
    x: Tensor, branch: Tensor, factor: Tensor | None, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The sum, y, and mean and 1/deviation, float32 (rows,), by the kernel."""
    import triton

    from mambaad.fused.norm_kernels import layer_norm_kernel

    x, branch, channels = x.contiguous(), branch.contiguous(), x.shape[-1]
    total = torch.empty_like(x, dtype=torch.promote_types(x.dtype, branch.dtype))
    y = torch.empty_like(total)
    rows = x.numel() // channels
    mean = x.new_empty(rows, dtype=torch.float32)
    rstd = torch.empty_like(mean)
    if rows == 0:
        return total, y, mean, rstd
    block = triton.next_power_of_2(channels)
    tiling = forward_tiling(block, x.element_size())
    with torch.cuda.device_of(x):
        layer_norm_kernel[(triton.cdiv(rows, tiling.rows),)](
            x,
            weight.contiguous(),
            bias.contiguous(),
            None,
            y,
            mean,
            rstd,
            rows,
            channels,
            eps,
            branch,
            None if factor is None else factor.contiguous(),
            total,
            rows // x.shape[0],
            D=channels,
            BLOCK=block,
            ROWS=tiling.rows,
            GATED=False,
            num_warps=tiling.warps,
            enable_fp_fusion=True,
        )
    return total, y, mean, rstd


@add_layer_norm_forward.register_fake
def _(
    x: Tensor,
    branch: Tensor,
    factor: Tensor | None,  # noqa: ARG001 - the operator's signature
    weight: Tensor,  # noqa: ARG001
    bias: Tensor,  # noqa: ARG001
    eps: float,  # noqa: ARG001
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    total = x.new_empty(x.shape, dtype=torch.promote_types(x.dtype, branch.dtype))
    mean = x.new_empty(x.numel() // x.shape[-1], dtype=torch.float32)
    return total, torch.empty_like(total), mean, torch.empty_like(mean)


@torch.library.custom_op("mambaad::add_layer_norm_backward", mutates_args=())
def add_layer_norm_backward(
    dtotal: Tensor | None,
    dy: Tensor,
    total: Tensor,
    factor: Tensor | None,
    weight: Tensor,
    mean: Tensor,
    rstd: Tensor,
    narrow: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of the sum and of the branch (empty without a factor); (2, D): weight, bias.

    Args:
        narrow: The branch's dtype.
    """
    import triton

    from mambaad.fused.norm_kernels import layer_norm_backward_kernel

    channels, rows = total.shape[-1], mean.shape[0]
    dx = torch.empty_like(total)
    dbranch = total.new_empty(0 if factor is None else total.shape, dtype=narrow)
    block = triton.next_power_of_2(channels)
    tiling = backward_tiling(block, total.element_size())
    tiles = triton.cdiv(rows, tiling.rows)
    steps = backward_steps(tiles)
    programs = triton.cdiv(tiles, steps)
    partial = total.new_empty((programs, 2 * channels), dtype=torch.float32)
    if rows > 0:
        beside = None if dtotal is None else _even_rows(dtotal)
        with torch.cuda.device_of(total):
            layer_norm_backward_kernel[(programs,)](
                dy.contiguous(),
                total,
                weight.contiguous(),
                None,
                None,
                mean,
                rstd,
                dx,
                None,
                partial,
                rows,
                channels,
                beside,
                0 if beside is None else beside.stride(0),
                None if factor is None else factor.contiguous(),
                dbranch,
                rows // total.shape[0],
                0,
                D=channels,
                BLOCK=block,
                ROWS=tiling.rows,
                STEPS=steps,
                GATED=False,
                num_warps=tiling.warps,
                enable_fp_fusion=True,
            )
    return dx, dbranch, column_sums(partial, torch.float32).view(2, channels)


@add_layer_norm_backward.register_fake
def _(
    dtotal: Tensor | None,  # noqa: ARG001 - the operator's signature
    dy: Tensor,  # noqa: ARG001
    total: Tensor,
    factor: Tensor | None,
    weight: Tensor,  # noqa: ARG001
    mean: Tensor,
    rstd: Tensor,  # noqa: ARG001
    narrow: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    dbranch = total.new_empty(0 if factor is None else total.shape, dtype=narrow)
    return total.new_empty(total.shape), dbranch, mean.new_empty((2, total.shape[-1]))


def _even_rows(x: Tensor) -> Tensor:
    """x as (rows, D), channels side by side: a view if the rows lie evenly, else a copy."""
    flat = x.reshape(-1, x.shape[-1])
    return flat if flat.stride(-1) == 1 else flat.contiguous()


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, branch, factor, weight, bias, _ = inputs
    total, _, mean, rstd = output
    ctx.save_for_backward(total, factor, weight, mean, rstd)
    ctx.dtypes = x.dtype, branch.dtype, bias.dtype
    ctx.set_materialize_grads(False)  # no zeros for mean and rstd, which have no gradient


def _gradient(ctx: Any, dtotal: Tensor | None, dy: Tensor | None, *_: Tensor) -> tuple[Any, ...]:
    total, factor, weight, mean, rstd = ctx.saved_tensors
    wide, narrow, bias_dtype = ctx.dtypes
    if dy is None:  # only the sum is used
        if dtotal is None:
            return (None,) * 6
        branch_part = dtotal if factor is None else dtotal * factor
        return dtotal.to(wide), branch_part.to(narrow), None, None, None, None
    dx, dbranch, sums = add_layer_norm_backward(
        dtotal, dy, total, factor, weight, mean, rstd, narrow
    )
    dweight, dbias = sums.unbind()
    return (
        dx.to(wide),
        dx.to(narrow) if factor is None else dbranch,
        None,
        dweight.to(weight.dtype),
        dbias.to(bias_dtype),
        None,
    )


add_layer_norm_forward.register_autograd(_gradient, setup_context=_setup_context)
