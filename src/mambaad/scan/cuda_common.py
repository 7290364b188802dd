# mypy: disable-error-code="assignment,misc,no-untyped-def,untyped-decorator,var-annotated"
"""What the cross scan's Triton kernels share; letters as in ``mambaad.scan.reference``.

One warp walks 32 channels of one path of one picture, their states in registers. Nothing is
permuted in memory: the order table gives the row of every step.

The lanes form teams of Q = N / 4. A team has Q channels, and each of its lanes holds 4 of the N
states of all of them: Q tensors (32, 4). So a lane needs 4 numbers of B and of C only, which is one
load of 16 bytes, and uses each Q times. What a channel has one of (x, Δ, y) is owned by the
channel's own lane: a tensor (32,). ``spread`` gives it to the team, ``collect`` sums over the team.
Lane l's j-th tensor is that of channel l ^ j, so that a team can trade without asking who is who.

A path may be cut into segments that run side by side. ``cuda_forward.summary_kernel`` first finds
what each piece of a segment does to a state, h -> exp(A Σ Δ) h + end; the other kernels begin by
folding the summaries of the pieces before their segment (after it, in the backward pass).

The decay is written exp2(Δ A log2 e): exp2 is the GPU's own instruction, and exact at 0.
"""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
LOG2_E_TAIL = tl.constexpr(1.9259629911e-8)  # log2 e less what float32 holds of it
LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def exp_of(z):
    """e^z to the last bits: what the product z log2 e loses in rounding is put back."""
    product = z * LOG2_E
    lost = tl.fma(z, LOG2_E, -product) + z * LOG2_E_TAIL
    power = tl.exp2(product)
    return power + power * (lost * LN_2)


@triton.jit
def softplus_of(z):
    """log(1 + e^z), and its derivative sigmoid(z).

    log1p(e) = 2 artanh(e / (2 + e)) as a polynomial, since log(1 + e) loses what small e has.
    """
    e = exp_of(-tl.abs(z))
    s = e / (2.0 + e)
    q = s * s
    series = 1.0 / 13.0
    series = series * q + 1.0 / 11.0
    series = series * q + 1.0 / 9.0
    series = series * q + 1.0 / 7.0
    series = series * q + 1.0 / 5.0
    series = series * q + 1.0 / 3.0
    series = series * q + 1.0
    dt = tl.maximum(z, 0.0) + 2.0 * s * series
    return dt, tl.where(z >= 0, 1.0, e) / (1.0 + e)


@triton.jit
def lane_numbers(lane, Q: tl.constexpr):
    """(32, 4): which of N numbers a lane holds."""
    return (lane % Q)[:, None] * 4 + tl.arange(0, 4)[None, :]


@triton.jit
def spread(vector, lane, Q: tl.constexpr):
    """What the channels of a team have, as a tuple of Q for every lane."""
    values = (vector,)
    for j in tl.static_range(1, Q):
        values = values + (tl.gather(vector, lane ^ j, 0),)
    return values


@triton.jit
def from_partner(vector, lane, BIT: tl.constexpr):
    """What the lane that differs in one bit holds."""
    return tl.gather(vector, lane ^ BIT, 0)


@triton.jit
def collect(values, lane, Q: tl.constexpr):
    """Sum what the lanes of a team have for each of its channels; a lane gets its own channel's."""
    for i in tl.static_range(3):
        if (Q >> i) > 1:
            halved = ()
            for j in tl.static_range((Q >> i) // 2):
                halved = halved + (
                    values[j] + from_partner(values[j + (Q >> i) // 2], lane, (Q >> i) // 2),
                )
            values = halved
    return values[0]


@triton.jit
def load_row(row, lane, R: tl.constexpr, N: tl.constexpr, FIRST: tl.constexpr, COUNT: tl.constexpr):
    """One step's row as tensors (32, 4): Δ's inputs, then COUNT of B, C from FIRST.

    If R < N, every lane gets all inputs of Δ, 4 to a tensor; else a team shares them out, N to a
    tensor. Of B and C a lane gets the numbers of its states.
    """
    own = lane_numbers(lane, N // 4)
    vectors = ()
    if R < N:
        for i in tl.static_range((R + 3) // 4):
            at = own * 0 + tl.arange(0, 4)[None, :] + 4 * i
            if R % 4 == 0:
                vectors = vectors + (tl.load(row + at).to(tl.float32),)
            else:
                vectors = vectors + (tl.load(row + at, mask=at < R, other=0.0).to(tl.float32),)
    else:
        for i in tl.static_range((R + N - 1) // N):
            at = own + N * i
            if R % N == 0:
                vectors = vectors + (tl.load(row + at).to(tl.float32),)
            else:
                vectors = vectors + (tl.load(row + at, mask=at < R, other=0.0).to(tl.float32),)
    for i in tl.static_range(COUNT):
        vectors = vectors + (tl.load(row + R + (FIRST + i) * N + own).to(tl.float32),)
    return vectors


@triton.jit
def load_steps(
    source, proj, pixels, d, lane, in_d, D, K,
    R: tl.constexpr, N: tl.constexpr, FIRST: tl.constexpr, COUNT: tl.constexpr, U: tl.constexpr,
):  # fmt: skip
    """What U steps read, as one tuple: for each the row's tensors, then ``source``."""
    steps = ()
    for i in tl.static_range(U):
        steps = steps + load_row(proj + pixels[i] * (K * (R + 2 * N)), lane, R, N, FIRST, COUNT)
        steps = steps + (tl.load(source + pixels[i] * D + d, mask=in_d, other=0.0),)
    return steps


@triton.jit
def load_weight(dt_weight, d, lane, D, R: tl.constexpr, N: tl.constexpr):
    """W_Δ of one path as ``before_softplus`` wants it: a tuple of (32, 4)."""
    Q: tl.constexpr = N // 4
    own = lane_numbers(lane, Q)
    weight = ()
    if R < N:
        for i in tl.static_range((R + 3) // 4):
            at = own * 0 + tl.arange(0, 4)[None, :] + 4 * i
            mask = (at < R) & (d < D)[:, None]
            weight = weight + (tl.load(dt_weight + d[:, None] * R + at, mask=mask, other=0.0),)
    else:
        for j in tl.static_range(Q):
            channel = d ^ j
            for i in tl.static_range((R + N - 1) // N):
                at = own + N * i
                mask = (at < R) & (channel < D)[:, None]
                value = tl.load(dt_weight + channel[:, None] * R + at, mask=mask, other=0.0)
                weight = weight + (value,)
    return weight


@triton.jit
def before_softplus(row, weight, bias, lane, R: tl.constexpr, N: tl.constexpr):
    """W_Δ r + b_Δ, (32,), of a row from ``load_row``."""
    if R < N:
        z = bias
        for i in tl.static_range((R + 3) // 4):
            z += tl.sum(weight[i] * row[i], axis=1)
    else:
        Q: tl.constexpr = N // 4
        COUNT: tl.constexpr = (R + N - 1) // N
        parts = ()
        for j in tl.static_range(Q):
            product = weight[j * COUNT] * row[0]
            for i in tl.static_range(COUNT - 1):
                product += weight[j * COUNT + i + 1] * row[i + 1]
            parts = parts + (tl.sum(product, axis=1),)
        z = bias + collect(parts, lane, Q)
    return z


@triton.jit
def load_pixels(orders, t, L, WAY: tl.constexpr, COUNT: tl.constexpr):
    """The pixels of the steps t, t + WAY, ..., as a tuple; outside the path, those of its ends."""
    pixels = ()
    for i in tl.static_range(COUNT):
        step = tl.minimum(tl.maximum(t + i * WAY, 0), L - 1)
        pixels = pixels + (tl.load(orders + step),)
    return pixels


@triton.jit
def log2_decays(a_log, d, lane, D, N: tl.constexpr):
    """A log2 e of one path, as states are held: a tuple of (32, 4)."""
    Q: tl.constexpr = N // 4
    own = lane_numbers(lane, Q)
    a = ()
    for j in tl.static_range(Q):
        channel = (d ^ j)[:, None]
        value = tl.load(a_log + channel * N + own, mask=channel < D, other=0.0)
        a = a + (-exp_of(value) * LOG2_E,)
    return a


@triton.jit
def zero_states(Q: tl.constexpr):
    states = ()
    for _ in tl.static_range(Q):
        states = states + (tl.zeros([32, 4], tl.float32),)
    return states


@triton.jit
def load_states(pointer, lane, Q: tl.constexpr):
    """What ``store_states`` stored."""
    at = lane[:, None] * 4 + tl.arange(0, 4)[None, :]
    states = ()
    for j in tl.static_range(Q):
        states = states + (tl.load(pointer + j * 128 + at),)
    return states


@triton.jit
def store_states(pointer, states, lane, Q: tl.constexpr):
    """Store a warp's states (Q, 32, 4) as it holds them: 16 bytes a lane, side by side."""
    at = lane[:, None] * 4 + tl.arange(0, 4)[None, :]
    for j in tl.static_range(Q):
        tl.store(pointer + j * 128 + at, states[j])


@triton.jit
def fold(states, a, ends, sums, place, lane, N: tl.constexpr):
    """What states become in one piece of a path: exp(A Σ Δ) h + end."""
    Q: tl.constexpr = N // 4
    totals = spread(tl.load(sums + place * 32 + lane), lane, Q)
    end = load_states(ends + place * (32 * N), lane, Q)
    folded = ()
    for j in tl.static_range(Q):
        folded = folded + (tl.exp2(totals[j][:, None] * a[j]) * states[j] + end[j],)
    return folded
