# mypy: disable-error-code="assignment,misc,no-untyped-def,untyped-decorator,var-annotated"
"""The cross scan's backward Triton kernel: the gradients along a path, backwards in time.

Chunk by chunk from the end: the states inside a chunk are found again from the saved state before
it, every U-th goes to scratch memory, and from those the chunk is walked backwards in groups of U
steps whose states are all held in registers. Equations and letters are those of ``reference``.

dB and dC are sums over channels, which are lanes. A lane's n-th register therefore holds state
n ^ (lane mod N): then two lanes that differ in one bit hold each other's states in registers that
differ in that bit, and one shuffle and one sum for each pair of registers halve what is left.

All loads of a group start together, and none while it is computed: the assembler has six counters
to wait with, shuffles share them with loads, and would wait for loads that nobody needs yet.
"""

import triton
import triton.language as tl

from mambaad.scan.cuda_common import (
    LOG2_E,
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
        halved = halved + (kept + tl.gather(sent, lane ^ BIT, 0),)
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
            values = (values[0] + tl.gather(values[0], lane ^ BITS[i], 0),)
    return values[0]


@triton.jit
def sum_of_states(values, lane, N: tl.constexpr):
    """Sum the lanes' vectors, one for each state; lane l gets state l mod N.

    What is left to add for N < 32 lies in the lanes that differ in the upper bits only.
    """
    for i in tl.static_range(5):
        if (N >> i) > 1:
            halved = ()
            for n in tl.static_range((N >> i) // 2):
                other = tl.gather(values[n + (N >> i) // 2], lane ^ ((N >> i) // 2), 0)
                halved = halved + (values[n] + other,)
            values = halved
    return values[0]


@triton.jit
def store_sums(out, db, dc, lane, valid, N: tl.constexpr):
    """Sum the channels' parts of dB and dC and put them behind each other."""
    sum_b, sum_c = sum_of_states(db, lane, N), sum_of_states(dc, lane, N)
    if N == 32:
        tl.store(out + lane, sum_b, mask=lane < valid)
        tl.store(out + N + lane, sum_c, mask=lane < valid)
    else:  # the upper half of the lanes takes C
        sent = tl.where(lane >= 16, sum_b, sum_c)
        total = tl.where(lane >= 16, sum_c, sum_b) + tl.gather(sent, lane ^ 16, 0)
        if N == 8:
            total += tl.gather(total, lane ^ 8, 0)
        own = (lane < valid) & (lane % 16 < N)
        tl.store(out + lane // 16 * N + lane % 16, total, mask=own)


@triton.jit
def recompute_chunk(
    x, proj, orders, below, kept, d, lane, in_d, a, weight, bias, state, t, L, D, K,
    R: tl.constexpr, N: tl.constexpr, T: tl.constexpr, U: tl.constexpr, EVEN_L: tl.constexpr,
):  # fmt: skip
    """Walk through the chunk from step t on; keep Δ, its derivative and every U-th state.

    They go to this program's own stretches of scratch memory, ``kept`` (T, 2, 32) and ``below``
    (T / U, N, 32), small enough to stay in the cache.
    """
    W: tl.constexpr = R + 2 * N
    VECTORS: tl.constexpr = (R + 31) // 32 + 1
    pixel = load_pixels(orders, t, L, 1, U)
    for s in range(0, T, U):
        rows, values = (), ()
        for i in tl.static_range(U):
            rows = rows + load_row(proj + pixel[i] * (K * W), lane, R, N, 0, 1)
            values = values + (tl.load(x + pixel[i] * D + d, mask=in_d, other=0.0),)
        pixel = load_pixels(orders, t + s + U, L, 1, U)
        tl.debug_barrier()  # or the compiler would move loads to where they are used
        for n in tl.static_range(N):
            tl.store(below + (s // U * N + n) * 32 + lane, state[n])
        for i in tl.static_range(U):
            row = rows[i * VECTORS : (i + 1) * VECTORS]
            dt, slope = softplus_of(before_softplus(row, bias, weight, lane, R))
            if not EVEN_L:
                dt = tl.where(t + s + i < L, dt, 0.0)
            tl.store(kept + (s + i) * 64 + lane, dt)
            tl.store(kept + (s + i) * 64 + 32 + lane, slope)
            drive = dt * values[i].to(tl.float32)
            new = ()
            for n in tl.static_range(N):
                driven = drive * tl.gather(row[VECTORS - 1], lane ^ n, 0)
                new = new + (tl.exp2(dt * a[n]) * state[n] + driven,)
            state = new


@triton.jit
def load_group(
    x, dy, proj, below, kept, pixel, s, d, lane, in_d, D, K,
    R: tl.constexpr, N: tl.constexpr, U: tl.constexpr, FUSED: tl.constexpr,
):  # fmt: skip
    """The state before the s-th group of steps and, for each step, Δ, its derivative, x, dy, B, C
    and, if FUSED, Δ's inputs: one tuple.
    """
    W: tl.constexpr = R + 2 * N
    group = ()
    for n in tl.static_range(N):
        group = group + (tl.load(below + (s * N + n) * 32 + lane),)
    for i in tl.static_range(U):
        row = proj + pixel[i] * (K * W)
        at = pixel[i] * D + d
        group = group + (
            tl.load(kept + (s * U + i) * 64 + lane),
            tl.load(kept + (s * U + i) * 64 + 32 + lane),
            tl.load(x + at, mask=in_d, other=0.0).to(tl.float32),
            tl.load(dy + at, mask=in_d, other=0.0).to(tl.float32),
            tl.load(row + R + lane % N).to(tl.float32),
            tl.load(row + R + N + lane % N).to(tl.float32),
        )
        if FUSED:
            group = group + (tl.load(row + tl.minimum(lane, R - 1)).to(tl.float32),)
    return group


@triton.jit
def backward_kernel(
    dy, x, proj, a_log, dt_weight, dt_bias, skip, orders, states, ends, sums,
    scratch, planes, rows, dz_out, parameters,
    L, D, K, segments, chunks, blocks,
    R: tl.constexpr, N: tl.constexpr, T: tl.constexpr, U: tl.constexpr,
    FUSED: tl.constexpr, EVEN_L: tl.constexpr,
):  # fmt: skip
    """The gradients along one path of one picture, for 32 channels.

    ``planes`` (B, K, L, D): dx by path. ``rows`` (blocks, B, L, K, 2N, or R + 2N if FUSED): the
    gradient of ``projections`` by block of channels. ``dz_out`` (B, L, K, D): the gradient of what
    enters softplus, unless FUSED. ``parameters`` (B S, K, N + 2 + R, D): the sums over time of dA
    for every state, of dz, of dy x and, if FUSED, of dz r for every rank.
    """
    k, b = tl.program_id(1), tl.program_id(2)
    block, segment = tl.program_id(0) % blocks, tl.program_id(0) // blocks
    lane = tl.arange(0, 32)
    turn = lane % N
    d = block * 32 + lane
    in_d = d < D
    kd = k * D + d
    W: tl.constexpr = R + 2 * N
    EXTRA: tl.constexpr = R if FUSED else 0
    OUT: tl.constexpr = 2 * N + EXTRA
    STEP: tl.constexpr = 7 if FUSED else 6
    a = log2_decays(a_log + kd * N, in_d, turn, N)
    weight = load_channels(dt_weight + kd * R, in_d, R)
    bias = tl.load(dt_bias + kd, mask=in_d, other=0.0)
    factor = tl.load(skip + kd, mask=in_d, other=0.0)
    bk = b * K + k
    proj += (b.to(tl.int64) * L * K + k) * W
    x += b.to(tl.int64) * L * D
    dy += b.to(tl.int64) * L * D
    planes += bk.to(tl.int64) * L * D
    orders += k * L
    dz_out += (b.to(tl.int64) * L * K + k) * D
    rows += ((block * tl.num_programs(2) + b).to(tl.int64) * L * K + k) * OUT
    program = (bk * tl.num_programs(0) + tl.program_id(0)).to(tl.int64)
    kept = scratch + program * ((T // U) * N + 2 * T) * 32
    below = kept + 2 * T * 32

    g = zeros_for(N)
    for s in range(segments - 1, segment, -1):
        g = fold(g, a, ends, sums, bk * segments + s, d, D, in_d, turn, N)
    sum_a = zeros_for(N)
    sum_w = zeros_for(EXTRA)
    sum_z = tl.zeros([32], tl.float32)
    sum_skip = tl.zeros([32], tl.float32)
    per_segment = tl.cdiv(chunks, segments)
    first = segment * per_segment
    for c in range(tl.minimum(chunks, first + per_segment) - 1, first - 1, -1):
        saved = states + (bk * chunks + c).to(tl.int64) * N * D + d
        state = ()
        for n in tl.static_range(N):
            state = state + (tl.load(saved + (turn ^ n) * D, mask=in_d, other=0.0),)
        recompute_chunk(
            x, proj, orders, below, kept, d, lane, in_d, a, weight, bias, state, c * T, L, D, K,
            R, N, T, U, EVEN_L,
        )  # fmt: skip
        tl.debug_barrier()
        pixel = load_pixels(orders, c * T + T - U, L, 1, U)
        for s in range(T // U - 1, -1, -1):
            t = c * T + s * U
            group = load_group(
                x, dy, proj, below, kept, pixel, s, d, lane, in_d, D, K, R, N, U, FUSED
            )
            before = load_pixels(orders, t - U, L, 1, U)
            tl.debug_barrier()
            # forwards through the group, all its states kept in registers
            h = group[:N]
            for i in tl.static_range(U):
                dt = group[N + STEP * i]
                drive = dt * group[N + STEP * i + 2]
                for n in tl.static_range(N):
                    driven = drive * tl.gather(group[N + STEP * i + 4], lane ^ n, 0)
                    h = h + (tl.exp2(dt * a[n]) * h[i * N + n] + driven,)
            # and backwards
            for i in tl.static_range(U - 1, -1, -1):
                p, own = pixel[i], group[N + STEP * i : N + STEP * (i + 1)]
                slope, xt, dyt = own[1], own[2], own[3]
                # Δ again, in a way that hides it: else the compiler keeps all decays from above,
                # and runs out of registers
                dt = tl.gather(own[0], lane, 0)
                if not EVEN_L:
                    dyt = tl.where(t + i < L, dyt, 0.0)
                drive = dt * xt
                into_b = tl.zeros([32], tl.float32)  # Σ g B
                into_a = tl.zeros([32], tl.float32)  # Σ g A s log2 e
                new, new_a, db, dc = (), (), (), ()
                for n in tl.static_range(N):
                    gradient = g[n] + dyt * tl.gather(own[5], lane ^ n, 0)
                    into_b += gradient * tl.gather(own[4], lane ^ n, 0)
                    db = db + (gradient * drive,)
                    dc = dc + (dyt * h[(i + 1) * N + n],)
                    earlier = gradient * tl.exp2(dt * a[n])
                    decayed = earlier * h[i * N + n]
                    into_a += decayed * a[n]
                    new_a = new_a + (sum_a[n] + decayed * dt,)
                    new = new + (earlier,)
                g, sum_a = new, new_a
                dz = (into_b * xt + into_a * (1.0 / LOG2_E)) * slope
                if not EVEN_L:
                    dz = tl.where(t + i < L, dz, 0.0)
                valid = 32 if EVEN_L else tl.where(t + i < L, 32, 0)
                inside = in_d if EVEN_L else d < tl.where(t + i < L, D, 0)
                tl.store(planes + p * D + d, into_b * dt + factor * dyt, mask=inside)
                sum_z += dz
                sum_skip += dyt * xt
                store_sums(rows + p * (K * OUT) + EXTRA, db, dc, lane, valid, N)
                if FUSED:
                    dr, new_w = (), ()
                    for r in tl.static_range(R):
                        dr = dr + (dz * weight[r],)
                        new_w = new_w + (sum_w[r] + dz * from_lane(own[6], lane, r),)
                    sum_w = new_w
                    total = sum_over_lanes(dr, lane, R)
                    chosen = (lane < valid) & (lane % (32 // R) == 0)
                    tl.store(rows + p * (K * OUT) + lane // (32 // R), total, mask=chosen)
                else:
                    tl.store(dz_out + p * (K * D) + d, dz, mask=inside)
            pixel = before
        tl.debug_barrier()

    offset = ((b * segments + segment) * K + k).to(tl.int64) * (N + 2 + EXTRA) * D
    parameters += offset + d
    for n in tl.static_range(N):
        tl.store(parameters + (turn ^ n) * D, sum_a[n], mask=in_d)
    tl.store(parameters + N * D, sum_z, mask=in_d)
    tl.store(parameters + (N + 1) * D, sum_skip, mask=in_d)
    for r in tl.static_range(EXTRA):
        tl.store(parameters + (N + 2 + r) * D, sum_w[r], mask=in_d)
