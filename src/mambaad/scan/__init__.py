"""The cross scan: a selective state space model run along K paths over a feature map, summed.

``cross_scan`` is the one entry. ``orders`` makes the paths, ``reference`` is the equation, ``cpu``
and ``cuda`` are the compiled kernels, ``operator`` the ``torch.library`` operator around them.
"""

from __future__ import annotations

import logging
import os
from functools import lru_cache
from typing import Literal, get_args

import torch
from torch import Tensor

from mambaad.constants import constant_result
from mambaad.errors import BackendError
from mambaad.scan.operator import cross_scan_forward
from mambaad.scan.orders import METHODS, direction_orders
from mambaad.triton_support import missing_for_triton

__all__ = ["METHODS", "Backend", "cross_scan", "direction_orders", "resolve_backend"]

Backend = Literal["auto", "triton", "numba", "torch", "reference"]

STATE_SIZES = (8, 16, 32)
"""State sizes N that the Triton kernels are written for."""

MOST_PATHS = 16
"""Most paths K of the Triton kernels."""

_logger = logging.getLogger(__name__)


def cross_scan(
    x: Tensor,
    projections: Tensor,
    a_log: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    skip: Tensor | None,
    orders: Tensor,
    *,
    backend: Backend = "auto",
) -> Tensor:
    """Scan ``x`` along every path and sum; the equation is in ``mambaad.scan.reference``.

    The states and all sums are float32 (float64 if ``x`` is): 16-bit inputs are widened, by the
    Triton kernels as they read them, else before.

    Args:
        x: (B, L, D), pixels in raster order, channels last.
        projections: (B, L, K, R + 2N), raster order: for every pixel and path the low-rank step
            size (R), then B (N) and C (N).
        a_log: (K, D, N), the logarithm of -A.
        dt_weight: (K, D, R), from the low-rank step size to the channels'.
        dt_bias: (K, D), added before softplus.
        skip: (K, D), the factor of x added to the output, or None.
        orders: int32, (K, L): ``orders[k, t]`` is the pixel that path k visits at step t; every
            row is a permutation of 0..L-1.
        backend: ``auto`` takes Triton on a CUDA device, numba on the CPU, and where these cannot
            run (float64; another device; no Triton) the chunked torch path or, on the CPU, the
            reference. A named one runs or raises.

    Returns:
        y, (B, L, D), in the dtype of ``x``. Differentiable in every input but ``orders``.

    Raises:
        ValueError: If a shape disagrees with those of ``x``, ``a_log`` and ``orders``.
        BackendError: If the named backend cannot take these tensors.
    """
    _check_shapes(x, projections, a_log, dt_weight, dt_bias, skip, orders)
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    paths, _, size = a_log.shape
    chosen = resolve_backend(backend, x.device, wide, size=size, paths=paths)
    own = chosen == "triton"  # it reads 16-bit inputs as they are
    y, _ = cross_scan_forward(
        x if own else x.to(wide),
        projections if own else projections.to(wide),
        a_log.to(wide),
        dt_weight.to(wide),
        dt_bias.to(wide),
        None if skip is None else skip.to(wide),
        orders,
        chosen,
        torch.is_grad_enabled(),
    )
    out: Tensor = y.to(x.dtype)
    return out


def resolve_backend(
    backend: str, device: torch.device, dtype: torch.dtype, *, size: int = 16, paths: int = 8
) -> str:
    """The backend that will run.

    Args:
        backend: One of ``Backend``.
        device: Where the tensors are.
        dtype: What is computed in: float32 or float64.
        size: State size N.
        paths: Number of paths K.

    Raises:
        BackendError: If ``backend`` is unknown or cannot run there.
    """
    if backend not in get_args(Backend):
        raise BackendError(f"backend must be one of {list(get_args(Backend))}, got {backend!r}")
    if backend == "triton":
        reason = _no_triton(device, dtype, size, paths)
        if reason:
            raise BackendError(f"backend='triton' cannot run: {reason}; use backend='auto'")
    if backend == "numba" and (device.type != "cpu" or dtype != torch.float32):
        raise BackendError(
            f"backend='numba' needs float32 tensors on the CPU, got {dtype} on {device}; "
            "use backend='auto', or 'reference', which takes any"
        )
    if backend != "auto":
        return backend
    if device.type == "cpu":
        return "numba" if dtype == torch.float32 else "reference"
    reason = _no_triton(device, dtype, size, paths)
    if reason and device.type == "cuda" and dtype == torch.float32:
        _tell_once(f"the scan runs without its GPU kernel, many times slower: {reason}")
    return "torch" if reason else "triton"


def _no_triton(device: torch.device, dtype: torch.dtype, size: int, paths: int) -> str | None:
    """Why the Triton kernels cannot take such tensors; None if they can."""
    if size in STATE_SIZES and 1 <= paths <= MOST_PATHS:
        return _no_triton_for(device, dtype)
    return (
        f"it takes {list(STATE_SIZES)} states and 1 to {MOST_PATHS} paths, got {size} and {paths}"
    )


@constant_result  # torch.compile may not know sizes yet, so this is not asked for any
def _no_triton_for(device: torch.device, dtype: torch.dtype) -> str | None:
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if device.type != "cuda" and not (interpreted and device.type == "cpu"):
        return f"it needs tensors on a CUDA device, got {device}"
    if dtype != torch.float32:
        return f"it computes in float32, got {dtype}"
    return None if interpreted else missing_for_triton()


@lru_cache(maxsize=8)
def _tell_once(text: str) -> None:
    _logger.warning(text)


def _check_shapes(
    x: Tensor,
    projections: Tensor,
    a_log: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    skip: Tensor | None,
    orders: Tensor,
) -> None:
    if x.dim() != 3 or a_log.dim() != 3 or dt_weight.dim() != 3:
        raise ValueError(
            "x (B, L, D), a_log (K, D, N) and dt_weight (K, D, R) must have three dimensions, got "
            f"{tuple(x.shape)}, {tuple(a_log.shape)} and {tuple(dt_weight.shape)}"
        )
    batch, length, channels = x.shape
    paths, _, size = a_log.shape
    rank = dt_weight.shape[2]
    expected = {
        "projections": (projections, (batch, length, paths, rank + 2 * size)),
        "a_log": (a_log, (paths, channels, size)),
        "dt_weight": (dt_weight, (paths, channels, rank)),
        "dt_bias": (dt_bias, (paths, channels)),
        "skip": (skip, (paths, channels)),
        "orders": (orders, (paths, length)),
    }
    for name, (tensor, shape) in expected.items():
        if tensor is not None and tuple(tensor.shape) != shape:
            raise ValueError(f"{name} must have shape {shape}, got {tuple(tensor.shape)}")
    if orders.dtype != torch.int32:
        raise ValueError(f"orders must be int32, got {orders.dtype}")
