"""The Triton kernels of instance normalisation with SiLU; ``instance`` launches them.

A tile is PIXELS pixels of CHANNELS channels of one picture. The ``whole`` kernels hold a map in one
tile. The others split it: a span of STEPS tiles for each program, one kernel for what is known of a
span, one that puts the spans together (every program for itself, in the same order) and applies the
result. Everything is float32 inside; mean and rstd (1/deviation) are (B, C), all else contiguous
(B, pixels, C) but y and dy, whose pictures and pixels are ``y_picture`` and ``y_pixel``,
``dy_picture`` and ``dy_pixel`` elements apart.
"""

# mypy: disable-error-code="no-untyped-def,untyped-decorator"
import triton
import triton.language as tl


@triton.jit
def silu_slope(x):
    """The derivative of SiLU."""
    sigmoid = tl.sigmoid(x)
    return sigmoid * (1.0 + x * (1.0 - sigmoid))


@triton.jit
def centred_tile(x, known, count):
    """The mean of a tile's columns, and the tile less the mean. x is 0 where nothing is known.

    Twice: the second mean is of distances from a mean that is good to a few bits, so that nothing
    cancels. Distances from a pixel would lose the others' digits where that is a bright one.
    """
    origin = tl.sum(x, axis=0) / count
    away = tl.where(known, x - origin[None, :], 0.0)
    shift = tl.sum(away, axis=0) / count
    return origin + shift, tl.where(known, away - shift[None, :], 0.0)


@triton.jit
def joined_moments(partial_ptr, channel, spans, pixels, C, SPAN, SPANS: tl.constexpr):
    """Mean and variance of a picture from those of its spans, SPAN pixels each but the last."""
    part = tl.arange(0, SPANS)[:, None]
    here = (part < spans) & (channel < C)[None, :]
    partial_at = partial_ptr + part * 2 * C + channel[None, :]
    means = tl.load(partial_at, mask=here, other=0.0)
    spreads = tl.load(partial_at + C, mask=here, other=0.0)
    count = tl.minimum(pixels - part * SPAN, SPAN).to(tl.float32)
    count = tl.where(here, count, 0.0)
    origin = tl.load(partial_ptr + channel, mask=channel < C, other=0.0)
    away = means - origin[None, :]
    shift = tl.sum(away * count, axis=0) / pixels
    gap = away - shift[None, :]
    variance = tl.sum(spreads + gap * gap * count, axis=0) / pixels
    return origin + shift, variance


@triton.jit
def joined_sums(partial_ptr, channel, spans, C, SPANS: tl.constexpr):
    """The two sums of a picture from those of its spans."""
    part = tl.arange(0, SPANS)[:, None]
    here = (part < spans) & (channel < C)[None, :]
    partial_at = partial_ptr + part * 2 * C + channel[None, :]
    first = tl.sum(tl.load(partial_at, mask=here, other=0.0), axis=0)
    return first, tl.sum(tl.load(partial_at + C, mask=here, other=0.0), axis=0)


@triton.jit
def instance_norm_whole_kernel(
    x_ptr,
    y_ptr,
    mean_ptr,
    rstd_ptr,
    pixels,
    eps,
    y_picture,
    y_pixel,
    C: tl.constexpr,
    CHANNELS: tl.constexpr,
    PIXELS: tl.constexpr,
):
    """y, mean and rstd of CHANNELS channels of a picture. Grid (channel blocks, B)."""
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    pixel = tl.arange(0, PIXELS)[:, None]
    picture = tl.program_id(1).to(tl.int64)
    first = picture * pixels * C
    known = (pixel < pixels) & (channel < C)[None, :]
    at = pixel * C + channel[None, :]
    x = tl.load(x_ptr + first + at, mask=known, other=0.0).to(tl.float32)
    mean, centred = centred_tile(x, known, pixels)
    rstd = tl.rsqrt(tl.sum(centred * centred, axis=0) / pixels + eps)
    normal = centred * rstd[None, :]
    y = normal * tl.sigmoid(normal)
    y_at = picture * y_picture + pixel * y_pixel + channel[None, :]
    tl.store(y_ptr + y_at, y.to(y_ptr.dtype.element_ty), mask=known)
    tl.store(mean_ptr + picture * C + channel, mean, mask=channel < C)
    tl.store(rstd_ptr + picture * C + channel, rstd, mask=channel < C)


@triton.jit
def instance_norm_backward_whole_kernel(
    dy_ptr,
    x_ptr,
    mean_ptr,
    rstd_ptr,
    dx_ptr,
    pixels,
    dy_picture,
    dy_pixel,
    C: tl.constexpr,
    CHANNELS: tl.constexpr,
    PIXELS: tl.constexpr,
):
    """dx of CHANNELS channels of a picture. Grid (channel blocks, B)."""
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    pixel = tl.arange(0, PIXELS)[:, None]
    picture = tl.program_id(1).to(tl.int64)
    first = picture * pixels * C
    known = (pixel < pixels) & (channel < C)[None, :]
    at = pixel * C + channel[None, :]
    dy_at = picture * dy_picture + pixel * dy_pixel + channel[None, :]
    dy = tl.load(dy_ptr + dy_at, mask=known, other=0.0).to(tl.float32)
    x = tl.load(x_ptr + first + at, mask=known, other=0.0).to(tl.float32)
    mean = tl.load(mean_ptr + picture * C + channel, mask=channel < C, other=0.0)[None, :]
    rstd = tl.load(rstd_ptr + picture * C + channel, mask=channel < C, other=0.0)[None, :]
    normal = tl.where(known, (x - mean) * rstd, 0.0)
    slope = dy * silu_slope(normal)  # 0 where nothing is known, as dy is
    level = tl.sum(slope, axis=0)[None, :] / pixels
    along = tl.sum(slope * normal, axis=0)[None, :] / pixels
    dx = rstd * (slope - level - normal * along)
    tl.store(dx_ptr + first + at, dx.to(dx_ptr.dtype.element_ty), mask=known)


@triton.jit
def instance_moments_kernel(
    x_ptr,
    partial_ptr,
    pixels,
    C: tl.constexpr,
    CHANNELS: tl.constexpr,
    PIXELS: tl.constexpr,
    STEPS: tl.constexpr,
):
    """Mean and sum of squared deviations of a span. Grid (channel blocks, spans, B).

    partial: (B, spans, 2, C). Tiles are joined by the rule of Chan, Golub and LeVeque (1979).
    """
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    span, picture = tl.program_id(1), tl.program_id(2).to(tl.int64)
    mean = tl.zeros((CHANNELS,), tl.float32)
    spread = tl.zeros((CHANNELS,), tl.float32)
    seen = 0.0  # pixels
    x_ptr += picture * pixels * C
    for step in range(STEPS):
        start = (span * STEPS + step) * PIXELS
        pixel = start + tl.arange(0, PIXELS)[:, None]
        known = (pixel < pixels) & (channel < C)[None, :]
        x = tl.load(x_ptr + pixel * C + channel[None, :], mask=known, other=0.0).to(tl.float32)
        count = tl.maximum(tl.minimum(pixels - start, PIXELS), 0).to(tl.float32)
        # A tile past the end has count 0 and changes nothing.
        own, centred = centred_tile(x, known, tl.maximum(count, 1.0))
        share = count / tl.maximum(seen + count, 1.0)
        gap = own - mean
        spread += tl.sum(centred * centred, axis=0) + gap * gap * seen * share
        mean += gap * share
        seen += count
    partial_at = partial_ptr + (picture * tl.num_programs(1) + span) * 2 * C + channel
    tl.store(partial_at, mean, mask=channel < C)
    tl.store(partial_at + C, spread, mask=channel < C)


@triton.jit
def instance_apply_kernel(
    x_ptr,
    partial_ptr,
    y_ptr,
    mean_ptr,
    rstd_ptr,
    pixels,
    eps,
    y_picture,
    y_pixel,
    C: tl.constexpr,
    CHANNELS: tl.constexpr,
    PIXELS: tl.constexpr,
    STEPS: tl.constexpr,
    SPANS: tl.constexpr,
):
    """y of a span, and from the first one mean and rstd. Grid (channel blocks, spans, B)."""
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    span, picture = tl.program_id(1), tl.program_id(2).to(tl.int64)
    spans = tl.num_programs(1)
    partial_ptr += picture * spans * 2 * C
    mean, variance = joined_moments(partial_ptr, channel, spans, pixels, C, STEPS * PIXELS, SPANS)
    rstd = tl.rsqrt(variance + eps)

    first = picture * pixels * C
    for step in range(STEPS):
        pixel = (span * STEPS + step) * PIXELS + tl.arange(0, PIXELS)[:, None]
        known = (pixel < pixels) & (channel < C)[None, :]
        at = first + pixel * C + channel[None, :]
        x = tl.load(x_ptr + at, mask=known, other=0.0).to(tl.float32)
        normal = tl.where(known, (x - mean[None, :]) * rstd[None, :], 0.0)
        y = normal * tl.sigmoid(normal)
        y_at = picture * y_picture + pixel * y_pixel + channel[None, :]
        tl.store(y_ptr + y_at, y.to(y_ptr.dtype.element_ty), mask=known)
    if span == 0:
        tl.store(mean_ptr + picture * C + channel, mean, mask=channel < C)
        tl.store(rstd_ptr + picture * C + channel, rstd, mask=channel < C)


@triton.jit
def instance_backward_sums_kernel(
    dy_ptr,
    x_ptr,
    mean_ptr,
    rstd_ptr,
    partial_ptr,
    pixels,
    dy_picture,
    dy_pixel,
    C: tl.constexpr,
    CHANNELS: tl.constexpr,
    PIXELS: tl.constexpr,
    STEPS: tl.constexpr,
):
    """The sums of g and g · normal over a span, g = dy · SiLU'. partial: (B, spans, 2, C)."""
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    span, picture = tl.program_id(1), tl.program_id(2).to(tl.int64)
    mean = tl.load(mean_ptr + picture * C + channel, mask=channel < C, other=0.0)[None, :]
    rstd = tl.load(rstd_ptr + picture * C + channel, mask=channel < C, other=0.0)[None, :]
    level = tl.zeros((CHANNELS,), tl.float32)
    along = tl.zeros((CHANNELS,), tl.float32)
    first = picture * pixels * C
    dy_ptr += picture * dy_picture
    for step in range(STEPS):
        pixel = (span * STEPS + step) * PIXELS + tl.arange(0, PIXELS)[:, None]
        known = (pixel < pixels) & (channel < C)[None, :]
        at = first + pixel * C + channel[None, :]
        dy_at = pixel * dy_pixel + channel[None, :]
        dy = tl.load(dy_ptr + dy_at, mask=known, other=0.0).to(tl.float32)
        x = tl.load(x_ptr + at, mask=known, other=0.0).to(tl.float32)
        normal = tl.where(known, (x - mean) * rstd, 0.0)
        slope = dy * silu_slope(normal)  # 0 where nothing is known, as dy is
        level += tl.sum(slope, axis=0)
        along += tl.sum(slope * normal, axis=0)
    partial_at = partial_ptr + (picture * tl.num_programs(1) + span) * 2 * C + channel
    tl.store(partial_at, level, mask=channel < C)
    tl.store(partial_at + C, along, mask=channel < C)


@triton.jit
def instance_backward_apply_kernel(
    dy_ptr,
    x_ptr,
    mean_ptr,
    rstd_ptr,
    partial_ptr,
    dx_ptr,
    pixels,
    dy_picture,
    dy_pixel,
    C: tl.constexpr,
    CHANNELS: tl.constexpr,
    PIXELS: tl.constexpr,
    STEPS: tl.constexpr,
    SPANS: tl.constexpr,
):
    """dx of a span. Grid (channel blocks, spans, B)."""
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    span, picture = tl.program_id(1), tl.program_id(2).to(tl.int64)
    spans = tl.num_programs(1)
    level, along = joined_sums(partial_ptr + picture * spans * 2 * C, channel, spans, C, SPANS)
    level, along = level[None, :] / pixels, along[None, :] / pixels
    mean = tl.load(mean_ptr + picture * C + channel, mask=channel < C, other=0.0)[None, :]
    rstd = tl.load(rstd_ptr + picture * C + channel, mask=channel < C, other=0.0)[None, :]
    first = picture * pixels * C
    dy_ptr += picture * dy_picture
    for step in range(STEPS):
        pixel = (span * STEPS + step) * PIXELS + tl.arange(0, PIXELS)[:, None]
        known = (pixel < pixels) & (channel < C)[None, :]
        at = first + pixel * C + channel[None, :]
        dy_at = pixel * dy_pixel + channel[None, :]
        dy = tl.load(dy_ptr + dy_at, mask=known, other=0.0).to(tl.float32)
        x = tl.load(x_ptr + at, mask=known, other=0.0).to(tl.float32)
        normal = tl.where(known, (x - mean) * rstd, 0.0)
        dx = rstd * (dy * silu_slope(normal) - level - normal * along)
        tl.store(dx_ptr + at, dx.to(dx_ptr.dtype.element_ty), mask=known)
