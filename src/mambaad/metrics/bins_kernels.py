"""The compiled loops of ``bins``: finding a pixel's slot, counting, splitting, listing in order.

A score becomes a whole number, its *key*: the bits of the float32, changed so that keys ascend with
scores. The upper 16 bits of the key are its slot among the 65 536 roots. A slot may have a page of
16 children, which the next 4 bits choose among, and so on down to a slot of one single key.

All compiled code is in this one file, because numba's cache on disk only notices a change in the
file of the function that it keeps.

Letters: S slots   C channels (see ``bins``)   T threads   Q listed pixels
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, prange

ROOTS = 1 << 16
FAN = 16
"""Children of a slot that is split."""

CHANNELS = 5


@njit(inline="always")
def _key(bits: Any) -> Any:
    """The bits of a float32 as a whole number, 0 to 2^32 - 1, that ascends with the score."""
    wide = np.int64(bits)
    if wide < 0:  # the lower the score, the higher its bits; -0.0 becomes 0.0
        wide = np.int64(-0x80000000) - wide
    return wide + np.int64(0x80000000)


@njit(inline="always")
def _slot_of(key: Any, child: Any) -> Any:
    slot = key >> np.int64(16)
    shift = np.int64(12)
    below = np.int64(child[slot])
    while below >= 0:
        slot = below + ((key >> shift) & np.int64(15))
        shift -= np.int64(4)
        below = np.int64(child[slot])
    return slot


@njit(parallel=True, cache=True)
def count_kernel(bits: Any, masks: Any, normal: Any, child: Any, counts: Any) -> None:
    """Count the pixels outside regions: ``counts`` (T, 2, S), int32, by thread, channel.

    Each thread takes pictures side by side: ``bits``, ``masks`` (N, pixels), ``normal`` (N,).
    """
    pictures, pixels = bits.shape
    threads = counts.shape[0]
    for thread in prange(threads):
        first = pictures * thread // threads
        last = pictures * (thread + 1) // threads
        for n in range(first, last):
            row = counts[thread, 1 if normal[n] else 0]
            if normal[n]:
                for i in range(pixels):
                    row[_slot_of(_key(bits[n, i]), child)] += np.int32(1)
            else:
                for i in range(pixels):
                    if not masks[n, i]:
                        row[_slot_of(_key(bits[n, i]), child)] += np.int32(1)


@njit(parallel=True, cache=True)
def collect_kernel(counts: Any, total: Any) -> None:
    """Add the threads' counts (T, 2, S or more) to ``total`` (S, C), and set them to 0 again."""
    threads = counts.shape[0]
    for slot in prange(total.shape[0]):
        for c in range(2):
            found = np.int64(0)
            for thread in range(threads):
                found += counts[thread, c, slot]
                counts[thread, c, slot] = np.int32(0)
            if found:
                total[slot, c] += found


@njit(parallel=True, cache=True)
def gather_kernel(
    bits: Any, masks: Any, normal: Any, child: Any, flagged: Any, starts: Any,
    keys: Any, channels: Any,
) -> None:  # fmt: skip
    """List the pixels outside regions whose slot is flagged, thread by thread from ``starts``."""
    pictures, pixels = bits.shape
    threads = starts.shape[0]
    for thread in prange(threads):
        first = pictures * thread // threads
        last = pictures * (thread + 1) // threads
        at = starts[thread]
        for n in range(first, last):
            channel = np.uint8(1 if normal[n] else 0)
            for i in range(pixels):
                if not masks[n, i]:
                    key = _key(bits[n, i])
                    if flagged[_slot_of(key, child)]:
                        keys[at] = key
                        channels[at] = channel
                        at += 1


@njit(cache=True)
def keys_kernel(bits: Any, keys: Any) -> None:
    """Keys, uint32, of the bits of scores."""
    for i in range(bits.shape[0]):
        keys[i] = _key(bits[i])


@njit(cache=True)
def add_kernel(
    keys: Any, channels: Any, weights: Any, child: Any, counts: Any, sign: Any
) -> None:  # fmt: skip
    """Count listed pixels, or take them off: ``channels`` (Q,), ``weights`` of the first of them.

    Those of regions come first and have two weights each.
    """
    for i in range(keys.shape[0]):
        slot = _slot_of(np.int64(keys[i]), child)
        channel = channels[i]
        counts[slot, channel] += sign
        if channel == 2:
            counts[slot, 3] += sign * weights[i, 0]
            counts[slot, 4] += sign * weights[i, 1]


@njit(cache=True)
def within_kernel(keys: Any, child: Any, flagged: Any, kept: Any) -> None:
    """Whether the slot of every key is flagged."""
    for i in range(keys.shape[0]):
        kept[i] = flagged[_slot_of(np.int64(keys[i]), child)]


@njit(inline="always")
def _too_full(slot: Any, free: Any, counts: Any, limits: Any, above: Any, above_normal: Any) -> Any:
    """Whether a slot without children should have some; ``limits`` as in ``overfull_kernel``."""
    if free[slot] == 0:
        return False
    normal = counts[slot, 1]
    negatives = normal + counts[slot, 0]
    positives = counts[slot, 2]
    most, most_normal = limits[3] * above, limits[3] * above_normal
    # near the top a single pixel is split off as well: the next one might join it in a later chunk
    if negatives + positives > 1:
        most, most_normal = min(most, limits[0]), min(most_normal, limits[1])
    return negatives > most or normal > most_normal or positives > limits[2]


@njit(cache=True)
def overfull_kernel(
    child: Any, free: Any, counts: Any, limits: Any, full: Any, above: Any
) -> Any:  # fmt: skip
    """List the slots that hold too many pixels, and return how many they are.

    ``limits``: normal pixels, those of normal pictures and those of regions that a slot may hold;
    then the share of those above that it may hold. ``full`` (S,): slots, ``above`` (S, 2): normal
    pixels, and those of normal pictures, in the slots of higher scores.
    """
    higher = np.int64(0)
    higher_normal = np.int64(0)
    found = 0
    stack = np.empty(128, np.int64)
    for root in range(ROOTS - 1, -1, -1):
        size = 1
        stack[0] = root
        while size:
            size -= 1
            slot = stack[size]
            below = child[slot]
            if below >= 0:
                for i in range(FAN):
                    stack[size + i] = below + i
                size += FAN
            elif _too_full(slot, free, counts, limits, higher, higher_normal):
                full[found] = slot
                above[found, 0] = higher
                above[found, 1] = higher_normal
                found += 1
            higher += counts[slot, 0] + counts[slot, 1]
            higher_normal += counts[slot, 1]
    return found


@njit(cache=True)
def overfull_children_kernel(
    parents: Any, above: Any, child: Any, free: Any, counts: Any, limits: Any,
    full: Any, above_full: Any,
) -> Any:  # fmt: skip
    """``overfull_kernel`` for the children of some slots, whose ``above`` are known."""
    found = 0
    for p in range(parents.shape[0]):
        first = np.int64(child[parents[p]])
        if first < 0:
            continue
        higher = above[p, 0]
        higher_normal = above[p, 1]
        for slot in range(first + FAN - 1, first - 1, -1):
            if _too_full(slot, free, counts, limits, higher, higher_normal):
                full[found] = slot
                above_full[found, 0] = higher
                above_full[found, 1] = higher_normal
                found += 1
            higher += counts[slot, 0] + counts[slot, 1]
            higher_normal += counts[slot, 1]
    return found


@njit(cache=True)
def split_kernel(child: Any, free: Any, full: Any, slots: Any) -> Any:
    """Give slots a page of children behind the last slot, while there is room.

    Returns:
        The new number of slots.
    """
    for f in range(full.shape[0]):
        if slots + FAN <= child.shape[0]:
            slot = full[f]
            child[slot] = slots
            for i in range(slots, slots + FAN):
                child[i] = -1
                free[i] = free[slot] - 4
            slots += FAN
    return slots


@njit(cache=True)
def merge_kernel(child: Any, free: Any, old: Any, other_child: Any, other: Any, slots: Any) -> Any:
    """Add another tree's counts to the slots of the same keys; return the new number of slots.

    What has no slot here, and finds no room for one, is added to the slot around it.
    """
    where = np.empty(other_child.shape[0], np.int64)
    where[:ROOTS] = np.arange(ROOTS)
    for slot in range(other_child.shape[0]):  # a page always lies behind its parent
        here = where[slot]
        for c in range(CHANNELS):
            old[here, c] += other[slot, c]
        first = other_child[slot]
        if first < 0:
            continue
        if child[here] < 0 and free[here] > 0 and slots + FAN <= child.shape[0]:
            child[here] = slots
            for i in range(slots, slots + FAN):
                child[i] = -1
                free[i] = free[here] - 4
            slots += FAN
        for i in range(FAN):
            where[first + i] = child[here] + i if child[here] >= 0 else here
    return slots


@njit(cache=True)
def spread_kernel(child: Any, counts: Any) -> None:
    """Hand what split slots hold of their own to their leaves, in proportion: ``counts`` (S, C).

    A channel of which the children hold nothing is handed on like the pixels of all channels.
    """
    slots = child.shape[0]
    below = counts.copy()
    for slot in range(slots - 1, -1, -1):
        if child[slot] >= 0:
            for i in range(child[slot], child[slot] + FAN):
                for c in range(CHANNELS):
                    below[slot, c] += below[i, c]
    for slot in range(slots):
        first = child[slot]
        if first < 0:
            continue
        pixels = 0.0
        for i in range(first, first + FAN):
            pixels += below[i, 0] + below[i, 1] + below[i, 2]
        for c in range(CHANNELS):
            own = counts[slot, c]
            if own == 0.0:
                continue
            total = 0.0
            for i in range(first, first + FAN):
                total += below[i, c]
            for i in range(first, first + FAN):
                if total > 0.0:
                    part = below[i, c] / total
                elif pixels > 0.0:
                    part = (below[i, 0] + below[i, 1] + below[i, 2]) / pixels
                else:
                    part = 1.0 / FAN
                counts[i, c] += own * part
            counts[slot, c] = 0.0


@njit(cache=True)
def order_kernel(child: Any, counts: Any, order: Any) -> Any:
    """The slots that hold pixels and have no children, highest scores first; return how many."""
    stack = np.empty(128, np.int64)
    found = 0
    for root in range(ROOTS - 1, -1, -1):
        size = 1
        stack[0] = root
        while size:
            size -= 1
            slot = stack[size]
            if child[slot] >= 0:
                for i in range(FAN):
                    stack[size] = child[slot] + i
                    size += 1
            elif counts[slot, 0] + counts[slot, 1] + counts[slot, 2] > 0:
                order[found] = slot
                found += 1
    return found
