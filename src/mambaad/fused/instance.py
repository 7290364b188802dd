"""Instance normalisation without weights, then SiLU, channels last.

    y = SiLU((x - mean) / sqrt(var + eps))        SiLU(n) = n · sigmoid(n)

with mean and biased variance of every channel of every picture over its pixels, as torch's. It
follows every convolution of a local branch (He et al., MambaAD, arXiv 2404.06564, equation 6).
``_plain`` is the definition, ``normalised`` the same by quicker steps where no gradient is wanted;
for 16- and 32-bit CUDA tensors it is one kernel each way if a map fits the registers, else two
(``instance_kernels``). Mean and 1/deviation are kept for the gradient.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mambaad.fused import triton_runs

WHOLE = 1024
"""Most pixels of a map that one program holds: 32 bytes of each are 32 KB."""

TILE = 128
"""Pixels of a tile of larger maps."""

SPANS = 64
"""Most parts of a larger map. Every program reads the sums of all of them."""

PROGRAMS = 528
"""Programs wanted for larger maps: four on each processor of an H200."""


def instance_norm_silu(x: Tensor, eps: float = 1e-5, *, kernel: bool | None = None) -> Tensor:
    """SiLU of the instance normalisation of ``x``; a map of one pixel has no spread and becomes 0.

    Args:
        x: (B, H, W, C), any floating dtype. Statistics are at least float32 in the kernels; they
            read x as it is if it is contiguous.
        eps: Added to the variance.
        kernel: Whether the Triton kernels run. By default they do for CUDA tensors of 16 or 32
            bits where Triton runs.

    Returns:
        (B, H, W, C), in the dtype of ``x``.

    Raises:
        ValueError: If ``x`` does not have four dimensions.
    """
    if x.dim() != 4:
        raise ValueError(f"x must have shape (B, H, W, C), got {tuple(x.shape)}")
    if x.shape[1] * x.shape[2] == 1:
        return torch.zeros_like(x)
    if kernel is None:
        kernel = x.is_cuda and x.dtype != torch.float64 and triton_runs()
    if not kernel:
        learnt = torch.is_grad_enabled() and x.requires_grad
        narrow = x.dtype not in (torch.float32, torch.float64)
        if learnt or narrow:
            return _plain(x, eps)
        return F.silu(normalised(x, eps), inplace=True)
    y: Tensor = instance_norm_forward(x, eps)[0]
    return y


def normalised(x: Tensor, eps: float = 1e-5) -> Tensor:
    """The norm without SiLU in plain torch, for maps that need no gradient.

    torch's own norm takes the channels apart, into another order in memory, and the next layer has
    to put them together again: on a CPU it takes three times as long. Its gradient is quicker.

    Args:
        x: (B, H, W, C), float32 or float64: sums are taken in its dtype, torch's pairwise ones.
        eps: Added to the variance.

    Returns:
        (B, H, W, C), contiguous, a tensor of its own.
    """
    flat = x.flatten(1, 2)
    centred = flat - flat.mean(1, keepdim=True)
    variance = centred.square().mean(1, keepdim=True)
    y: Tensor = centred.mul_(torch.rsqrt(variance + eps)).unflatten(1, x.shape[1:3])
    return y


def _plain(x: Tensor, eps: float) -> Tensor:
    """The definition, for maps of more than one pixel.

    As (B, C, H·W): for one picture (1, C, H, W), torch's gradient on the CPU is wrong if what comes
    back to it is in channels-last format (torch 2.13).
    """
    normal = F.instance_norm(x.flatten(1, 2).transpose(1, 2), eps=eps)
    y: Tensor = F.silu(normal).transpose(1, 2).unflatten(1, x.shape[1:3])
    return y


class Tiling(NamedTuple):
    """How programs share the maps; letters as in ``instance_kernels``."""

    pixels: int
    channels: int
    steps: int
    spans: int
    warps: int


def tiling(batch: int, pixels: int, channels: int, itemsize: int) -> Tiling:
    """For ``channels`` maps of ``pixels`` pixels in each of ``batch`` pictures.

    Rows of a tile are 64 bytes, which memory serves best; 32, the least that it serves whole, for
    maps in one tile of more than 128 pixels, so that batch 16 makes a program for each of the
    132 processors and a thread holds at most 32 elements. Larger maps
    have as many spans as keep all processors at work, and 16 elements for each thread.
    """
    power = _power_of_2(pixels)
    whole = power <= WHOLE
    bytes_wide = 32 if 128 < power <= WHOLE else 64
    wide = min(bytes_wide // itemsize, _power_of_2(channels))
    high = power if whole else TILE
    warps = min(max(high * wide // 512, 1), 16)
    if whole:
        return Tiling(high, wide, 1, 1, warps)
    tiles = -(-pixels // TILE)
    maps = batch * -(-channels // wide)
    wanted = min(max(PROGRAMS // max(maps, 1), 1), SPANS)
    steps = _power_of_2(-(-tiles // wanted))
    return Tiling(high, wide, steps, -(-tiles // steps), warps)


def _power_of_2(n: int) -> int:
    """The smallest one that is not below n."""
    return 1 << (n - 1).bit_length()


@torch.library.custom_op("mambaad::instance_norm_silu", mutates_args=())
def instance_norm_forward(x: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """y as x, and mean and 1/deviation, float32 (B, C), by the kernels."""
    x = x.contiguous()
    y = torch.empty_like(x)
    return y, *normalise(x, eps, y)


def normalise(x: Tensor, eps: float, y: Tensor) -> tuple[Tensor, Tensor]:
    """Fill y with the result for x; mean and 1/deviation, float32 (B, C).

    Args:
        x: (B, H, W, C), contiguous.
        eps: Added to the variance.
        y: As x, or a part of joined maps: channels side by side, pixels evenly apart.
    """
    from mambaad.fused import instance_kernels

    mean, rstd = (x.new_empty((x.shape[0], x.shape[3]), dtype=torch.float32) for _ in range(2))
    if x.numel() == 0:
        return mean, rstd
    tiles, grid, sizes = _launch(x)
    pixels = x.shape[1] * x.shape[2]
    steps = y.view(y.shape[0], pixels, y.shape[3]).stride()[:2]
    with torch.cuda.device_of(x):
        if tiles.pixels >= pixels:
            instance_kernels.instance_norm_whole_kernel[(grid[0], grid[2])](
                x, y, mean, rstd, pixels, eps, *steps, **sizes
            )
            return mean, rstd
        partial = _partial(x, tiles)
        sizes["STEPS"] = tiles.steps
        instance_kernels.instance_moments_kernel[grid](x, partial, pixels, **sizes)
        instance_kernels.instance_apply_kernel[grid](
            x, partial, y, mean, rstd, pixels, eps, *steps, SPANS=_power_of_2(tiles.spans), **sizes
        )
    return mean, rstd


@instance_norm_forward.register_fake
def _(x: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:  # noqa: ARG001 - the signature
    mean = x.new_empty((x.shape[0], x.shape[3]), dtype=torch.float32)
    return x.new_empty(x.shape), mean, torch.empty_like(mean)


@torch.library.custom_op("mambaad::instance_norm_silu_backward", mutates_args=())
def instance_norm_backward(dy: Tensor, x: Tensor, mean: Tensor, rstd: Tensor) -> Tensor:
    """The gradient of x."""
    from mambaad.fused import instance_kernels

    dy, x = _even_pixels(dy), x.contiguous()
    steps = dy.stride(0), dy.stride(1)
    dx = torch.empty_like(x)
    if x.numel() == 0:
        return dx
    tiles, grid, sizes = _launch(x)
    pixels = x.shape[1] * x.shape[2]
    with torch.cuda.device_of(x):
        if tiles.pixels >= pixels:
            instance_kernels.instance_norm_backward_whole_kernel[(grid[0], grid[2])](
                dy, x, mean, rstd, dx, pixels, *steps, **sizes
            )
            return dx
        partial = _partial(x, tiles)
        sizes["STEPS"] = tiles.steps
        instance_kernels.instance_backward_sums_kernel[grid](
            dy, x, mean, rstd, partial, pixels, *steps, **sizes
        )
        instance_kernels.instance_backward_apply_kernel[grid](
            dy, x, mean, rstd, partial, dx, pixels, *steps, SPANS=_power_of_2(tiles.spans), **sizes
        )
    return dx


@instance_norm_backward.register_fake
def _(
    dy: Tensor,  # noqa: ARG001 - the operator's signature
    x: Tensor,
    mean: Tensor,  # noqa: ARG001
    rstd: Tensor,  # noqa: ARG001
) -> Tensor:
    return x.new_empty(x.shape)


def _even_pixels(x: Tensor) -> Tensor:
    """x as (B, pixels, C), channels side by side: a view if the pixels lie evenly, else a copy.

    The gradient of a part of joined maps is such a view of the whole's.
    """
    flat = x.flatten(1, 2)
    return flat if flat.stride(2) == 1 else flat.contiguous()


def _launch(x: Tensor) -> tuple[Tiling, tuple[int, int, int], dict[str, int]]:
    """The tiling of x, the grid, and what all its kernels are told."""
    batch, height, width, channels = x.shape
    tiles = tiling(batch, height * width, channels, x.element_size())
    grid = (-(-channels // tiles.channels), tiles.spans, batch)
    sizes = {
        "C": channels,
        "CHANNELS": tiles.channels,
        "PIXELS": tiles.pixels,
        "num_warps": tiles.warps,
        "enable_fp_fusion": True,
    }
    return tiles, grid, sizes


def _partial(x: Tensor, tiles: Tiling) -> Tensor:
    """Room for two sums of every span and channel, (B, spans, 2, C)."""
    return x.new_empty((x.shape[0], tiles.spans, 2, x.shape[3]), dtype=torch.float32)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(inputs[0], *output[1:])
    ctx.set_materialize_grads(False)  # no zeros for mean and rstd, which have no gradient


def _gradient(ctx: Any, dy: Tensor, *_: Tensor) -> tuple[Tensor, None]:
    dx: Tensor = instance_norm_backward(dy, *ctx.saved_tensors)
    return dx, None


instance_norm_forward.register_autograd(_gradient, setup_context=_setup_context)
