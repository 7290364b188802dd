"""What every metric is computed from: score maps, masks and labels, checked once, and sorted.

Letters, the same in every file of ``metrics``:

    N pictures   H height   W width   P anomalous ("positive") items   M normal ("negative") items
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray: TypeAlias = NDArray[np.floating[Any]]
"""float32 or float64."""

BoolArray: TypeAlias = NDArray[np.bool_]

_THREADS = 2
_WORTH_A_THREAD = 1 << 18  # items; handling fewer takes less time than starting threads

_T = TypeVar("_T")


class UndefinedMetricError(ValueError):
    """The metric has no value for these data, such as a ranking with one class only."""


def as_maps(maps: ArrayLike) -> FloatArray:
    """Check score maps.

    Args:
        maps: (N, H, W), real numbers, higher is more anomalous.

    Returns:
        (N, H, W). float64 where that was given (or whole numbers), else float32; no copy is made
        of an array that has one of these types.

    Raises:
        ValueError: If the shape or type is another, or a picture holds NaN or infinity.
    """
    array = _as_floats("maps", maps)
    if array.ndim != 3 or 0 in array.shape:
        raise ValueError(f"maps must have shape (N, H, W), none of them 0; got {array.shape}")
    # the extremes are finite exactly where the picture is, and need no (N, H, W) temporary
    flat = array.reshape(len(array), -1)
    bad = ~(np.isfinite(flat.max(axis=1)) & np.isfinite(flat.min(axis=1)))
    if bad.any():
        first = int(np.flatnonzero(bad)[0])
        found = "NaN" if np.isnan(flat[first]).any() else "infinity"
        raise ValueError(
            f"maps must be finite; picture {first} holds {found} "
            f"({int(bad.sum())} of {len(bad)} pictures are not finite)"
        )
    return array


def as_masks(masks: ArrayLike, shape: tuple[int, ...]) -> BoolArray:
    """Check defect masks.

    Args:
        masks: (N, H, W), bool or whole numbers; anything but 0 is a defect.
        shape: The maps' (N, H, W).

    Raises:
        ValueError: If the shape is not ``shape``, or the type is not bool or integer.
    """
    array = np.asarray(masks)
    if array.shape != shape:
        raise ValueError(f"masks must have the maps' shape {shape}, got {array.shape}")
    if array.dtype.kind not in "bui":
        raise ValueError(
            f"masks must be bool or whole numbers, got {array.dtype}; threshold them first"
        )
    return array if array.dtype == np.bool_ else array != 0


def as_labels(labels: ArrayLike, count: int) -> BoolArray:
    """Check labels.

    Args:
        labels: (count,), True or 1 for anomalous, False or 0 for normal.
        count: How many there must be.

    Raises:
        ValueError: If the shape is not ``(count,)`` or a value is not 0 or 1.
    """
    array = np.asarray(labels)
    if array.shape != (count,):
        raise ValueError(f"labels must have shape ({count},), got {array.shape}")
    if array.dtype.kind not in "buif" or not np.isin(array, (0, 1)).all():
        raise ValueError(f"labels must be bool, or 0 and 1; got {array.dtype} with other values")
    return array.astype(np.bool_)


def as_scores(scores: ArrayLike, count: int | None = None) -> FloatArray:
    """Check one score per item, higher is more anomalous.

    Args:
        scores: (count,), finite.
        count: How many there must be; None takes any.

    Raises:
        ValueError: If the shape is not ``(count,)`` or a score is NaN or infinite.
    """
    array = _as_floats("scores", scores)
    if array.ndim != 1 or (count is not None and len(array) != count):
        expected = "(n,)" if count is None else f"({count},)"
        raise ValueError(f"scores must have shape {expected}, got {array.shape}")
    bad = np.flatnonzero(~np.isfinite(array))
    if bad.size:
        raise ValueError(f"scores must be finite; number {bad[0]} is {array[bad[0]]}")
    return array


def split(values: FloatArray) -> list[FloatArray]:
    """Cut into as many contiguous parts as it pays to sort side by side: views, one at least."""
    return np.array_split(values, _THREADS) if values.size >= _WORTH_A_THREAD else [values]


def side_by_side(tasks: Sequence[Callable[[], _T]], size: int) -> list[_T]:
    """Run tasks in a few threads: numpy's sorts and searches release the interpreter's lock.

    Args:
        tasks: What to call.
        size: How many items they handle; few are handled in this thread.

    Returns:
        What each task returned, in order.
    """
    if size < _WORTH_A_THREAD:
        return [task() for task in tasks]
    with ThreadPoolExecutor(_THREADS) as pool:
        return [running.result() for running in [pool.submit(task) for task in tasks]]


def count_at(
    parts: Sequence[FloatArray], thresholds: FloatArray
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """How many values are above each threshold, and how many are at or above it.

    Args:
        parts: Arrays, each ascending; what is counted is all of them together.
        thresholds: (K,), of the parts' dtype: with another, numpy would convert every part.

    Returns:
        Two arrays, (K,).
    """

    above = np.zeros(thresholds.shape, dtype=np.int64)
    at = np.zeros_like(above)
    for found_above, found_at in side_by_side(
        [partial(_count_in, part, thresholds) for part in parts], thresholds.size
    ):
        above += found_above
        at += found_at
    return above, at


def _count_in(
    part: FloatArray, thresholds: FloatArray
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    above = np.searchsorted(part, thresholds, side="right")
    at = above.copy()
    if part.size:
        # the second search only where there is a tie (for a 0, part[-1] is higher: no tie)
        tied = np.flatnonzero(part[above - 1] == thresholds)
        at[tied] = np.searchsorted(part, thresholds[tied], side="left")
    # counts from ranks, in place: with many thresholds these arrays are the peak of memory
    return np.subtract(part.size, above, out=above), np.subtract(part.size, at, out=at)


def _as_floats(name: str, values: ArrayLike) -> FloatArray:
    array = np.asarray(values)
    if array.dtype.kind not in "fui":
        raise ValueError(f"{name} must be real numbers, got {array.dtype}")
    if array.dtype.kind == "f" and array.dtype.itemsize <= 4:
        return array.astype(np.float32, copy=False)
    return array.astype(np.float64, copy=False)
