"""The local branches of an LSS module and its join as one operator, for training on a GPU.

    out = [x +] W [total + factor · branch, l_1, .., l_n] + b        l_i = S(P_i S(D_i * S(F_i x)))

with S the instance normalisation with SiLU, D_i a depth-wise filter, F_i, P_i and W matrices over
the channels, and ``total``, ``branch`` and ``factor`` what the cascade of HSS blocks leaves. S
takes away what a bias would add to its channel, so those of F_i and P_i are left out and get no
gradient: it is zero, and only rounding would make it something else.

``LSSModule`` by its layers defines the result. Here all branches share the products, norms and maps
of their channels side by side, which also is what ``W`` reads, and in the gradient the products
that end in x add to each other's results.

Source: He et al., MambaAD, arXiv 2404.06564, equations 4 to 7.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mambaad.fused import depthwise, instance, sums, triton_runs

EPSILON = 1e-5
"""Added to the variance, as the layers do."""

MOST_BRANCHES = 7
"""So that the joined maps of a picture are within 2^31 elements."""


class Weights(NamedTuple):
    """Of n branches with C channels; matrices in any float dtype."""

    firsts: Sequence[Tensor]
    """F_i, each (C, C, 1, 1)."""

    filters: Sequence[Tensor]
    """D_i, each (C, 1, k, k)."""

    seconds: Sequence[Tensor]
    """P_i, as the firsts."""

    fuse: Tensor
    """W, (C, (n + 1) C, 1, 1)."""

    bias: Tensor
    """b, (C,)."""


def runs(x: Tensor) -> bool:
    """Whether the operator takes such maps here: a gradient is wanted and the kernels run."""
    if not (torch.is_grad_enabled() and x.is_cuda and x.dtype in depthwise.DTYPES):
        return False
    kind = x.device.type
    if torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) != x.dtype:
        return False  # it would cast x for the products
    return (MOST_BRANCHES + 1) * x.shape[1:].numel() < 2**31 and triton_runs()


def join(
    x: Tensor,
    total: Tensor,
    branch: Tensor,
    factor: Tensor | None,
    weights: Weights,
    *,
    residual: bool,
) -> Tensor:
    """``out`` of the module's equation by Triton kernels. Differentiable once in all but factor.

    Args:
        x: (B, H, W, C), 16 or 32 bits.
        total: As x.
        branch: As x.
        factor: (B, 1, 1, 1) as x, or None for 1.
        weights: Up to seven branches.
        residual: Whether x is added.

    Returns:
        (B, H, W, C), contiguous, in the dtype of x.

    Raises:
        ValueError: If ``total`` or ``branch`` has another shape or dtype than x.
    """
    for name, tensor in {"total": total, "branch": branch}.items():
        if tensor.shape != x.shape or tensor.dtype != x.dtype:
            raise ValueError(
                f"{name} must be {x.dtype} of shape {tuple(x.shape)}, "
                f"got {tensor.dtype} {tuple(tensor.shape)}"
            )
    # One product for all, and the gradients are parts of one again.
    firsts = torch.cat([first.flatten(1) for first in weights.firsts])
    seconds = torch.stack([second.flatten(1) for second in weights.seconds])
    out: Tensor = join_forward(
        x, total, branch, factor, firsts, list(weights.filters), seconds,
        weights.fuse.flatten(1), weights.bias, residual,
    )[0]  # fmt: skip
    return out


@torch.library.custom_op("mambaad::local_join", mutates_args=())
def join_forward(
    x: Tensor,
    total: Tensor,
    branch: Tensor,
    factor: Tensor | None,
    firsts: Tensor,
    filters: Sequence[Tensor],
    seconds: Tensor,
    fuse: Tensor,
    bias: Tensor,
    residual: bool,
) -> list[Tensor]:
    """out; what the norms read and the first two leave; the joined maps; the norms' statistics."""
    from mambaad.fused import depthwise_kernels

    n, channels, dtype = len(filters), x.shape[3], x.dtype
    with torch.cuda.device_of(x), torch.autocast(x.device.type, enabled=False):
        flat = x.reshape(-1, channels)
        first = (flat @ firsts.to(dtype).T).view(*x.shape[:3], n * channels)
        wide, narrow = torch.empty_like(first), torch.empty_like(first)
        statistics = [*instance.normalise(first, EPSILON, wide)]
        second = torch.empty_like(first)
        for source, kernel, out in zip(
            wide.chunk(n, -1), filters, second.chunk(n, -1), strict=True
        ):
            depthwise_kernels.forward(source, kernel, None, silu=False, out=out)
        statistics += instance.normalise(second, EPSILON, narrow)
        third = torch.empty_like(first)
        torch.bmm(
            _by_branch(narrow, n), seconds.to(dtype).transpose(1, 2), out=_by_branch(third, n)
        )
        joined = x.new_empty((*x.shape[:3], (n + 1) * channels))
        statistics += instance.normalise(third, EPSILON, joined[..., channels:])
        if factor is None:
            torch.add(total, branch, out=joined[..., :channels])
        else:
            torch.addcmul(total, branch, factor, out=joined[..., :channels])
        y = torch.addmm(bias.to(dtype), joined.flatten(0, 2), fuse.to(dtype).T).view(x.shape)
        if residual:
            y += x
    return [y, first, wide, second, narrow, third, joined, *statistics]


@join_forward.register_fake
def _(
    x: Tensor,
    total: Tensor,  # noqa: ARG001 - the operator's signature
    branch: Tensor,  # noqa: ARG001
    factor: Tensor | None,  # noqa: ARG001
    firsts: Tensor,
    filters: Sequence[Tensor],  # noqa: ARG001
    seconds: Tensor,  # noqa: ARG001
    fuse: Tensor,
    bias: Tensor,  # noqa: ARG001
    residual: bool,  # noqa: ARG001
) -> list[Tensor]:
    maps = [x.new_empty((*x.shape[:3], firsts.shape[0])) for _ in range(5)]
    joined = x.new_empty((*x.shape[:3], fuse.shape[1]))
    size = x.shape[0], firsts.shape[0]
    statistics = [x.new_empty(size, dtype=torch.float32) for _ in range(6)]
    return [x.new_empty(x.shape), *maps, joined, *statistics]


@torch.library.custom_op("mambaad::local_join_backward", mutates_args=())
def join_backward(
    dy: Tensor,
    x: Tensor,
    factor: Tensor | None,
    firsts: Tensor,
    filters: Sequence[Tensor],
    seconds: Tensor,
    fuse: Tensor,
    bias: Tensor,
    kept: Sequence[Tensor],
    residual: bool,
) -> list[Tensor]:
    """The gradients of x, the joined maps, the branch (empty without a factor), firsts, seconds,
    fuse, bias and filters.

    Args:
        kept: What ``join_forward`` returns after its result.
    """
    first, wide, second, narrow, third, joined, *statistics = kept
    n, channels, dtype = seconds.shape[0], x.shape[3], x.dtype
    with torch.cuda.device_of(x), torch.autocast(x.device.type, enabled=False):
        flat = dy.reshape(-1, channels).contiguous()
        djoined = (flat @ fuse.to(dtype)).view(joined.shape)
        dfuse = flat.T @ joined.flatten(0, 2)
        own = djoined[..., :channels]
        dbranch = x.new_empty(0) if factor is None else own * factor
        dthird = instance.instance_norm_backward(djoined[..., channels:], third, *statistics[4:])
        dnarrow, by_branch = torch.empty_like(dthird), _by_branch(dthird, n)
        torch.bmm(by_branch, seconds.to(dtype), out=_by_branch(dnarrow, n))
        dseconds = torch.bmm(by_branch.transpose(1, 2), _by_branch(narrow, n))
        dsecond = instance.instance_norm_backward(dnarrow, second, *statistics[2:4])
        dwide, dfilters, dbias = _filter_gradients(dsecond, wide, filters, flat, bias)
        dfirst = instance.instance_norm_backward(dwide, first, *statistics[:2]).flatten(0, 2)
        dfirsts = dfirst.T @ x.reshape(-1, channels)
        rows = firsts.to(dtype)
        dx = torch.addmm(flat, dfirst, rows) if residual else dfirst @ rows
    matrices = dfirsts.to(firsts.dtype), dseconds.to(seconds.dtype), dfuse.to(fuse.dtype)
    return [dx.view(x.shape), djoined, dbranch, *matrices, dbias, *dfilters]


@join_backward.register_fake
def _(
    dy: Tensor,  # noqa: ARG001 - the operator's signature
    x: Tensor,
    factor: Tensor | None,
    firsts: Tensor,
    filters: Sequence[Tensor],
    seconds: Tensor,
    fuse: Tensor,
    bias: Tensor,
    kept: Sequence[Tensor],
    residual: bool,  # noqa: ARG001
) -> list[Tensor]:
    branch = x.new_empty(0 if factor is None else x.shape)
    matrices = [m.new_empty(m.shape) for m in (firsts, seconds, fuse, bias)]
    filled = [torch.empty_like(kernel) for kernel in filters]
    return [x.new_empty(x.shape), torch.empty_like(kept[5]), branch, *matrices, *filled]


def _filter_gradients(
    dy: Tensor, x: Tensor, filters: Sequence[Tensor], rows: Tensor, bias: Tensor
) -> tuple[Tensor, list[Tensor], Tensor]:
    """The gradients of the depth-wise filters' input and of the filters; beside the first of them
    the sums of ``rows``, as the gradient of ``bias``."""
    from mambaad.fused import depthwise_kernels

    n, dx, dbias = len(filters), torch.empty_like(x), torch.empty_like(bias)
    other: tuple[Tensor, Tensor] | None = (sums.partial_sums(rows), dbias)
    found = []
    for above, source, kernel, out in zip(
        dy.chunk(n, -1), x.chunk(n, -1), filters, dx.chunk(n, -1), strict=True
    ):
        _, dweight, _ = depthwise_kernels.backward(
            above, source, kernel, None, silu=False, dx=out, other=other
        )
        found.append(dweight)
        other = None
    return dx, found, dbias


def _by_branch(maps: Tensor, n: int) -> Tensor:
    """Joined maps (B, H, W, n C) as (n, B H W, C)."""
    return maps.view(-1, n, maps.shape[-1] // n).transpose(0, 1)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    x, _, _, factor, firsts, filters, seconds, fuse, bias, residual = inputs
    ctx.save_for_backward(x, factor, firsts, seconds, fuse, bias, *filters, *output[1:])
    ctx.filters, ctx.residual = len(filters), residual
    ctx.set_materialize_grads(False)  # no zeros for what only the gradient needs


def _gradient(ctx: Any, gradients: Sequence[Tensor | None]) -> tuple[Any, ...]:
    if gradients[0] is None:
        return (None,) * 10
    x, factor, firsts, seconds, fuse, bias, *rest = ctx.saved_tensors
    filters, kept = rest[: ctx.filters], rest[ctx.filters :]
    dx, djoined, dbranch, dfirsts, dseconds, dfuse, dbias, *dfilters = join_backward(
        gradients[0], x, factor, firsts, filters, seconds, fuse, bias, kept, ctx.residual
    )
    dtotal = djoined[..., : x.shape[3]]
    if factor is None:
        dbranch = dtotal
    return dx, dtotal, dbranch, None, dfirsts, dfilters, dseconds, dfuse, dbias, None


join_forward.register_autograd(_gradient, setup_context=_setup_context)
