"""The Triton kernel of the sums of a table's columns; ``sums`` launches it."""

# mypy: disable-error-code="no-untyped-def,untyped-decorator"
import triton
import triton.language as tl


@triton.jit
def sum_columns_kernel(
    x_ptr,
    out_ptr,
    rows,
    columns,
    x_stride,
    steps,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """out (parts, columns): the sums of x (rows, columns) over ``steps`` tiles of ROWS rows each.

    Grid (column blocks, parts). Rows of x are ``x_stride`` elements apart.
    """
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((ROWS, BLOCK), tl.float32)
    first = tl.program_id(1).to(tl.int64) * steps * ROWS
    for step in range(steps):
        row = first + step * ROWS + tl.arange(0, ROWS)[:, None]
        known = (row < rows) & (column < columns)[None, :]
        total += tl.load(x_ptr + row * x_stride + column[None, :], mask=known, other=0.0)
    sums = tl.sum(total, axis=0).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + tl.program_id(1) * columns + column, sums, mask=column < columns)
