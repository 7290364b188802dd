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

The decay is written exp2(Δ A log2 e): exp2 is the GPU's own instruction, and exact at 0. Elsewhere
it is too small by 0.1 to 0.8 units of 2^-24 in the mean (LOG.md), which a path multiplies up, so
its argument is moved by ``EXP2_BIAS``: by one rounding, since the product is not rounded before.

A kernel's loads start before what is computed meanwhile, and a branch lies between, though it is
always taken: without it the assembler moves them behind the computation, where they are waited for.
"""

import os

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)

EXP2_BIAS = tl.constexpr(0.0 if os.environ.get("TRITON_INTERPRET") == "1" else 3.5e-8)
"""Added to the argument of a decay's exp2; small enough for exp2(0) to stay 1. NumPy's has none."""

USUAL, SCRATCH, STREAM = tl.constexpr(""), tl.constexpr("evict_last"), tl.constexpr("evict_first")
"""What the cache is told of memory: nothing, that it is read again soon, that it is not."""


@triton.jit
def exp_of(z):
    """e^z to the last bits: what the product z log2 e loses in rounding is put back."""
    product = z * LOG2_E
    power = tl.exp2(product)
    return power + power * tl.fma(product, -LN_2, z)


@triton.jit
def softplus_of(z):
    """log(1 + e^z), and its derivative sigmoid(z).

    log1p(e) = 2 artanh(s / 2), s = e / (1 + e / 2), since log(1 + e) loses what small e has: a
    polynomial in s^2, for s^2 <= 4 / 9 within 5e-9 of it (minimax, fitted here). Both divisions
    share 1 / ((1 + e)(1 + e / 2)), taken as a square of a reciprocal root, which is one instruction
    of a GPU, and corrected by a Newton step.
    """
    e = exp_of(-tl.abs(z))
    whole, half = 1.0 + e, 1.0 + 0.5 * e
    product = whole * half
    root = tl.rsqrt(product)
    inverse = root * root
    inverse += inverse * tl.fma(-product, inverse, 1.0)
    s = e * whole * inverse
    q = s * s
    series = 0.00054735271
    series = series * q + 0.00218743295
    series = series * q + 0.01250678115
    series = series * q + 0.08333301544
    series = series * q + 1.0
    dt = tl.maximum(z, 0.0) + s * series
    return dt, tl.where(z >= 0, 1.0, e) * half * inverse


@triton.jit
def decays_of(dt, a):
    """exp(Δ A), (32, 4), for Δ (32,) and A log2 e as ``log2_decays`` gives it."""
    return tl.exp2(tl.fma(dt[:, None], a, EXP2_BIAS))


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
def low_half(words):
    """The bfloat16 in the low half of each word, as float32."""
    return (words << 16).to(tl.float32, bitcast=True)


@triton.jit
def high_half(words):
    """The bfloat16 in the high half of each word, as float32."""
    return (words & -65536).to(tl.float32, bitcast=True)


@triton.jit
def load_numbers(row, at, PAIRS: tl.constexpr):
    """Four numbers of a row from ``at`` on, for every lane; if PAIRS, as two words of 32 bits.

    ``widened`` makes float32 of them where they are used: until then words take half the registers,
    and of a pair they need two instructions instead of three.
    """
    if PAIRS:
        words = (row + at).to(tl.pointer_type(tl.int32))
        return tl.load(words[:, None] + tl.arange(0, 2)[None, :])
    else:  # noqa: RET505 - Triton reads what follows a return, unless it is left out like this
        return tl.load((row + at)[:, None] + tl.arange(0, 4)[None, :])


@triton.jit
def widened(values):
    """What ``load_numbers`` loaded, (32, 4), as float32."""
    if values.dtype == tl.int32:
        return tl.reshape(tl.join(low_half(values), high_half(values)), (32, 4))
    else:  # noqa: RET505 - see load_numbers
        return values.to(tl.float32)


@triton.jit
def load_row(row, lane, R: tl.constexpr, N: tl.constexpr, FIRST: tl.constexpr, COUNT: tl.constexpr):
    """One step's row for ``widened``: Δ's inputs, then COUNT of B, C from FIRST.

    If R < N, every lane gets all inputs of Δ, 4 to a tensor; else a team shares them out, N to a
    tensor. Of B and C a lane gets the numbers of its states.
    """
    PAIRS: tl.constexpr = R % 4 == 0 and row.dtype.element_ty == tl.bfloat16
    WIDTH: tl.constexpr = 4 if R < N else N
    own = lane % (N // 4) * 4
    inputs = own * 0 if R < N else own
    vectors = ()
    for i in tl.static_range((R + WIDTH - 1) // WIDTH):
        if R % WIDTH == 0:
            vectors = vectors + (load_numbers(row, inputs + WIDTH * i, PAIRS),)
        else:
            at = (inputs + WIDTH * i)[:, None] + tl.arange(0, 4)[None, :]
            vectors = vectors + (tl.load(row[:, None] + at, mask=at < R, other=0.0),)
    for i in tl.static_range(COUNT):
        vectors = vectors + (load_numbers(row, own + R + (FIRST + i) * N, PAIRS),)
    return vectors


@triton.jit
def load_channels(pointer, in_d, EVEN: tl.constexpr):
    """A number for each lane; 0 for those without a channel, of which there are none if EVEN."""
    if EVEN:
        return tl.load(pointer)
    else:  # noqa: RET505 - see load_numbers
        return tl.load(pointer, mask=in_d, other=0.0)


@triton.jit
def load_steps(
    source, proj, pixels, d, lane, in_d, D, K,
    R: tl.constexpr, N: tl.constexpr, FIRST: tl.constexpr, COUNT: tl.constexpr, U: tl.constexpr,
    EVEN: tl.constexpr,
):  # fmt: skip
    """What U steps read, as one tuple: for each the row's tensors, then ``source``."""
    steps = ()
    for i in tl.static_range(U):
        steps = steps + load_row(proj + pixels[i] * (K * (R + 2 * N)), lane, R, N, FIRST, COUNT)
        steps = steps + (load_channels(source + pixels[i] * D + d, in_d, EVEN),)
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
            z += tl.sum(weight[i] * widened(row[i]), axis=1)
    else:
        Q: tl.constexpr = N // 4
        COUNT: tl.constexpr = (R + N - 1) // N
        inputs, parts = (), ()
        for i in tl.static_range(COUNT):
            inputs = inputs + (widened(row[i]),)
        for j in tl.static_range(Q):
            product = weight[j * COUNT] * inputs[0]
            for i in tl.static_range(COUNT - 1):
                product += weight[j * COUNT + i + 1] * inputs[i + 1]
            parts = parts + (tl.sum(product, axis=1),)
        z = bias + collect(parts, lane, Q)
    return z


@triton.jit
def load_pixels(orders, t, L, lane, WAY: tl.constexpr, COUNT: tl.constexpr):
    """The pixels of the steps t, t + WAY, ..., one to a lane; outside the path, those of its ends.

    Not numbers that all lanes share: those the assembler moves to registers for such numbers, and
    waits for them at once.
    """
    WIDTH: tl.constexpr = COUNT if COUNT > 1 else 2
    step = tl.minimum(tl.maximum(t + WAY * (lane % WIDTH), 0), L - 1)
    return tl.load(orders + step)


@triton.jit
def pixels_of(loaded, lane, COUNT: tl.constexpr):
    """What ``load_pixels`` loaded, each for all lanes, as a tuple."""
    WIDTH: tl.constexpr = COUNT if COUNT > 1 else 2
    pixels = ()
    for i in tl.static_range(COUNT):
        pixels = pixels + (tl.gather(loaded, lane - lane % WIDTH + i, 0),)
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
def load_head(pointer, lane, Q: tl.constexpr, POLICY: tl.constexpr):
    """What ``store_states`` stored, for ``states_of``: Q tensors (32, 4), or half as many of words
    with two bfloat16 in each."""
    at = lane[:, None] * 4 + tl.arange(0, 4)[None, :]
    head = ()
    if pointer.dtype.element_ty == tl.bfloat16:
        words = pointer.to(tl.pointer_type(tl.int32))
        for j in tl.static_range(Q // 2):
            head = head + (tl.load(words + j * 128 + at, eviction_policy=POLICY),)
    else:
        for j in tl.static_range(Q):
            head = head + (tl.load(pointer + j * 128 + at, eviction_policy=POLICY),)
    return head


@triton.jit
def states_of(head, Q: tl.constexpr):
    """The states in what ``load_head`` loaded."""
    if head[0].dtype == tl.int32:
        states = ()
        for j in tl.static_range(Q // 2):
            states = states + (low_half(head[j]), high_half(head[j]))
        return states
    else:  # noqa: RET505 - see load_numbers
        return head


@triton.jit
def load_states(pointer, lane, Q: tl.constexpr):
    """What ``store_states`` stored."""
    return states_of(load_head(pointer, lane, Q, USUAL), Q)


@triton.jit
def store_states(pointer, states, lane, Q: tl.constexpr, POLICY: tl.constexpr):
    """Store a warp's states (Q, 32, 4) as it holds them: 16 bytes a lane, side by side.

    As float32 or, two tensors' numbers taking turns, as bfloat16.
    """
    if pointer.dtype.element_ty == tl.bfloat16:
        at = lane[:, None] * 8 + tl.arange(0, 8)[None, :]
        for j in tl.static_range(Q // 2):
            pairs = tl.reshape(tl.join(states[2 * j], states[2 * j + 1]), (32, 8))
            tl.store(pointer + j * 256 + at, pairs.to(tl.bfloat16), eviction_policy=POLICY)
    else:
        at = lane[:, None] * 4 + tl.arange(0, 4)[None, :]
        for j in tl.static_range(Q):
            tl.store(pointer + j * 128 + at, states[j], eviction_policy=POLICY)


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
