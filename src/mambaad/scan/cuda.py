"""The cross scan on a CUDA GPU: what its Triton kernels need around them, and how it is cut up.

Forward: every path's y goes to a plane of its own, already at raster position, and one kernel adds
the planes up in a fixed order, so that a repeated run gives the same bits. Backward: the state
before every ``chunk``-th step was kept; each chunk is recomputed from there, its inner states in
scratch memory small enough to stay in the cache, and walked backwards ``inner`` steps at a time.

All arithmetic is float32. x, dy and projections may be 16 bits wide; then what is added up over
paths and over blocks of channels is, too. The states kept for the gradient are float32; with
bfloat16 inputs they are bfloat16 if ``tuning.short_states``. That rounding does not build up along
a path, as it enters neither recurrence but in the first state of a chunk; it moves the gradients of
C, Δ and A by about as much as rounding B, C and x does (some 1e-3 of them), so those of a_log and
dt_bias are no longer within 1e-6. y is not changed by it.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from mambaad.scan import cuda_backward, cuda_forward, cuda_sums, tuning
from mambaad.scan.tuning import LANES, Tiling

_BLOCK = 1024
"""Numbers that a program of the summing kernels adds up."""

_SMALL_BLOCK = 512
"""The same for what is small and has many summands."""

_TRANSIENT = 640 * 2**20
"""Bytes that the backward pass may take until sums are made of them, if a GPU is kept at work."""

_SUMS = 16
"""Parts that a float32 product over all positions is cut into."""

_LARGEST_FUSED_RANK = {2: 4, 4: 8}
"""By bytes of a projection: up to here the step projection's gradients are taken inside the
backward kernel. Beyond, products of matrices read its dz, which costs the less the fewer bytes."""


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
    """The sum of the K scans, and the states to save for the gradient.

    Args:
        x: (B, L, D), float32, bfloat16 or float16, as ``projections``.
        save: Whether states are wanted.

    Returns:
        y (B, L, D) in the dtype of x; states of ``states_shape`` and ``states_dtype``, or empty.
    """
    p = _Problem(x, projections, a_log, dt_weight, dt_bias, skip, orders)
    planes = p.planes(p.batch)
    shape = states_shape(x, a_log, orders) if save else (0,)
    states = p.empty(*shape, dtype=states_dtype(x))
    segments, blocks = p.tiling.segments, -(-p.channels // LANES)
    ends, sums = p.summaries(p.x, reverse=False)
    cuda_forward.forward_kernel[(blocks * segments, p.paths, p.batch)](
        p.x, p.rows, p.a_log, p.dt_weight, p.dt_bias, p.skip, p.orders, planes, states, ends, sums,
        p.length, p.channels, p.paths, segments, p.pieces, p.chunks, blocks,
        R=p.rank, N=p.states, T=p.tiling.chunk, U=p.tiling.unroll,
        SAVE=save, EVEN=p.even, num_warps=1, enable_fp_fusion=True,
    )  # fmt: skip
    return p.sum_planes(planes, torch.empty_like(p.x)), states


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
    """The gradients of the six float inputs, in their dtypes and shapes.

    Args:
        dy: (B, L, D), contiguous.
        saved: The states that ``forward`` returned.
    """
    p = _Problem(x, projections, a_log, dt_weight, dt_bias, skip, orders)
    fused = p.rank <= _LARGEST_FUSED_RANK[projections.itemsize] and p.rank < p.states
    segments, chunk = p.tiling.segments, p.tiling.chunk
    blocks = -(-p.channels // LANES)
    extra = p.rank if fused else 0
    width = 2 * p.states + extra
    plan = _Plan.of(p.tiling, saved.dtype)
    dz = projections.new_empty((p.batch, p.length, p.paths, 0 if fused else p.channels))
    sums_a = p.empty(p.batch, segments, p.paths, p.channels, p.states)
    parameters = p.empty(p.batch, segments, p.paths, 2 + extra, p.channels)
    programs = min(blocks * segments * p.paths * p.batch, tuning.warps_at_once(plan.warps))
    scratch = programs * chunk + plan.steps  # of steps; see backward_kernel for those in front
    ends, sums = p.summaries(dy, reverse=True)
    pictures = _pictures_at_once(p, projections.itemsize * blocks * width)
    for part in (slice(i, min(i + pictures, p.batch)) for i in range(0, p.batch, pictures)):
        planes = p.planes(part.stop - part.start)
        rows = projections.new_empty((blocks, len(planes), p.length, p.paths, width))
        below = p.empty(scratch // plan.steps * p.states * LANES, dtype=saved.dtype)
        kept = p.empty(scratch * 2 * LANES)
        cuda_backward.backward_kernel[(min(blocks * segments * p.paths * len(planes), programs),)](
            dy[part], p.x[part], p.rows[part], p.a_log, p.dt_weight, p.dt_bias, p.skip, p.orders,
            saved[part], ends[part], sums[part], below, kept, planes, rows, dz[part],
            sums_a[part], parameters[part],
            len(planes), p.length, p.channels, p.paths, segments, p.pieces, p.chunks, blocks,
            R=p.rank, N=p.states, T=chunk, U=plan.steps, V=plan.ahead,
            FUSED=fused, EVEN=p.even, num_warps=1, maxnreg=plan.registers, enable_fp_fusion=True,
        )  # fmt: skip
        del below, kept
        if part.start == 0:  # no earlier: they fit where scratch memory was
            dx = torch.empty_like(p.x)
            dprojections = torch.empty_like(projections, memory_format=torch.contiguous_format)
        p.sum_planes(planes, dx[part])
        _sum_rows(rows, dprojections[part])
        del planes, rows  # before the next ones are allocated
    return dx, *_parameter_gradients(p, dprojections, projections, dz, sums_a, parameters, fused)


def _pictures_at_once(p: _Problem, row: int) -> int:
    """Pictures whose gradients are taken side by side: all, or equal parts that keep a GPU at work.

    A path's share of dx, and those of B's and C's gradients by block of channels (``row`` bytes for
    a step of a path), are memory that is only needed until they are added up.
    """
    picture = p.paths * p.length * (row + p.channels * p.x.itemsize)
    programs = p.paths * p.tiling.segments * -(-p.channels // LANES)
    enough = -(-tuning.warps_at_once(tuning.WARPS) // programs)
    most = max(enough, _TRANSIENT // picture)
    return -(-p.batch // -(-p.batch // most))


def _sum_rows(rows: Tensor, out: Tensor) -> None:
    """Sum the gradients of B, C and perhaps of Δ's inputs over the blocks of channels."""
    size = rows[0].numel()
    cuda_sums.sum_rows_kernel[(-(-size // _BLOCK),)](
        rows, out, size, rows.shape[0],
        FROM=rows.shape[-1], TO=out.shape[-1], BLOCK=_BLOCK,
        num_warps=4, enable_fp_fusion=True,
    )  # fmt: skip


def _parameter_gradients(
    p: _Problem,
    dprojections: Tensor,
    projections: Tensor,
    dz: Tensor,
    sums_a: Tensor,
    parameters: Tensor,
    fused: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Sum what the programs found; for large ranks, do the step projection by matrix products.

    ``dprojections`` is completed by the gradient of Δ's inputs where the programs have left it out.
    """
    da_log, ddt_weight = torch.empty_like(p.a_log), torch.empty_like(p.dt_weight)
    ddt_bias, dskip = torch.empty_like(p.dt_bias), torch.empty_like(p.dt_bias)
    programs = sum(-(-sums[0, 0].numel() // _SMALL_BLOCK) for sums in (sums_a, parameters))
    cuda_sums.sum_parameters_kernel[(programs,)](
        sums_a, parameters, p.a_log, da_log, ddt_bias, dskip, ddt_weight,
        p.batch * p.tiling.segments, p.paths, p.channels,
        R=p.rank, N=p.states, FUSED=fused, BLOCK=_SMALL_BLOCK,
        num_warps=4, enable_fp_fusion=True,
    )  # fmt: skip
    if not fused:
        by_path = dz.view(-1, p.paths, p.channels).transpose(0, 1)
        low = projections.reshape(-1, p.paths, projections.shape[-1])[..., : p.rank]
        with torch.autocast(dz.device.type, enabled=False):
            dlow = torch.bmm(by_path, p.dt_weight.to(dz.dtype))
            ddt_weight = _sum_of_products(by_path.transpose(1, 2), low.transpose(0, 1))
        dprojections.view(-1, p.paths, projections.shape[-1])[..., : p.rank] = dlow.transpose(0, 1)
    return dprojections, da_log, ddt_weight, ddt_bias, dskip


def _sum_of_products(left: Tensor, right: Tensor) -> Tensor:
    """left (K, D, n) @ right (K, n, R), the result in float32.

    In float32 n is cut into ``_SUMS`` parts: cuBLAS adds all n to one register, and thousands of
    roundings in a row are more than the plain path's.
    """
    if left.dtype != torch.float32:
        if _has_wide_products(left.device, left.dtype):
            return torch.bmm(left, right, out_dtype=torch.float32)
        return torch.bmm(left, right).float()
    part = -(-left.shape[2] // _SUMS)
    pieces = zip(left.split(part, dim=2), right.split(part, dim=1), strict=True)
    return torch.stack([torch.bmm(a, b) for a, b in pieces]).sum(0)


@lru_cache(maxsize=8)
def _has_wide_products(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether torch multiplies matrices of 16 bits without rounding the result to 16 bits; it has
    done so on CUDA since 2.8."""
    one = torch.ones(1, 8, 8, dtype=dtype, device=device)
    try:
        torch.bmm(one, one, out_dtype=torch.float32)
    except (TypeError, RuntimeError):
        return False
    return True


class _Plan(NamedTuple):
    """How the backward kernel goes through a chunk."""

    warps: int
    """On each multiprocessor."""

    registers: int | None
    """Of a lane at most; None leaves it to the assembler."""

    steps: int
    """Taken at once on the way back; of the states, those between are not in scratch memory."""

    ahead: int
    """Taken at once on the way forwards."""

    @classmethod
    def of(cls, tiling: Tiling, states: torch.dtype) -> _Plan:
        """For states of this dtype: see ``cuda_backward``."""
        if states == torch.float32:
            return cls(tuning.WARPS, None, tiling.inner, max(tiling.inner, min(4, tiling.chunk)))
        registers = 168 if tiling.warps <= 12 else 128
        return cls(tiling.warps, registers, 1, min(2, tiling.chunk))


class _Problem:
    """Sizes, contiguous inputs and tiling of one scan."""

    def __init__(
        self,
        x: Tensor,
        projections: Tensor,
        a_log: Tensor,
        dt_weight: Tensor,
        dt_bias: Tensor,
        skip: Tensor | None,
        orders: Tensor,
    ) -> None:
        self.batch, self.length, self.channels = x.shape
        self.paths, _, self.states = a_log.shape
        self.rank = dt_weight.shape[2]
        self.x, self.orders = x.contiguous(), orders.contiguous()
        self.a_log, self.dt_weight = a_log.contiguous(), dt_weight.contiguous()
        self.dt_bias = dt_bias.contiguous()
        self.skip = torch.zeros_like(self.dt_bias) if skip is None else skip.contiguous()
        self.rows = projections.contiguous()
        self.tiling = tiling(self.batch, self.paths, self.length, self.channels)
        self.chunks = -(-self.length // self.tiling.chunk)
        self.pieces = self.tiling.segments * self.tiling.pieces
        self.even = self.length % self.tiling.chunk == 0 and self.channels % LANES == 0

    def empty(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=self.x.device)

    def planes(self, pictures: int) -> Tensor:
        """A map for every path, as wide as x: rounding the summands of a sum that is rounded
        itself adds less than half to its error, and they are most of what is written."""
        return self.x.new_empty((pictures, self.paths, self.length, self.channels))

    def summaries(self, source: Tensor, *, reverse: bool) -> tuple[Tensor, Tensor]:
        """What each piece does to a state; nothing is computed for a single segment."""
        blocks = -(-self.channels // LANES)
        segments, pieces = self.tiling.segments, self.pieces
        shape = (self.batch, self.paths, pieces if segments > 1 else 0, blocks)
        sums = self.empty(*shape, LANES)
        ends = self.empty(*shape, self.states * LANES)
        if segments > 1:
            last = pieces // segments  # pieces of a segment: nobody asks for one of them
            cuda_forward.summary_kernel[(blocks * (pieces - last), self.paths, self.batch)](
                source, self.rows, self.a_log, self.dt_weight, self.dt_bias, self.orders,
                ends, sums,
                self.length, self.channels, self.paths, pieces, last if reverse else 0,
                self.chunks, blocks,
                R=self.rank, N=self.states, T=self.tiling.chunk, U=self.tiling.unroll,
                REVERSE=reverse, EVEN=self.even, num_warps=1, enable_fp_fusion=True,
            )  # fmt: skip
        return ends, sums

    def sum_planes(self, planes: Tensor, out: Tensor) -> Tensor:
        """Put the sum over the paths to ``out``, and return that."""
        size = self.length * self.channels
        cuda_sums.sum_planes_kernel[(-(-size // _BLOCK), len(planes))](
            planes, out, size, self.paths, BLOCK=_BLOCK, num_warps=4, enable_fp_fusion=True
        )
        return out


def states_shape(x: Tensor, a_log: Tensor, orders: Tensor) -> tuple[int, int, int, int, int]:
    """Shape of the saved states: (B, K, chunks, D / 32, N * 32), as warps hold them."""
    batch, length, channels = x.shape
    paths, size = orders.shape[0], a_log.shape[2]
    chunk = tiling(batch, paths, length, channels).chunk
    return batch, paths, -(-length // chunk), -(-channels // LANES), size * LANES


def states_dtype(x: Tensor) -> torch.dtype:
    """Of the saved states: float32; bfloat16 if that is asked for and x is, too."""
    short = x.dtype == torch.bfloat16 and tuning.short_states()
    return torch.bfloat16 if short else torch.float32


def tiling(batch: int, paths: int, length: int, channels: int) -> Tiling:
    """How to cut up a scan of this size; always the same in a process. See ``tuning``."""
    # torch.compile may not know the sizes; what it makes is then for these alone
    return tuning.current(tuning.Size(int(batch), int(paths), int(length), int(channels)))
