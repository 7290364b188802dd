"""StableAdamW's update of a group of parameters in three launches, however many they are.

``mambaad.optimisers`` has the algorithm, and is its definition in plain torch: a hundred launches
of its own for three hundred tensors, and one more for each tensor's rate. Here programs share out
chunks of all tensors alike, which they reach by a table of addresses (``optimiser_kernels``):

    moments: m, v, and a chunk's part of the mean        rates: one for each tensor        change: p

Sums are taken in the same order each time, so a repeated run gives the same bits.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

CHUNK, WARPS = 4096, 8
"""Numbers of a tensor that a program takes, 16 for each thread, and warps of a program."""

BLOCK = 1024
"""Parts of a tensor's mean that are added up at once."""


class Group(NamedTuple):
    """Parameters that have the same settings, and what belongs to each, in the same order."""

    parameters: list[Tensor]
    gradients: list[Tensor]

    means: list[Tensor]
    """Of gradients."""

    squares: list[Tensor]
    """Means of squared gradients."""

    steps: list[Tensor]
    """Steps done, 0-dimensional, float32."""


class Addresses:
    """Where a group's tensors are, as a table on their device.

    It is copied there when it changed. A CUDA graph copies it each time it runs, from memory that
    must stay as it is: an object lives at least as long as the graphs that were captured with it.
    """

    def __init__(self) -> None:
        self._known, self._placed = torch.empty(0), torch.empty(0)
        self._spare = torch.empty(0)
        self._captured: list[Tensor] = []

    def place(self, table: Tensor, device: torch.device) -> Tensor:
        """The table on the device, in the order of the current stream; the host does not wait.

        Args:
            table: Any numbers, on the CPU. Not to be changed afterwards.
            device: Where to.
        """
        if device.type != "cuda":
            return table
        if torch.cuda.is_current_stream_capturing():
            fits = self._spare.shape == table.shape
            host = self._spare if fits else torch.empty_like(table, pin_memory=True)
            self._spare = torch.empty(0)
            self._captured.append(host.copy_(table))
            return host.to(device, non_blocking=True)
        if not torch.equal(table, self._known):
            self._known = table
            self._placed = table.pin_memory().to(device, non_blocking=True)
        if self._spare.shape != table.shape:  # older torch cannot make it during a capture
            self._spare = torch.empty_like(table, pin_memory=True)
        return self._placed


def takes(group: Group) -> bool:
    """Whether the kernels can update a group.

    All must be float32 on one device; parameters without gaps in memory, and not empty; moments in
    their parameters' order in memory.
    """
    device = group.parameters[0].device
    for tensors in zip(*group, strict=True):
        p, _, m, v, _ = tensors
        if any(t.dtype != torch.float32 or t.device != device for t in tensors):
            return False
        if any(t.layout != torch.strided for t in tensors) or not _dense(p) or p.numel() == 0:
            return False
        if not _order(p) == _order(m) == _order(v):
            return False
    return True


def update(
    group: Group,
    addresses: Addresses,
    *,
    lr: float | Tensor,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> None:
    """Take a step of StableAdamW with every tensor of a group that ``takes`` approves of.

    Args:
        group: Changed in place, apart from the gradients.
        addresses: The group's own.
        lr: A tensor is read by the device, so a CUDA graph follows it.
        betas: As of ``StableAdamW``, and so are the rest.
    """
    from mambaad.fused.optimiser_kernels import change_kernel, moments_kernel, rates_kernel

    first = group.parameters[0]
    # a gradient may lie in another order, filters' for instance
    pairs = zip(group.parameters, group.gradients, strict=True)
    group = group._replace(gradients=[_as(p, g) for p, g in pairs])
    rate = lr if isinstance(lr, Tensor) else torch.full((), lr, device=first.device)
    rate = rate.to(first.device, torch.float32)
    logs = [math.log(beta) if beta else -math.inf for beta in betas]
    options = {"CHUNK": CHUNK, "num_warps": WARPS, "enable_fp_fusion": True}
    with torch.cuda.device_of(first):
        table, owners = _tables(group, addresses)
        chunks, tensors = len(owners), len(group.parameters)
        parts, rates = first.new_empty(chunks), first.new_empty(tensors)
        moments_kernel[(chunks,)](table, owners, parts, *logs, eps, **options)
        rates_kernel[(tensors,)](table, parts, rate, rates, BLOCK=BLOCK, **options)
        change_kernel[(chunks,)](table, owners, rates, weight_decay, eps, **options)
    torch.autograd.graph.increment_version(group.parameters)  # torch has not seen them change


def _tables(group: Group, addresses: Addresses) -> tuple[Tensor, Tensor]:
    """The kernels' table, row by row, and the row that each chunk belongs to."""
    rows, counts, chunks = [], [], 0
    for tensors in zip(*group, strict=True):
        lines = [t.data_ptr() for t in tensors]
        size = tensors[0].numel()
        even = size % 4 == 0 and all(line % 16 == 0 for line in lines[:4])
        rows.append([*lines, size, chunks, int(even)])
        counts.append(-(-size // CHUNK))
        chunks += counts[-1]
    owners = torch.repeat_interleave(torch.arange(len(rows)), torch.tensor(counts))
    both = torch.cat([torch.tensor(rows).flatten(), owners])
    placed = addresses.place(both, group.parameters[0].device)
    width = len(rows[0])
    return placed[: width * len(rows)], placed[width * len(rows) :]


def _as(parameter: Tensor, gradient: Tensor) -> Tensor:
    """The gradient in its parameter's order in memory."""
    if _order(gradient) == _order(parameter):
        return gradient
    return torch.empty_like(parameter).copy_(gradient)


def _order(x: Tensor) -> list[tuple[int, int]]:
    """Sizes and strides that matter: that of a dimension of one element may be anything."""
    return [(n, s) for n, s in zip(x.shape, x.stride(), strict=True) if n > 1]


def _dense(x: Tensor) -> bool:
    """Whether the elements lie side by side, in whatever order of the dimensions."""
    expected = 1
    for stride, size in sorted((s, n) for n, s in _order(x)):
        if stride != expected:
            return False
        expected *= size
    return True
