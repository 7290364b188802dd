"""Clock, quartiles and peaks; on the CPU, where the tests run."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mambaad.measure import WARM_UP, Clock, peaks, quartiles

CPU = torch.device("cpu")
MEGA = 2**20


def test_a_clock_gives_the_milliseconds_between_its_marks() -> None:
    clock = Clock(CPU)
    clock.mark()
    time.sleep(0.02)
    clock.mark()
    clock.mark()
    first, second = clock.intervals()
    assert first >= 20
    assert second < first
    assert clock.intervals() == []


def test_quartiles_are_of_the_calls_after_the_warm_up() -> None:
    calls: list[int] = []

    def call() -> None:
        calls.append(1)
        time.sleep(0.03 if len(calls) <= WARM_UP else 0.002 * (len(calls) - WARM_UP))

    low, middle, high = quartiles(call, CPU, 5)
    assert len(calls) == WARM_UP + 5
    assert 4 <= low <= middle <= high < 30
    assert middle >= 6


def measured(work: Callable[[Callable[[], None]], object], held: list[Tensor]) -> list[float]:
    """Peaks in MiB."""
    return [peak / MEGA for peak in peaks(work, held, CPU)]


@pytest.mark.parametrize("inference", [False, True])
def test_peaks_are_of_the_tensors_that_live_at_once(inference: bool) -> None:
    held = torch.ones(MEGA, dtype=torch.uint8)

    def work(mark: Callable[[], None]) -> None:
        mark()
        kept = held + 1  # 2 in all
        twice = torch.cat([kept, kept])  # 4
        del twice
        mark()
        views = [held.view(2, -1), kept[:10], kept.t()]  # nothing new
        kept.add_(1)
        mark()
        wide = views[2].to(torch.float64)  # 10
        del kept, views
        mark()
        wide.sum()
        mark()

    with torch.inference_mode(inference):
        found = measured(work, [held, held.view(-1)])
    assert [round(peak, 3) for peak in found] == [4, 2, 10, 9]


def test_a_layers_weights_are_not_counted_twice() -> None:
    layer = torch.nn.Linear(512, 512, bias=False)
    x = torch.ones(256, 512)

    def work(mark: Callable[[], None]) -> None:
        mark()
        layer(x)
        mark()

    with torch.no_grad():
        (peak,) = measured(work, [layer.weight, x])
    assert peak == 1 + 0.5 + 0.5
