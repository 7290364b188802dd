"""The cosine distance of two feature maps at every pixel.

    d = 1 - a · b / (max(|a|, tiny) max(|b|, tiny))

over the channels a and b of a pixel, so a vector of zeros has a distance of 1. It compares teacher
and student (He et al., MambaAD, arXiv 2404.06564, section 3.1). Damped, it is

    d |a|² / (|a|² + damping)

since the direction of a short vector is mostly noise. ``_plain`` is the definition; for 16- and
32-bit CUDA tensors it is one kernel (``cosine_kernels``) that reads both maps once, and has no
gradient: where one is asked for, plain torch computes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mambaad.fused import triton_runs

TINY = 1e-8
"""Shorter feature vectors count as this long."""

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

TILE = 2048
"""Elements of a map that a program holds at once: 16 for each thread of four warps."""

CHANNELS = 512
"""Most channels of a tile."""


def cosine_distance(
    first: Tensor, second: Tensor, *, damping: float = 0.0, kernel: bool | None = None
) -> Tensor:
    """1 - cos of two maps at every pixel.

    Args:
        first: (B, C, H, W), any strides (read as they are if rows follow each other evenly, as in
            contiguous and channels-last maps) and any floating dtype.
        second: Of the same shape.
        damping: Squared length of the first map's vector at which the distance is halved; 0 or
            more.
        kernel: Whether the Triton kernel runs. By default it does for CUDA tensors of 16 or 32
            bits without a gradient where Triton runs.

    Returns:
        (B, H, W), 0 to 2 up to rounding, float32; float64 if one of the maps is.

    Raises:
        ValueError: If a map does not have four dimensions, their shapes differ, or the kernel is
            asked for and cannot take their dtypes.
    """
    if first.dim() != 4:
        raise ValueError(f"first must have shape (B, C, H, W), got {tuple(first.shape)}")
    if second.shape != first.shape:
        raise ValueError(f"second must have shape {tuple(first.shape)}, got {tuple(second.shape)}")
    fits = first.dtype in DTYPES and second.dtype in DTYPES
    if kernel is None:
        learnt = torch.is_grad_enabled() and (first.requires_grad or second.requires_grad)
        on_gpu = first.is_cuda and second.device == first.device
        kernel = fits and on_gpu and not learnt and triton_runs()
    elif kernel and not fits:
        raise ValueError(
            "first and second must be float32, bfloat16 or float16 for kernel=True, "
            f"got {first.dtype} and {second.dtype}"
        )
    if not kernel:
        return _plain(first, second, damping)
    distance: Tensor = cosine_forward(first, second, damping)
    return distance


def _plain(first: Tensor, second: Tensor, damping: float) -> Tensor:
    """The definition, summed in 32 bits or more."""
    wide = torch.promote_types(torch.promote_types(first.dtype, second.dtype), torch.float32)
    dot = (first.to(wide) * second).sum(dim=1)
    a: Tensor = torch.linalg.vector_norm(first, dim=1, dtype=wide).clamp_min(TINY)
    b: Tensor = torch.linalg.vector_norm(second, dim=1, dtype=wide).clamp_min(TINY)
    distance = 1 - dot / (a * b)
    return distance * (a.square() / (a.square() + damping)) if damping else distance


@torch.library.custom_op("mambaad::cosine_distance", mutates_args=())
def cosine_forward(first: Tensor, second: Tensor, damping: float) -> Tensor:
    """The distance by the kernel."""
    import triton

    from mambaad.fused.cosine_kernels import cosine_kernel

    batch, channels, height, width = first.shape
    out = first.new_empty((batch, height, width), dtype=torch.float32)
    if out.numel() == 0:
        return out
    first, second = _even(first), _even(second)
    wide = min(triton.next_power_of_2(channels), CHANNELS)
    pixels = max(1, TILE // wide)
    tiles = triton.cdiv(height * width, pixels)
    with torch.cuda.device_of(first):
        cosine_kernel[(batch * tiles,)](
            first,
            second,
            out,
            height * width,
            tiles,
            *_steps(first),
            *_steps(second),
            TINY,
            damping,
            C=channels,
            CHANNELS=wide,
            PIXELS=pixels,
            DAMPED=damping > 0,
            num_warps=4,
            enable_fp_fusion=True,
        )
    return out


@cosine_forward.register_fake
def _(first: Tensor, second: Tensor, damping: float) -> Tensor:  # noqa: ARG001 - its signature
    batch, _, height, width = first.shape
    return first.new_empty((batch, height, width), dtype=torch.float32)


def _even(x: Tensor) -> Tensor:
    """The map with its pixels evenly apart, row after row; a copy if they are not."""
    row, pixel = x.stride()[2:]
    return x if row == x.shape[3] * pixel or x.shape[2] == 1 else x.contiguous()


def _steps(x: Tensor) -> tuple[int, int, int]:
    """Elements between pictures, channels and pixels. A row of one pixel has the rows' step."""
    return x.stride(0), x.stride(1), x.stride(2) if x.shape[3] == 1 else x.stride(3)
