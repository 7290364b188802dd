"""CUDA graphs by shape. The capture itself needs a GPU; what surrounds it does not."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from mambaad.replay import BUCKETS, MAX_GRAPHS, Graph, Replay, bucket


class Faked(Replay):
    """Replays by calling the function again on the static batch."""

    def _set_up(self) -> None:
        self.captured: list[tuple[int, ...]] = []
        self.finished = 0

    def _finish(self) -> None:
        self.finished += 1

    @contextmanager
    def _in_turn(self) -> Iterator[None]:
        assert self._lock.locked()
        yield

    def _capture(self, batch: Tensor) -> Graph | None:
        static = torch.zeros((bucket(len(batch)), *batch.shape[1:]), dtype=batch.dtype)
        self.captured.append(tuple(static.shape))
        if batch.shape[-1] == 13:
            return None
        results = tuple(torch.full_like(r, torch.nan) for r in self._function(static))

        def replay() -> None:
            for place, value in zip(results, self._function(static), strict=True):
                place.copy_(value)

        return Graph(static, results, replay)


def double_and_sum(batch: Tensor) -> tuple[Tensor, Tensor]:
    return 2 * batch, batch.sum(1)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 5, 64, 65, 150])
def test_any_batch_gives_the_functions_results(count: int) -> None:
    replay = Faked(double_and_sum, torch.device("cpu"))
    for seed in range(2):
        batch = torch.randn(count, 4, generator=torch.Generator().manual_seed(seed))
        for found, expected in zip(replay(batch), double_and_sum(batch), strict=True):
            assert torch.equal(found, expected)
    assert {shape[0] for shape in replay.captured} <= set(BUCKETS)
    assert len(replay.captured) == (2 if count > 64 else 1)


def test_results_are_the_callers_own() -> None:
    replay = Faked(double_and_sum, torch.device("cpu"))
    first = replay(torch.ones(2, 3))[0]
    replay(torch.zeros(2, 3))
    assert torch.equal(first, torch.full((2, 3), 2.0))


def test_a_graph_made_in_inference_mode_serves_outside_of_it() -> None:
    replay = Faked(double_and_sum, torch.device("cpu"))
    with torch.inference_mode():
        replay(torch.ones(1, 3))
    assert torch.equal(replay(torch.full((1, 3), 4.0))[1], torch.tensor([12.0]))


def test_types_and_shapes_have_graphs_of_their_own() -> None:
    replay = Faked(double_and_sum, torch.device("cpu"))
    for batch in (torch.ones(3, 5), torch.ones(4, 5), torch.ones(3, 6), torch.ones(3, 5).double()):
        assert replay(batch)[0].dtype == batch.dtype
    assert replay.captured == [(4, 5), (4, 6), (4, 5)]


def test_the_graph_not_used_for_longest_is_dropped() -> None:
    replay = Faked(double_and_sum, torch.device("cpu"))
    for width in range(20, 20 + MAX_GRAPHS):
        replay(torch.ones(1, width))
    replay(torch.ones(1, 20))
    replay(torch.ones(1, 90))
    assert replay.finished == 1
    count = len(replay.captured)
    replay(torch.ones(1, 20))
    assert len(replay.captured) == count
    replay(torch.ones(1, 21))
    assert len(replay.captured) == count + 1


def test_what_cannot_be_captured_is_called() -> None:
    replay = Faked(double_and_sum, torch.device("cpu"))
    for _ in range(2):
        assert torch.equal(replay(torch.ones(2, 13))[1], torch.tensor([13.0, 13.0]))
    assert replay.captured == [(2, 13)]  # tried once


class FakedCuda:
    """Stands for torch.cuda where a capture fails."""

    CUDAGraph = Stream = Event = object

    def current_stream(self) -> FakedCuda:
        return self

    def wait_stream(self, _: object) -> None: ...

    @contextmanager
    def stream(self, _: object) -> Iterator[None]:
        yield

    @contextmanager
    def graph(self, *_: object, **__: object) -> Iterator[None]:
        yield
        raise RuntimeError("operation not permitted when stream is capturing\nmore lines")


def test_a_failed_capture_is_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    faked = FakedCuda()
    monkeypatch.setattr(torch, "cuda", faked)
    capture: Callable[[Replay, Tensor], Graph | None] = Replay._capture
    replay = Faked(double_and_sum, torch.device("cpu"))
    replay._stream, replay._pool = faked, (0, 0)  # type: ignore[assignment]
    with caplog.at_level(logging.INFO, "mambaad"):
        assert capture(replay, torch.ones(3, 5)) is None
        assert capture(replay, torch.ones(5, 5)) is None
    expected = "no CUDA graph, each kernel is launched by itself: operation not permitted when"
    assert [expected in r.getMessage() for r in caplog.records] == [True]
    assert "\n" not in caplog.records[0].getMessage()
