from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mambaad.scan.orders import METHODS, direction_orders, hilbert, sweep, zigzag, zorder

Grid = NDArray[np.integer[Any]]

SIDES = st.integers(1, 40)


def visits(order: NDArray[np.int32], height: int, width: int) -> Grid:
    """When each cell is visited, counted from 1, as the paper draws it."""
    grid = np.empty(height * width, np.int64)
    grid[order] = np.arange(1, height * width + 1)
    return grid.reshape(height, width)


def equation_9(order: int) -> Grid:
    """The paper's H_n, block by block: E is all ones, lr and ud mirror the columns and rows.

    It starts top-left and ends bottom-left at odd orders, top-right at even ones.
    """
    h: Grid = np.array([[1, 2], [4, 3]])
    for n in range(1, order):
        cells = 4**n
        if n % 2:
            h = np.block(
                [
                    [h, 4 * cells + 1 - np.fliplr(h)],
                    [cells + h.T, 3 * cells + 1 - np.fliplr(h.T)],
                ]
            )
        else:
            h = np.block(
                [
                    [h, cells + h.T],
                    [4 * cells + 1 - np.flipud(h), 3 * cells + 1 - np.flipud(h.T)],
                ]
            )
    return h


@pytest.mark.parametrize("order", range(1, 7))
def test_hilbert_is_equation_9(order: int) -> None:
    """Up to a transposition at odd orders, which the set of eight directions contains anyway."""
    side = 2**order
    expected = equation_9(order)
    found = visits(hilbert(side, side), side, side)
    np.testing.assert_array_equal(found, expected if order % 2 == 0 else expected.T)


def test_tables_on_a_4_by_4_map() -> None:
    tables = {
        "sweep": [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12], [13, 14, 15, 16]],
        "scan": [[1, 2, 3, 4], [8, 7, 6, 5], [9, 10, 11, 12], [16, 15, 14, 13]],
        "zorder": [[1, 2, 5, 6], [3, 4, 7, 8], [9, 10, 13, 14], [11, 12, 15, 16]],
        "zigzag": [[1, 2, 6, 7], [3, 5, 8, 13], [4, 9, 12, 14], [10, 11, 15, 16]],
        "hilbert": [[1, 2, 15, 16], [4, 3, 14, 13], [5, 8, 9, 12], [6, 7, 10, 11]],
    }
    assert tables.keys() == METHODS.keys()
    for method, table in tables.items():
        assert visits(METHODS[method](4, 4), 4, 4).tolist() == table, method


def test_zorder_leaves_out_cells_outside() -> None:
    """On a 3 x 5 map: the order of the 8 x 8 map, without the cells that are not there."""
    rows, columns = np.divmod(zorder(8, 8), 8)
    inside = (rows < 3) & (columns < 5)
    np.testing.assert_array_equal(zorder(3, 5), (rows * 5 + columns)[inside])


@pytest.mark.parametrize("method", METHODS)
def test_directions(method: str) -> None:
    """Identity, transpose, turned counter-clockwise, turned and transposed, then backwards."""
    grid = np.arange(30, dtype=np.int32).reshape(5, 6)
    turned = np.rot90(grid)
    assert turned[0].tolist() == [5, 11, 17, 23, 29]  # the right column, from its top
    views = [grid, grid.T, turned, turned.T]
    forward = [view.ravel()[METHODS[method](*view.shape)] for view in views]
    expected = np.stack(forward + [path[::-1] for path in forward])
    found = direction_orders(method, 8, 5, 6)
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(direction_orders(method, 4, 5, 6), expected[[0, 1, 4, 5]])
    np.testing.assert_array_equal(direction_orders(method, 2, 5, 6), expected[[0, 4]])


def test_first_and_last_cells_of_hilbert() -> None:
    orders = direction_orders("hilbert", 8, 8, 8)
    found = [(int(path[0]), int(path[-1])) for path in orders]
    assert found == [(0, 7), (0, 56), (7, 63), (7, 0), (7, 0), (56, 0), (63, 7), (0, 7)]


@pytest.mark.parametrize("side", [8, 16, 64])
@pytest.mark.parametrize(
    ("method", "same"),
    [
        ("sweep", []),
        ("scan", [(1, 6), (2, 5)]),
        ("zorder", []),
        ("zigzag", []),
        ("hilbert", [(0, 7), (3, 4)]),
    ],
)
def test_how_many_of_eight_differ(method: str, same: list[tuple[int, int]], side: int) -> None:
    orders = direction_orders(method, 8, side, side)
    pairs = [(i, j) for i in range(8) for j in range(i + 1, 8) if (orders[i] == orders[j]).all()]
    assert pairs == same


@given(height=st.integers(4, 40), width=st.integers(4, 40))
@settings(max_examples=40, deadline=None)
def test_at_least_six_of_eight_hilbert_paths_differ(height: int, width: int) -> None:
    """On rectangles too, whichever side is the longer."""
    orders = direction_orders("hilbert", 8, height, width)
    assert len({path.tobytes() for path in orders}) >= 6


@pytest.mark.parametrize("method", METHODS)
@given(height=st.integers(4, 20), width=st.integers(4, 20))
@settings(max_examples=30, deadline=None)
def test_distinct_directions(method: str, height: int, width: int) -> None:
    orders = direction_orders(method, "distinct", height, width)
    assert len({path.tobytes() for path in orders}) == 8
    # the published paths come first, each once
    published = {path.tobytes(): None for path in direction_orders(method, 8, height, width)}
    assert [path.tobytes() for path in orders][: len(published)] == list(published)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 5), (2, 2), (3, 2)])
def test_distinct_on_a_map_too_small_for_it(height: int, width: int) -> None:
    orders = direction_orders("hilbert", "distinct", height, width)
    assert orders.shape == (8, height * width)
    np.testing.assert_array_equal(np.sort(orders), np.tile(np.arange(height * width), (8, 1)))


@pytest.mark.parametrize("method", METHODS)
@given(height=SIDES, width=SIDES, directions=st.sampled_from([2, 4, 8, "distinct"]))
@settings(max_examples=40, deadline=None)
def test_every_path_is_a_permutation(method: str, height: int, width: int, directions: Any) -> None:
    orders = direction_orders(method, directions, height, width)
    assert orders.shape == (8 if directions == "distinct" else directions, height * width)
    assert orders.dtype == np.int32
    every = np.broadcast_to(np.arange(height * width), orders.shape)
    np.testing.assert_array_equal(np.sort(orders), every)


@given(height=SIDES, width=SIDES)
@settings(max_examples=200, deadline=None)
def test_hilbert_steps_to_neighbours(height: int, width: int) -> None:
    rows, columns = np.divmod(hilbert(height, width), width)
    down, right = np.abs(np.diff(rows)), np.abs(np.diff(columns))
    assert np.all(np.maximum(down, right) == 1)
    diagonal = int((down + right == 2).sum())
    assert diagonal <= 1
    if height % 2 == 0 and width % 2 == 0:
        assert diagonal == 0


@given(height=SIDES, width=SIDES)
@settings(max_examples=40, deadline=None)
def test_zigzag_steps_to_neighbours(height: int, width: int) -> None:
    """On every map: along an anti-diagonal, or over the border to the next one."""
    rows, columns = np.divmod(zigzag(height, width), width)
    assert np.all(np.maximum(np.abs(np.diff(rows)), np.abs(np.diff(columns))) <= 1)
    assert np.all(np.isin(np.diff(rows + columns), (0, 1)))


def test_hybrid_paths_follow_each_other() -> None:
    orders = direction_orders({"zigzag": 4, "hilbert": 2}, 8, 6, 4)
    assert orders.shape == (6, 24)
    np.testing.assert_array_equal(orders[:4], direction_orders("zigzag", 4, 6, 4))
    np.testing.assert_array_equal(orders[4:], direction_orders("hilbert", 2, 6, 4))
    swapped = direction_orders({"hilbert": 2, "zigzag": 4}, 8, 6, 4)
    np.testing.assert_array_equal(swapped, orders[[4, 5, 0, 1, 2, 3]])


def test_a_caller_may_write_into_the_table() -> None:
    direction_orders("sweep", 2, 2, 2)[:] = -1
    assert direction_orders("sweep", 2, 2, 2).tolist() == [[0, 1, 2, 3], [3, 2, 1, 0]]
    assert sweep(1, 2).tolist() == [0, 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("peano", 8, 4, 4), "scan method must be one of .*'hilbert'.*got 'peano'"),
        (("hilbert", 6, 4, 4), "directions must be 2, 4, 8 or 'distinct', got 6"),
        (("hilbert", "all", 4, 4), "directions must be 2, 4, 8 or 'distinct', got 'all'"),
        (({"hilbert": 3}, 8, 4, 4), "directions must be 2, 4, 8 or 'distinct', got 3"),
        (("hilbert", 8, 0, 4), "at least one row and column, got 0 x 4"),
        (("hilbert", 8, 4, -1), "at least one row and column, got 4 x -1"),
    ],
)
def test_errors(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        direction_orders(*arguments)
