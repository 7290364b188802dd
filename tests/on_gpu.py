"""What only a GPU can show; ``scripts/check-gpu`` runs it, the ordinary tests do not."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from test_fused_optimiser import DEVICE, draw, made, take_steps
from test_inference import every_value
from torch import Tensor, nn

from mambaad.config import IMAGENET_MEAN, IMAGENET_STD
from mambaad.data.tensors import normalise
from mambaad.graphs import GraphedStep, Lane
from mambaad.inference import Normaliser
from mambaad.model.fold import ConvReLU
from mambaad.optimisers import StableAdamW


def test_there_is_a_gpu() -> None:
    assert torch.cuda.is_available(), "scripts/check-gpu is for a machine with a CUDA GPU"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_normalising_at_once_is_one_kernel(dtype: torch.dtype) -> None:
    """In bf16 the steps' values; in float32 at least as near to float64 as the steps, which on a
    GPU multiply by a rounded 1/255 and so are up to 6.0e-7 off."""
    pictures = every_value().cuda()
    at_once, steps = Normaliser(pictures.device, dtype), normalise(pictures)
    found = at_once(pictures)
    assert found.dtype == dtype
    if dtype == torch.bfloat16:
        assert torch.equal(found, steps.bfloat16())
    else:
        mean, std = (
            torch.tensor(v, dtype=torch.float64, device="cuda").view(3, 1, 1)
            for v in (IMAGENET_MEAN, IMAGENET_STD)
        )
        exact = (pictures.permute(0, 3, 1, 2).double() / 255 - mean) / std
        assert (found - exact).abs().max() <= (steps - exact).abs().max()
    # torch 2.11 warns without acc_events: https://github.com/pytorch/pytorch/pull/180387
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities, acc_events=True) as seen:
        at_once(pictures)
        torch.cuda.synchronize()
    assert len([e for e in seen.events() if e.device_type.name == "CUDA"]) == 1


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize(
    ("inputs", "size", "stride"), [(3, 7, 2), (64, 3, 1), (64, 3, 2), (64, 1, 1), (64, 1, 2)]
)
def test_one_call_on_a_gpu(inputs: int, size: int, stride: int, residual: bool) -> None:
    """As near to float64 as the three steps, whatever the result's memory held before."""
    torch.manual_seed(0)
    convolution = nn.Conv2d(inputs, 64, size, stride=stride, padding=size // 2).cuda().bfloat16()
    joined = ConvReLU(convolution.to(memory_format=torch.channels_last)).requires_grad_(False)  # type: ignore[call-overload]
    x = torch.randn(4, inputs, 32, 32, device="cuda").bfloat16()
    exact = deepcopy(convolution).double()(x.double())
    z = torch.randn_like(exact).bfloat16() if residual else None
    exact = (exact if z is None else exact + z).relu()
    stale = [torch.full_like(exact, torch.nan, dtype=torch.bfloat16) for _ in range(8)]
    del stale
    found = joined(x, z)
    again = joined(x, z)
    joined.refused = True
    steps = joined(x, z)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(found, again)
    assert (found - exact).abs().max() <= 1.01 * (steps - exact).abs().max()


def test_the_optimiser_in_a_cuda_graph() -> None:
    """The same bits as eagerly, while the rate changes and other memory comes and goes."""

    def run(capture: Callable[[Lane], Any]) -> list[Tensor]:
        weights = [nn.Parameter(w) for w in draw(0)]
        optimizer = made(weights)
        for group in optimizer.param_groups:
            group["lr"] = torch.tensor(0.1, device=DEVICE)
        factor = torch.ones((), device=DEVICE)

        def work() -> None:
            optimizer.zero_grad(set_to_none=True)
            for i, w in enumerate(weights):
                ((factor - w) ** 2 * (i + 1)).sum().backward()
            optimizer.step()

        lane = Lane(DEVICE)
        step = GraphedStep(work, capture(lane), pytest.fail)
        for number in range(9):
            with lane.open():
                factor.fill_(3.0**number)
                for group in optimizer.param_groups:
                    group["lr"].fill_(0.1 / (number + 1))
                step()
            for size in (2**k for k in range(3, 17)):
                torch.full((size,), -1, pin_memory=True)
                torch.full((size,), -1, device=DEVICE)
        torch.cuda.synchronize()
        found = [w.detach().clone() for w in weights]
        return found + [optimizer.state[w]["step"].clone() for w in weights]

    graphed = run(lambda lane: lane.capture)
    assert all(map(torch.equal, graphed, run(lambda _: None)))
    assert float(graphed[-1]) == 9


def test_the_optimiser_takes_three_launches_a_group() -> None:
    weights = [nn.Parameter(w) for w in draw(0)]
    optimizer = StableAdamW(weights, 0.1)
    optimizer.param_groups[0]["lr"] = torch.tensor(0.1, device=DEVICE)
    take_steps(optimizer, [draw(1)])
    optimizer.step()
    torch.cuda.synchronize()
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities, acc_events=True) as seen:
        optimizer.step()
        torch.cuda.synchronize()
    assert len([e for e in seen.events() if e.device_type.name == "CUDA"]) == 3
