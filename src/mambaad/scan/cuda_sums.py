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
    for j in range(0, COUNT):
        total += tl.load(rows + j * size + at, mask=at < size, other=0.0)
    place = at // FROM * TO + (TO - FROM) + at % FROM
    tl.store(out + place, total.to(out.dtype.element_ty), mask=at < size)


@triton.jit
def sum_parameters_kernel(
    parameters, a_log, da_log, dt_bias, dskip, dt_weight,
    COUNT, K, D,
    R: tl.constexpr, N: tl.constexpr, FUSED: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """The sums of ``parameters`` (COUNT, K, N + 2 + R, D) over COUNT, each in its own layout."""
    k = tl.program_id(1)
    entry = tl.program_id(2)
    d = tl.program_id(0) * BD + tl.arange(0, BD)
    in_d = d < D
    ENTRIES: tl.constexpr = N + 2 + (R if FUSED else 0)
    total = tl.zeros([BD], tl.float32)
    for j in range(0, COUNT):
        place = ((j * K + k) * ENTRIES + entry).to(tl.int64) * D + d
        total += tl.load(parameters + place, mask=in_d, other=0.0)
    kd = k * D + d
    if entry < N:
        a = -exp_of(tl.load(a_log + kd * N + entry, mask=in_d, other=0.0))
        tl.store(da_log + kd * N + entry, total * a, mask=in_d)
    elif entry == N:
        tl.store(dt_bias + kd, total, mask=in_d)
    elif entry == N + 1:
        tl.store(dskip + kd, total, mask=in_d)
    else:
        tl.store(dt_weight + kd * R + entry - N - 2, total, mask=in_d)
