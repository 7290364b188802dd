"""The Triton kernels of StableAdamW; ``optimiser`` launches them.

Tensors are reached by a table of addresses, a row of ``WIDTH`` numbers for each; a program takes a
chunk of one tensor, and ``owners`` says of which. Everything is float32.
"""

# mypy: disable-error-code="no-untyped-def,untyped-decorator"
import triton
import triton.language as tl

# columns of the table: four lines in memory, the count of steps; their length, the tensor's first
# chunk, and whether the lines can be read four numbers at once
PARAMETER = tl.constexpr(0)
GRADIENT = tl.constexpr(1)
MEAN = tl.constexpr(2)
SQUARE = tl.constexpr(3)
STEP = tl.constexpr(4)
SIZE = tl.constexpr(5)
FIRST = tl.constexpr(6)
EVEN = tl.constexpr(7)
WIDTH = tl.constexpr(8)


@triton.jit
def moments_kernel(
    table_ptr, owners_ptr, parts_ptr, log_first, log_second, eps, CHUNK: tl.constexpr
):
    """New means of g and g² of a chunk; parts[chunk] = its sum of g² / max(v, eps²)."""
    chunk = tl.program_id(0)
    row = table_ptr + tl.load(owners_ptr + chunk) * WIDTH
    start = (chunk - tl.load(row + FIRST)) * CHUNK
    step = tl.load(tl.load(row + STEP).to(tl.pointer_type(tl.float32))) + 1
    # 1 - β̂ = (1 - β) / (1 - β^t)
    a = _one_minus_exp(log_first) / _one_minus_exp(step * log_first)
    b = _one_minus_exp(log_second) / _one_minus_exp(step * log_second)
    if tl.load(row + EVEN) != 0:
        part = _mix(row, start, a, b, eps, CHUNK, True)
    else:
        part = _mix(row, start, a, b, eps, CHUNK, False)
    tl.store(parts_ptr + chunk, part)


@triton.jit
def rates_kernel(table_ptr, parts_ptr, lr_ptr, rates_ptr, CHUNK: tl.constexpr, BLOCK: tl.constexpr):
    """rates[tensor] = lr / max(1, RMS) from the tensor's parts; and its step is counted."""
    tensor = tl.program_id(0)
    row = table_ptr + tensor * WIDTH
    size = tl.load(row + SIZE)
    own_ptr, count = parts_ptr + tl.load(row + FIRST), tl.cdiv(size, CHUNK)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, count, BLOCK):
        at = start + tl.arange(0, BLOCK)
        total += tl.load(own_ptr + at, mask=at < count, other=0.0)
    rms = tl.sqrt(tl.sum(total, axis=0) / size.to(tl.float32))
    excess = tl.maximum(rms, 1.0, propagate_nan=tl.PropagateNan.ALL)
    tl.store(rates_ptr + tensor, tl.load(lr_ptr) / excess)
    step_ptr = tl.load(row + STEP).to(tl.pointer_type(tl.float32))
    tl.store(step_ptr, tl.load(step_ptr) + 1)


@triton.jit
def change_kernel(table_ptr, owners_ptr, rates_ptr, decay, eps, CHUNK: tl.constexpr):
    """p = p - rate (decay p + m / (√v + eps)) in a chunk."""
    chunk = tl.program_id(0)
    tensor = tl.load(owners_ptr + chunk)
    row = table_ptr + tensor * WIDTH
    start = (chunk - tl.load(row + FIRST)) * CHUNK
    rate = tl.load(rates_ptr + tensor)
    if tl.load(row + EVEN) != 0:
        _change(row, start, rate, decay, eps, CHUNK, True)
    else:
        _change(row, start, rate, decay, eps, CHUNK, False)


@triton.jit
def _one_minus_exp(y):
    """1 - e^y for y <= 0; near 0 by its series, for the difference keeps few digits there."""
    near = tl.maximum(y, -1.0)
    series = 1.0
    for n in tl.static_range(7):
        series = 1.0 + near / (8 - n) * series
    return tl.where(y > -0.5, -near * series, 1.0 - tl.exp(y))


@triton.jit
def _mix(row, start, a, b, eps, CHUNK: tl.constexpr, FOUR: tl.constexpr):
    at = tl.arange(0, CHUNK)
    inside = at < _left(row, start, FOUR)
    g_ptr = _chunk(row + GRADIENT, start, FOUR) + at
    m_ptr = _chunk(row + MEAN, start, FOUR) + at
    v_ptr = _chunk(row + SQUARE, start, FOUR) + at
    g = tl.load(g_ptr, mask=inside, other=0.0)
    m = tl.load(m_ptr, mask=inside, other=0.0)
    v = tl.load(v_ptr, mask=inside, other=0.0)
    v = (1 - b) * v + b * (g * g)
    tl.store(m_ptr, (1 - a) * m + a * g, mask=inside)
    tl.store(v_ptr, v, mask=inside)
    ratio = g / tl.maximum(tl.sqrt(v), eps)  # squared afterwards: eps² may be 0 in float32
    return tl.sum(tl.where(inside, ratio * ratio, 0.0), axis=0)


@triton.jit
def _change(row, start, rate, decay, eps, CHUNK: tl.constexpr, FOUR: tl.constexpr):
    at = tl.arange(0, CHUNK)
    inside = at < _left(row, start, FOUR)
    p_ptr = _chunk(row + PARAMETER, start, FOUR) + at
    p = tl.load(p_ptr, mask=inside, other=0.0)
    m = tl.load(_chunk(row + MEAN, start, FOUR) + at, mask=inside, other=0.0)
    v = tl.load(_chunk(row + SQUARE, start, FOUR) + at, mask=inside, other=1.0)
    tl.store(p_ptr, p - rate * (decay * p + m / (tl.sqrt(v) + eps)), mask=inside)


@triton.jit
def _chunk(cell_ptr, start, FOUR: tl.constexpr):
    """A chunk of what a cell of the table points at; FOUR: of numbers to be read four at once.

    The promise marks the operation before it, so each branch needs an operation of its own.
    """
    numbers = tl.load(cell_ptr).to(tl.pointer_type(tl.float32)) + start
    if FOUR:
        numbers = tl.multiple_of(numbers, 16)
    return numbers


@triton.jit
def _left(row, start, FOUR: tl.constexpr):
    """How many numbers of a tensor there are from ``start`` on."""
    left = tl.load(row + SIZE) - start
    if FOUR:
        left = tl.multiple_of(left, 4)
    return left
