# mypy: disable-error-code="assignment,misc,no-untyped-def,untyped-decorator,var-annotated"
"""Sums over the lanes of a warp for the cross scan's backward kernel, many at a time."""

import triton
import triton.language as tl

from mambaad.scan.cuda_common import STREAM, from_partner


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
def store_sums(out, db, dc, lane, N: tl.constexpr):
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
        tl.store(out + place, values[0], eviction_policy=STREAM)
        tl.store(out + place + 1, values[1], eviction_policy=STREAM)
    else:
        own = (lane & 2) == 0 if Q == 2 else lane >= 0
        tl.store(out + place + lane // 4 % 2, values[0], mask=own, eviction_policy=STREAM)
