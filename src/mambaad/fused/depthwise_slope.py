# mypy: disable-error-code="assignment,misc,no-untyped-def,untyped-decorator,var-annotated"
# ruff: noqa: RUF005 - Triton has no (*tuple, item)
"""The Triton kernels of the depth-wise convolution's weight gradient, and its activation's.

``depthwise_kernels`` says what they do and launches them.
"""

import triton
import triton.language as tl

from mambaad.fused.depthwise_convolve import MINUS_LOG2E, convolved


@triton.jit
def _rows_of(picture, top, column, channel, inside, height, width, stride_h, stride_w,
    COUNT: tl.constexpr,
):  # fmt: skip
    """COUNT rows from ``top`` of a picture, 0 outside: a tuple of (COLUMNS, BLOCK), float32."""
    place = column * stride_w + channel
    here = inside & (column >= 0)
    values = ()
    for i in tl.static_range(COUNT):
        row = top + i
        filled = tl.where((row >= 0) & (row < height), width, 0)
        value = tl.load(picture + row * stride_h + place, mask=here & (column < filled), other=0.0)
        values = values + (value.to(tl.float32),)
    return values


@triton.jit
def _put_sums(partial, found, block, channels, SLOTS: tl.constexpr, BLOCK: tl.constexpr):
    """Add up SLOTS tiles (COLUMNS, BLOCK) over their columns; put them side by side, (C, SLOTS)."""
    # Joined in halves: the slot's lowest bit is the last axis, its highest the first one.
    parts = found
    for level in tl.static_range(1, 4):
        if SLOTS >> level > 0:
            joined = ()
            for j in tl.static_range(SLOTS >> level):
                joined = joined + (tl.join(parts[j], parts[j + (SLOTS >> level)]),)
            parts = joined
    table = tl.reshape(tl.sum(parts[0], 0), (BLOCK, SLOTS))
    line = tl.arange(0, BLOCK)[:, None]
    slot = line * SLOTS + tl.arange(0, SLOTS)[None, :]
    tl.store(partial + slot, table, mask=block + line < channels)


@triton.jit
def slope_kernel(
    x, weight, bias, dy, g, partial,
    height, width, channels, row_blocks, column_blocks, strips, each,
    stride_b, stride_h, stride_w, dy_step, g_step,
    K: tl.constexpr, SLOTS: tl.constexpr, SILU: tl.constexpr, EVEN: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """g of ``each`` tiles, one after the other, and a row of ``partial``, (K, C, SLOTS).

    Pixels of dy and g are ``dy_step`` and ``g_step`` elements apart. Slot ``down`` of column
    ``across`` is the sum for that tap, slot K the sum of g. Without SiLU ``g`` is ``dy``, and only
    read. All sums of a tile are taken at once, from one load of its pixels, so there must be
    registers for k² of them: kernels of 3 x 3 at most.
    """
    blocks = (channels + BLOCK - 1) // BLOCK
    block = tl.program_id(0) % blocks * BLOCK
    chunk = tl.program_id(0) // blocks
    channel = block + tl.arange(0, BLOCK)[None, :]
    inside = channel >= 0 if EVEN else channel < channels
    first = chunk * each
    last = tl.minimum(first + each, strips)
    weights = weight + channel + tl.full((COLUMNS, 1), 0, tl.int32)
    nothing = tl.full((COLUMNS, BLOCK), 0.0, tl.float32)
    own = nothing
    found = ()
    for _ in tl.static_range(K * K):
        found = found + (nothing,)
    for strip in range(first, last):
        batch = (strip // (row_blocks * column_blocks)).to(tl.int64)
        top = (strip // column_blocks) % row_blocks * ROWS
        column = (strip % column_blocks) * COLUMNS + tl.arange(0, COLUMNS)[:, None]
        picture = batch * height * width
        slopes = _rows_of(
            dy + picture * dy_step, top, column, channel, inside, height, width,
            width * dy_step, dy_step, ROWS,
        )  # fmt: skip
        window = ()
        for across in tl.static_range(K):
            window = window + _rows_of(
                x + batch * stride_b, top - K // 2, column + (across - K // 2), channel, inside,
                height, width, stride_h, stride_w, ROWS + K - 1,
            )  # fmt: skip
        if SILU:
            shift = nothing
            if bias is not None:
                shift += tl.load(bias + channel, mask=inside, other=0.0).to(tl.float32)
            sums = ()
            for _ in tl.static_range(ROWS):
                sums = sums + (shift,)
            for n in tl.static_range(K * K):
                tap = tl.load(weights + n * channels, mask=inside, other=0.0).to(tl.float32)
                added = ()
                for t in tl.static_range(ROWS):
                    value = window[(n % K) * (ROWS + K - 1) + t + n // K]
                    added = added + (sums[t] + value * tap,)
                sums = added
            upstream = slopes
            slopes = ()
            for t in tl.static_range(ROWS):
                gate = 1 / (1 + tl.exp2(sums[t] * MINUS_LOG2E))
                slope = upstream[t] * (gate * (1 + sums[t] * (1 - gate)))
                slope = slope.to(g.dtype.element_ty)
                row = top + t
                filled = tl.where(row < height, width, 0)
                place = (row * width + column) * g_step + channel
                tl.store(g + picture * g_step + place, slope, mask=inside & (column < filled))
                slopes = slopes + (slope.to(tl.float32),)
        for t in tl.static_range(ROWS):
            own += slopes[t]
        added = ()
        for n in tl.static_range(K * K):
            total = found[n]
            for t in tl.static_range(ROWS):
                total += window[(n % K) * (ROWS + K - 1) + t + n // K] * slopes[t]
            added = added + (total,)
        found = added
    partial += (chunk.to(tl.int64) * K * channels + block) * SLOTS
    for across in tl.static_range(K):
        slots = ()
        for down in tl.static_range(K):
            slots = slots + (found[down * K + across],)
        slots = slots + (own,)
        for _ in tl.static_range(SLOTS - K - 1):
            slots = slots + (nothing,)
        _put_sums(partial + across * channels * SLOTS, slots, block, channels, SLOTS, BLOCK)


@triton.jit
def large_slope_kernel(
    x, weight, bias, dy, g, partial,
    height, width, channels, row_blocks, column_blocks, strips, each,
    stride_b, stride_h, stride_w, dy_step, g_step,
    K: tl.constexpr, SLOTS: tl.constexpr, SILU: tl.constexpr, EVEN: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The same for larger kernels: g of all tiles first, then the sums, one ``across`` a time."""
    blocks = (channels + BLOCK - 1) // BLOCK
    block = tl.program_id(0) % blocks * BLOCK
    chunk = tl.program_id(0) // blocks
    channel = block + tl.arange(0, BLOCK)[None, :]
    inside = channel >= 0 if EVEN else channel < channels
    first = chunk * each
    last = tl.minimum(first + each, strips)

    if SILU:
        for strip in range(first, last):
            batch = (strip // (row_blocks * column_blocks)).to(tl.int64)
            top = (strip // column_blocks) % row_blocks * ROWS
            column = (strip % column_blocks) * COLUMNS + tl.arange(0, COLUMNS)[:, None]
            sums = convolved(
                x + batch * stride_b, weight, bias, top, column, channel, inside,
                height, width, channels, stride_h, stride_w, K, False, ROWS, COLUMNS, BLOCK,
            )  # fmt: skip
            picture = batch * height * width
            for t in tl.static_range(ROWS):
                row = top + t
                place = row * width + column
                filled = tl.where((row >= 0) & (row < height), width, 0)
                mask = inside & (column < filled)
                upstream_at = dy + (picture + place) * dy_step + channel
                upstream = tl.load(upstream_at, mask=mask, other=0.0).to(tl.float32)
                gate = 1 / (1 + tl.exp2(sums[t] * MINUS_LOG2E))
                upstream *= gate * (1 + sums[t] * (1 - gate))
                slope_at = g + (picture + place) * g_step + channel
                tl.store(slope_at, upstream.to(g.dtype.element_ty), mask=mask)
        tl.debug_barrier()  # g is read again below

    partial += (chunk.to(tl.int64) * K * channels + block) * SLOTS
    for across in range(K):
        nothing = tl.full((COLUMNS, BLOCK), 0.0, tl.float32)
        found = ()
        for _ in tl.static_range(SLOTS):
            found = found + (nothing,)
        for strip in range(first, last):
            batch = (strip // (row_blocks * column_blocks)).to(tl.int64)
            top = (strip // column_blocks) % row_blocks * ROWS
            column = (strip % column_blocks) * COLUMNS + tl.arange(0, COLUMNS)[:, None]
            centres = _rows_of(
                g + batch * height * width * g_step, top, column, channel, inside,
                height, width, width * g_step, g_step, ROWS,
            )  # fmt: skip
            own = found[K]
            for t in tl.static_range(ROWS):
                own += centres[t]
            values = _rows_of(
                x + batch * stride_b, top - K // 2, column + (across - K // 2), channel, inside,
                height, width, stride_h, stride_w, ROWS + K - 1,
            )  # fmt: skip
            taps = ()
            for down in tl.static_range(K):
                total = found[down]
                for t in tl.static_range(ROWS):
                    total += values[t + down] * centres[t]
                taps = taps + (total,)
            found = taps + (own,) + found[K + 1 :]
        _put_sums(partial, found, block, channels, SLOTS, BLOCK)
        partial += channels * SLOTS


@triton.jit
def _summed(table, rows, columns, column, CHUNKS: tl.constexpr, BLOCK: tl.constexpr):
    """The sums of ``column`` of a table (rows, columns), CHUNKS rows at a time."""
    row = tl.arange(0, CHUNKS)[:, None]
    total = tl.full((CHUNKS, BLOCK), 0.0, tl.float32)
    for start in range(0, rows, CHUNKS):
        mask = (start + row < rows) & (column < columns)[None, :]
        place = (start + row).to(tl.int64) * columns + column[None, :]
        total += tl.load(table + place, mask=mask, other=0.0)
    return tl.sum(total, 0)


@triton.jit
def reduce_kernel(
    partial, dweight, dbias, chunks, channels, stride_c, stride_down, stride_across,
    other, other_out, other_rows, other_columns,
    K: tl.constexpr, SLOTS: tl.constexpr, CHUNKS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """BLOCK columns of ``partial`` (chunks, K, C, SLOTS), summed and put where they belong.

    The programs beyond them do the same for an ``other`` table, (other_rows, other_columns).
    """
    columns = K * channels * SLOTS
    own = (columns + BLOCK - 1) // BLOCK
    if tl.program_id(0) < own:
        column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        value = _summed(partial, chunks, columns, column, CHUNKS, BLOCK)
        down = column % SLOTS
        channel = column // SLOTS % channels
        across = column // SLOTS // channels
        place = channel * stride_c + down * stride_down + across * stride_across
        mask = (across < K) & (down < K)
        tl.store(dweight + place, value.to(dweight.dtype.element_ty), mask=mask)
        if dbias is not None:
            mask = (across == 0) & (down == K)
            tl.store(dbias + channel, value.to(dbias.dtype.element_ty), mask=mask)
    elif other is not None:
        column = (tl.program_id(0) - own) * BLOCK + tl.arange(0, BLOCK)
        total = _summed(other, other_rows, other_columns, column, CHUNKS, BLOCK)
        rounded = total.to(other_out.dtype.element_ty)
        tl.store(other_out + column, rounded, mask=column < other_columns)
