"""A function of a batch on the GPU as CUDA graphs: one launch instead of a thousand.

A graph is captured for every shape that comes, with the batch filled up to the next of ``BUCKETS``;
larger batches are split. A graph reads its input, and whatever else the function reads, at the
address that it had at the capture: parameters changed in place are seen, replaced ones are not.
All graphs share one pool of memory, so they run one after the other, in whichever threads and on
whichever streams they are called.
"""

from __future__ import annotations

import gc
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from mambaad.errors import first_line

BUCKETS = (1, 2, 4, 8, 16, 32, 64)
"""Batch sizes that graphs are captured for."""

MAX_GRAPHS = 16
"""Graphs kept; the one not used for longest is dropped for a new one."""

_WARM_UPS = 2  # kernels are compiled, libraries set up and constants made before the capture
_log = logging.getLogger(__name__)

_failed: list[torch.cuda.CUDAGraph] = []
# Never dropped: torch's memory for pinned tensors may go on asking them (torch 2.11).

Function = Callable[[Tensor], tuple[Tensor, ...]]
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Graph:
    """A captured call."""

    batch: Tensor
    """What it reads."""

    results: tuple[Tensor, ...]
    """What it writes."""

    replay: Callable[[], None]
    """Runs it."""


class Replay:
    """Calls a function through CUDA graphs. Safe to call from several threads."""

    _pool: Any
    _stream: torch.cuda.Stream
    _last: torch.cuda.Event

    def __init__(self, function: Function, device: torch.device) -> None:
        """Wrap a function; nothing is captured yet.

        Args:
            function: From a batch, (B, ...), to tensors (B, ...), each row from its own row only.
                One that cannot be captured (it waits for the GPU, say) is called as it is.
            device: Where the batches will be, CUDA.
        """
        self._function = function
        self._device = device
        self._graphs: OrderedDict[tuple[object, ...], Graph | None] = OrderedDict()
        self._lock = threading.Lock()
        self._complained = False
        self._set_up()

    def __call__(self, batch: Tensor) -> tuple[Tensor, ...]:
        """The function's results, the caller's own, in the order of the current stream."""
        if len(batch) > BUCKETS[-1]:
            parts = [self(part) for part in batch.split(BUCKETS[-1])]
            return tuple(torch.cat(part) for part in zip(*parts, strict=True))
        # static tensors outlive this call, and inference mode would forbid writing to them later
        with self._lock, torch.inference_mode(False), torch.no_grad(), self._in_turn():
            graph = self._find(batch)
            if graph is None:
                return self._function(batch)
            count = len(batch)
            graph.batch[:count].copy_(batch)
            graph.replay()
            return tuple(result[:count].clone() for result in graph.results)

    def _find(self, batch: Tensor) -> Graph | None:
        key = (bucket(len(batch)), *batch.shape[1:], batch.dtype)
        if key not in self._graphs:
            if len(self._graphs) >= MAX_GRAPHS:
                self._finish()  # a graph must not be dropped while it runs
                self._graphs.popitem(last=False)
            self._graphs[key] = self._capture(batch)
        self._graphs.move_to_end(key)
        return self._graphs[key]

    def _capture(self, batch: Tensor) -> Graph | None:
        """The function as a graph for batches like this; None if it cannot be captured."""
        static = batch.new_zeros((bucket(len(batch)), *batch.shape[1:]))
        static[: len(batch)].copy_(batch)
        stream = torch.cuda.current_stream()
        self._stream.wait_stream(stream)
        with torch.cuda.stream(self._stream):
            for _ in range(_WARM_UPS):
                self._function(static)
        stream.wait_stream(self._stream)
        try:
            replay, results = capture(
                lambda: self._function(static), self._device, self._stream, self._pool
            )
        except Exception as error:  # noqa: BLE001 - the function may raise anything
            if not self._complained:
                _log.info("no CUDA graph, each kernel is launched by itself: %s", cause_of(error))
            self._complained = True
            self._pool = torch.cuda.graph_pool_handle()  # torch may take the old one to be in use
            return None
        return Graph(static, results, replay)

    def _set_up(self) -> None:
        with torch.cuda.device(self._device):
            self._pool = torch.cuda.graph_pool_handle()
            self._stream = torch.cuda.Stream()
            self._last = torch.cuda.Event()

    def _finish(self) -> None:
        torch.cuda.synchronize(self._device)

    @contextmanager
    def _in_turn(self) -> Iterator[None]:
        """Let the current stream go on only when the last replay, on any stream, is over."""
        with torch.cuda.device(self._device):
            stream = torch.cuda.current_stream()
            stream.wait_event(self._last)
            try:
                yield
            finally:
                self._last.record(stream)


def capture(
    work: Callable[[], _Result],
    device: torch.device,
    stream: torch.cuda.Stream,
    pool: Any,
) -> tuple[Callable[[], None], _Result]:
    """Record what ``work`` puts into the device's queue, without running it.

    If that fails, random numbers, memory and the current stream are as they were before.

    Args:
        work: Has been run on ``stream`` before, so that nothing in it happens for the first time.
        device: Where it runs, CUDA.
        stream: To capture on; not the default one.
        pool: Where the graph's memory comes from, of ``torch.cuda.graph_pool_handle``.

    Returns:
        What runs the record, and the result of ``work``, which every run writes anew.

    Raises:
        RuntimeError: If ``work`` does what a graph cannot hold, such as reading a value back.
    """
    index = torch.cuda.current_device() if device.index is None else device.index
    generator = torch.cuda.default_generators[index]
    before = generator.clone_state()
    graph, begun = torch.cuda.CUDAGraph(), False
    # thread_local: other threads may go on allocating, one that prepares batches for instance
    recording = torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local")
    try:
        with torch.cuda.stream(stream), recording:  # the latter alone would not leave the stream
            begun = True
            result = work()
    except BaseException:
        # else random numbers and allocator take the capture to be going on for ever
        generator.graphsafe_set_state(before)
        if begun:
            _abandon(graph, index, pool)
        raise
    return graph.replay, result


def drop_workspaces() -> None:
    """Give back the memory that cuBLAS keeps for every thread and stream that has multiplied
    matrices, 32 MiB each on an H200, such as those that compiled kernels.

    A graph's kernels may go on using theirs: nothing is done while this process holds one.
    """
    drop = getattr(torch._C, "_cuda_clearCublasWorkspaces", None)  # torch's own name for it
    if drop is None or any(issubclass(type(x), torch.cuda.CUDAGraph) for x in gc.get_objects()):
        return
    drop()


def _abandon(graph: torch.cuda.CUDAGraph, index: int, pool: Any) -> None:
    """Give back the memory of a capture that failed."""
    _failed.append(graph)
    # some versions of torch have ended it, and refuse to do so twice; others name this otherwise
    with suppress(RuntimeError, AttributeError):
        torch._C._cuda_endAllocateToPool(index, pool)
    try:
        graph.pool()
    except RuntimeError:  # it holds nothing, so it will not release the memory either
        with suppress(RuntimeError, AttributeError):
            torch._C._cuda_releasePool(index, pool)
    else:
        graph.reset()


def cause_of(error: Exception) -> str:
    """Why a capture failed, in a line: the end of a broken one hides what broke it."""
    return first_line(error.__context__ or error)


def bucket(count: int) -> int:
    """The smallest of ``BUCKETS`` that holds ``count`` rows, at most the largest.

    >>> bucket(1), bucket(3), bucket(64)
    (1, 4, 64)
    """
    return next((size for size in BUCKETS if size >= count), BUCKETS[-1])
