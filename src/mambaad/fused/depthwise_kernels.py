# mypy: disable-error-code="assignment,misc,no-untyped-def,untyped-decorator,var-annotated"
# ruff: noqa: RUF005 - Triton has no (*tuple, item)
"""The Triton kernels of the depth-wise convolution, and how they are launched.

``depthwise`` has the definition. A program works on a tile of ``columns`` pixels side by side by
``channels`` channels and on ``rows`` rows of it at once: a loaded value is used for all outputs of
its column that it reaches, so an output costs k (rows + k - 1) / rows loads instead of k², and the
neighbours come from the first-level cache.

    convolve   y = act(conv(x)); with the weight turned round, dx = conv(g)
    slope      g = dy · act'(conv(x)) if there is an activation, and the sums of g · shifted x and
               of g over the program's pixels, for dweight and dbias
    reduce     adds up those sums in a fixed order: no atomics, so a repeated run has the same bits

All arithmetic is float32. Offsets inside one picture are 32 bit.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

WARPS = 2112
"""Warps wanted at the same time: 16 for each of an H200's 132 multiprocessors."""

MINUS_LOG2E = tl.constexpr(-1.4426950408889634)
"""tl.sigmoid takes twice the instructions of 1 / (1 + exp2), for the sake of denormal numbers."""


class Tile(NamedTuple):
    """What a program works on at once, and its warps."""

    rows: int
    columns: int
    channels: int
    warps: int


def choose_tile(shape: tuple[int, ...], size: int, itemsize: int, *, sums: bool) -> Tile:
    """The tile for a map (B, H, W, C), a k x k kernel and elements of ``itemsize`` bytes.

    A thread loads 16 bytes at once where registers allow it: 16-bit maps with small kernels in the
    forward direction. Elsewhere it has 4 values: large kernels hold k weights or sums of each, and
    gain from more rows. Taller and wider tiles read their borders again less often, small maps
    need all programs they can get: so rows are given up until every multiprocessor has work. For
    the sums the programs are fewer, and wide if the kernel is large, because each of them writes k²
    values of a channel.
    """
    batch, height, width, depth = shape
    channels = min(64, triton.next_power_of_2(depth))
    large = size > 3
    values = 8 if itemsize == 2 and not large and not sums else 4
    wanted = 8 if sums and large else 4
    columns = min(triton.next_power_of_2(width), 32 * wanted * values // channels)
    warps = max(1, columns * channels // (32 * values))
    rows = 4 if not large and (sums or itemsize == 2) else 8
    rows = min(rows, triton.next_power_of_2(height))
    beside = batch * triton.cdiv(width, columns) * triton.cdiv(depth, channels)
    enough = WARPS // 4 if sums else WARPS // 2
    while rows > 2 and beside * triton.cdiv(height, rows) * warps < enough:
        rows //= 2
    return Tile(rows, columns, channels, warps)


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, *, silu: bool) -> Tensor:
    """``depthwise.definition`` for 16 and 32 bit tensors; x with any strides but the last, 1."""
    out = x.new_empty(x.shape)
    _convolve(x, weight, bias, out, silu=silu, turn=False)
    return out


def backward(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, *, silu: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The gradients of x, weight and bias; ``dy`` (B, H, W, C) contiguous."""
    batch, height, width, depth = x.shape
    size = weight.shape[-1]
    tile = choose_tile(x.shape, size, x.element_size(), sums=True)
    blocks = triton.cdiv(depth, tile.channels)
    row_blocks, column_blocks = triton.cdiv(height, tile.rows), triton.cdiv(width, tile.columns)
    strips = batch * row_blocks * column_blocks
    each = max(1, triton.cdiv(strips * blocks * tile.warps, WARPS))
    chunks = triton.cdiv(strips, each)
    slots = triton.next_power_of_2(size + 1)
    g = torch.empty_like(dy) if silu else dy
    dx = torch.empty_like(dy)
    partial = x.new_empty((chunks, size, depth, slots), dtype=torch.float32)
    dweight = torch.empty_like(weight)
    dbias = None if bias is None else torch.empty_like(bias)
    with torch.cuda.device_of(x):
        slope_kernel[(chunks * blocks,)](
            x, _taps(weight), bias, dy, g, partial,
            height, width, depth, row_blocks, column_blocks, strips, each, *x.stride()[:3],
            K=size, SLOTS=slots, SILU=silu, EVEN=depth % tile.channels == 0,
            ROWS=tile.rows, COLUMNS=tile.columns, BLOCK=tile.channels,
            num_warps=tile.warps, enable_fp_fusion=True,
        )  # fmt: skip
        reduce_kernel[(triton.cdiv(size * depth * slots, 32),)](
            partial, dweight, dbias, chunks, depth, *(dweight.stride(i) for i in (0, 2, 3)),
            K=size, SLOTS=slots, CHUNKS=min(128, triton.next_power_of_2(max(chunks, 1))), BLOCK=32,
            num_warps=8, enable_fp_fusion=True,
        )  # fmt: skip
    _convolve(g, weight, None, dx, silu=False, turn=True)
    return dx, dweight, dbias


def _convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor, *, silu: bool, turn: bool
) -> None:
    batch, height, width, depth = x.shape
    size = weight.shape[-1]
    tile = choose_tile(x.shape, size, x.element_size(), sums=False)
    row_blocks, column_blocks = triton.cdiv(height, tile.rows), triton.cdiv(width, tile.columns)
    programs = batch * row_blocks * column_blocks * triton.cdiv(depth, tile.channels)
    with torch.cuda.device_of(x):
        convolve_kernel[(programs,)](
            x, _taps(weight), bias, out,
            height, width, depth, row_blocks, column_blocks, *x.stride()[:3],
            K=size, SILU=silu, TURN=turn, EVEN=depth % tile.channels == 0,
            ROWS=tile.rows, COLUMNS=tile.columns, BLOCK=tile.channels,
            num_warps=tile.warps, enable_fp_fusion=True,
        )  # fmt: skip


def _taps(weight: Tensor) -> Tensor:
    """(C, 1, k, k) as (k², C), channels side by side; no copy if they already are so in memory."""
    return weight.permute(2, 3, 1, 0).contiguous()


@triton.jit
def _convolved(
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
    height, width, channels, row_blocks, column_blocks, stride_b, stride_h, stride_w,
    K: tl.constexpr, SILU: tl.constexpr, TURN: tl.constexpr, EVEN: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One tile of the output. EVEN: channels are whole blocks, so none needs a mask."""
    blocks = (channels + BLOCK - 1) // BLOCK
    strip = tl.program_id(0) // blocks
    channel = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)[None, :]
    inside = channel >= 0 if EVEN else channel < channels
    batch = (strip // (row_blocks * column_blocks)).to(tl.int64)
    top = (strip // column_blocks) % row_blocks * ROWS
    column = (strip % column_blocks) * COLUMNS + tl.arange(0, COLUMNS)[:, None]
    sums = _convolved(
        x + batch * stride_b, weight, bias, top, column, channel, inside,
        height, width, channels, stride_h, stride_w, K, TURN, ROWS, COLUMNS, BLOCK,
    )  # fmt: skip
    out += batch * height * width * channels
    for t in tl.static_range(ROWS):
        z = sums[t]
        if SILU:
            z /= 1 + tl.exp2(z * MINUS_LOG2E)
        row = top + t
        place = (row * width + column) * channels + channel
        filled = tl.where((row >= 0) & (row < height), width, 0)
        mask = inside & (column < filled)
        tl.store(out + place, z.to(out.dtype.element_ty), mask=mask)


@triton.jit
def slope_kernel(
    x, weight, bias, dy, g, partial,
    height, width, channels, row_blocks, column_blocks, strips, each,
    stride_b, stride_h, stride_w,
    K: tl.constexpr, SLOTS: tl.constexpr, SILU: tl.constexpr, EVEN: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """g of ``each`` tiles, one after the other, then a row of ``partial``, (K, C, SLOTS).

    Slot ``down`` of column ``across`` is the sum for that tap, slot K the sum of g. Without SiLU
    ``g`` is ``dy``, and only read.
    """
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
            sums = _convolved(
                x + batch * stride_b, weight, bias, top, column, channel, inside,
                height, width, channels, stride_h, stride_w, K, False, ROWS, COLUMNS, BLOCK,
            )  # fmt: skip
            picture = batch * height * width * channels
            for t in tl.static_range(ROWS):
                row = top + t
                place = (row * width + column) * channels + channel
                filled = tl.where((row >= 0) & (row < height), width, 0)
                mask = inside & (column < filled)
                upstream = tl.load(dy + picture + place, mask=mask, other=0.0).to(tl.float32)
                gate = 1 / (1 + tl.exp2(sums[t] * MINUS_LOG2E))
                upstream *= gate * (1 + sums[t] * (1 - gate))
                tl.store(g + picture + place, upstream.to(g.dtype.element_ty), mask=mask)
        tl.debug_barrier()  # g is read again below

    partial += (chunk.to(tl.int64) * K * channels + block) * SLOTS
    line = tl.arange(0, BLOCK)[:, None]
    slot = line * SLOTS + tl.arange(0, SLOTS)[None, :]
    for across in range(K):
        nothing = tl.full((COLUMNS, BLOCK), 0.0, tl.float32)
        found = ()
        for _ in tl.static_range(SLOTS):
            found = found + (nothing,)
        for strip in range(first, last):
            batch = (strip // (row_blocks * column_blocks)).to(tl.int64)
            top = (strip // column_blocks) % row_blocks * ROWS
            column = (strip % column_blocks) * COLUMNS + tl.arange(0, COLUMNS)[:, None]
            picture = g + batch * height * width * channels
            centres = ()
            own = found[K]
            for t in tl.static_range(ROWS):
                row = top + t
                filled = tl.where((row >= 0) & (row < height), width, 0)
                mask = inside & (column < filled)
                place = column * channels + channel
                centre = tl.load(picture + row * width * channels + place, mask=mask, other=0.0)
                centres = centres + (centre.to(tl.float32),)
                own += centre.to(tl.float32)
            shifted = column + (across - K // 2)
            here = inside & (shifted >= 0)
            place = shifted * stride_w + channel
            source = x + batch * stride_b
            taps = found[:K]
            for i in tl.static_range(ROWS + K - 1):
                row = top + (i - K // 2)
                filled = tl.where((row >= 0) & (row < height), width, 0)
                mask = here & (shifted < filled)
                value = tl.load(source + row * stride_h + place, mask=mask, other=0.0).to(
                    tl.float32
                )
                added = ()
                for down in tl.static_range(K):
                    if i - down >= 0 and i - down < ROWS:
                        added = added + (taps[down] + value * centres[i - down],)
                    else:
                        added = added + (taps[down],)
                taps = added
            found = taps + (own,) + found[K + 1 :]
        # One reduction for all of them, because each waits for the slowest warp. Joined in halves:
        # the slot's lowest bit is the last axis, its highest the first one.
        parts = found
        for level in tl.static_range(1, 4):
            if SLOTS >> level > 0:
                joined = ()
                for j in tl.static_range(SLOTS >> level):
                    joined = joined + (tl.join(parts[j], parts[j + (SLOTS >> level)]),)
                parts = joined
        table = tl.reshape(tl.sum(parts[0], 0), (BLOCK, SLOTS))
        tl.store(partial + slot, table, mask=block + line < channels)
        partial += channels * SLOTS


@triton.jit
def reduce_kernel(
    partial, dweight, dbias, chunks, channels, stride_c, stride_down, stride_across,
    K: tl.constexpr, SLOTS: tl.constexpr, CHUNKS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """BLOCK columns of ``partial`` (chunks, K, C, SLOTS), summed and put where they belong."""
    columns = K * channels * SLOTS
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row = tl.arange(0, CHUNKS)[:, None]
    total = tl.full((CHUNKS, BLOCK), 0.0, tl.float32)
    for start in range(0, chunks, CHUNKS):
        mask = (start + row < chunks) & (column < columns)[None, :]
        place = (start + row).to(tl.int64) * columns + column[None, :]
        total += tl.load(partial + place, mask=mask, other=0.0)
    value = tl.sum(total, 0)
    down = column % SLOTS
    channel = column // SLOTS % channels
    across = column // SLOTS // channels
    place = channel * stride_c + down * stride_down + across * stride_across
    tl.store(dweight + place, value.to(dweight.dtype.element_ty), mask=(across < K) & (down < K))
    if dbias is not None:
        mask = (across == 0) & (down == K)
        tl.store(dbias + channel, value.to(dbias.dtype.element_ty), mask=mask)
