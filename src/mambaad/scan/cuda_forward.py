# mypy: disable-error-code="assignment,misc,no-untyped-def,untyped-decorator,var-annotated"
"""The cross scan's forward Triton kernels: along a path, and what a segment of one does."""

import triton
import triton.language as tl

from mambaad.scan.cuda_common import (
    before_softplus,
    fold,
    from_lane,
    load_channels,
    load_pixels,
    load_row,
    log2_decays,
    softplus_of,
    zeros_for,
)


@triton.jit
def summary_kernel(
    source, proj, a_log, dt_weight, dt_bias, orders, ends, sums,
    L, D, K, segments, chunks, blocks,
    R: tl.constexpr, N: tl.constexpr, T: tl.constexpr, U: tl.constexpr,
    REVERSE: tl.constexpr, EVEN_L: tl.constexpr,
):  # fmt: skip
    """What a segment does to a state that comes in.

    Forward, h -> a h + Δ x B with x as ``source``; reversed in time, g -> a (g + dy C) with dy.
    ``ends`` (B, K, S, N, D) is what comes out for zero coming in, ``sums`` (B, K, S, D) is Σ Δ.
    """
    k, b = tl.program_id(1), tl.program_id(2)
    block, piece = tl.program_id(0) % blocks, tl.program_id(0) // blocks
    segment = piece + 1 if REVERSE else piece
    lane = tl.arange(0, 32)
    d = block * 32 + lane
    in_d = d < D
    kd = k * D + d
    W: tl.constexpr = R + 2 * N
    FIRST: tl.constexpr = 1 if REVERSE else 0
    VECTORS: tl.constexpr = (R + 31) // 32 + 1
    WAY: tl.constexpr = -1 if REVERSE else 1
    a = log2_decays(a_log + kd * N, in_d, lane * 0, N)
    weight = load_channels(dt_weight + kd * R, in_d, R)
    bias = tl.load(dt_bias + kd, mask=in_d, other=0.0)
    proj += (b.to(tl.int64) * L * K + k) * W
    source += b.to(tl.int64) * L * D
    orders += k * L

    state = zeros_for(N)
    total = tl.zeros([32], tl.float32)
    per_segment = tl.cdiv(chunks, segments) * T
    first = segment * per_segment
    steps = tl.minimum(per_segment, chunks * T - first)
    t = first + steps - 1 if REVERSE else first
    here = load_pixels(orders, t, L, WAY, U)
    coming = load_pixels(orders, t + WAY * U, L, WAY, U)
    rows, values = (), ()
    for i in tl.static_range(U):
        rows = rows + load_row(proj + here[i] * (K * W), lane, R, N, FIRST, 1)
        values = values + (tl.load(source + here[i] * D + d, mask=in_d, other=0.0),)
    for _ in range(0, steps, U):
        later = load_pixels(orders, t + 2 * WAY * U, L, WAY, U)
        next_rows, next_values = (), ()
        for i in tl.static_range(U):
            next_rows = next_rows + load_row(proj + coming[i] * (K * W), lane, R, N, FIRST, 1)
            next_values = next_values + (tl.load(source + coming[i] * D + d, mask=in_d, other=0.0),)
        tl.debug_barrier()
        for i in tl.static_range(U):
            row = rows[i * VECTORS : (i + 1) * VECTORS]
            dt, _ = softplus_of(before_softplus(row, bias, weight, lane, R))
            value = values[i].to(tl.float32)
            if not REVERSE:
                value = value * dt
            if not EVEN_L:
                dt = tl.where(t + i * WAY < L, dt, 0.0)
                value = tl.where(t + i * WAY < L, value, 0.0)
            total += dt
            new = ()
            for n in tl.static_range(N):
                driven = value * from_lane(row[VECTORS - 1], lane, n)
                if REVERSE:
                    new = new + (tl.exp2(dt * a[n]) * (state[n] + driven),)
                else:
                    new = new + (tl.exp2(dt * a[n]) * state[n] + driven,)
            state = new
        rows, values, coming = next_rows, next_values, later
        t += WAY * U
    offset = ((b * K + k) * segments + segment).to(tl.int64) * D
    tl.store(sums + offset + d, total, mask=in_d)
    for n in tl.static_range(N):
        tl.store(ends + offset * N + n * D + d, state[n], mask=in_d)


@triton.jit
def forward_kernel(
    x, proj, a_log, dt_weight, dt_bias, skip, orders, planes, states, ends, sums,
    L, D, K, segments, chunks, blocks,
    R: tl.constexpr, N: tl.constexpr, T: tl.constexpr, U: tl.constexpr,
    SAVE: tl.constexpr, EVEN_L: tl.constexpr,
):  # fmt: skip
    """One path's y, put where its pixels are: ``planes`` (B, K, L, D).

    If SAVE, the state before every T-th step goes to ``states`` (B, K, chunks, N, D).
    """
    k, b = tl.program_id(1), tl.program_id(2)
    block, segment = tl.program_id(0) % blocks, tl.program_id(0) // blocks
    lane = tl.arange(0, 32)
    d = block * 32 + lane
    in_d = d < D
    kd = k * D + d
    W: tl.constexpr = R + 2 * N
    VECTORS: tl.constexpr = (R + 31) // 32 + 2
    a = log2_decays(a_log + kd * N, in_d, lane * 0, N)
    weight = load_channels(dt_weight + kd * R, in_d, R)
    bias = tl.load(dt_bias + kd, mask=in_d, other=0.0)
    factor = tl.load(skip + kd, mask=in_d, other=0.0)
    bk = b * K + k
    proj += (b.to(tl.int64) * L * K + k) * W
    x += b.to(tl.int64) * L * D
    planes += bk.to(tl.int64) * L * D
    orders += k * L

    state = zeros_for(N)
    for s in range(0, segment):
        state = fold(state, a, ends, sums, bk * segments + s, d, D, in_d, lane * 0, N)
    per_segment = tl.cdiv(chunks, segments)
    first = segment * per_segment * T
    last = tl.minimum(chunks, (segment + 1) * per_segment) * T
    here = load_pixels(orders, first, L, 1, U)
    coming = load_pixels(orders, first + U, L, 1, U)
    rows, values = (), ()
    for i in tl.static_range(U):
        rows = rows + load_row(proj + here[i] * (K * W), lane, R, N, 0, 2)
        values = values + (tl.load(x + here[i] * D + d, mask=in_d, other=0.0),)
    for t in range(first, last, U):
        # The loads of the next steps start before these are computed; the barrier keeps the
        # compiler from moving them back to where they are used.
        later = load_pixels(orders, t + 2 * U, L, 1, U)
        next_rows, next_values = (), ()
        for i in tl.static_range(U):
            next_rows = next_rows + load_row(proj + coming[i] * (K * W), lane, R, N, 0, 2)
            next_values = next_values + (tl.load(x + coming[i] * D + d, mask=in_d, other=0.0),)
        tl.debug_barrier()
        if SAVE:
            if t % T == 0:
                saved = states + (bk * chunks + t // T).to(tl.int64) * N * D + d
                for n in tl.static_range(N):
                    tl.store(saved + n * D, state[n], mask=in_d)
        for i in tl.static_range(U):
            row = rows[i * VECTORS : (i + 1) * VECTORS]
            dt, _ = softplus_of(before_softplus(row, bias, weight, lane, R))
            if not EVEN_L:
                dt = tl.where(t + i < L, dt, 0.0)
            xt = values[i].to(tl.float32)
            drive = dt * xt
            y = factor * xt
            new = ()
            for n in tl.static_range(N):
                driven = drive * from_lane(row[VECTORS - 2], lane, n)
                h = tl.exp2(dt * a[n]) * state[n] + driven
                y += h * from_lane(row[VECTORS - 1], lane, n)
                new = new + (h,)
            state = new
            inside = in_d if EVEN_L else d < tl.where(t + i < L, D, 0)
            tl.store(planes + here[i] * D + d, y, mask=inside)
        rows, values, here, coming = next_rows, next_values, coming, later
