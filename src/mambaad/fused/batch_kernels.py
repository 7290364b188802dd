"""The Triton kernels of batch normalisation in training; ``batch`` launches them.

A tile is PIXELS rows of CHANNELS channels; x, y and all gradients are contiguous (rows, C). With
WHOLE one tile holds all rows. Otherwise they are split as in ``instance_kernels``, whose kernel
finds the moments: a span of ``steps`` tiles for each program, and every program puts the spans
together for itself, in the same order. Everything is float32 inside.
"""

# mypy: disable-error-code="no-untyped-def,untyped-decorator"
import triton
import triton.language as tl

from mambaad.fused.instance_kernels import centred_tile, joined_moments, joined_sums


@triton.jit
def batch_norm_kernel(
    x_ptr,
    partial_ptr,
    weight_ptr,
    bias_ptr,
    shift_ptr,
    residual_ptr,
    y_ptr,
    mean_ptr,
    rstd_ptr,
    moments_ptr,
    rows,
    channels,
    steps,
    eps,
    CHANNELS: tl.constexpr,
    PIXELS: tl.constexpr,
    SPANS: tl.constexpr,
    WHOLE: tl.constexpr,
    RELU: tl.constexpr,
):
    """y of a span; from the first one mean, rstd and ``moments`` (2, C), the mean of x + shift and
    its unbiased variance. Grid (channel blocks, spans)."""
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    inside = channel < channels
    span = tl.program_id(1)
    if WHOLE:
        row = tl.arange(0, PIXELS)[:, None]
        known = (row < rows) & inside[None, :]
        x = tl.load(x_ptr + row * channels + channel[None, :], mask=known, other=0.0).to(tl.float32)
        mean, centred = centred_tile(x, known, rows)
        variance = tl.sum(centred * centred, axis=0) / rows
    else:
        spans = tl.num_programs(1)
        mean, variance = joined_moments(
            partial_ptr, channel, spans, rows, channels, steps * PIXELS, SPANS
        )
    rstd = tl.rsqrt(variance + eps)
    weight = tl.load(weight_ptr + channel, mask=inside, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + channel, mask=inside, other=0.0).to(tl.float32)
    for step in range(1 if WHOLE else steps):
        row = (span * steps + step) * PIXELS + tl.arange(0, PIXELS)[:, None]
        known = (row < rows) & inside[None, :]
        at = row * channels + channel[None, :]
        if not WHOLE:
            x = tl.load(x_ptr + at, mask=known, other=0.0).to(tl.float32)
            centred = x - mean[None, :]
        y = centred * (rstd * weight)[None, :] + bias[None, :]
        if residual_ptr is not None:
            y = y.to(y_ptr.dtype.element_ty).to(tl.float32)  # as by itself
            y += tl.load(residual_ptr + at, mask=known, other=0.0).to(tl.float32)
        if RELU:
            y = tl.where(y < 0, 0.0, y)  # what is not a number stays so
        tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=known)
    if span == 0:
        offset = tl.zeros_like(mean)
        if shift_ptr is not None:
            offset = tl.load(shift_ptr + channel, mask=inside, other=0.0).to(tl.float32)
        tl.store(mean_ptr + channel, mean, mask=inside)
        tl.store(rstd_ptr + channel, rstd, mask=inside)
        tl.store(moments_ptr + channel, mean + offset, mask=inside)
        unbiased = variance * (rows / (rows - 1.0))
        tl.store(moments_ptr + channels + channel, unbiased, mask=inside)


@triton.jit
def _slope(dy_ptr, y_ptr, at, known, RELU: tl.constexpr):
    """The gradient before the ReLU: 0 where that has cut."""
    slope = tl.load(dy_ptr + at, mask=known, other=0.0).to(tl.float32)
    if RELU:
        y = tl.load(y_ptr + at, mask=known, other=0.0).to(tl.float32)
        slope = tl.where(y <= 0, 0.0, slope)
    return slope


@triton.jit
def batch_sums_kernel(
    dy_ptr,
    y_ptr,
    x_ptr,
    mean_ptr,
    rstd_ptr,
    partial_ptr,
    rows,
    channels,
    steps,
    CHANNELS: tl.constexpr,
    PIXELS: tl.constexpr,
    RELU: tl.constexpr,
):
    """The sums of g and g · normal over a span, g the gradient before the ReLU.

    partial: (spans, 2, C). Grid (channel blocks, spans).
    """
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    inside, span = channel < channels, tl.program_id(1)
    mean = tl.load(mean_ptr + channel, mask=inside, other=0.0)[None, :]
    rstd = tl.load(rstd_ptr + channel, mask=inside, other=0.0)[None, :]
    level = tl.zeros((CHANNELS,), tl.float32)
    along = tl.zeros((CHANNELS,), tl.float32)
    for step in range(steps):
        row = (span * steps + step) * PIXELS + tl.arange(0, PIXELS)[:, None]
        known = (row < rows) & inside[None, :]
        at = row * channels + channel[None, :]
        slope = _slope(dy_ptr, y_ptr, at, known, RELU)
        x = tl.load(x_ptr + at, mask=known, other=0.0).to(tl.float32)
        level += tl.sum(slope, axis=0)
        along += tl.sum(slope * (x - mean), axis=0)
    partial_at = partial_ptr + span * 2 * channels + channel
    tl.store(partial_at, level, mask=inside)
    tl.store(partial_at + channels, along * tl.reshape(rstd, (CHANNELS,)), mask=inside)


@triton.jit
def batch_gradient_kernel(
    dy_ptr,
    y_ptr,
    x_ptr,
    mean_ptr,
    rstd_ptr,
    weight_ptr,
    partial_ptr,
    dx_ptr,
    dresidual_ptr,
    sums_ptr,
    rows,
    channels,
    steps,
    CHANNELS: tl.constexpr,
    PIXELS: tl.constexpr,
    SPANS: tl.constexpr,
    WHOLE: tl.constexpr,
    RELU: tl.constexpr,
):
    """dx and dresidual of a span; from the first one ``sums`` (2, C), of the weight and the bias.

    Grid (channel blocks, spans).
    """
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    inside, span = channel < channels, tl.program_id(1)
    mean = tl.load(mean_ptr + channel, mask=inside, other=0.0)[None, :]
    rstd = tl.load(rstd_ptr + channel, mask=inside, other=0.0)[None, :]
    weight = tl.load(weight_ptr + channel, mask=inside, other=0.0).to(tl.float32)[None, :]
    if WHOLE:
        row = tl.arange(0, PIXELS)[:, None]
        known = (row < rows) & inside[None, :]
        at = row * channels + channel[None, :]
        slope = _slope(dy_ptr, y_ptr, at, known, RELU)
        x = tl.load(x_ptr + at, mask=known, other=0.0).to(tl.float32)
        normal = tl.where(known, (x - mean) * rstd, 0.0)
        level = tl.sum(slope, axis=0)
        along = tl.sum(slope * normal, axis=0)
    else:
        level, along = joined_sums(partial_ptr, channel, tl.num_programs(1), channels, SPANS)
    for step in range(1 if WHOLE else steps):
        row = (span * steps + step) * PIXELS + tl.arange(0, PIXELS)[:, None]
        known = (row < rows) & inside[None, :]
        at = row * channels + channel[None, :]
        if not WHOLE:
            slope = _slope(dy_ptr, y_ptr, at, known, RELU)
            x = tl.load(x_ptr + at, mask=known, other=0.0).to(tl.float32)
            normal = (x - mean) * rstd
        gap = slope - level[None, :] / rows - normal * (along[None, :] / rows)
        dx = rstd * weight * gap
        tl.store(dx_ptr + at, dx.to(dx_ptr.dtype.element_ty), mask=known)
        if dresidual_ptr is not None:
            tl.store(dresidual_ptr + at, slope.to(dresidual_ptr.dtype.element_ty), mask=known)
    if span == 0:
        tl.store(sums_ptr + channel, along, mask=inside)
        tl.store(sums_ptr + channels + channel, level, mask=inside)
