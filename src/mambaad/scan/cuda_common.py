# mypy: disable-error-code="assignment,misc,no-untyped-def,untyped-decorator,var-annotated"
"""What the cross scan's Triton kernels share; letters as in ``mambaad.scan.reference``.

One warp holds 32 channels of one path of one picture, a lane for each channel, and walks along the
path with the N states of its channels in registers, so the sum over the states stays inside a lane.
Nothing is permuted in memory: the order table gives the row of every step.

A row of ``projections`` is the same for all channels. Lane l loads the row's number l, and a lane
that needs another one takes it from its neighbour's register (``tl.gather``, one shuffle). That
makes a row three registers or so, few enough to load those of several steps at once.

A path may be cut into segments that run side by side. ``cuda_forward.summary_kernel`` first finds
what each segment does to a state, h -> exp(A Σ Δ) h + end; the other kernels begin by folding the
summaries of the segments before theirs (after theirs, in the backward pass).

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
def load_row(row, lane, R: tl.constexpr, N: tl.constexpr, FIRST: tl.constexpr, COUNT: tl.constexpr):
    """One step's row as lane vectors: Δ's inputs, 32 to a vector, then COUNT of B, C from FIRST.

    Lane l holds input l, and number l mod N of B and of C.
    """
    vectors = ()
    for i in tl.static_range((R + 31) // 32):
        at = tl.minimum(lane + 32 * i, R - 1)
        vectors = vectors + (tl.load(row + at).to(tl.float32),)
    for i in tl.static_range(COUNT):
        at = R + (FIRST + i) * N + lane % N
        vectors = vectors + (tl.load(row + at).to(tl.float32),)
    return vectors


@triton.jit
def from_lane(vector, lane, source: tl.constexpr):
    """Every lane's copy of what lane ``source`` holds."""
    return tl.gather(vector, lane * 0 + source, 0)


@triton.jit
def load_channels(pointer, in_d, COUNT: tl.constexpr):
    """COUNT neighbours of every lane's address, as a tuple; 0 for channels that do not exist."""
    numbers = ()
    for i in tl.static_range(COUNT):
        numbers = numbers + (tl.load(pointer + i, mask=in_d, other=0.0),)
    return numbers


@triton.jit
def load_pixels(orders, t, L, WAY: tl.constexpr, COUNT: tl.constexpr):
    """The pixels of the steps t, t + WAY, ..., as a tuple; outside the path, those of its ends."""
    pixels = ()
    for i in tl.static_range(COUNT):
        step = tl.minimum(tl.maximum(t + i * WAY, 0), L - 1)
        pixels = pixels + (tl.load(orders + step),)
    return pixels


@triton.jit
def before_softplus(row, bias, weight, lane, R: tl.constexpr):
    """W_Δ r + b_Δ, (32,), of a row from ``load_row``."""
    z = bias
    for r in tl.static_range(R):
        z += weight[r] * from_lane(row[r // 32], lane, r % 32)
    return z


@triton.jit
def log2_decays(a_log, in_d, turn, N: tl.constexpr):
    """A log2 e for the N states, as a tuple; a lane's n-th is that of state n ^ turn."""
    a = ()
    for n in tl.static_range(N):
        value = tl.load(a_log + (turn ^ n), mask=in_d, other=0.0)
        a = a + (-exp_of(value) * LOG2_E,)
    return a


@triton.jit
def zeros_for(N: tl.constexpr):
    state = ()
    for _ in tl.static_range(N):
        state = state + (tl.zeros([32], tl.float32),)
    return state


@triton.jit
def fold(state, a, ends, sums, segment, d, D, in_d, turn, N: tl.constexpr):
    """What a state becomes in one segment: exp(A Σ Δ) h + end."""
    start = segment.to(tl.int64) * D
    total = tl.load(sums + start + d, mask=in_d, other=0.0)
    folded = ()
    for n in tl.static_range(N):
        end = tl.load(ends + start * N + (turn ^ n) * D + d, mask=in_d, other=0.0)
        folded = folded + (tl.exp2(total * a[n]) * state[n] + end,)
    return folded
