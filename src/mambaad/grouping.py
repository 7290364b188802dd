"""The maps and the masks of one category after the other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from mambaad.data import Sample, load_mask
from mambaad.data.cache import map_in_threads, worker_count


def regroup(
    parts: Iterator[NDArray[np.float32]], counts: Sequence[int]
) -> Iterator[Iterator[NDArray[np.float32]]]:
    """Cut consecutive batches of maps into runs of other lengths.

    Args:
        parts: Each (B, H, W), with any B; may be overwritten when the next one is asked for.
        counts: How many maps each run shall hold; as many as the batches in all.

    Returns:
        For each count its maps, in pieces. Each must be used up before the next is asked for.

    >>> numbers = np.arange(5, dtype=np.float32).reshape(5, 1, 1)
    >>> batches = iter((numbers[:2], numbers[2:4], numbers[4:]))
    >>> [[piece.ravel().tolist() for piece in pieces] for pieces in regroup(batches, [1, 4])]
    [[[0.0]], [[1.0], [2.0, 3.0], [4.0]]]
    """
    left = np.empty((0, 0, 0), np.float32)

    def pieces(count: int) -> Iterator[NDArray[np.float32]]:
        nonlocal left
        while count:
            if not len(left):
                left = next(parts)
            taken, left = left[:count], left[count:]
            count -= len(taken)
            yield taken

    for count in counts:
        yield pieces(count)
    for _ in parts:  # none is left, but the last one's progress is reported when asked for another
        pass


def joined(pieces: Iterable[NDArray[np.float32]], count: int) -> NDArray[np.float32]:
    """The ``count`` maps of ``regroup``'s pieces in one array, without holding both."""
    maps = np.empty((0, 0, 0), np.float32)
    done = 0
    for piece in pieces:
        if not done:
            maps = np.empty((count, *piece.shape[1:]), np.float32)
        maps[done : done + len(piece)] = piece
        done += len(piece)
    return maps


def read_masks(
    samples: Sequence[Sample], size: tuple[int, int]
) -> list[NDArray[np.bool_] | None] | None:
    """The masks at the given size: zeros for good pictures, None where a defective one has none.

    Returns:
        None if no defective picture has a mask: the data set has none.
    """
    if not any(s.mask is not None for s in samples) and any(s.is_anomalous for s in samples):
        return None
    empty = np.zeros(size, dtype=np.bool_)

    def read(sample: Sample) -> NDArray[np.bool_] | None:
        if sample.mask is not None:
            return load_mask(sample.mask, size)
        return None if sample.is_anomalous else empty

    return map_in_threads(read, samples, workers=worker_count())
