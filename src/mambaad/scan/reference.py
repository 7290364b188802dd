"""The cross scan, written as its equation, forward and backward. This file is the reference.

For each of the K paths, with pixels renumbered t = 1..L in the order of the visit:

    Δ_t = softplus(W_Δ r_t + b_Δ)                                        (D,)
    h_t = exp(Δ_t A) h_{t-1} + Δ_t B_t x_t        A = -exp(a_log)        (D, N)
    y_t = C_t h_t + skip x_t                                             (D,)

and y is the sum over the K paths, each put back where its pixels are. Source: Gu & Dao 2023,
arXiv 2312.00752, Algorithm 2, with the simplified step for B; MambaAD (arXiv 2404.06564),
equations 1 to 3 and Figure 3.

Letters, the same in every file of ``scan``:

    B batch   K paths   D channels   L pixels   N state size   R rank of the step projection

``r``, ``B`` and ``C`` come from one point-wise projection of ``x``, stored in raster order as
``projections`` (B, L, K, R + 2N): only the order in which pixels are visited differs by path, so
nothing but indices enters the scan.

It works in the dtype of its inputs, float64 included, one path at a time. The recurrence is a
parameter: ``sequential`` takes one step per pixel and is the definition; ``chunked`` runs many
stretches side by side and is what a GPU without a kernel of its own uses.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Recurrence = Callable[[Tensor, Tensor], Tensor]

CHUNK = 64
"""Steps of ``chunked`` that are taken one after the other."""


def sequential(decay: Tensor, drive: Tensor) -> Tensor:
    """h_t = decay_t h_{t-1} + drive_t with h_0 = 0, one step at a time.

    Args:
        decay: (B, L, D, N).
        drive: (B, L, D, N).

    Returns:
        h, (B, L, D, N).
    """
    states = torch.empty_like(drive)
    state = torch.zeros_like(drive[:, 0])
    for t in range(drive.shape[1]):
        state = torch.addcmul(drive[:, t], decay[:, t], state)
        states[:, t] = state
    return states


def chunked(decay: Tensor, drive: Tensor) -> Tensor:
    """The same as ``sequential`` in about 2 sqrt(L) steps: all chunks at once, then the carries.

    Only products of decays, which are at most 1, are formed; nothing is divided, so nothing
    overflows (the cumulative-sum form of this recurrence does, within 64 steps).
    """
    batch, length, channels, size = drive.shape
    chunks = -(-length // CHUNK)
    missing = chunks * CHUNK - length
    shape = (batch, chunks, CHUNK, channels, size)
    decay = F.pad(decay, (0, 0, 0, 0, 0, missing), value=1.0).reshape(shape)
    drive = F.pad(drive, (0, 0, 0, 0, 0, missing)).reshape(shape)

    states, reach = torch.empty_like(drive), torch.empty_like(decay)
    state, product = torch.zeros_like(drive[:, :, 0]), torch.ones_like(decay[:, :, 0])
    for t in range(CHUNK):
        state = torch.addcmul(drive[:, :, t], decay[:, :, t], state)
        product = product * decay[:, :, t]
        states[:, :, t], reach[:, :, t] = state, product

    carry = torch.zeros_like(drive[:, 0, 0])
    carries = []
    for c in range(chunks):
        carries.append(carry)
        carry = torch.addcmul(state[:, c], product[:, c], carry)
    states.addcmul_(reach, torch.stack(carries, dim=1)[:, :, None])
    return states.reshape(batch, chunks * CHUNK, channels, size)[:, :length]


def forward(
    x: Tensor,
    projections: Tensor,
    a_log: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    skip: Tensor | None,
    orders: Tensor,
    recurrence: Recurrence = sequential,
) -> Tensor:
    """The sum of the K scans of ``x``.

    Args:
        x: (B, L, D), raster order.
        projections: (B, L, K, R + 2N), raster order: r, B and C of the equation.
        a_log: (K, D, N), the logarithm of -A.
        dt_weight: (K, D, R), the W_Δ of the equation.
        dt_bias: (K, D), the b_Δ of the equation.
        skip: (K, D), or None for no skip term.
        orders: int32, (K, L); ``orders[k, t]`` is the pixel that path k visits at step t.
        recurrence: ``sequential`` or ``chunked``.

    Returns:
        y, (B, L, D), raster order.
    """
    y = torch.zeros_like(x)
    for k in range(orders.shape[0]):
        order = orders[k].long()
        x_k = x[:, order]
        r, b, c = _split(projections[:, order, k], a_log, dt_weight)
        dt = softplus(r @ dt_weight[k].T + dt_bias[k])
        decay = torch.exp(dt[..., None] * -torch.exp(a_log[k]))
        state = recurrence(decay, (dt * x_k)[..., None] * b[:, :, None])
        y_k = (state * c[:, :, None]).sum(-1)
        y[:, order] += y_k if skip is None else y_k + skip[k] * x_k
    return y


def backward(
    dy: Tensor,
    x: Tensor,
    projections: Tensor,
    a_log: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    skip: Tensor | None,
    orders: Tensor,
    recurrence: Recurrence = sequential,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradient of ``forward`` for every input but ``orders``.

    With g_t = C_t dy_t + exp(Δ_{t+1} A) g_{t+1}, the gradient of h_t, which is the same recurrence
    run backwards in time, and s_t = exp(Δ_t A) h_{t-1}:

        dC_t = Σ_d dy_t h_t     dB_t = Σ_d g_t Δ_t x_t     dA = Σ_t g_t Δ_t s_t
        dΔ_t = Σ_n g_t (B_t x_t + A s_t)                   dx_t = Δ_t Σ_n g_t B_t + skip dy_t

    Args:
        dy: Gradient of y, (B, L, D).

    Returns:
        dx, dprojections, da_log, ddt_weight, ddt_bias, dskip, in the shapes of the inputs;
        dskip is computed also when ``skip`` is None.
    """
    dx, dprojections = torch.zeros_like(x), torch.zeros_like(projections)
    da_log, ddt_weight = torch.empty_like(a_log), torch.empty_like(dt_weight)
    ddt_bias, dskip = torch.empty_like(dt_bias), torch.empty_like(dt_bias)
    for k in range(orders.shape[0]):
        order = orders[k].long()
        x_k, dy_k = x[:, order], dy[:, order]
        r, b, c = _split(projections[:, order, k], a_log, dt_weight)
        before_softplus = r @ dt_weight[k].T + dt_bias[k]
        dt = softplus(before_softplus)
        a = -torch.exp(a_log[k])
        decay = torch.exp(dt[..., None] * a)
        state = recurrence(decay, (dt * x_k)[..., None] * b[:, :, None])

        next_decay = F.pad(decay[:, 1:], (0, 0, 0, 0, 0, 1))
        from_output = dy_k[..., None] * c[:, :, None]
        g = recurrence(next_decay.flip(1), from_output.flip(1)).flip(1)

        dc = (dy_k[..., None] * state).sum(2)
        db = (g * (dt * x_k)[..., None]).sum(2)
        g_b = (g * b[:, :, None]).sum(-1)
        g_decayed = g * decay * F.pad(state[:, :-1], (0, 0, 0, 0, 1, 0))  # g_t s_t
        ddt = g_b * x_k + (g_decayed * a).sum(-1)
        dz = ddt * torch.sigmoid(before_softplus)

        dx_k = g_b * dt
        dx[:, order] += dx_k if skip is None else dx_k + skip[k] * dy_k
        dprojections[:, order, k] = torch.cat([dz @ dt_weight[k], db, dc], dim=-1)
        da_log[k] = (g_decayed * dt[..., None]).sum((0, 1)) * a
        ddt_weight[k] = torch.einsum("bld,blr->dr", dz, r)
        ddt_bias[k] = dz.sum((0, 1))
        dskip[k] = (dy_k * x_k).sum((0, 1))
    return dx, dprojections, da_log, ddt_weight, ddt_bias, dskip


def softplus(z: Tensor) -> Tensor:
    """log(1 + e^z) without overflow, and without a branch that drops the small term."""
    return z.clamp_min(0) + torch.log1p(torch.exp(-z.abs()))


def _split(rows: Tensor, a_log: Tensor, dt_weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """r (B, L, R), B (B, L, N) and C (B, L, N) of one path."""
    rank, size = dt_weight.shape[-1], a_log.shape[-1]
    r, b, c = rows.split([rank, size, size], dim=-1)
    return r, b, c
