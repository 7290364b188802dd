"""The Triton kernels of the mean squared difference; ``square`` launches them.

Maps are lines of ``size`` elements in the order of memory. Everything is float32 inside.
"""

# mypy: disable-error-code="no-untyped-def,untyped-decorator"
import triton
import triton.language as tl


@triton.jit
def square_sums_kernel(first_ptr, second_ptr, out_ptr, size, scale, steps, BLOCK: tl.constexpr):
    """out (programs,): scale times the sum of squared differences over ``steps`` tiles of each."""
    total = tl.zeros((BLOCK,), tl.float32)
    first = tl.program_id(0).to(tl.int64) * steps * BLOCK
    for step in range(steps):
        at = first + step * BLOCK + tl.arange(0, BLOCK)
        a = tl.load(first_ptr + at, mask=at < size, other=0.0).to(tl.float32)
        b = tl.load(second_ptr + at, mask=at < size, other=0.0).to(tl.float32)
        total += (a - b) * (a - b)
    tl.store(out_ptr + tl.program_id(0), tl.sum(total, axis=0) * scale)


@triton.jit
def square_gradient_kernel(
    dy_ptr, first_ptr, second_ptr, out_ptr, size, scale, BLOCK: tl.constexpr
):
    """out = dy · scale · (first - second), dy one number."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    a = tl.load(first_ptr + at, mask=at < size, other=0.0).to(tl.float32)
    b = tl.load(second_ptr + at, mask=at < size, other=0.0).to(tl.float32)
    gradient = (tl.load(dy_ptr) * scale) * (a - b)
    tl.store(out_ptr + at, gradient.to(out_ptr.dtype.element_ty), mask=at < size)
