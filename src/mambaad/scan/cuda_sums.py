# mypy: disable-error-code="assignment,misc,no-untyped-def,untyped-decorator,var-annotated"
"""Triton kernels that add up what the programs of the cross scan leave, in a fixed order."""

import triton
import triton.language as tl

from mambaad.scan.cuda_common import exp_of


@triton.jit
def sum_planes_kernel(planes, out, size, COUNT, BLOCK: tl.constexpr):
    """out (B, size) = the sum of ``planes`` (B, COUNT, size) in the order of the planes."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    b = tl.program_id(1).to(tl.int64)
    total = tl.zeros([BLOCK], tl.float32)
    for k in range(0, COUNT):
        total += tl.load(planes + (b * COUNT + k) * size + at, mask=at < size, other=0.0)
    tl.store(out + b * size + at, total.to(out.dtype.element_ty), mask=at < size)


@triton.jit
def sum_rows_kernel(
    rows, out, size, COUNT,
    FROM: tl.constexpr, TO: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The sum of ``rows`` (COUNT, size / FROM, FROM), put at the end of rows of TO numbers."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    source = rows + at
    for _ in range(0, COUNT):
        total += tl.load(source, mask=at < size, other=0.0)
        source += size
    place = at // FROM * TO + (TO - FROM) + at % FROM
    tl.store(out + place, total.to(out.dtype.element_ty), mask=at < size)


@triton.jit
def added(total, lost, value):
    """A sum with one more number, and by how much it is too large now."""
    value -= lost
    larger = total + value
    return larger, (larger - total) - value


@triton.jit(do_not_specialize=["COUNT"])
def sum_parameters_kernel(
    sums_a, parameters, a_log, da_log, dt_bias, dskip, dt_weight,
    COUNT, K, D,
    R: tl.constexpr, N: tl.constexpr, FUSED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The sums over COUNT of ``sums_a`` (COUNT, K, D, N) and ``parameters`` (COUNT, K, 2 + R, D),
    each in its parameter's layout. The first K D N / BLOCK programs take the former.

    What a sum loses in rounding is put back (Kahan 1965).
    """
    size = K * D * N
    programs = tl.cdiv(size, BLOCK)
    ENTRIES: tl.constexpr = 2 + (R if FUSED else 0)
    total, lost = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    if tl.program_id(0) < programs:
        at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        source = sums_a + at
        for _ in range(0, COUNT):
            total, lost = added(total, lost, tl.load(source, mask=at < size, other=0.0))
            source += size
        a = -exp_of(tl.load(a_log + at, mask=at < size, other=0.0))
        tl.store(da_log + at, total * a, mask=at < size)
    else:
        at = (tl.program_id(0) - programs) * BLOCK + tl.arange(0, BLOCK)
        size = K * ENTRIES * D
        source = parameters + at
        for _ in range(0, COUNT):
            total, lost = added(total, lost, tl.load(source, mask=at < size, other=0.0))
            source += size
        entry, kd = at // D % ENTRIES, at // (ENTRIES * D) * D + at % D
        tl.store(dt_bias + kd, total, mask=(at < size) & (entry == 0))
        tl.store(dskip + kd, total, mask=(at < size) & (entry == 1))
        if FUSED:
            place = kd * R + tl.maximum(entry - 2, 0)
            tl.store(dt_weight + place, total, mask=(at < size) & (entry >= 2))
