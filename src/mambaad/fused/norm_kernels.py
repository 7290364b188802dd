"""The Triton kernels of the gated layer normalisation; ``norm`` launches them.

A tile is ROWS whole rows, BLOCK >= D columns wide. Everything is float32 inside. x, dy, y and the
gradients are contiguous (rows, D); rows of the gate and of its gradient are ``gate_stride`` and
``dgate_stride`` elements apart.
"""

# mypy: disable-error-code="no-untyped-def,untyped-decorator"
import triton
import triton.language as tl


@triton.jit
def layer_norm_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    gate_ptr,
    y_ptr,
    mean_ptr,
    rstd_ptr,
    rows,
    gate_stride,
    eps,
    branch_ptr,
    factor_ptr,
    total_ptr,
    pixels,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    GATED: tl.constexpr,
):
    """y = LN(x) · SiLU(gate), and the mean and 1/deviation of every row.

    With a branch x is ``total`` = x + factor · branch; a factor is that of ``pixels`` rows.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    wide = row.to(tl.int64)[:, None]
    known = (row < rows)[:, None] & (column < D)[None, :]
    at = wide * D + column[None, :]
    x = tl.load(x_ptr + at, mask=known, other=0.0).to(tl.float32)
    if branch_ptr is not None:
        branch = tl.load(branch_ptr + at, mask=known, other=0.0).to(tl.float32)
        if factor_ptr is not None:
            factor = tl.load(factor_ptr + row // pixels, mask=row < rows, other=0.0)
            branch *= factor.to(tl.float32)[:, None]
            branch = branch.to(branch_ptr.dtype.element_ty).to(tl.float32)  # as by itself
        total = (x + branch).to(total_ptr.dtype.element_ty)
        tl.store(total_ptr + at, total, mask=known)
        x = total.to(tl.float32)
    if GATED:
        gate = tl.load(gate_ptr + wide * gate_stride + column[None, :], mask=known, other=0.0)
    weight = tl.load(weight_ptr + column, mask=column < D, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + column, mask=column < D, other=0.0).to(tl.float32)

    mean = tl.sum(x, axis=1) / D
    # Centred first: the mean of squares less the squared mean would cancel.
    centred = tl.where(known, x - mean[:, None], 0.0)
    rstd = tl.rsqrt(tl.sum(centred * centred, axis=1) / D + eps)
    y = centred * rstd[:, None] * weight[None, :] + bias[None, :]
    if GATED:
        g = gate.to(tl.float32)
        y *= g * tl.sigmoid(g)
    tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=known)
    tl.store(mean_ptr + row, mean, mask=row < rows)
    tl.store(rstd_ptr + row, rstd, mask=row < rows)


@triton.jit
def layer_norm_backward_kernel(
    dy_ptr,
    x_ptr,
    weight_ptr,
    bias_ptr,
    gate_ptr,
    mean_ptr,
    rstd_ptr,
    dx_ptr,
    dgate_ptr,
    partial_ptr,
    rows,
    gate_stride,
    dtotal_ptr,
    dtotal_stride,
    factor_ptr,
    dbranch_ptr,
    pixels,
    dgate_stride,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    STEPS: tl.constexpr,
    GATED: tl.constexpr,
):
    """dx, dgate, and this program's part of dweight and dbias: partial (programs, 2, D).

    ``dtotal``, whose rows are ``dtotal_stride`` elements apart, is the gradient that x has from
    elsewhere. With a factor, dbranch = factor · dx.

    A program takes STEPS tiles, ``programs`` apart, in this order always, so that the sums are the
    same bits each time.
    """
    column = tl.arange(0, BLOCK)
    within = column < D
    weight = tl.load(weight_ptr + column, mask=within, other=0.0).to(tl.float32)[None, :]
    if GATED:
        bias = tl.load(bias_ptr + column, mask=within, other=0.0).to(tl.float32)[None, :]
    dweight = tl.zeros((ROWS, BLOCK), tl.float32)
    dbias = tl.zeros((ROWS, BLOCK), tl.float32)
    for step in range(STEPS):
        tile = step * tl.num_programs(0) + tl.program_id(0)
        row = tile * ROWS + tl.arange(0, ROWS)
        wide = row.to(tl.int64)[:, None]
        known = (row < rows)[:, None] & within[None, :]
        at = wide * D + column[None, :]
        dy = tl.load(dy_ptr + at, mask=known, other=0.0).to(tl.float32)
        x = tl.load(x_ptr + at, mask=known, other=0.0).to(tl.float32)
        mean = tl.load(mean_ptr + row, mask=row < rows, other=0.0)[:, None]
        rstd = tl.load(rstd_ptr + row, mask=row < rows, other=0.0)[:, None]
        normal = (x - mean) * rstd
        if GATED:
            gate_at = wide * gate_stride + column[None, :]
            gate = tl.load(gate_ptr + gate_at, mask=known, other=0.0).to(tl.float32)
            sigmoid = tl.sigmoid(gate)
            slope = sigmoid * (1.0 + gate * (1.0 - sigmoid))
            dgate = dy * (normal * weight + bias) * slope
            dgate_at = wide * dgate_stride + column[None, :]
            tl.store(dgate_ptr + dgate_at, dgate.to(dgate_ptr.dtype.element_ty), mask=known)
            dy *= gate * sigmoid
        dweight += dy * normal
        dbias += dy
        # Columns past D have weight 0, so they add nothing to the two means.
        dnormal = dy * weight
        along = tl.sum(dnormal * normal, axis=1)[:, None] / D
        level = tl.sum(dnormal, axis=1)[:, None] / D
        dx = rstd * (dnormal - level - normal * along)
        if D == 1:  # it has no influence; the terms, contracted to fma, would not cancel
            dx = tl.zeros_like(dx)
        if dtotal_ptr is not None:
            dtotal_at = wide * dtotal_stride + column[None, :]
            dx += tl.load(dtotal_ptr + dtotal_at, mask=known, other=0.0).to(tl.float32)
        tl.store(dx_ptr + at, dx.to(dx_ptr.dtype.element_ty), mask=known)
        if factor_ptr is not None:
            factor = tl.load(factor_ptr + row // pixels, mask=row < rows, other=0.0)
            dbranch = dx * factor.to(tl.float32)[:, None]
            tl.store(dbranch_ptr + at, dbranch.to(dbranch_ptr.dtype.element_ty), mask=known)
    partial_at = partial_ptr + tl.program_id(0) * 2 * D + column
    tl.store(partial_at, tl.sum(dweight, axis=0), mask=within)
    tl.store(partial_at + D, tl.sum(dbias, axis=0), mask=within)
