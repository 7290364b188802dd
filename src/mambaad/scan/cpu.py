"""The cross scan on the CPU: forward and backward by numba's kernels, parallel, deterministic.

Tasks are (picture, block of channels, group of paths). Paths in a group are added up by one thread
in a fixed order, the groups' sums afterwards, so the same inputs always give the same bits,
whatever the number of threads: the number of groups depends on the shapes alone.

The kernels are in ``cpu_kernels``; what is here lays out their arrays. The first call in a fresh
installation compiles for some seconds; numba keeps the result on disk.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mambaad.scan.cpu_kernels import BLOCK, CHUNK, LOG2E, backward_kernel, forward_kernel
from mambaad.threads import NUMBA_LOCK, numba_threads

__all__ = ["BLOCK", "CHUNK", "backward", "forward"]

FORWARD_TASKS = 8
"""Tasks wanted at least, where the paths allow it: more cores than that need a larger batch."""

BACKWARD_TASKS = 4
"""The same for the backward pass, which keeps more memory for each group."""

Array = NDArray[np.float32]


def forward(
    x: Tensor,
    projections: Tensor,
    a_log: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    skip: Tensor | None,
    orders: Tensor,
    *,
    save: bool,
) -> tuple[Tensor, Tensor]:
    """``reference.forward`` for float32 tensors on the CPU.

    Args:
        save: Whether to return the states that ``backward`` needs.

    Returns:
        y, (B, L, D), and the state at the start of every chunk, (B, K, ceil(L / CHUNK), N, D
        rounded up to whole blocks), or an empty tensor if they are not to be saved.
    """
    batch, length, channels = x.shape
    packed = _pack(x, projections, a_log, dt_weight, dt_bias, skip, orders)
    padded = packed[0].shape[2]
    groups = _groups(FORWARD_TASKS, batch, padded, orders.shape[0])
    y = np.empty((groups, batch, length, padded), np.float32)
    shape = (batch, orders.shape[0], -(-length // CHUNK), a_log.shape[2], padded)
    saved = np.empty(shape if save else (0, 0, 0, 0, 0), np.float32)
    _run(forward_kernel, batch * (padded // BLOCK) * groups, groups, *packed, y, saved)
    return _sum_groups(y, channels), torch.from_numpy(saved)


def backward(
    dy: Tensor,
    x: Tensor,
    projections: Tensor,
    a_log: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    skip: Tensor | None,
    orders: Tensor,
    *,
    saved: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """``reference.backward`` for float32 tensors on the CPU; ``saved`` comes from ``forward``."""
    batch, length, channels = x.shape
    paths, size, rank = orders.shape[0], a_log.shape[2], dt_weight.shape[2]
    packed = _pack(x, projections, a_log, dt_weight, dt_bias, skip, orders)
    padded = packed[0].shape[2]
    blocks = padded // BLOCK
    groups = _groups(BACKWARD_TASKS, batch, padded, paths)
    dx = np.empty((groups, batch, length, padded), np.float32)
    dprojections = np.empty((blocks, batch, length, paths, rank + 2 * size), np.float32)
    da = np.empty((batch, paths, size, padded), np.float32)
    dweight = np.empty((batch, paths, rank, padded), np.float32)
    dbias = np.empty((batch, paths, padded), np.float32)
    dskip = np.empty((batch, paths, padded), np.float32)
    _run(
        backward_kernel, batch * blocks * groups, groups, *packed, saved.numpy(),
        _pad(dy, channels), dx, dprojections, da, dweight, dbias, dskip,
    )  # fmt: skip
    sums = [torch.from_numpy(v).sum(0)[..., :channels] for v in (da, dweight, dbias, dskip)]
    da_log = sums[0].transpose(1, 2).contiguous() * -torch.exp(a_log).contiguous()
    return (
        _sum_groups(dx, channels),
        torch.from_numpy(dprojections).sum(0),
        da_log,
        sums[1].transpose(1, 2).contiguous(),
        sums[2].contiguous(),
        sums[3].contiguous(),
    )


def _run(kernel: Any, *arguments: Any) -> None:
    """Call a kernel with as many threads as torch uses."""
    with NUMBA_LOCK:
        numba.set_num_threads(min(torch.get_num_threads(), numba_threads()))
        kernel(*arguments)


def _groups(tasks: int, batch: int, padded: int, paths: int) -> int:
    """The fewest groups of paths, of equal size, that make at least ``tasks`` tasks."""
    enough = -(-tasks // (batch * (padded // BLOCK)))
    return next(g for g in range(1, paths + 1) if paths % g == 0 and (g >= enough or g == paths))


def _pack(
    x: Tensor,
    projections: Tensor,
    a_log: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    skip: Tensor | None,
    orders: Tensor,
) -> tuple[NDArray[Any], ...]:
    """The kernels' arrays: channels last and whole blocks of them, A in units of log2."""
    channels = x.shape[2]
    if skip is None:
        skip = torch.zeros_like(dt_bias)
    return (
        _pad(x, channels),
        projections.contiguous().numpy(),
        _pad((torch.exp(a_log) * -float(LOG2E)).transpose(1, 2), channels),
        _pad(dt_weight.transpose(1, 2), channels),
        _pad(dt_bias, channels),
        _pad(skip, channels),
        orders.contiguous().numpy(),
    )


def _pad(tensor: Tensor, channels: int) -> Array:
    padded: Tensor = torch.nn.functional.pad(tensor, (0, -channels % BLOCK))
    array: Array = padded.contiguous().numpy()
    return array


def _sum_groups(planes: Array, channels: int) -> Tensor:
    total = torch.from_numpy(planes)
    return (total[0] if len(planes) == 1 else total.sum(0))[..., :channels].contiguous()
