# mypy: disable-error-code="assignment,misc,no-untyped-def,untyped-decorator,var-annotated"
# ruff: noqa: RUF005 - Triton has no (*tuple, item)
"""The Triton kernel of the depth-wise convolution itself; ``depthwise_kernels`` launches it."""

import triton
import triton.language as tl

MINUS_LOG2E = tl.constexpr(-1.4426950408889634)
"""tl.sigmoid takes twice the instructions of 1 / (1 + exp2), for the sake of denormal numbers."""


@triton.jit
def convolved(
    x, weight, bias, top, column, channel, inside, height, width, channels, stride_h, stride_w,
    K: tl.constexpr, TURN: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The convolution of one picture at ROWS rows from ``top``: a tuple of (COLUMNS, BLOCK)."""
    shift = tl.full((COLUMNS, BLOCK), 0.0, tl.float32)
    if bias is not None:
        shift += tl.load(bias + channel, mask=inside, other=0.0).to(tl.float32)
    sums = ()
    for _ in tl.static_range(ROWS):
        sums = sums + (shift,)
    # Whole tiles of equal rows: a load in the layout of the others needs no exchange of threads.
    weights = weight + channel + tl.full((COLUMNS, 1), 0, tl.int32)
    for across in range(K):
        shifted = column + (across - K // 2)
        here = inside & (shifted >= 0)
        place = shifted * stride_w + channel
        taps = ()
        for down in tl.static_range(K):
            number = down * K + across
            if TURN:
                number = K * K - 1 - number
            tap = tl.load(weights + number * channels, mask=inside, other=0.0)
            taps = taps + (tap.to(tl.float32),)
        for i in tl.static_range(ROWS + K - 1):
            row = top + (i - K // 2)
            filled = tl.where((row >= 0) & (row < height), width, 0)
            mask = here & (shifted < filled)
            value = tl.load(x + row * stride_h + place, mask=mask, other=0.0).to(tl.float32)
            added = ()
            for t in tl.static_range(ROWS):
                if i - t >= 0 and i - t < K:
                    added = added + (sums[t] + value * taps[i - t],)
                else:
                    added = added + (sums[t],)
            sums = added
    return sums


@triton.jit
def convolve_kernel(
    x, weight, bias, out,
    height, width, channels, row_blocks, column_blocks, stride_b, stride_h, stride_w, step,
    K: tl.constexpr, SILU: tl.constexpr, TURN: tl.constexpr, EVEN: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One tile of the output, whose pixels are ``step`` elements apart. EVEN: channels are whole
    blocks, so none needs a mask."""
    blocks = (channels + BLOCK - 1) // BLOCK
    strip = tl.program_id(0) // blocks
    channel = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)[None, :]
    inside = channel >= 0 if EVEN else channel < channels
    batch = (strip // (row_blocks * column_blocks)).to(tl.int64)
    top = (strip // column_blocks) % row_blocks * ROWS
    column = (strip % column_blocks) * COLUMNS + tl.arange(0, COLUMNS)[:, None]
    sums = convolved(
        x + batch * stride_b, weight, bias, top, column, channel, inside,
        height, width, channels, stride_h, stride_w, K, TURN, ROWS, COLUMNS, BLOCK,
    )  # fmt: skip
    out += batch * height * width * step
    for t in tl.static_range(ROWS):
        z = sums[t]
        if SILU:
            z /= 1 + tl.exp2(z * MINUS_LOG2E)
        row = top + t
        place = (row * width + column) * step + channel
        filled = tl.where((row >= 0) & (row < height), width, 0)
        mask = inside & (column < filled)
        tl.store(out + place, z.to(out.dtype.element_ty), mask=mask)
