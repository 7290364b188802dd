"""Sums over the rows of a table, for gradients of what every row is given, such as a bias.

    out[d] = sum over r of x[r, d]

By Triton kernels alone: two launches at most, in float32, always in the same order, so that a
repeated run gives the same bits. ``torch.sum`` takes half as long again for such tables, and a
launch more to clear its semaphores.
"""

from __future__ import annotations

import torch
from torch import Tensor

PARTS = 264
"""Most programs of a block of columns in the first pass: two on each processor of an H200."""

ROWS, BLOCK = 64, 32
"""Of a tile: 64 bytes wide in 16 bits, 16 elements for each thread of four warps."""

SINGLE = 1024
"""Most rows that one program adds up alone."""


def column_sums(x: Tensor, dtype: torch.dtype) -> Tensor:
    """The sums of x's columns.

    Args:
        x: (rows, D), 16 or 32 bits, columns side by side. On a CUDA device.
        dtype: Of the result, (D,).
    """
    out = x.new_empty(x.shape[1], dtype=dtype)
    table = x if x.shape[0] <= SINGLE else partial_sums(x)
    _sum(table, out.unsqueeze(0), -(-table.shape[0] // ROWS))
    return out


def partial_sums(x: Tensor) -> Tensor:
    """The sums of x's columns over parts of its rows: float32 (parts, D), in the order of x.

    Args:
        x: As for ``column_sums``.
    """
    tiles = -(-x.shape[0] // ROWS)
    steps = max(1, -(-tiles // PARTS))
    out = x.new_empty((max(1, -(-tiles // steps)), x.shape[1]), dtype=torch.float32)
    _sum(x, out, steps)
    return out


def _sum(x: Tensor, out: Tensor, steps: int) -> None:
    from mambaad.fused.sums_kernels import sum_columns_kernel

    rows, columns = x.shape
    if columns == 0:
        return
    grid = (-(-columns // BLOCK), out.shape[0])
    with torch.cuda.device_of(x):
        sum_columns_kernel[grid](
            x,
            out,
            rows,
            columns,
            x.stride(0),
            steps,
            ROWS=ROWS,
            BLOCK=BLOCK,
            num_warps=4,
            enable_fp_fusion=True,
        )
