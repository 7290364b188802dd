"""The cross scan as one ``torch.library`` operator with a hand-written gradient.

One operator for all homes of the computation, so that ``torch.compile`` and ``torch.export`` see a
single node with known shapes and ``opcheck`` can test it. Which home runs is an argument:

    reference   the equation step by step, any device, any dtype          reference.py
    torch       the same with the steps taken in parallel chunks          reference.py
    numba       compiled for the CPU, float32                             cpu.py
    triton      compiled for CUDA GPUs; x and projections may be 16-bit   cuda.py
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mambaad.scan import reference

_RECURRENCES = {"reference": reference.sequential, "torch": reference.chunked}


@torch.library.custom_op("mambaad::cross_scan", mutates_args=())
def cross_scan_forward(
    x: Tensor,
    projections: Tensor,
    a_log: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    skip: Tensor | None,
    orders: Tensor,
    backend: str,
    save: bool,
) -> tuple[Tensor, Tensor]:
    """y (B, L, D) and, if ``save`` and the backend wants them back, states for the gradient."""
    inputs = (x, projections, a_log, dt_weight, dt_bias, skip, orders)
    if backend == "numba":
        from mambaad.scan import cpu

        return cpu.forward(*_detached(inputs), save=save)
    if backend == "triton":
        from mambaad.scan import cuda

        with torch.cuda.device_of(x):  # Triton launches on the current device
            return cuda.forward(*_detached(inputs), save=save)
    return reference.forward(*inputs, recurrence=_RECURRENCES[backend]), x.new_empty(0)


@cross_scan_forward.register_fake
def _(
    x: Tensor,
    projections: Tensor,  # noqa: ARG001 - the operator's signature
    a_log: Tensor,
    dt_weight: Tensor,  # noqa: ARG001
    dt_bias: Tensor,  # noqa: ARG001
    skip: Tensor | None,  # noqa: ARG001
    orders: Tensor,
    backend: str,
    save: bool,
) -> tuple[Tensor, Tensor]:
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    if backend == "triton":
        from mambaad.scan import cuda

        shape = cuda.states_shape(x, a_log, orders) if save else (0,)
        return y, x.new_empty(shape, dtype=cuda.states_dtype(x))
    if backend != "numba":
        return y, x.new_empty(0)
    from mambaad.scan import cpu

    if not save:
        return y, x.new_empty((0, 0, 0, 0, 0))
    batch, length, channels = x.shape
    chunks = (length + cpu.CHUNK - 1) // cpu.CHUNK
    padded = (channels + cpu.BLOCK - 1) // cpu.BLOCK * cpu.BLOCK
    return y, x.new_empty((batch, orders.shape[0], chunks, a_log.shape[2], padded))


@torch.library.custom_op("mambaad::cross_scan_backward", mutates_args=())
def cross_scan_backward(
    dy: Tensor,
    x: Tensor,
    projections: Tensor,
    a_log: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    skip: Tensor | None,
    orders: Tensor,
    saved: Tensor,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of x, projections, a_log, dt_weight, dt_bias and skip."""
    inputs = (x, projections, a_log, dt_weight, dt_bias, skip, orders)
    if backend == "numba":
        from mambaad.scan import cpu

        return cpu.backward(dy.detach(), *_detached(inputs), saved=saved.detach())
    if backend == "triton":
        from mambaad.scan import cuda

        with torch.cuda.device_of(x):
            return cuda.backward(dy.detach(), *_detached(inputs), saved=saved.detach())
    return reference.backward(dy, *inputs, recurrence=_RECURRENCES[backend])


@cross_scan_backward.register_fake
def _(
    dy: Tensor,  # noqa: ARG001 - the operator's signature
    x: Tensor,
    projections: Tensor,
    a_log: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    skip: Tensor | None,  # noqa: ARG001
    orders: Tensor,  # noqa: ARG001
    saved: Tensor,  # noqa: ARG001
    backend: str,  # noqa: ARG001
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    like = (x, projections, a_log, dt_weight, dt_bias, dt_bias)
    gradients = [torch.empty_like(t, memory_format=torch.contiguous_format) for t in like]
    return tuple(gradients)  # type: ignore[return-value]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, backend, _ = inputs
    ctx.save_for_backward(*tensors, output[1])
    ctx.backend = backend
    ctx.set_materialize_grads(False)  # no zeros for the states, which have no gradient


def _gradient(ctx: Any, dy: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if dy is None:
        return (None,) * 9
    *tensors, saved = ctx.saved_tensors
    gradients = cross_scan_backward(dy.contiguous(), *tensors, saved, ctx.backend)
    dskip = None if tensors[5] is None else gradients[5]
    return (*gradients[:5], dskip, None, None, None)


cross_scan_forward.register_autograd(_gradient, setup_context=_setup_context)


def _detached(tensors: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(None if t is None else t.detach() for t in tensors)
