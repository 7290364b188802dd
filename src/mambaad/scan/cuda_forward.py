# mypy: disable-error-code="assignment,misc,no-untyped-def,untyped-decorator,var-annotated"
"""The cross scan's forward Triton kernels: along a path, and what a segment of one does."""

import triton
import triton.language as tl

from mambaad.scan.cuda_common import (
    USUAL,
    before_softplus,
    collect,
    decays_of,
    fold,
    load_pixels,
    load_steps,
    load_weight,
    log2_decays,
    pixels_of,
    softplus_of,
    spread,
    store_states,
    widened,
    zero_states,
)


@triton.jit
def summary_kernel(
    source, proj, a_log, dt_weight, dt_bias, orders, ends, sums,
    L, D, K, pieces, skipped, chunks, blocks,
    R: tl.constexpr, N: tl.constexpr, T: tl.constexpr, U: tl.constexpr,
    REVERSE: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """What a piece of a path does to a state that comes in; the first ``skipped`` are left out.

    Forward, h -> a h + Δ x B with x as ``source``; reversed in time, g -> a (g + dy C) with dy.
    ``ends`` (B, K, pieces, blocks, N * 32) is what comes out for zero coming in, ``sums``
    (B, K, pieces, blocks, 32) is Σ Δ.
    """
    k, b = tl.program_id(1), tl.program_id(2)
    block, piece = tl.program_id(0) % blocks, tl.program_id(0) // blocks + skipped
    lane = tl.arange(0, 32)
    d = block * 32 + lane
    in_d = d < D
    Q: tl.constexpr = N // 4
    FIRST: tl.constexpr = 1 if REVERSE else 0
    STEP: tl.constexpr = ((R + 3) // 4 if R < N else (R + N - 1) // N) + 2
    WAY: tl.constexpr = -1 if REVERSE else 1
    a = log2_decays(a_log + k * D * N, d, lane, D, N)
    weight = load_weight(dt_weight + k * D * R, d, lane, D, R, N)
    bias = tl.load(dt_bias + k * D + d, mask=in_d, other=0.0)
    proj += (b.to(tl.int64) * L * K + k) * (R + 2 * N)
    source += b.to(tl.int64) * L * D
    orders += k * L

    states = zero_states(Q)
    total = tl.zeros([32], tl.float32)
    per_piece = tl.cdiv(chunks, pieces) * T
    first = piece * per_piece
    steps = tl.minimum(per_piece, chunks * T - first)
    t = first + steps - 1 if REVERSE else first
    here = pixels_of(load_pixels(orders, t, L, lane, WAY, U), lane, U)
    coming = load_pixels(orders, t + WAY * U, L, lane, WAY, U)
    group = load_steps(source, proj, here, d, lane, in_d, D, K, R, N, FIRST, 1, U, EVEN)
    for _group in range(0, steps, U):
        there = pixels_of(coming, lane, U)
        later = load_pixels(orders, t + 2 * WAY * U, L, lane, WAY, U)
        following = load_steps(source, proj, there, d, lane, in_d, D, K, R, N, FIRST, 1, U, EVEN)
        tl.debug_barrier()
        if t < chunks * T:  # always: see cuda_common
            for i in tl.static_range(U):
                own = group[i * STEP : (i + 1) * STEP]
                dt, _slope = softplus_of(before_softplus(own, weight, bias, lane, R, N))
                value = own[STEP - 1].to(tl.float32)
                if not REVERSE:
                    value = value * dt
                if not EVEN:
                    dt = tl.where(t + i * WAY < L, dt, 0.0)
                    value = tl.where(t + i * WAY < L, value, 0.0)
                total += dt
                dts, values = spread(dt, lane, Q), spread(value, lane, Q)
                row = widened(own[STEP - 2])
                new = ()
                for j in tl.static_range(Q):
                    decay = decays_of(dts[j], a[j])
                    driven = values[j][:, None] * row
                    if REVERSE:
                        new = new + (decay * (states[j] + driven),)
                    else:
                        new = new + (decay * states[j] + driven,)
                states = new
        group, coming = following, later
        t += WAY * U
    place = (((b * K + k) * pieces + piece) * blocks + block).to(tl.int64)
    tl.store(sums + place * 32 + lane, total)
    store_states(ends + place * (32 * N), states, lane, Q, USUAL)


@triton.jit
def forward_kernel(
    x, proj, a_log, dt_weight, dt_bias, skip, orders, planes, saved, ends, sums,
    L, D, K, segments, pieces, chunks, blocks,
    R: tl.constexpr, N: tl.constexpr, T: tl.constexpr, U: tl.constexpr,
    SAVE: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """One path's y, put where its pixels are: ``planes`` (B, K, L, D).

    If SAVE, the states before every T-th step go to ``saved`` (B, K, chunks, blocks, N * 32).
    """
    k, b = tl.program_id(1), tl.program_id(2)
    block, segment = tl.program_id(0) % blocks, tl.program_id(0) // blocks
    lane = tl.arange(0, 32)
    d = block * 32 + lane
    in_d = d < D
    Q: tl.constexpr = N // 4
    STEP: tl.constexpr = ((R + 3) // 4 if R < N else (R + N - 1) // N) + 3
    a = log2_decays(a_log + k * D * N, d, lane, D, N)
    weight = load_weight(dt_weight + k * D * R, d, lane, D, R, N)
    bias = tl.load(dt_bias + k * D + d, mask=in_d, other=0.0)
    factor = tl.load(skip + k * D + d, mask=in_d, other=0.0)
    bk = (b * K + k).to(tl.int64)
    proj += (b.to(tl.int64) * L * K + k) * (R + 2 * N)
    x += b.to(tl.int64) * L * D
    planes += bk * L * D
    orders += k * L

    states = zero_states(Q)
    for piece in range(0, segment * (pieces // segments)):
        place = (bk * pieces + piece) * blocks + block
        states = fold(states, a, ends, sums, place, lane, N)
    per_segment = tl.cdiv(chunks, pieces) * (pieces // segments)
    first = segment * per_segment * T
    last = tl.minimum(chunks, (segment + 1) * per_segment) * T
    here = pixels_of(load_pixels(orders, first, L, lane, 1, U), lane, U)
    coming = load_pixels(orders, first + U, L, lane, 1, U)
    group = load_steps(x, proj, here, d, lane, in_d, D, K, R, N, 0, 2, U, EVEN)
    for t in range(first, last, U):
        # The loads of the next steps start before these are computed; the barrier keeps the
        # compiler from moving them back to where they are used.
        there = pixels_of(coming, lane, U)
        later = load_pixels(orders, t + 2 * U, L, lane, 1, U)
        following = load_steps(x, proj, there, d, lane, in_d, D, K, R, N, 0, 2, U, EVEN)
        tl.debug_barrier()
        if SAVE:
            if t % T == 0:
                place = (bk * chunks + t // T) * blocks + block
                store_states(saved + place * (32 * N), states, lane, Q, USUAL)
        if t < L:
            for i in tl.static_range(U):
                own = group[i * STEP : (i + 1) * STEP]
                dt, _slope = softplus_of(before_softplus(own, weight, bias, lane, R, N))
                if not EVEN:
                    dt = tl.where(t + i < L, dt, 0.0)
                xt = own[STEP - 1].to(tl.float32)
                dts, drives = spread(dt, lane, Q), spread(dt * xt, lane, Q)
                b_row, c_row = widened(own[STEP - 3]), widened(own[STEP - 2])
                new, parts = (), ()
                for j in tl.static_range(Q):
                    driven = drives[j][:, None] * b_row
                    h = decays_of(dts[j], a[j]) * states[j] + driven
                    parts = parts + (tl.sum(h * c_row, axis=1),)
                    new = new + (h,)
                states = new
                y = collect(parts, lane, Q) + factor * xt
                inside = in_d if EVEN else d < tl.where(t + i < L, D, 0)
                tl.store(planes + here[i] * D + d, y, mask=inside)
        group, here, coming = following, there, later
