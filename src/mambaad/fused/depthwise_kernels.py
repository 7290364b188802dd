"""How the Triton kernels of the depth-wise convolution are launched.

``depthwise`` has the definition. A program works on a tile of ``columns`` pixels side by side by
``channels`` channels and on ``rows`` rows of it at once: a loaded value is used for all outputs of
its column that it reaches, so an output costs k (rows + k - 1) / rows loads instead of k², and the
neighbours come from the first-level cache.

    convolve   y = act(conv(x)); with the weight turned round, dx = conv(g)
    slope      g = dy · act'(conv(x)) if there is an activation, and the sums of g · shifted x and
               of g over the program's pixels, for dweight and dbias; one warp a program, since
               its sums then need no exchange through shared memory
    reduce     adds up those sums in a fixed order: no atomics, so a repeated run has the same bits

All arithmetic is float32. Offsets inside one picture are 32 bit.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from mambaad.fused.depthwise_convolve import convolve_kernel
from mambaad.fused.depthwise_slope import large_slope_kernel, reduce_kernel, slope_kernel

WARPS = 2112
"""Warps wanted at the same time: 16 for each of an H200's 132 multiprocessors."""

SUMMING = 1188
"""The same for the sums: 9, which is what registers allow. Each leaves a row to be added up."""

LARGE = 3
"""Kernels above this size have more sums than registers."""


class Tile(NamedTuple):
    """What a program works on at once, and its warps."""

    rows: int
    columns: int
    channels: int
    warps: int


def choose_tile(shape: tuple[int, ...], size: int, itemsize: int, *, sums: bool) -> Tile:
    """The tile for a map (B, H, W, C), a k x k kernel and elements of ``itemsize`` bytes.

    A thread loads 16 bytes at once where registers allow it: 16-bit maps with small kernels in the
    forward direction. Elsewhere it has 4 values: large kernels hold k weights or sums of each, and
    gain from more rows. Taller and wider tiles read their borders again less often, small maps
    need all programs they can get: so rows are given up until every multiprocessor has work. For
    the sums a program is one warp.
    """
    batch, height, width, depth = shape
    channels = min(32 if sums else 64, triton.next_power_of_2(depth))
    large = size > LARGE
    values = 8 if itemsize == 2 and not large and not sums else 4
    columns = min(triton.next_power_of_2(width), 32 * (1 if sums else 4) * values // channels)
    warps = max(1, columns * channels // (32 * values))
    rows = 4 if not large and (sums or itemsize == 2) else 8
    rows = min(rows, triton.next_power_of_2(height))
    beside = batch * triton.cdiv(width, columns) * triton.cdiv(depth, channels)
    enough = (SUMMING if sums else WARPS) // 2
    while rows > 2 and beside * triton.cdiv(height, rows) * warps < enough:
        rows //= 2
    return Tile(rows, columns, channels, warps)


def forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, *, silu: bool, out: Tensor | None = None
) -> Tensor:
    """``depthwise.definition`` for 16 and 32 bit tensors; x with any strides but the last, 1.

    Args:
        out: Where the result goes, channels side by side and pixels evenly apart, as in a part of
            joined maps; a new map by default.
    """
    if out is None:
        out = x.new_empty(x.shape)
    _convolve(x, weight, bias, out, silu=silu, turn=False)
    return out


def backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    silu: bool,
    dx: Tensor | None = None,
    other: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The gradients of x, weight and bias.

    Args:
        dy: (B, H, W, C), laid out as ``out`` above.
        dx: Where the gradient of x goes, laid out so too; a new map by default.
        other: A contiguous float32 table of two dimensions and where the sums of its columns go:
            done in the launch that adds up this gradient's own.
    """
    batch, height, width, depth = x.shape
    size = weight.shape[-1]
    tile = choose_tile(x.shape, size, x.element_size(), sums=True)
    blocks = triton.cdiv(depth, tile.channels)
    row_blocks, column_blocks = triton.cdiv(height, tile.rows), triton.cdiv(width, tile.columns)
    strips = batch * row_blocks * column_blocks
    each = max(1, triton.cdiv(strips * blocks * tile.warps, SUMMING))
    chunks = triton.cdiv(strips, each)
    slots = triton.next_power_of_2(size + 1)
    g = dy.new_empty(dy.shape) if silu else dy
    if dx is None:
        dx = dy.new_empty(dy.shape)
    partial = x.new_empty((chunks, size, depth, slots), dtype=torch.float32)
    with torch.cuda.device_of(x):
        (large_slope_kernel if size > LARGE else slope_kernel)[(chunks * blocks,)](
            x, _taps(weight), bias, dy, g, partial,
            height, width, depth, row_blocks, column_blocks, strips, each, *x.stride()[:3],
            _step(dy), _step(g),
            K=size, SLOTS=slots, SILU=silu, EVEN=depth % tile.channels == 0,
            ROWS=tile.rows, COLUMNS=tile.columns, BLOCK=tile.channels,
            num_warps=tile.warps, enable_fp_fusion=True,
        )  # fmt: skip
        dweight, dbias = _reduce(partial, weight, bias, other)
    _convolve(g, weight, None, dx, silu=False, turn=True)
    return dx, dweight, dbias


def _reduce(
    partial: Tensor, weight: Tensor, bias: Tensor | None, other: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor | None]:
    """The gradients of weight and bias from ``partial`` (chunks, K, C, SLOTS)."""
    chunks, size, depth, slots = partial.shape
    dweight = torch.empty_like(weight)
    dbias = None if bias is None else torch.empty_like(bias)
    table, sums = (None, None) if other is None else other
    rows, columns = (0, 0) if table is None else table.shape
    programs = triton.cdiv(size * depth * slots, 32) + triton.cdiv(columns, 32)
    height = min(128, triton.next_power_of_2(max(chunks, rows, 1)))
    reduce_kernel[(programs,)](
        partial, dweight, dbias, chunks, depth, *(dweight.stride(i) for i in (0, 2, 3)),
        table, sums, rows, columns,
        K=size, SLOTS=slots, CHUNKS=height, BLOCK=32, num_warps=8, enable_fp_fusion=True,
    )  # fmt: skip
    return dweight, dbias


def _convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor, *, silu: bool, turn: bool
) -> None:
    batch, height, width, depth = x.shape
    size = weight.shape[-1]
    tile = choose_tile(x.shape, size, x.element_size(), sums=False)
    row_blocks, column_blocks = triton.cdiv(height, tile.rows), triton.cdiv(width, tile.columns)
    programs = batch * row_blocks * column_blocks * triton.cdiv(depth, tile.channels)
    with torch.cuda.device_of(x):
        convolve_kernel[(programs,)](
            x, _taps(weight), bias, out,
            height, width, depth, row_blocks, column_blocks, *x.stride()[:3], _step(out),
            K=size, SILU=silu, TURN=turn, EVEN=depth % tile.channels == 0,
            ROWS=tile.rows, COLUMNS=tile.columns, BLOCK=tile.channels,
            num_warps=tile.warps, enable_fp_fusion=True,
        )  # fmt: skip


def _step(x: Tensor) -> int:
    """Elements from pixel to pixel of a map whose pixels are evenly apart."""
    apart = (
        stride
        for length, stride in zip(x.shape[2::-1], x.stride()[2::-1], strict=True)
        if length > 1
    )
    return next(apart, x.shape[3])


def _taps(weight: Tensor) -> Tensor:
    """(C, 1, k, k) as (k², C), channels side by side; no copy if they already are so in memory."""
    return weight.permute(2, 3, 1, 0).contiguous()
