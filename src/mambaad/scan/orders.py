"""Scan orders: the paths along which the state space model visits a feature map.

A path is an int32 table of L = height x width flat row-major positions, in the order of the visit.
Five methods (paper, section 3.3 and Figure 3) give one path each for a map of any height and width:

    sweep    row by row, always from the left
    scan     row by row, back and forth (the snake)
    zorder   Morton order
    zigzag   along the anti-diagonals, as in JPEG
    hilbert  the Hilbert curve, generalised to rectangles

The K directions apply one method to the map as it is, transposed, turned by 90 degrees
(counter-clockwise), turned and then transposed, and the same four backwards. That is the order in
which the published weights expect them; 2 directions are the first path and its reverse, 4 the
first two and their reverses.

A Hilbert curve starts and ends on the same edge, so backwards it is its own mirror picture: of the
eight published directions only six differ (0 and 7 are the same path, as are 3 and 4; for ``scan``
1 and 6, and 2 and 5). ``directions="distinct"`` takes eight different ones instead.

Source: He et al., MambaAD, arXiv 2404.06564. The rectangle's Hilbert curve follows the recursive
subdivision of J. Červený ("gilbert"); on squares whose side is a power of two it is Hilbert's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Order = NDArray[np.int32]


def sweep(height: int, width: int) -> Order:
    """Row by row, every row from the left.

    >>> sweep(2, 3).tolist()
    [0, 1, 2, 3, 4, 5]
    """
    return np.arange(height * width, dtype=np.int32)


def snake(height: int, width: int) -> Order:
    """Row by row, every second row from the right (the paper's "scan").

    >>> snake(2, 3).tolist()
    [0, 1, 2, 5, 4, 3]
    """
    grid = np.arange(height * width, dtype=np.int32).reshape(height, width)
    grid[1::2] = grid[1::2, ::-1].copy()
    return grid.ravel()


def zorder(height: int, width: int) -> Order:
    """Morton order: by the interleaved bits of row and column; cells outside are left out.

    >>> zorder(2, 3).tolist()
    [0, 1, 3, 4, 2, 5]
    """
    rows, columns = np.divmod(np.arange(height * width, dtype=np.int64), width)
    code = np.zeros_like(rows)
    for bit in range(max(height, width).bit_length()):
        code |= ((columns >> bit) & 1) << (2 * bit)
        code |= ((rows >> bit) & 1) << (2 * bit + 1)
    return np.argsort(code, kind="stable").astype(np.int32)


def zigzag(height: int, width: int) -> Order:
    """Along the anti-diagonals, back and forth, first step to the right (as JPEG's coefficients).

    >>> zigzag(2, 3).tolist()
    [0, 1, 3, 4, 2, 5]
    >>> zigzag(3, 3).tolist()
    [0, 1, 3, 6, 4, 2, 5, 7, 8]
    """
    rows, columns = np.divmod(np.arange(height * width, dtype=np.int64), width)
    diagonal = rows + columns
    along = np.where(diagonal % 2 == 1, rows, columns)
    return np.lexsort((along, diagonal)).astype(np.int32)


def hilbert(height: int, width: int) -> Order:
    """The Hilbert curve: consecutive positions are neighbours, at every scale.

    On a square whose side is a power of two it starts top-left and ends top-right. On a rectangle
    it leads along the width in the same way, also where the height is greater, so that a map and
    its transpose give two different paths; every step still goes to a neighbour, apart from at most
    one diagonal step where a side is odd.

    >>> hilbert(2, 2).tolist()
    [0, 2, 3, 1]
    """
    cells = _hilbert_cells(0, 0, (0, width), (height, 0))
    return np.fromiter((r * width + c for r, c in cells), np.int32, height * width)


def _hilbert_cells(
    row: int, column: int, along: tuple[int, int], across: tuple[int, int]
) -> Iterator[tuple[int, int]]:
    """Visit the rectangle spanned by two axis-parallel vectors (rows, columns) from a corner.

    The path leaves at the other end of ``along``. A long rectangle is cut in two, any other in
    three: up the first half, across the second, and back down.
    """
    length, breadth = abs(sum(along)), abs(sum(across))
    step = (_sign(along[0]), _sign(along[1]))
    side = (_sign(across[0]), _sign(across[1]))
    if breadth == 1:
        for i in range(length):
            yield row + i * step[0], column + i * step[1]
        return
    if length == 1:
        for i in range(breadth):
            yield row + i * side[0], column + i * side[1]
        return

    half, half_across = length // 2, breadth // 2
    if 2 * length > 3 * breadth:
        if half % 2 and length > 2:
            half += 1  # even halves keep every step a step to a neighbour
        first = (step[0] * half, step[1] * half)
        rest = (along[0] - first[0], along[1] - first[1])
        yield from _hilbert_cells(row, column, first, across)
        yield from _hilbert_cells(row + first[0], column + first[1], rest, across)
        return

    if half_across % 2 and breadth > 2:
        half_across += 1
    first = (step[0] * half, step[1] * half)
    rest = (along[0] - first[0], along[1] - first[1])
    near = (side[0] * half_across, side[1] * half_across)
    far = (across[0] - near[0], across[1] - near[1])
    yield from _hilbert_cells(row, column, near, first)
    yield from _hilbert_cells(row + near[0], column + near[1], along, far)
    yield from _hilbert_cells(
        row + along[0] - step[0] + near[0] - side[0],
        column + along[1] - step[1] + near[1] - side[1],
        (-near[0], -near[1]),
        (-rest[0], -rest[1]),
    )


def _sign(value: int) -> int:
    return (value > 0) - (value < 0)


METHODS: dict[str, Callable[[int, int], Order]] = {
    "sweep": sweep,
    "scan": snake,
    "zorder": zorder,
    "zigzag": zigzag,
    "hilbert": hilbert,
}


def direction_orders(
    method: str | Mapping[str, int],
    directions: int | Literal["distinct"],
    height: int,
    width: int,
) -> Order:
    """The K paths of a method over a map.

    Args:
        method: A name from ``METHODS``, or a hybrid such as ``{"zigzag": 4, "hilbert": 4}``, whose
            parts follow each other in the order given.
        directions: 2, 4 or 8 as published, or ``"distinct"`` for eight different paths. Not read
            for a hybrid.
        height: Rows of the map.
        width: Columns of the map.

    Returns:
        int32, (K, height * width): ``orders[k, t]`` is the flat position visited at step t.

    Raises:
        ValueError: If a name, a count or a size is none of the above.
    """
    if height < 1 or width < 1:
        raise ValueError(f"a map needs at least one row and column, got {height} x {width}")
    parts = {method: directions} if isinstance(method, str) else method
    return np.concatenate([_paths(name, count, height, width) for name, count in parts.items()])


@lru_cache(maxsize=256)
def _paths(method: str, directions: int | str, height: int, width: int) -> Order:
    if method not in METHODS:
        raise ValueError(f"scan method must be one of {list(METHODS)}, got {method!r}")
    grid = np.arange(height * width, dtype=np.int32).reshape(height, width)
    turned = np.rot90(grid)
    views = [grid, grid.T, turned, turned.T]
    if directions == "distinct":
        # the four the published set cannot reach, for a method that needs them
        views += [np.rot90(grid, 2), np.rot90(grid, 2).T, np.rot90(grid, 3), np.rot90(grid, 3).T]
        forward = [_along(method, view) for view in views]
        published = forward[:4] + [path[::-1] for path in forward[:4]]
        return _first_distinct(published + forward[4:] + [path[::-1] for path in forward[4:]])
    if directions not in (2, 4, 8):
        raise ValueError(f"directions must be 2, 4, 8 or 'distinct', got {directions!r}")
    forward = [_along(method, view) for view in views[: int(directions) // 2]]
    return np.stack(forward + [path[::-1] for path in forward])


def _along(method: str, view: NDArray[np.int32]) -> Order:
    rows, columns = view.shape
    return np.ascontiguousarray(view).reshape(-1)[METHODS[method](rows, columns)]


def _first_distinct(paths: list[Order]) -> Order:
    """The first eight different paths; a map too small to have eight repeats them in turn."""
    different = list({path.tobytes(): path for path in paths}.values())
    return np.stack([different[i % len(different)] for i in range(8)])
