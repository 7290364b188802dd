"""The middle of an HSS block as one operator: what lies between its two linear layers, on a GPU.

    inner, gate = the halves of ``projected``
    pixels = SiLU(DWConv inner)        projections = scan_proj pixels
    y = LN(scan(pixels, projections)) · SiLU(gate)

The steps are those of ``fused.depthwise``, ``scan`` and ``fused.norm`` with the same kernels, and
``HSSBlock.branch`` taken by itself defines the result. Together their gradient needs fewer: the
halves' gradients are written where they belong in one map, the scan's gradient of the pixels is
what the product with ``scan_proj`` is added to, and the sums for the norm's and the convolution's
weights are one launch.

Source: He et al., MambaAD, arXiv 2404.06564, Figure 2c. Letters as in ``mambaad.scan.reference``.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from mambaad.fused import depthwise, norm, triton_runs
from mambaad.scan import resolve_backend


def runs(projected: Tensor, a_log: Tensor, backend: str) -> bool:
    """Whether the operator takes these tensors: a gradient is wanted and all kernels run."""
    if not torch.is_grad_enabled() or projected.dtype not in depthwise.DTYPES:
        return False
    if a_log.dtype != torch.float32 or projected.shape[1:].numel() >= 2**31 or not triton_runs():
        return False
    paths, _, size = a_log.shape
    chosen = resolve_backend(backend, projected.device, torch.float32, size=size, paths=paths)
    return chosen == "triton"


def gated_scan(
    projected: Tensor,
    conv: tuple[Tensor, Tensor],
    scan: tuple[Tensor, Tensor, Tensor, Tensor, Tensor],
    orders: Tensor,
    norm: tuple[Tensor, Tensor, float],
) -> Tensor:
    """y of the module's equations, by Triton kernels. Differentiable once in all float inputs.

    Args:
        projected: (B, H, W, 2 D), 16 or 32 bits, contiguous.
        conv: Weight (D, 1, k, k) and bias (D,) of the depth-wise convolution.
        scan: ``scan_proj`` (K, R + 2 N, D) of any float dtype, and in float32 ``a_log`` (K, D, N),
            ``dt_weight`` (K, D, R), ``dt_bias`` (K, D) and ``skip`` (K, D).
        orders: int32 (K, H·W).
        norm: Weight (D,), bias (D,) and what is added to the variance.

    Returns:
        (B, H, W, D), in the dtype of ``projected``.

    Raises:
        ValueError: If ``projected`` does not have the shape that ``conv`` and ``orders`` ask for.
    """
    channels, length = conv[0].shape[0], orders.shape[1]
    shape = tuple(projected.shape)
    if len(shape) != 4 or shape[1] * shape[2] != length or shape[3] != 2 * channels:
        raise ValueError(
            f"projected must have shape (B, H, W, {2 * channels}) with H W = {length}, got {shape}"
        )
    y: Tensor = gated_scan_forward(projected.contiguous(), *conv, *scan, orders, *norm)[0]
    return y


@torch.library.custom_op("mambaad::gated_scan", mutates_args=())
def gated_scan_forward(
    projected: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    scan_proj: Tensor,
    a_log: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    skip: Tensor,
    orders: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """y, and what the gradient needs: pixels, projections, the scan's states and result, mean and
    1/deviation of that."""
    from mambaad.fused import depthwise_kernels
    from mambaad.scan import cuda

    batch, height, width, _ = projected.shape
    inner, gate = projected.chunk(2, dim=-1)
    with torch.cuda.device_of(projected), torch.autocast(projected.device.type, enabled=False):
        pixels = depthwise_kernels.forward(inner, conv_weight, conv_bias, silu=True)
        pixels = pixels.view(batch, height * width, -1)
        rows = scan_proj.flatten(0, 1).to(pixels.dtype)
        projections = (pixels.flatten(0, 1) @ rows.T).view(*pixels.shape[:2], *scan_proj.shape[:2])
        scanned, states = cuda.forward(
            pixels, projections, a_log, dt_weight, dt_bias, skip, orders, save=True
        )
        y, mean, rstd = norm.layer_norm_forward(scanned.view(gate.shape), weight, bias, gate, eps)
    return y, pixels, projections, states, scanned, mean, rstd


@gated_scan_forward.register_fake
def _(
    projected: Tensor,
    conv_weight: Tensor,  # noqa: ARG001 - the operator's signature
    conv_bias: Tensor,  # noqa: ARG001
    scan_proj: Tensor,
    a_log: Tensor,
    dt_weight: Tensor,  # noqa: ARG001
    dt_bias: Tensor,  # noqa: ARG001
    skip: Tensor,  # noqa: ARG001
    orders: Tensor,
    weight: Tensor,  # noqa: ARG001
    bias: Tensor,  # noqa: ARG001
    eps: float,  # noqa: ARG001
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    from mambaad.scan import cuda

    batch, height, width, wide = projected.shape
    y = projected.new_empty((batch, height, width, wide // 2))
    pixels = projected.new_empty((batch, height * width, wide // 2))
    projections = projected.new_empty((*pixels.shape[:2], *scan_proj.shape[:2]))
    states = projected.new_empty(
        cuda.states_shape(pixels, a_log, orders), dtype=cuda.states_dtype(pixels)
    )
    mean = projected.new_empty(batch * height * width, dtype=torch.float32)
    return y, pixels, projections, states, torch.empty_like(pixels), mean, torch.empty_like(mean)


@torch.library.custom_op("mambaad::gated_scan_backward", mutates_args=())
def gated_scan_backward(
    dy: Tensor,
    projected: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    scan_proj: Tensor,
    a_log: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    skip: Tensor,
    orders: Tensor,
    weight: Tensor,
    bias: Tensor,
    pixels: Tensor,
    projections: Tensor,
    states: Tensor,
    scanned: Tensor,
    mean: Tensor,
    rstd: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of the first eight float inputs, and (2, D): of the norm's weight and bias."""
    from mambaad.fused import depthwise_kernels
    from mambaad.scan import cuda

    dprojected = torch.empty_like(projected)
    (inner, gate), (dinner, dgate) = projected.chunk(2, dim=-1), dprojected.chunk(2, dim=-1)
    sums = projected.new_empty((2, gate.shape[-1]), dtype=torch.float32)
    with torch.cuda.device_of(projected), torch.autocast(projected.device.type, enabled=False):
        dscanned, table = norm.layer_norm_gradients(
            dy, scanned.view(gate.shape), weight, bias, gate, mean, rstd, dgate
        )
        dpixels, dprojections, *dscan = cuda.backward(
            dscanned.view(pixels.shape),
            pixels, projections, a_log, dt_weight, dt_bias, skip, orders,
            saved=states,
        )  # fmt: skip
        flat = dprojections.flatten(0, 1).flatten(1, 2)
        drows = flat.T @ pixels.flatten(0, 1)
        dpixels.flatten(0, 1).addmm_(flat, scan_proj.flatten(0, 1).to(flat.dtype))
        _, dconv_weight, dconv_bias = depthwise_kernels.backward(
            dpixels.view(gate.shape), inner, conv_weight, conv_bias,
            silu=True, dx=dinner, other=(table, sums),
        )  # fmt: skip
    dscan_proj = drows.to(scan_proj.dtype).view(scan_proj.shape)
    da_log, ddt_weight, ddt_bias, dskip = dscan
    return (
        dprojected, dconv_weight, cast(Tensor, dconv_bias), dscan_proj,
        da_log, ddt_weight, ddt_bias, dskip, sums,
    )  # fmt: skip


@gated_scan_backward.register_fake
def _(
    dy: Tensor,  # noqa: ARG001 - the operator's signature
    projected: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    scan_proj: Tensor,
    a_log: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    skip: Tensor,
    *_: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    like = (projected, conv_weight, conv_bias)
    whole = (scan_proj, a_log, dt_weight, dt_bias, skip)
    sums = projected.new_empty((2, conv_bias.shape[0]), dtype=torch.float32)
    gradients = [torch.empty_like(t) for t in like]
    gradients += [torch.empty_like(t, memory_format=torch.contiguous_format) for t in whole]
    return (*gradients, sums)  # type: ignore[return-value]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:-1], *output[1:])
    ctx.set_materialize_grads(False)  # no zeros for what only the gradient needs


def _gradient(ctx: Any, dy: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    if dy is None:
        return (None,) * 12
    weight, bias = ctx.saved_tensors[9:11]
    *gradients, sums = gated_scan_backward(dy, *ctx.saved_tensors)
    dweight, dbias = sums.unbind()
    return (*gradients, None, dweight.to(weight.dtype), dbias.to(bias.dtype), None)


gated_scan_forward.register_autograd(_gradient, setup_context=_setup_context)
