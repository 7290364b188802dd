"""A training step as one CUDA graph: captured once, then launched as a whole.

The first steps run kernel by kernel and train for real; they also compile, choose algorithms and
make the optimiser's state. Then the same function is captured and replayed: the same kernels with
the same arguments, so the same bits. Its inputs must lie in buffers that stay where they are, and
drop path's random numbers continue torch's own sequence. What cannot be captured goes on as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import torch

EAGER_STEPS = 3
"""Steps before the capture."""

Work = Callable[[], None]


class GraphedStep:
    """Calls a function, and after ``EAGER_STEPS`` calls what its capture left to replay.

    Args:
        work: The function. It takes its inputs from, and leaves its results in, fixed buffers.
        capture: Records a function without running it, and returns what runs the record; None
            never captures.
        tell: Told in a line why a capture failed.
    """

    def __init__(
        self, work: Work, capture: Callable[[Work], Work] | None, tell: Callable[[str], None]
    ) -> None:
        self._work = self._run = work
        self._capture = capture
        self._tell = tell
        self._done = 0

    def __call__(self) -> None:
        if self._capture is not None and self._done == EAGER_STEPS:
            try:
                self._run = self._capture(self._work)
            except Exception as error:  # noqa: BLE001 - the method's own code may raise anything
                cause = str(error).splitlines()[0] if str(error) else type(error).__name__
                self._tell(f"training goes on without a CUDA graph, more slowly: {cause}")
            self._capture = None
        self._run()
        self._done += 1


class Lane:
    """A stream of its own for the steps, since a capture cannot use the default one.

    Eager steps use it too: autograd ties a parameter's gradient to the stream it first met.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)

    @contextmanager
    def open(self) -> Iterator[None]:
        """Work inside comes after the caller's work so far, and before the caller's next."""
        outside = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(outside)
        try:
            with torch.cuda.stream(self._stream):
                yield
        finally:
            outside.wait_stream(self._stream)

    def capture(self, work: Work) -> Work:
        """Record ``work``, to be called inside ``open``; returns what replays it.

        Raises:
            RuntimeError: If it does what a graph cannot hold, such as reading a value back.
        """
        index = torch.cuda.current_device() if self._device.index is None else self._device.index
        generator = torch.cuda.default_generators[index]
        before = generator.clone_state()
        graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
        try:
            # other threads may go on: one that prepares batches allocates pinned memory
            with torch.cuda.graph(
                graph, pool=pool, stream=self._stream, capture_error_mode="thread_local"
            ):
                work()
        except BaseException:
            # else random numbers and allocator take the capture to be going on for ever (torch
            # before 2.12; later ones have ended it, and refuse to do so twice)
            generator.graphsafe_set_state(before)
            with suppress(RuntimeError):
                torch._C._cuda_endAllocateToPool(index, pool)
            raise
        replay: Work = graph.replay
        return replay
