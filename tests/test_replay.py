"""CUDA graphs by shape. The capture itself needs a GPU; what surrounds it does not."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

import mambaad.replay as replay_module
from mambaad.replay import BUCKETS, MAX_GRAPHS, Graph, Replay, bucket, capture, cause_of


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
    """Stands for torch.cuda, whose captures end with an error if they are broken, and for the
    graph, the random numbers, the allocator and all streams in it."""

    Stream = Event = object

    def __init__(self, *, broken: bool = True, ended: bool = False) -> None:
        self.broken, self.ended = broken, ended
        self.done: list[object] = []
        self.current: object = "caller's"
        self.pools = 0
        self.default_generators = [self] * 3

    def CUDAGraph(self) -> FakedCuda:
        return self

    def current_device(self) -> int:
        return 0

    def graph_pool_handle(self) -> tuple[int, int]:
        self.pools += 1
        return 0, self.pools

    def current_stream(self) -> FakedCuda:
        return self

    def wait_stream(self, _: object) -> None: ...

    @contextmanager
    def stream(self, stream: object) -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    @contextmanager
    def graph(self, *_: object, **__: object) -> Iterator[None]:
        self.current = "capture's"  # as torch, which does not leave it after an error
        try:
            yield
        finally:
            if self.broken:
                raise RuntimeError("operation failed due to a previous error\nmore lines")

    def replay(self) -> None:
        self.done.append("replay")

    def reset(self) -> None:
        self.done.append("reset")

    def pool(self) -> None:
        if not self.ended:
            raise RuntimeError("without a preceding successful capture")

    def clone_state(self) -> str:
        return "random numbers before"

    def graphsafe_set_state(self, state: str) -> None:
        self.done.append(state)

    def end(self, *place: object) -> None:
        self.done.append(("end", *place))
        if self.ended:
            raise RuntimeError("not recording to this pool")

    def release(self, *place: object) -> None:
        self.done.append(("release", *place))


def faked(monkeypatch: pytest.MonkeyPatch, **state: bool) -> FakedCuda:
    cuda = FakedCuda(**state)
    monkeypatch.setattr(torch, "cuda", cuda)
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", cuda.end, raising=False)
    monkeypatch.setattr(torch._C, "_cuda_releasePool", cuda.release, raising=False)
    monkeypatch.setattr(replay_module, "_failed", [])
    return cuda


def test_a_capture_returns_what_replays_it_and_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = faked(monkeypatch, broken=False)
    replay, result = capture(lambda: 5, torch.device("cuda"), "lane", (0, 1))  # type: ignore[arg-type]
    replay()
    assert (result, cuda.done, cuda.current) == (5, ["replay"], "caller's")


@pytest.mark.parametrize(
    ("ended", "memory"),
    [(False, [("end", 2, "pool"), ("release", 2, "pool")]), (True, [("end", 2, "pool"), "reset"])],
)
def test_after_a_failed_capture_all_is_as_before(
    monkeypatch: pytest.MonkeyPatch, ended: bool, memory: list[object]
) -> None:
    cuda = faked(monkeypatch, ended=ended)

    def work() -> None:
        raise KeyError("what the function reads")

    with pytest.raises(RuntimeError) as caught:
        capture(work, torch.device("cuda:2"), "lane", "pool")  # type: ignore[arg-type]
    assert cause_of(caught.value) == "'what the function reads'"
    assert cuda.done == ["random numbers before", *memory]
    assert cuda.current == "caller's"
    assert replay_module._failed == [cuda]


def test_a_capture_that_does_not_begin_has_no_memory_to_give_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    @contextmanager
    def refuse(*_: object, **__: object) -> Iterator[None]:
        raise RuntimeError("the device is gone")
        yield

    cuda = faked(monkeypatch)
    monkeypatch.setattr(cuda, "graph", refuse)
    with pytest.raises(RuntimeError, match="the device is gone"):
        capture(lambda: None, torch.device("cuda:0"), "lane", "pool")  # type: ignore[arg-type]
    assert cuda.done == ["random numbers before"]
    assert cuda.current == "caller's"


@pytest.mark.parametrize(
    ("error", "cause"),
    [(RuntimeError("not permitted\nmore"), "not permitted"), (KeyError(), "KeyError")],
)
def test_a_cause_is_a_line(error: Exception, cause: str) -> None:
    assert cause_of(error) == cause


def test_a_failed_capture_is_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cuda = faked(monkeypatch)
    attempt: Callable[[Replay, Tensor], Graph | None] = Replay._capture
    replay = Faked(double_and_sum, torch.device("cpu"))
    replay._stream, replay._pool = cuda, (0, 0)  # type: ignore[assignment]
    with caplog.at_level(logging.INFO, "mambaad"):
        assert attempt(replay, torch.ones(3, 5)) is None
        assert attempt(replay, torch.ones(5, 5)) is None
    assert replay._pool == (0, 2)  # torch may refuse the one of a failed capture
    assert cuda.current == "caller's"
    expected = "no CUDA graph, each kernel is launched by itself: operation failed due"
    assert [expected in r.getMessage() for r in caplog.records] == [True]
    assert "\n" not in caplog.records[0].getMessage()


@pytest.mark.parametrize("there", [True, False], ids=["cuda", "no cuda"])
@pytest.mark.parametrize("held", [False, True])
def test_workspaces_are_dropped_unless_a_graph_may_use_them(
    monkeypatch: pytest.MonkeyPatch, held: bool, there: bool
) -> None:
    """A torch without CUDA has none."""

    class Graph:
        """Stands for torch's, also those of a user."""

    dropped: list[int] = []
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    name = "_cuda_clearCublasWorkspaces"
    monkeypatch.setattr(torch._C, name, lambda: dropped.append(1), raising=False)
    if not there:
        monkeypatch.delattr(torch._C, name)
    graphs = [Graph()] if held else []
    replay_module.drop_workspaces()
    assert dropped == ([1] if there and not held else [])
    assert len(graphs) == held
