# mypy: disable-error-code="assignment,misc,no-untyped-def,untyped-decorator,var-annotated"
"""The cross scan's backward Triton kernel: the gradients along a path, backwards in time.

Chunk by chunk from the end: the states inside a chunk are found again from the saved ones before
it, and every U-th of them goes to scratch memory in their dtype. From there the chunk is walked
backwards in groups of U steps; states between are found once more and held in registers, with their
decays. The recurrences are float32. Equations and letters are those of ``reference``.

Of the next group's loads those of the inputs start before a group's first step back, those from
scratch memory before its last, when there are registers for them.
"""

import triton
import triton.language as tl

from mambaad.scan.cuda_common import (
    LOG2_E,
    SCRATCH,
    STREAM,
    before_softplus,
    collect,
    decays_of,
    fold,
    lane_numbers,
    load_channels,
    load_head,
    load_numbers,
    load_pixels,
    load_row,
    load_states,
    load_steps,
    load_weight,
    log2_decays,
    pixels_of,
    softplus_of,
    spread,
    states_of,
    store_states,
    widened,
    zero_states,
)
from mambaad.scan.cuda_lanes import columns, store_sums, sum_over_lanes


@triton.jit
def step_forth(states, dt, drive, b_row, a, lane, N: tl.constexpr):
    """The states after a step."""
    Q: tl.constexpr = N // 4
    steps, into = spread(dt, lane, Q), spread(drive, lane, Q)
    new = ()
    for j in tl.static_range(Q):
        decay = decays_of(steps[j], a[j])
        new = new + (decay * states[j] + into[j][:, None] * b_row,)
    return new


@triton.jit
def recompute_chunk(
    x, proj, orders, below, kept, d, lane, in_d, a, weight, bias, states, t, L, D, K,
    R: tl.constexpr, N: tl.constexpr, T: tl.constexpr, U: tl.constexpr, EVERY: tl.constexpr,
    EVEN: tl.constexpr,
):  # fmt: skip
    """Walk through the chunk from step t on, U steps at a time; keep Δ, its derivative and the
    states before every EVERY-th step, and return those after the last.

    They go to this program's own stretches of scratch memory, ``kept`` (T, 2, 32) and ``below``
    (T / EVERY, N * 32), small enough to stay in the cache.
    """
    Q: tl.constexpr = N // 4
    STEP: tl.constexpr = ((R + 3) // 4 if R < N else (R + N - 1) // N) + 2
    here = pixels_of(load_pixels(orders, t, L, lane, 1, U), lane, U)
    coming = load_pixels(orders, t + U, L, lane, 1, U)
    group = load_steps(x, proj, here, d, lane, in_d, D, K, R, N, 0, 1, U, EVEN)
    for s in range(0, T, U):
        store_states(below + s // EVERY * (32 * N), states, lane, Q, SCRATCH)
        # What was loaded is used before the next loads start: the assembler would wait for both
        # alike. The barrier keeps it from moving them up, and the branch from moving them down.
        dts, drives, rows = (), (), ()
        for i in tl.static_range(U):
            own = group[i * STEP : (i + 1) * STEP]
            dt, slope = softplus_of(before_softplus(own, weight, bias, lane, R, N))
            if not EVEN:
                dt = tl.where(t + s + i < L, dt, 0.0)
            tl.store(kept + (s + i) * 64 + lane, dt, eviction_policy=SCRATCH)
            tl.store(kept + (s + i) * 64 + 32 + lane, slope, eviction_policy=SCRATCH)
            drive = dt * own[STEP - 1].to(tl.float32)
            dts, drives = dts + (dt,), drives + (drive,)
            rows = rows + (widened(own[STEP - 2]),)
        tl.debug_barrier()
        there = pixels_of(coming, lane, U)
        later = load_pixels(orders, t + s + 2 * U, L, lane, 1, U)
        following = load_steps(x, proj, there, d, lane, in_d, D, K, R, N, 0, 1, U, EVEN)
        if t + s < L:
            for i in tl.static_range(U):
                if i > 0 and i % EVERY == 0:
                    at = below + (s + i) // EVERY * (32 * N)
                    store_states(at, states, lane, Q, SCRATCH)
                states = step_forth(states, dts[i], drives[i], rows[i], a, lane, N)
        elif not EVEN:  # what is not used must be numbers all the same
            for i in tl.static_range(EVERY, U, EVERY):
                store_states(below + (s + i) // EVERY * (32 * N), states, lane, Q, SCRATCH)
        group, coming = following, later
    return states


@triton.jit
def load_inputs(
    x, dy, proj, pixel, d, lane, in_d, D, K,
    R: tl.constexpr, N: tl.constexpr, U: tl.constexpr, FUSED: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """What a group of steps reads of the scan's inputs, as one tuple: for each step x, dy, Δ's
    inputs if FUSED, B and C.
    """
    PAIRS: tl.constexpr = R % 4 == 0 and proj.dtype.element_ty == tl.bfloat16
    inputs = ()
    for i in tl.static_range(U):
        row = proj + pixel[i] * (K * (R + 2 * N))
        at = pixel[i] * D + d
        inputs = inputs + (load_channels(x + at, in_d, EVEN), load_channels(dy + at, in_d, EVEN))
        if FUSED:
            inputs = inputs + load_row(row, lane, R, N, 0, 2)
        else:
            own = R + lane % (N // 4) * 4
            inputs = inputs + (load_numbers(row, own, PAIRS), load_numbers(row, own + N, PAIRS))
    return inputs


@triton.jit
def load_scratch(below, kept, lane, N: tl.constexpr, U: tl.constexpr):
    """What a group of steps reads of scratch memory, as one tuple: the states before it, and for
    each step Δ and its derivative."""
    scratch = load_head(below, lane, N // 4, SCRATCH)
    for i in tl.static_range(U):
        dt = tl.load(kept + i * 64 + lane, eviction_policy=SCRATCH)
        slope = tl.load(kept + i * 64 + 32 + lane, eviction_policy=SCRATCH)
        scratch = scratch + (dt, slope)
    return scratch


@triton.jit
def group_of(scratch, inputs, HEAD: tl.constexpr, INPUTS: tl.constexpr, U: tl.constexpr):
    """Both together: HEAD tensors with the states, then step by step."""
    group = scratch[:HEAD]
    for i in tl.static_range(U):
        group = group + scratch[HEAD + 2 * i : HEAD + 2 * i + 2]
        group = group + inputs[INPUTS * i : INPUTS * (i + 1)]
    return group


@triton.jit
def gradients_of(
    g, sum_a, before, after, decays, steps, drives, dyt, b_row, c_row, a, lane, N: tl.constexpr
):
    """One step backwards: dB and dC of this warp's channels, (32, 4), what x's and Δ's gradients
    come from, (32,), and then the new g and ΣdA, as one tuple.
    """
    Q: tl.constexpr = N // 4
    dys = spread(dyt, lane, Q)
    into_b, into_a = (), ()  # Σ g B; Σ g A s log2 e
    new, new_a = (), ()
    db, dc = tl.zeros([32, 4], tl.float32), tl.zeros([32, 4], tl.float32)
    for j in tl.static_range(Q):
        gradient = g[j] + dys[j][:, None] * c_row
        into_b = into_b + (tl.sum(gradient * b_row, axis=1),)
        db += gradient * drives[j][:, None]
        dc += dys[j][:, None] * after[j]
        earlier = gradient * decays[j]
        decayed = earlier * before[j]
        into_a = into_a + (tl.sum(decayed * a[j], axis=1),)
        new_a = new_a + (sum_a[j] + decayed * steps[j][:, None],)
        new = new + (earlier,)
    return (db, dc, collect(into_b, lane, Q), collect(into_a, lane, Q)) + new + new_a


@triton.jit
def step_back(
    carried, own, between, planes, rows, dz_out, pixel, d, lane, in_d, a, weight, factor, D, K,
    R: tl.constexpr, N: tl.constexpr, FUSED: tl.constexpr, SINGLE: tl.constexpr,
):  # fmt: skip
    """One step backwards, its results stored.

    ``own`` is the step's part of ``group_of``; ``between`` the states before it and, unless it
    makes up a group, its decays, Δ and Δ x. ``carried`` is what goes from step to step, and is
    returned anew: g, ΣdA, the states between this step and the one taken before, ΣdW_Δ, Σdz and
    Σ dy x.
    """
    Q: tl.constexpr = N // 4
    EXTRA: tl.constexpr = R if FUSED else 0
    INPUTS: tl.constexpr = (R + 3) // 4 if FUSED else 0
    PER: tl.constexpr = 8 // INPUTS if FUSED else 1  # lanes with the same sum over lanes
    dt, slope, xt, dyt = own[0], own[1], own[2].to(tl.float32), own[3].to(tl.float32)
    if SINGLE:
        steps = spread(dt, lane, Q)
        decays = ()
        for j in tl.static_range(Q):
            decays = decays + (decays_of(steps[j], a[j]),)
        between = states_of(between, Q) + decays + steps + spread(dt * xt, lane, Q)
    found = gradients_of(
        carried[:Q], carried[Q : 2 * Q], between[:Q], carried[2 * Q : 3 * Q],
        between[Q : 2 * Q], between[2 * Q : 3 * Q], between[3 * Q :],
        dyt, widened(own[4 + INPUTS]), widened(own[5 + INPUTS]), a, lane, N,
    )  # fmt: skip
    db, dc, own_b, own_a = found[0], found[1], found[2], found[3]
    dz = (own_b * xt + own_a * (1.0 / LOG2_E)) * slope
    dx = own_b * dt + factor * dyt
    tl.store(planes + pixel * D + d, dx, mask=in_d, eviction_policy=STREAM)
    out = rows + pixel * (K * (2 * N + EXTRA))
    store_sums(out + EXTRA, db, dc, lane, N)
    sum_w = ()
    if FUSED:
        dr = ()
        for r in tl.static_range(INPUTS):
            dr = dr + columns(dz[:, None] * weight[r])
            new = carried[3 * Q + r] + dz[:, None] * widened(own[4 + r])
            sum_w = sum_w + (new,)
        total = sum_over_lanes(dr, lane, 4 * INPUTS)
        chosen = (lane % PER == 0) & (lane // PER < R)
        tl.store(out + lane // PER, total, mask=chosen, eviction_policy=STREAM)
    else:
        at = pixel * (K * D) + d
        tl.store(dz_out + at, dz, mask=in_d, eviction_policy=STREAM)
    sums = (carried[3 * Q + INPUTS] + dz, carried[3 * Q + INPUTS + 1] + dyt * xt)
    return found[4:] + between[:Q] + sum_w + sums


@triton.jit
def add_to_sums(
    found, sums_a, parameters, d, lane, in_d, D,
    R: tl.constexpr, N: tl.constexpr, INPUTS: tl.constexpr, FRESH: tl.constexpr,
):  # fmt: skip
    """Add ΣdA, ΣdW_Δ, Σdz and Σ dy x, in the order of ``carried``, to what lies there.

    FRESH: put them there. Each chunk is summed by itself, and then the chunks: thousands of
    roundings in a row would be more than plain torch's.
    """
    Q: tl.constexpr = N // 4
    numbers = lane_numbers(lane, Q)
    for j in tl.static_range(Q):
        channel = (d ^ j)[:, None]
        add_at(sums_a + channel * N + numbers, found[j], channel < D, FRESH)
    add_at(parameters + d, found[Q + INPUTS], in_d, FRESH)
    add_at(parameters + D + d, found[Q + INPUTS + 1], in_d, FRESH)
    for r in tl.static_range(INPUTS):
        at = 4 * r + tl.arange(0, 4)[None, :] + (lane * 0)[:, None]
        mask = (at < R) & in_d[:, None]
        add_at(parameters + (2 + at) * D + d[:, None], found[Q + r], mask, FRESH)


@triton.jit
def add_at(pointer, value, mask, FRESH: tl.constexpr):
    """Add a lane's own number in memory; if FRESH, put it there.

    No other lane adds to it, so the order of the sum is always the same. An atomic addition is one
    that nobody waits for.
    """
    if FRESH:
        tl.store(pointer, value, mask=mask)
    else:
        tl.atomic_add(pointer, value, mask=mask, sem="relaxed")


@triton.jit
def walk_back_kernel(
    dy, x, proj, a_log, dt_weight, dt_bias, skip, orders, saved, ends, sums,
    below, kept, planes, rows, dz_out, sums_a, parameters,
    b, k, segment, block,
    B, L, D, K, segments, pieces, chunks, blocks,
    R: tl.constexpr, N: tl.constexpr, T: tl.constexpr, U: tl.constexpr, V: tl.constexpr,
    FUSED: tl.constexpr, EVEN: tl.constexpr,
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
    HEAD: tl.constexpr = Q // 2 if saved.dtype.element_ty == tl.bfloat16 else Q
    STEP: tl.constexpr = 6 + INPUTS
    SINGLE: tl.constexpr = U == 1
    EARLY: tl.constexpr = 0 if INPUTS > 1 else U - 1  # more take the registers of what is computed
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

    g = zero_states(Q)
    for piece in range(pieces - 1, (segment + 1) * (pieces // segments) - 1, -1):
        g = fold(g, a, ends, sums, (bk * pieces + piece) * blocks + block, lane, N)
    none = tl.zeros([32], tl.float32)
    nothing = zero_states(INPUTS) + (none, none)
    carried = g + zero_states(Q) + zero_states(Q) + nothing
    piece = ((b * segments + segment) * K + k).to(tl.int64)
    sums_a += piece * D * N
    parameters += piece * (2 + EXTRA) * D
    found = zero_states(Q) + nothing
    add_to_sums(found, sums_a, parameters, d, lane, in_d, D, R, N, INPUTS, True)
    per_segment = tl.cdiv(chunks, pieces) * (pieces // segments)
    first = segment * per_segment
    for c in range(tl.minimum(chunks, first + per_segment) - 1, first - 1, -1):
        states = load_states(saved + ((bk * chunks + c) * blocks + block) * (32 * N), lane, Q)
        after = recompute_chunk(
            x, proj, orders, below, kept, d, lane, in_d, a, weight, bias, states, c * T, L, D, K,
            R, N, T, V, U, EVEN,
        )  # fmt: skip
        carried = carried[: 2 * Q] + after + carried[3 * Q :]
        tl.debug_barrier()
        pixel = pixels_of(load_pixels(orders, c * T + T - U, L, lane, 1, U), lane, U)
        before = load_pixels(orders, c * T + T - 2 * U, L, lane, 1, U)
        below_at, kept_at = below + (T // U - 1) * (N * 32), kept + (T // U - 1) * (U * 64)
        inputs = load_inputs(x, dy, proj, pixel, d, lane, in_d, D, K, R, N, U, FUSED, EVEN)
        group = group_of(load_scratch(below_at, kept_at, lane, N, U), inputs, HEAD, STEP - 2, U)
        for s in range(T - U, -U, -U):
            t = c * T + s
            h, decays, steps, drives = states_of(group[:HEAD], Q), (), (), ()
            for i in tl.static_range(0 if SINGLE else U):  # forwards, all states and decays kept
                own = group[HEAD + STEP * i : HEAD + STEP * (i + 1)]
                b_row = widened(own[STEP - 2])
                dts = spread(own[0], lane, Q)
                into = spread(own[0] * own[2].to(tl.float32), lane, Q)
                for j in tl.static_range(Q):
                    decay = decays_of(dts[j], a[j])
                    decays = decays + (decay,)
                    h = h + (decay * h[i * Q + j] + into[j][:, None] * b_row,)
                steps, drives = steps + dts, drives + into
            if not SINGLE:
                carried = carried[: 2 * Q] + h[U * Q :] + carried[3 * Q :]
            for i in tl.static_range(U - 1, -1, -1):
                # The assembler would move loads behind their step, but not behind its branch.
                if i == EARLY:
                    there = pixels_of(before, lane, U)
                    earliest = load_pixels(orders, t - 2 * U, L, lane, 1, U)
                    inputs = load_inputs(
                        x, dy, proj, there, d, lane, in_d, D, K, R, N, U, FUSED, EVEN
                    )
                if i == 0:  # the registers of the steps behind are free now
                    below_at -= N * 32
                    kept_at -= U * 64
                    scratch = load_scratch(below_at, kept_at, lane, N, U)
                between = group[:HEAD]
                if not SINGLE:
                    between = h[i * Q : (i + 1) * Q] + decays[i * Q : (i + 1) * Q]
                    between = between + steps[i * Q : (i + 1) * Q] + drives[i * Q : (i + 1) * Q]
                if t + i < L:
                    carried = step_back(
                        carried, group[HEAD + STEP * i : HEAD + STEP * (i + 1)], between,
                        planes, rows, dz_out, pixel[i], d, lane, in_d, a, weight, factor, D, K,
                        R, N, FUSED, SINGLE,
                    )  # fmt: skip
            group = group_of(scratch, inputs, HEAD, STEP - 2, U)
            pixel, before = there, earliest
        found = carried[Q : 2 * Q] + carried[3 * Q :]
        add_to_sums(found, sums_a, parameters, d, lane, in_d, D, R, N, INPUTS, False)
        carried = carried[:Q] + zero_states(Q) + carried[2 * Q : 3 * Q] + nothing
        tl.debug_barrier()


@triton.jit(do_not_specialize=["B"])
def backward_kernel(
    dy, x, proj, a_log, dt_weight, dt_bias, skip, orders, saved, ends, sums,
    below, kept, planes, rows, dz_out, sums_a, parameters,
    B, L, D, K, segments, pieces, chunks, blocks,
    R: tl.constexpr, N: tl.constexpr, T: tl.constexpr, U: tl.constexpr, V: tl.constexpr,
    FUSED: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """The gradients along one path of one picture, for 32 channels; then along the next.

    There are as many programs as run at the same time: then the scratch memory is no larger than
    they need, and stays in the cache.

    ``planes`` (B, K, L, D): dx by path. ``rows`` (blocks, B, L, K, 2N, or R + 2N if FUSED): the
    gradient of ``projections`` by block of channels. ``dz_out`` (B, L, K, D): the gradient of what
    enters softplus, unless FUSED. ``sums_a`` (B S, K, D, N): dA summed over time. ``parameters``
    (B S, K, 2 + R, D): the sums over time of dz, of dy x and, if FUSED, of dz r for every rank.
    """
    # a group more at the front: the last loads of a chunk are of steps before it, and not used
    below += (tl.program_id(0).to(tl.int64) * (T // U) + 1) * (N * 32)
    kept += (tl.program_id(0).to(tl.int64) * T + U) * (2 * 32)
    for item in range(tl.program_id(0), B * K * segments * blocks, tl.num_programs(0)):
        bk, part = item // (segments * blocks), item % (segments * blocks)
        walk_back_kernel(
            dy, x, proj, a_log, dt_weight, dt_bias, skip, orders, saved, ends, sums,
            below, kept, planes, rows, dz_out, sums_a, parameters,
            bk // K, bk % K, part // blocks, part % blocks,
            B, L, D, K, segments, pieces, chunks, blocks, R, N, T, U, V, FUSED, EVEN,
        )  # fmt: skip
