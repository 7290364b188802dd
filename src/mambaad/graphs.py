"""A training step as one CUDA graph: captured once, then launched as a whole.

The first steps run kernel by kernel and train for real; they also compile, choose algorithms and
make the optimiser's state. Then the same function is captured and replayed: the same kernels with
the same arguments, so the same bits. Its inputs must lie in buffers that stay where they are, and
drop path's random numbers continue torch's own sequence. What cannot be captured goes on as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from mambaad.replay import capture, cause_of

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
        record = self._capture if self._done == EAGER_STEPS else None
        if record is None or not self._begin(record):
            self._run()
        self._done += 1

    def _begin(self, record: Callable[[Work], Work]) -> bool:
        """Take this step by a graph, and all after it; if that fails, nothing of it is left."""
        try:
            replay = record(self._work)
            replay()  # a graph that the device has no room for fails here, before it begins
        except Exception as error:  # noqa: BLE001 - the method's own code may raise anything
            self._tell(f"training goes on without a CUDA graph, more slowly: {cause_of(error)}")
            return False
        self._run = replay
        return True


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
        replay, _ = capture(work, self._device, self._stream, torch.cuda.graph_pool_handle())
        return replay
