"""How the benchmarks measure: on the device's own clock, medians with spread, peak memory.

On a GPU times are those between CUDA events, and what is timed is a replayed CUDA graph, so that
the host's launching is not part of it. On the CPU they are wall-clock times of plain calls.
"""

from __future__ import annotations

import gc
import statistics
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any, NoReturn

import torch
from torch import Tensor

SPREAD = ("median_ms", "p20_ms", "p80_ms")
"""The columns of ``spread``."""

Call = Callable[[], object]


def refuse(reason: str) -> NoReturn:
    """End with status 1 and one line.

    Raises:
        SystemExit: Always.
    """
    sys.exit(f"{reason}: nothing was timed")


def relative_error(found: Tensor, truth: Tensor) -> float:
    """L2 norm of the difference over that of ``truth``, in float64."""
    wide = truth.double()
    return float((found.double() - wide).norm() / wide.norm())


class Clock:
    """Marks on a device's time line."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._marks: list[Any] = []

    def mark(self) -> None:
        """Mark the end of the work so far; on a GPU without waiting for it."""
        if self._cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append(event)
        else:
            self._marks.append(time.perf_counter())

    def intervals(self) -> list[float]:
        """Milliseconds between the marks; waits for the last."""
        pairs = pairwise(self._marks)
        if self._cuda:
            self._marks[-1].synchronize()
            return [first.elapsed_time(second) for first, second in pairs]
        return [1e3 * (second - first) for first, second in pairs]


def timed(call: Call, device: torch.device, repeats: int) -> list[float]:
    """Milliseconds of each of ``repeats`` calls, made one behind the other after a first one."""
    clock = Clock(device)
    call()
    clock.mark()
    for _ in range(repeats):
        call()
        clock.mark()
    return clock.intervals()


def graphed(call: Call, device: torch.device, copies: int) -> Call:
    """On a GPU, ``copies`` calls as one CUDA graph; on the CPU a call as it is."""
    if device.type != "cuda":
        return call
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        call()  # compiles the kernels, which a capture could not
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for _ in range(copies):
            call()
    return graph.replay


def spread(times: list[float]) -> list[float]:
    """The median, 20th and 80th percentile of two numbers or more."""
    p20, _, _, p80 = statistics.quantiles(times, n=5, method="inclusive")
    return [statistics.median(times), p20, p80]


class PeakMemory:
    """The most GPU memory held at once since this was made: by tensors, and by torch in all."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        if device.type == "cuda":
            gc.collect()  # graphs and networks that nobody holds any more
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)

    def cells(self) -> list[str]:
        """GiB of both; empty on the CPU."""
        if self._device.type != "cuda":
            return ["", ""]
        held = torch.cuda.max_memory_allocated(self._device)
        reserved = torch.cuda.max_memory_reserved(self._device)
        return [f"{held / 2**30:.3f}", f"{reserved / 2**30:.3f}"]


def kernels_of(call: Call, device: torch.device) -> tuple[int, int, float]:
    """Kernels and copies that a call runs, and the share of the scan's kernels in their time.

    The few matrix products of the scan's backward pass at large ranks are not told from others.
    """
    from mambaad.scan import cuda_backward, cuda_forward, cuda_sums

    scan = {n for m in (cuda_forward, cuda_backward, cuda_sums) for n in vars(m)}
    torch.cuda.synchronize(device)
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CUDA], acc_events=True
    ) as profile:
        call()
        torch.cuda.synchronize(device)
    events = [e for e in profile.events() if e.device_type.name == "CUDA"]
    copies = [e for e in events if e.name.startswith(("Memcpy", "Memset"))]
    total = sum(e.time_range.elapsed_us() for e in events)
    own = sum(e.time_range.elapsed_us() for e in events if e.name in scan)
    return len(events) - len(copies), len(copies), own / total if total else 0.0
