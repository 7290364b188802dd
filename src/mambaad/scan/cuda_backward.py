# mypy: disable-error-code="assignment,misc,no-untyped-def,untyped-decorator,var-annotated"
"""The cross scan's backward Triton kernel: the gradients along a path, backwards in time.

Chunk by chunk from the end: the states inside a chunk are found again from the saved states before
it, every U-th goes to scratch memory, and from those the chunk is walked backwards in groups of U
steps whose states and decays are all held in registers. Equations and letters are those of
``reference``.

All loads of a group start together, one group ahead of their use.
"""

import triton
import triton.language as tl

from mambaad.scan.cuda_common import (
    LOG2_E,
    before_softplus,
    collect,
    fold,
    from_partner,
    lane_numbers,
    load_pixels,
    load_row,
    load_states,
    load_steps,
    load_weight,
    log2_decays,
    softplus_of,
    spread,
    store_states,
    zero_states,
)


@triton.jit
def columns(values):
    """The four columns of a tensor (32, 4)."""
    even, odd = tl.split(tl.reshape(values, (32, 2, 2)))
    first, third = tl.split(even)
    second, fourth = tl.split(odd)
    return first, second, third, fourth


@triton.jit
def traded(values, lane, COUNT: tl.constexpr, BIT: tl.constexpr):
    """Halve a tuple of lane vectors: lanes trade one half for the other's with a partner and add.

    Lanes with the bit keep the second half. Five rounds sum 32 vectors over 32 lanes with 31
    shuffles, where summing each takes 160.
    """
    has_bit = (lane & BIT) != 0
    halved = ()
    for i in tl.static_range(COUNT // 2):
        sent = tl.where(has_bit, values[i], values[i + COUNT // 2])
        kept = tl.where(has_bit, values[i + COUNT // 2], values[i])
        halved = halved + (kept + from_partner(sent, lane, BIT),)
    return halved


@triton.jit
def sum_over_lanes(values, lane, COUNT: tl.constexpr):
    """Sum COUNT vectors (a power of two, 1 to 32) over 32 lanes.

    Lane l gets the sum of vector l // (32 / COUNT).
    """
    BITS: tl.constexpr = (16, 8, 4, 2, 1)
    for i in tl.static_range(5):
        if (COUNT >> i) > 1:
            values = traded(values, lane, COUNT >> i, BITS[i])
        else:
            values = (values[0] + from_partner(values[0], lane, BITS[i]),)
    return values[0]


@triton.jit
def store_sums(out, db, dc, lane, valid, N: tl.constexpr):
    """Sum dB and dC, each (32, 4), over the teams, and put them behind each other."""
    Q: tl.constexpr = N // 4
    BITS: tl.constexpr = (16, 8, 4, 2)
    values = columns(db) + columns(dc)
    for i in tl.static_range(4):
        if BITS[i] >= Q:
            if i < 3:
                values = traded(values, lane, 8 >> i, BITS[i])
            else:
                values = (values[0] + from_partner(values[0], lane, BITS[i]),)
    # a lane's bit 16 says B or C; 8 and, of two or four teams a bit, 4 say which of its numbers
    place = (lane // 16) * N + (lane % Q) * 4 + (lane // 8 % 2) * 2
    if Q == 8:
        tl.store(out + place, values[0], mask=lane < valid)
        tl.store(out + place + 1, values[1], mask=lane < valid)
    else:
        own = (lane < valid) & ((lane & 2) == 0) if Q == 2 else lane < valid
        tl.store(out + place + lane // 4 % 2, values[0], mask=own)


@triton.jit
def recompute_chunk(
    x, proj, orders, below, kept, d, lane, in_d, a, weight, bias, states, t, L, D, K,
    R: tl.constexpr, N: tl.constexpr, T: tl.constexpr, U: tl.constexpr, EVEN_L: tl.constexpr,
):  # fmt: skip
    """Walk through the chunk from step t on; keep Δ, its derivative and every U-th states.

    They go to this program's own stretches of scratch memory, ``kept`` (T, 2, 32) and ``below``
    (T / U, N * 32), small enough to stay in the cache.
    """
    Q: tl.constexpr = N // 4
    STEP: tl.constexpr = ((R + 3) // 4 if R < N else (R + N - 1) // N) + 2
    here = load_pixels(orders, t, L, 1, U)
    coming = load_pixels(orders, t + U, L, 1, U)
    group = load_steps(x, proj, here, d, lane, in_d, D, K, R, N, 0, 1, U)
    for s in range(0, T, U):
        store_states(below + s // U * (32 * N), states, lane, Q)
        # What was loaded is used before the next loads start: the assembler would wait for both
        # alike. The barrier keeps the compiler from moving them.
        dts, drives, driven = (), (), ()
        for i in tl.static_range(U):
            own = group[i * STEP : (i + 1) * STEP]
            dt, slope = softplus_of(before_softplus(own, weight, bias, lane, R, N))
            if not EVEN_L:
                dt = tl.where(t + s + i < L, dt, 0.0)
            tl.store(kept + (s + i) * 64 + lane, dt)
            tl.store(kept + (s + i) * 64 + 32 + lane, slope)
            drive = dt * own[STEP - 1].to(tl.float32)
            dts, drives = dts + (dt,), drives + (drive,)
            driven = driven + (drive[:, None] * own[STEP - 2],)
        tl.debug_barrier()
        later = load_pixels(orders, t + s + 2 * U, L, 1, U)
        following = load_steps(x, proj, coming, d, lane, in_d, D, K, R, N, 0, 1, U)
        tl.debug_barrier()
        for i in tl.static_range(U):
            steps, into = spread(dts[i], lane, Q), spread(drives[i], lane, Q)
            new = (tl.exp2(steps[0][:, None] * a[0]) * states[0] + driven[i],)
            for j in tl.static_range(1, Q):
                other = into[j][:, None] * group[i * STEP + STEP - 2]
                new = new + (tl.exp2(steps[j][:, None] * a[j]) * states[j] + other,)
            states = new
        group, coming = following, later


@triton.jit
def load_group(
    x, dy, proj, below, kept, pixel, s, d, lane, in_d, D, K,
    R: tl.constexpr, N: tl.constexpr, U: tl.constexpr, FUSED: tl.constexpr,
):  # fmt: skip
    """The states before the s-th group of steps and, for each step, Δ, its derivative, x, dy, B, C
    and, if FUSED, Δ's inputs: one tuple.
    """
    W: tl.constexpr = R + 2 * N
    own = lane_numbers(lane, N // 4)
    group = load_states(below + s * (32 * N), lane, N // 4)
    for i in tl.static_range(U):
        row = proj + pixel[i] * (K * W)
        at = pixel[i] * D + d
        group = group + (
            tl.load(kept + (s * U + i) * 64 + lane),
            tl.load(kept + (s * U + i) * 64 + 32 + lane),
            tl.load(x + at, mask=in_d, other=0.0),
            tl.load(dy + at, mask=in_d, other=0.0),
        )
        if FUSED:
            group = group + load_row(row, lane, R, N, 0, 2)
        else:
            group = group + (tl.load(row + R + own), tl.load(row + R + N + own))
    return group


@triton.jit
def walk_back_kernel(
    dy, x, proj, a_log, dt_weight, dt_bias, skip, orders, saved, ends, sums,
    scratch, planes, rows, dz_out, sums_a, parameters,
    b, k, segment, block,
    B, L, D, K, segments, pieces, chunks, blocks,
    R: tl.constexpr, N: tl.constexpr, T: tl.constexpr, U: tl.constexpr,
    FUSED: tl.constexpr, EVEN_L: tl.constexpr,
):  # fmt: skip
    """One segment of the work of ``backward_kernel``, which calls this."""
    lane = tl.arange(0, 32)
    d = block * 32 + lane
    in_d = d < D
    W: tl.constexpr = R + 2 * N
    Q: tl.constexpr = N // 4
    EXTRA: tl.constexpr = R if FUSED else 0
    INPUTS: tl.constexpr = (R + 3) // 4 if FUSED else 0
    OUT: tl.constexpr = 2 * N + EXTRA
    STEP: tl.constexpr = 6 + INPUTS
    PER: tl.constexpr = 8 // INPUTS if FUSED else 1  # lanes with the same sum over lanes
    a = log2_decays(a_log + k * D * N, d, lane, D, N)
    weight = load_weight(dt_weight + k * D * R, d, lane, D, R, N)
    bias = tl.load(dt_bias + k * D + d, mask=in_d, other=0.0)
    factor = tl.load(skip + k * D + d, mask=in_d, other=0.0)
    bk = (b * K + k).to(tl.int64)
    proj += (b.to(tl.int64) * L * K + k) * W
    x += b.to(tl.int64) * L * D
    dy += b.to(tl.int64) * L * D
    planes += bk * L * D
    orders += k * L
    dz_out += (b.to(tl.int64) * L * K + k) * D
    rows += ((block * B + b).to(tl.int64) * L * K + k) * OUT
    kept, below = scratch, scratch + 2 * T * 32

    g = zero_states(Q)
    for piece in range(pieces - 1, (segment + 1) * (pieces // segments) - 1, -1):
        g = fold(g, a, ends, sums, (bk * pieces + piece) * blocks + block, lane, N)
    sum_a = zero_states(Q)
    sum_w = zero_states(INPUTS)
    sum_z = tl.zeros([32], tl.float32)
    sum_skip = tl.zeros([32], tl.float32)
    per_segment = tl.cdiv(chunks, pieces) * (pieces // segments)
    first = segment * per_segment
    for c in range(tl.minimum(chunks, first + per_segment) - 1, first - 1, -1):
        states = load_states(saved + ((bk * chunks + c) * blocks + block) * (32 * N), lane, Q)
        recompute_chunk(
            x, proj, orders, below, kept, d, lane, in_d, a, weight, bias, states, c * T, L, D, K,
            R, N, T, U, EVEN_L,
        )  # fmt: skip
        tl.debug_barrier()
        pixel = load_pixels(orders, c * T + T - U, L, 1, U)
        before = load_pixels(orders, c * T + T - 2 * U, L, 1, U)
        last = T // U - 1
        group = load_group(
            x, dy, proj, below, kept, pixel, last, d, lane, in_d, D, K, R, N, U, FUSED
        )
        for s in range(last, -1, -1):
            t = c * T + s * U
            # forwards through the group, all its states and decays kept in registers
            h, decays, steps, drives = group[:Q], (), (), ()
            for i in tl.static_range(U):
                own = group[Q + STEP * i : Q + STEP * (i + 1)]
                dts = spread(own[0], lane, Q)
                into = spread(own[0] * own[2].to(tl.float32), lane, Q)
                for j in tl.static_range(Q):
                    decay = tl.exp2(dts[j][:, None] * a[j])
                    driven = into[j][:, None] * own[STEP - 2].to(tl.float32)
                    decays = decays + (decay,)
                    h = h + (decay * h[i * Q + j] + driven,)
                steps, drives = steps + dts, drives + into
            # and backwards
            for i in tl.static_range(U - 1, -1, -1):
                if i == 0:
                    # the registers of the steps behind are free now for the next group's loads
                    tl.debug_barrier()
                    earliest = load_pixels(orders, t - 2 * U, L, 1, U)
                    following = load_group(
                        x, dy, proj, below, kept, before, tl.maximum(s - 1, 0), d, lane, in_d, D, K,
                        R, N, U, FUSED,
                    )  # fmt: skip
                    tl.debug_barrier()
                p, own = pixel[i], group[Q + STEP * i : Q + STEP * (i + 1)]
                dt, slope, xt, dyt = own[0], own[1], own[2].to(tl.float32), own[3].to(tl.float32)
                if not EVEN_L:
                    dyt = tl.where(t + i < L, dyt, 0.0)
                dys = spread(dyt, lane, Q)
                b_row, c_row = own[STEP - 2].to(tl.float32), own[STEP - 1].to(tl.float32)
                into_b, into_a = (), ()  # Σ g B; Σ g A s log2 e
                new, new_a = (), ()
                db, dc = tl.zeros([32, 4], tl.float32), tl.zeros([32, 4], tl.float32)
                for j in tl.static_range(Q):
                    gradient = g[j] + dys[j][:, None] * c_row
                    into_b = into_b + (tl.sum(gradient * b_row, axis=1),)
                    db += gradient * drives[i * Q + j][:, None]
                    dc += dys[j][:, None] * h[(i + 1) * Q + j]
                    earlier = gradient * decays[i * Q + j]
                    decayed = earlier * h[i * Q + j]
                    into_a = into_a + (tl.sum(decayed * a[j], axis=1),)
                    new_a = new_a + (sum_a[j] + decayed * steps[i * Q + j][:, None],)
                    new = new + (earlier,)
                g, sum_a = new, new_a
                own_b, own_a = collect(into_b, lane, Q), collect(into_a, lane, Q)
                dz = (own_b * xt + own_a * (1.0 / LOG2_E)) * slope
                if not EVEN_L:
                    dz = tl.where(t + i < L, dz, 0.0)
                valid = 32 if EVEN_L else tl.where(t + i < L, 32, 0)
                inside = in_d if EVEN_L else d < tl.where(t + i < L, D, 0)
                tl.store(planes + p * D + d, own_b * dt + factor * dyt, mask=inside)
                sum_z += dz
                sum_skip += dyt * xt
                store_sums(rows + p * (K * OUT) + EXTRA, db, dc, lane, valid, N)
                if FUSED:
                    dr, new_w = (), ()
                    for r in tl.static_range(INPUTS):
                        dr = dr + columns(dz[:, None] * weight[r])
                        new_w = new_w + (sum_w[r] + dz[:, None] * own[4 + r],)
                    sum_w = new_w
                    total = sum_over_lanes(dr, lane, 4 * INPUTS)
                    chosen = (lane < valid) & (lane % PER == 0) & (lane // PER < R)
                    tl.store(rows + p * (K * OUT) + lane // PER, total, mask=chosen)
                else:
                    tl.store(dz_out + p * (K * D) + d, dz, mask=inside)
            group, pixel, before = following, before, earliest
        tl.debug_barrier()

    piece = ((b * segments + segment) * K + k).to(tl.int64)
    numbers = lane_numbers(lane, Q)
    for j in tl.static_range(Q):
        channel = (d ^ j)[:, None]
        at = (piece * D + channel) * N + numbers
        tl.store(sums_a + at, sum_a[j], mask=channel < D)
    parameters += piece * (2 + EXTRA) * D + d
    tl.store(parameters, sum_z, mask=in_d)
    tl.store(parameters + D, sum_skip, mask=in_d)
    for r in tl.static_range(INPUTS):
        at = 4 * r + tl.arange(0, 4)[None, :] + (lane * 0)[:, None]
        mask = (at < R) & in_d[:, None]
        tl.store(parameters[:, None] + (2 + at) * D, sum_w[r], mask=mask)


@triton.jit
def backward_kernel(
    dy, x, proj, a_log, dt_weight, dt_bias, skip, orders, saved, ends, sums,
    scratch, planes, rows, dz_out, sums_a, parameters,
    B, L, D, K, segments, pieces, chunks, blocks,
    R: tl.constexpr, N: tl.constexpr, T: tl.constexpr, U: tl.constexpr,
    FUSED: tl.constexpr, EVEN_L: tl.constexpr,
):  # fmt: skip
    """The gradients along one path of one picture, for 32 channels; then along the next.

    There are as many programs as run at the same time: then the scratch memory is no larger than
    they need, and stays in the cache.

    ``planes`` (B, K, L, D): dx by path. ``rows`` (blocks, B, L, K, 2N, or R + 2N if FUSED): the
    gradient of ``projections`` by block of channels. ``dz_out`` (B, L, K, D): the gradient of what
    enters softplus, unless FUSED. ``sums_a`` (B S, K, D, N): dA summed over time. ``parameters``
    (B S, K, 2 + R, D): the sums over time of dz, of dy x and, if FUSED, of dz r for every rank.
    """
    scratch += tl.program_id(0).to(tl.int64) * ((T // U) * N + 2 * T) * 32
    for item in range(tl.program_id(0), B * K * segments * blocks, tl.num_programs(0)):
        bk, part = item // (segments * blocks), item % (segments * blocks)
        walk_back_kernel(
            dy, x, proj, a_log, dt_weight, dt_bias, skip, orders, saved, ends, sums,
            scratch, planes, rows, dz_out, sums_a, parameters,
            bk // K, bk % K, part // blocks, part % blocks,
            B, L, D, K, segments, pieces, chunks, blocks, R, N, T, U, FUSED, EVEN_L,
        )  # fmt: skip
