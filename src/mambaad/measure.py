"""Time and memory of what a device does: its own clock, medians of repeats, and peaks.

On a CUDA device a time is that between two events in its queue and memory what torch's allocator
counts. On others time is the host's, and memory is that of the tensors which live at once, found by
watching what operators return; what an operator needs inside and gives back is not seen.
"""

from __future__ import annotations

import statistics
import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WARM_UP = 3
"""Calls that are made before any is timed."""


class Clock:
    """Marks on a device's own time line; the work between two marks is what it did meanwhile."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.moments: list[Any] = []

    def mark(self) -> None:
        """Mark the end of the work so far; on CUDA without waiting for it."""
        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.moments.append(event)
        else:
            synchronize(self.device)
            self.moments.append(time.perf_counter())

    def intervals(self) -> list[float]:
        """Milliseconds between the marks so far, which are forgotten."""
        synchronize(self.device)
        moments, self.moments = self.moments, []
        pairs = pairwise(moments)
        if self.device.type == "cuda":
            return [first.elapsed_time(second) for first, second in pairs]
        return [1000 * (second - first) for first, second in pairs]


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all that it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def quartiles(
    call: Callable[[], object], device: torch.device, repeats: int
) -> tuple[float, float, float]:
    """Milliseconds of a call: lower quartile, median, upper quartile.

    Args:
        call: Called ``WARM_UP`` times before.
        device: Where it works.
        repeats: Timed calls, at least 2.
    """
    clock = Clock(device)
    for _ in range(WARM_UP):
        call()
    times = []
    for _ in range(repeats):
        clock.mark()
        call()
        clock.mark()
        times += clock.intervals()
    low, middle, high = statistics.quantiles(times, n=4, method="inclusive")
    return low, middle, high


def peaks(
    work: Callable[[Callable[[], None]], object], held: Sequence[Tensor], device: torch.device
) -> list[int]:
    """The most bytes held at once between the marks that ``work`` makes.

    Args:
        work: Gets the function to mark with. On CUDA each mark waits for the device.
        held: Tensors that are there before: weights, inputs. On CUDA torch knows of them, and of
            all others.
        device: Where it works.
    """
    if device.type == "cuda":
        return _peaks_of_the_allocator(work, device)
    watch = _Watch(held)
    with watch:
        work(watch.mark)
    return watch.peaks[1:]


def _peaks_of_the_allocator(
    work: Callable[[Callable[[], None]], object], device: torch.device
) -> list[int]:
    found: list[int] = []

    def mark() -> None:
        torch.cuda.synchronize(device)
        found.append(torch.cuda.max_memory_allocated(device))
        torch.cuda.reset_peak_memory_stats(device)

    work(mark)
    return found[1:]


class _Watch(TorchDispatchMode):
    """While it is open, counts the bytes of the tensors that operators return and that live yet."""

    def __init__(self, held: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peaks: list[int] = []
        self._storages: set[int] = set()
        self._now = self._peak = 0
        for tensor in held:
            self._add(tensor)

    def mark(self) -> None:
        """Note the peak since the last mark, and begin anew."""
        self.peaks.append(self._peak)
        self._peak = self._now

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self._add(value)
        return result

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._storages:  # a view, or written in place
            return
        self._storages.add(key)
        self._now += size
        self._peak = max(self._peak, self._now)
        weakref.finalize(storage, self._remove, key, size).atexit = False

    def _remove(self, key: int, size: int) -> None:
        self._storages.discard(key)
        self._now -= size
