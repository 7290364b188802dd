"""Counts of pixels in bins that grow finer by themselves, whatever the range of the scores.

Bins are intervals of the float32 numbers themselves: a score's bits are a whole number that ascends
with it, and a bin is all scores that agree in the upper 16, 20, 24, 28 or 32 of them. So nothing
must be known of the range before, and one outlying pixel changes no other bin. A bin that holds too
much is split in 16 by its next bits. With N normal pixels, P anomalous ones so far, a bin keeps

    at most  1e-5 N  and  4e-4 times the normal pixels above it
    the same of the pixels of normal pictures alone
    at most  5e-5 P

unless it is one single number, whose pixels are equal: ties are counted exactly. Pixels are counted
in chunks of some pictures, and what a chunk brings into bins that are then too full is counted
again in finer ones. What lay in a bin before it was split, never more than the limits above, is
handed on in proportion at the end.

All counts are whole numbers, also the weights 1/area of AUPRO and AUPIMO (in units of 2^-40), so
the number of threads changes nothing, and what other processes have counted can be added.

Letters: N pictures   S slots (bins and split bins)   Q listed pixels   C = 5 channels: normal
pixels of anomalous pictures, those of normal pictures, pixels of regions, the sum of their weights
1/area of the region, and of their weights 1/area of the picture's mask.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from mambaad.metrics.arrays import BoolArray
from mambaad.metrics.bins_kernels import (
    CHANNELS,
    FAN,
    ROOTS,
    add_kernel,
    collect_kernel,
    count_kernel,
    gather_kernel,
    keys_kernel,
    merge_kernel,
    order_kernel,
    overfull_children_kernel,
    overfull_kernel,
    split_kernel,
    spread_kernel,
    within_kernel,
)
from mambaad.metrics.pimo import picture_weights
from mambaad.metrics.regions import region_weights
from mambaad.threads import NUMBA_LOCK, numba_threads

SHARE = 1e-5
"""Largest share of the normal pixels in a bin."""

TAIL = 4e-4
"""Largest number of normal pixels in a bin, as a share of those above it."""

FOUND = 5e-5
"""Largest share of the regions' pixels in a bin."""

MOST_SLOTS = 1 << 22
"""Where splitting ends: 190 MB, and about 0.6 GB for a moment when metrics are made of them. Maps
of one category need a quarter of it."""

_UNIT = 2.0**40
_MOST_THREADS = 8  # each has counters of its own

Counts = NDArray[np.int64]
_Pixels = tuple[NDArray[np.int32], BoolArray, BoolArray]  # bits, masks: (N, H W); normal: (N,)


class ScoreBins:
    """A tree of bins over all float32 numbers, and what was counted in each."""

    def __init__(self) -> None:
        """Start with no pixels."""
        self.slots = ROOTS
        self._child = np.full(ROOTS, -1, np.int32)
        self._free = np.full(ROOTS, 16, np.int8)  # bits that a slot leaves open
        self._counts = np.zeros((ROOTS, CHANNELS), np.int64)
        self._zeros = np.zeros((0, 2, 0), np.int32)

    @property
    def totals(self) -> Counts:
        """(C,), the sum over all bins."""
        found: Counts = self._counts[: self.slots].sum(axis=0)
        return found

    def count(self, maps: NDArray[np.float32], masks: BoolArray) -> None:
        """Count the pixels of some pictures.

        Args:
            maps: (N, H, W), finite.
            masks: (N, H, W).
        """
        regions, _ = region_weights(masks)
        weights = np.stack((regions, picture_weights(masks)), axis=1)
        keys = np.empty(len(weights), np.uint32)
        keys_kernel(maps[masks].view(np.int32), keys)
        kinds = np.full(len(keys), 2, np.uint8)
        listed = _Listed(keys, kinds, np.rint(weights * _UNIT).astype(np.int64))
        flat = np.ascontiguousarray(maps).reshape(len(maps), -1).view(np.int32)
        flat_masks = np.ascontiguousarray(masks).reshape(len(maps), -1)
        normal: BoolArray = np.logical_not(flat_masks.any(axis=1))
        pixels: _Pixels = (flat, flat_masks, normal)
        child, counts = self._child[: self.slots], self._counts[: self.slots]
        by_thread = self._scratch()
        with NUMBA_LOCK:
            count_kernel(*pixels, child, by_thread)
            sizes = by_thread.sum(axis=1)
            collect_kernel(by_thread, counts)
        add_kernel(*listed.arrays, child, counts, 1)
        full, above = self._overfull()
        if len(full):
            flagged = np.zeros(self.slots, np.bool_)
            flagged[full] = True
            starts = np.cumsum(sizes[:, full].sum(axis=1, dtype=np.int64))
            again = _gather(pixels, child, flagged, starts)
            self._refine(full, above, listed.within(child, flagged).joined(again))

    def merge(self, other: ScoreBins) -> None:
        """Add what another one has counted."""
        self._reserve(min(self.slots + other.slots - ROOTS, MOST_SLOTS))
        self.slots = int(
            merge_kernel(
                self._child,
                self._free,
                self._counts,
                other._child[: other.slots],
                other._counts[: other.slots],
                self.slots,
            )
        )

    def ordered(self) -> tuple[NDArray[np.float64], BoolArray]:
        """Counts of the bins that hold pixels, (K, C), highest scores first.

        Returns:
            The counts, whole but for what was handed on from split bins, and (K,): whether the
            bin is one single number, so that all of its pixels are equal.
        """
        child = self._child[: self.slots]
        counts = self._counts[: self.slots].astype(np.float64)
        spread_kernel(child, counts)
        order = np.empty(self.slots, np.int64)
        order = order[: int(order_kernel(child, counts, order))]
        return counts[order], self._free[order] == 0

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Everything, as arrays."""
        return {
            "child": self._child[: self.slots].copy(),
            "free": self._free[: self.slots].copy(),
            "counts": self._counts[: self.slots].copy(),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> ScoreBins:
        """What ``to_arrays`` was called on."""
        bins = cls()
        bins._child = np.array(arrays["child"])
        bins._free = np.array(arrays["free"])
        bins._counts = np.array(arrays["counts"])
        bins.slots = len(bins._child)
        return bins

    def _refine(self, full: Counts, above: Counts, listed: _Listed) -> None:
        """Split slots until none is too full.

        Args:
            full: Those that are.
            above: Normal pixels, and those of normal pictures, that are above each.
            listed: The pixels of this chunk that lie in them; they are counted again.
        """
        limits = self._limits()
        while len(full):
            before = self.slots
            add_kernel(*listed.arrays, self._child[:before], self._counts[:before], -1)
            self._reserve(min(before + FAN * len(full), MOST_SLOTS))
            self.slots = int(split_kernel(self._child, self._free, full, before))
            tree = (self._child[: self.slots], self._free[: self.slots])
            counts = self._counts[: self.slots]
            add_kernel(*listed.arrays, tree[0], counts, 1)
            parents, above_parents = full, above
            most = self.slots - before
            full, above = np.empty(most, np.int64), np.empty((most, 2), np.int64)
            found = int(
                overfull_children_kernel(parents, above_parents, *tree, counts, limits, full, above)
            )
            full, above = full[:found], above[:found]
            flagged = np.zeros(self.slots, np.bool_)
            flagged[full] = True
            listed = listed.within(tree[0], flagged)

    def _overfull(self) -> tuple[Counts, Counts]:
        """Slots that hold too much, and what is above them: see ``_refine``."""
        if self.slots + FAN > MOST_SLOTS:
            return np.empty(0, np.int64), np.empty((0, 2), np.int64)
        full, above = np.empty(self.slots, np.int64), np.empty((self.slots, 2), np.int64)
        found = overfull_kernel(
            self._child[: self.slots],
            self._free[: self.slots],
            self._counts[: self.slots],
            self._limits(),
            full,
            above,
        )
        return full[:found].copy(), above[:found].copy()

    def _limits(self) -> NDArray[np.float64]:
        totals = self.totals
        normal = totals[:2].sum()
        return np.array([SHARE * normal, SHARE * totals[1], FOUND * totals[2], TAIL])

    def _scratch(self) -> NDArray[np.int32]:
        """Zeros, (T, 2, slots or more), that are kept from chunk to chunk."""
        numba_threads()
        threads = max(1, min(numba.get_num_threads(), _MOST_THREADS))
        if self._zeros.shape[0] != threads or self._zeros.shape[2] < self.slots:
            self._zeros = np.zeros((threads, 2, len(self._child)), np.int32)
        return self._zeros

    def _reserve(self, slots: int) -> None:
        have = len(self._child)
        if slots <= have:
            return
        # half as much again, so that it is not done often
        more = max(slots, min(have + have // 2, MOST_SLOTS)) - have
        self._child = np.concatenate((self._child, np.full(more, -1, np.int32)))
        self._free = np.concatenate((self._free, np.zeros(more, np.int8)))
        self._counts = np.concatenate((self._counts, np.zeros((more, CHANNELS), np.int64)))


@dataclass(frozen=True)
class _Listed:
    """Single pixels: those of regions, and those that have to be counted again."""

    keys: NDArray[np.uint32]
    """(Q,)."""

    kinds: NDArray[np.uint8]
    """(Q,), the channel to count the pixel in."""

    weights: Counts
    """(R, 2), the two weights of the first R pixels, which are those of regions."""

    @property
    def arrays(self) -> tuple[NDArray[np.uint32], NDArray[np.uint8], Counts]:
        return self.keys, self.kinds, self.weights

    def within(self, child: NDArray[np.int32], flagged: BoolArray) -> _Listed:
        """Those whose slot is flagged."""
        kept = np.empty(len(self.keys), np.bool_)
        within_kernel(self.keys, child, flagged, kept)
        return _Listed(self.keys[kept], self.kinds[kept], self.weights[kept[: len(self.weights)]])

    def joined(self, normal: _Listed) -> _Listed:
        """These and, behind them, pixels outside of regions."""
        return _Listed(
            np.concatenate((self.keys, normal.keys)),
            np.concatenate((self.kinds, normal.kinds)),
            self.weights,
        )


def _gather(pixels: _Pixels, child: NDArray[np.int32], flagged: BoolArray, ends: Counts) -> _Listed:
    """The pixels outside regions whose slot is flagged.

    Args:
        pixels: Of this chunk.
        child: The tree.
        flagged: (S,).
        ends: (T,), how many the threads up to each one will find.
    """
    keys = np.empty(ends[-1], np.uint32)
    kinds = np.empty(ends[-1], np.uint8)
    starts = np.concatenate(([0], ends[:-1]))
    with NUMBA_LOCK:
        gather_kernel(*pixels, child, flagged, starts, keys, kinds)
    return _Listed(keys, kinds, np.zeros((0, 2), np.int64))
