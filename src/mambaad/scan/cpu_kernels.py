"""The compiled kernels of the cross scan on the CPU; ``cpu`` feeds them.

Channels lie side by side in memory, so a block of ``BLOCK`` of them is the vector that the compiler
works on; a block's states stay in the first-level cache while one thread walks a path. The forward
pass can save the states at every ``CHUNK`` steps; the backward pass walks the chunks from the last
to the first, computes a chunk's states again from the saved one, then goes back through it.

Numerics: 2^x by a polynomial of degree 6 that is exactly 1 at 0 (slow decays are multiplied
thousands of times, so a bias there would add up), softplus with log1p in the form of an atanh
series (log(1 + e) would round 1 + e). Everything is float32. Letters as in ``reference``.

All compiled code is in this one file, because numba's cache on disk only notices a change in the
file of the function that it keeps.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, prange

BLOCK = 64
"""Channels of a task. Wide blocks spread the cost of a step's scalar work."""

CHUNK = 64
"""Steps between two saved states. A chunk's states and decays, 0.5 MB, fit the L2 cache."""

f4 = np.float32
LOG2E = f4(1.4426950408889634)
LN2 = f4(0.6931471805599453)

# Contraction into fused multiply-adds, but no reassociation: it would delete the rounding trick.
FAST = {"contract", "nsz", "arcp"}
FAST_SUM = {"contract", "nsz", "arcp", "reassoc"}


@njit(inline="always", fastmath=FAST)
def exp2(x: Any) -> Any:
    """2^x for x <= 0, relative error 1e-7, exactly 1 at 0; below -60 it stays at 2^-60.

    That floor is far below what float32 can tell from 0 beside the other terms of a sum, and it
    keeps states from sinking into denormal numbers, which are many times slower to compute with.
    """
    x = max(x, f4(-60.0))
    shifted = x + f4(12582912.0)  # 1.5 * 2^23: the integer part moves into the lowest bits
    f = x - (shifted - f4(12582912.0))
    p = f4(0.00015353362) * f + f4(0.0013398875)
    p = p * f + f4(0.009618437)
    p = p * f + f4(0.055503324)
    p = p * f + f4(0.24022648)
    p = p * f + f4(0.6931472)
    p = p * f + f4(1.0)
    exponent = np.int32(f4(shifted).view(np.int32) << np.int32(23))
    return np.int32(f4(p).view(np.int32) + exponent).view(np.float32)


@njit(inline="always", fastmath=FAST)
def log1p(e: Any) -> Any:
    """log(1 + e) for 0 <= e <= 1: 2 atanh(e / (2 + e))."""
    s = e / (e + f4(2.0))
    q = s * s
    p = f4(2 / 13) * q + f4(2 / 11)
    p = p * q + f4(2 / 9)
    p = p * q + f4(2 / 7)
    p = p * q + f4(2 / 5)
    p = p * q + f4(2 / 3)
    p = p * q + f4(2.0)
    return s * p


@njit(inline="always")
def _place(task: Any, groups: Any, channels: Any, paths: Any) -> Any:
    """What a task works on: picture, first channel, group, first path, path after the last."""
    blocks = channels // BLOCK
    group = task % groups
    block = (task // groups) % blocks
    each = paths // groups
    return task // (groups * blocks), block * BLOCK, group, group * each, (group + 1) * each


# The kernels' loops are written out because the compiler turns each ``for d`` into vector code.


@njit(fastmath=FAST, error_model="numpy", inline="never")
def _forward_task(
    task: Any, groups: Any, x: Any, projections: Any, a2: Any, weight: Any, bias: Any,
    skip: Any, orders: Any, y: Any, saved: Any,
) -> None:  # fmt: skip
    length = x.shape[1]
    size, rank = a2.shape[1], weight.shape[1]
    save = saved.shape[0] > 0
    b, d0, group, first, last = _place(task, groups, x.shape[2], a2.shape[0])

    h = np.empty((size, BLOCK), f4)
    a = np.empty((size, BLOCK), f4)
    w = np.empty((rank, BLOCK), f4)
    bias_k = np.empty(BLOCK, f4)
    skip_k = np.empty(BLOCK, f4)
    dt = np.empty(BLOCK, f4)
    dx = np.empty(BLOCK, f4)
    out = np.empty(BLOCK, f4)
    for k in range(first, last):
        for n in range(size):
            for d in range(BLOCK):
                h[n, d] = f4(0)
                a[n, d] = a2[k, n, d0 + d]
        for r in range(rank):
            for d in range(BLOCK):
                w[r, d] = weight[k, r, d0 + d]
        for d in range(BLOCK):
            bias_k[d] = bias[k, d0 + d]
            skip_k[d] = skip[k, d0 + d]
        for t in range(length):
            p = orders[k, t]
            if save and t % CHUNK == 0:
                for n in range(size):
                    for d in range(BLOCK):
                        saved[b, k, t // CHUNK, n, d0 + d] = h[n, d]
            for d in range(BLOCK):
                dt[d] = bias_k[d]
            for r in range(rank):
                s = projections[b, p, k, r]
                for d in range(BLOCK):
                    dt[d] += w[r, d] * s
            for d in range(BLOCK):
                z = dt[d]
                step = max(z, f4(0)) + log1p(exp2(-abs(z) * LOG2E))
                pixel = x[b, p, d0 + d]
                dt[d] = step
                dx[d] = step * pixel
                out[d] = skip_k[d] * pixel
            for n in range(size):
                b_n = projections[b, p, k, rank + n]
                c_n = projections[b, p, k, rank + size + n]
                for d in range(BLOCK):
                    state = exp2(dt[d] * a[n, d]) * h[n, d] + dx[d] * b_n
                    h[n, d] = state
                    out[d] += state * c_n
            if k == first:
                for d in range(BLOCK):
                    y[group, b, p, d0 + d] = out[d]
            else:
                for d in range(BLOCK):
                    y[group, b, p, d0 + d] += out[d]


@njit(parallel=True, cache=True)
def forward_kernel(
    tasks: Any, groups: Any, x: Any, projections: Any, a2: Any, weight: Any, bias: Any,
    skip: Any, orders: Any, y: Any, saved: Any,
) -> None:  # fmt: skip
    for task in prange(tasks):
        _forward_task(task, groups, x, projections, a2, weight, bias, skip, orders, y, saved)


@njit(fastmath=FAST_SUM, error_model="numpy", inline="never")
def _dot(a: Any, b: Any) -> Any:
    total = f4(0)
    for d in range(BLOCK):
        total += a[d] * b[d]
    return total


@njit(fastmath=FAST, error_model="numpy", inline="never")
def _recompute_chunk(
    b: Any, k: Any, d0: Any, t0: Any, steps: Any, x: Any, projections: Any, orders: Any,
    a: Any, w: Any, bias_k: Any, h: Any, states: Any, decays: Any, zs: Any, dts: Any,
) -> None:  # fmt: skip
    """Run a chunk forward again from its saved state ``h``, keeping what the way back needs."""
    size, rank = a.shape[0], w.shape[0]
    dx = np.empty(BLOCK, f4)
    dt = np.empty(BLOCK, f4)
    for i in range(steps):
        p = orders[k, t0 + i]
        for d in range(BLOCK):
            dt[d] = bias_k[d]
        for r in range(rank):
            s = projections[b, p, k, r]
            for d in range(BLOCK):
                dt[d] += w[r, d] * s
        for d in range(BLOCK):
            zs[i, d] = dt[d]
        for d in range(BLOCK):
            z = dt[d]
            step = max(z, f4(0)) + log1p(exp2(-abs(z) * LOG2E))
            dt[d] = step
            dx[d] = step * x[b, p, d0 + d]
        for d in range(BLOCK):
            dts[i, d] = dt[d]
        for n in range(size):
            b_n = projections[b, p, k, rank + n]
            for d in range(BLOCK):
                decay = exp2(dt[d] * a[n, d])
                state = decay * h[n, d] + dx[d] * b_n
                h[n, d] = state
                states[i + 1, n, d] = state
                decays[i, n, d] = decay


@njit(fastmath=FAST, error_model="numpy", inline="never")
def _backward_task(
    task: Any, groups: Any, x: Any, projections: Any, a2: Any, weight: Any, bias: Any,
    skip: Any, orders: Any, saved: Any, dy: Any,
    dx_out: Any, dprojections: Any, da: Any, dweight: Any, dbias: Any, dskip: Any,
) -> None:  # fmt: skip
    length = x.shape[1]
    size, rank = a2.shape[1], weight.shape[1]
    b, d0, group, first, last = _place(task, groups, x.shape[2], a2.shape[0])
    block = d0 // BLOCK

    states = np.empty((CHUNK + 1, size, BLOCK), f4)  # the one before the chunk, then its own
    decays = np.empty((CHUNK, size, BLOCK), f4)
    zs = np.empty((CHUNK, BLOCK), f4)
    dts = np.empty((CHUNK, BLOCK), f4)
    h = np.empty((size, BLOCK), f4)
    a = np.empty((size, BLOCK), f4)
    g = np.empty((size, BLOCK), f4)
    da_k = np.empty((size, BLOCK), f4)
    w = np.empty((rank, BLOCK), f4)
    dw = np.empty((rank, BLOCK), f4)
    bias_k = np.empty(BLOCK, f4)
    dbias_k = np.empty(BLOCK, f4)
    dskip_k = np.empty(BLOCK, f4)
    # A chunk's share of each sum over the path: two short sums round less than one long one.
    da_chunk = np.empty((size, BLOCK), f4)
    dw_chunk = np.empty((rank, BLOCK), f4)
    dbias_chunk = np.empty(BLOCK, f4)
    dskip_chunk = np.empty(BLOCK, f4)
    dt = np.empty(BLOCK, f4)
    dx = np.empty(BLOCK, f4)
    dy_t = np.empty(BLOCK, f4)
    g_n = np.empty(BLOCK, f4)
    g_b = np.empty(BLOCK, f4)
    g_a = np.empty(BLOCK, f4)
    dz = np.empty(BLOCK, f4)
    for k in range(first, last):
        for n in range(size):
            for d in range(BLOCK):
                g[n, d] = f4(0)
                da_k[n, d] = f4(0)
                a[n, d] = a2[k, n, d0 + d]
        for r in range(rank):
            for d in range(BLOCK):
                w[r, d] = weight[k, r, d0 + d]
                dw[r, d] = f4(0)
        for d in range(BLOCK):
            bias_k[d] = bias[k, d0 + d]
            dbias_k[d] = f4(0)
            dskip_k[d] = f4(0)
        for chunk in range((length + CHUNK - 1) // CHUNK - 1, -1, -1):
            t0 = chunk * CHUNK
            steps = min(CHUNK, length - t0)
            for n in range(size):
                for d in range(BLOCK):
                    h[n, d] = saved[b, k, chunk, n, d0 + d]
                    states[0, n, d] = h[n, d]
            _recompute_chunk(
                b, k, d0, t0, steps, x, projections, orders, a, w, bias_k, h, states, decays, zs,
                dts,
            )  # fmt: skip
            for n in range(size):
                for d in range(BLOCK):
                    da_chunk[n, d] = f4(0)
            for r in range(rank):
                for d in range(BLOCK):
                    dw_chunk[r, d] = f4(0)
            for d in range(BLOCK):
                dbias_chunk[d] = f4(0)
                dskip_chunk[d] = f4(0)
            for i in range(steps - 1, -1, -1):
                p = orders[k, t0 + i]
                for d in range(BLOCK):
                    dt[d] = dts[i, d]
                    dy_t[d] = dy[b, p, d0 + d]
                    g_b[d] = f4(0)
                    g_a[d] = f4(0)
                for d in range(BLOCK):
                    pixel = x[b, p, d0 + d]
                    dx[d] = dt[d] * pixel
                    dskip_chunk[d] += dy_t[d] * pixel
                for n in range(size):
                    b_n = projections[b, p, k, rank + n]
                    c_n = projections[b, p, k, rank + size + n]
                    for d in range(BLOCK):
                        g_n[d] = g[n, d] + dy_t[d] * c_n
                        g_b[d] += g_n[d] * b_n
                    for d in range(BLOCK):
                        # from the state before the step: state - drive would cancel for long steps
                        g_decayed = decays[i, n, d] * states[i, n, d] * g_n[d]
                        g_a[d] += g_decayed * a[n, d]
                        da_chunk[n, d] += g_decayed * dt[d]
                    for d in range(BLOCK):
                        g[n, d] = g_n[d] * decays[i, n, d]
                    dprojections[block, b, p, k, rank + n] = _dot(g_n, dx)
                    dprojections[block, b, p, k, rank + size + n] = _dot(dy_t, states[i + 1, n])
                for d in range(BLOCK):
                    z = zs[i, d]
                    e = exp2(-abs(z) * LOG2E)
                    sigmoid = f4(1) / (f4(1) + e)
                    if z < f4(0):
                        sigmoid = e * sigmoid
                    v = (g_b[d] * x[b, p, d0 + d] + g_a[d] * LN2) * sigmoid
                    dz[d] = v
                    dbias_chunk[d] += v
                for r in range(rank):
                    s = projections[b, p, k, r]
                    for d in range(BLOCK):
                        dw_chunk[r, d] += dz[d] * s
                    dprojections[block, b, p, k, r] = _dot(dz, w[r])
                if k == first:
                    for d in range(BLOCK):
                        v = g_b[d] * dt[d] + skip[k, d0 + d] * dy_t[d]
                        dx_out[group, b, p, d0 + d] = v
                else:
                    for d in range(BLOCK):
                        v = g_b[d] * dt[d] + skip[k, d0 + d] * dy_t[d]
                        dx_out[group, b, p, d0 + d] += v
            for n in range(size):
                for d in range(BLOCK):
                    da_k[n, d] += da_chunk[n, d]
            for r in range(rank):
                for d in range(BLOCK):
                    dw[r, d] += dw_chunk[r, d]
            for d in range(BLOCK):
                dbias_k[d] += dbias_chunk[d]
                dskip_k[d] += dskip_chunk[d]
        for n in range(size):
            for d in range(BLOCK):
                da[b, k, n, d0 + d] = da_k[n, d]
        for r in range(rank):
            for d in range(BLOCK):
                dweight[b, k, r, d0 + d] = dw[r, d]
        for d in range(BLOCK):
            dbias[b, k, d0 + d] = dbias_k[d]
            dskip[b, k, d0 + d] = dskip_k[d]


@njit(parallel=True, cache=True)
def backward_kernel(
    tasks: Any, groups: Any, x: Any, projections: Any, a2: Any, weight: Any, bias: Any,
    skip: Any, orders: Any, saved: Any, dy: Any,
    dx_out: Any, dprojections: Any, da: Any, dweight: Any, dbias: Any, dskip: Any,
) -> None:  # fmt: skip
    for task in prange(tasks):
        _backward_task(
            task, groups, x, projections, a2, weight, bias, skip, orders, saved, dy,
            dx_out, dprojections, da, dweight, dbias, dskip,
        )  # fmt: skip
