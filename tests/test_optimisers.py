"""StableAdamW against its algorithm in float64, and what it must do in a CUDA graph's place."""

from __future__ import annotations

import math
from copy import deepcopy

import torch
from torch import Tensor, nn

from mambaad.optimisers import StableAdamW


def reference(
    weight: Tensor, gradients: list[Tensor], *, lr: float, decay: float, eps: float = 1e-8
) -> Tensor:
    """Algorithm 2 of the paper as it is written, for one tensor."""
    p, m, v = weight.double(), torch.zeros_like(weight).double(), torch.zeros_like(weight).double()
    for t, gradient in enumerate(gradients, 1):
        g = gradient.double()
        b1, b2 = (b * (1 - b ** (t - 1)) / (1 - b**t) for b in (0.9, 0.999))
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        rms = math.sqrt(float((g**2 / v.clamp_min(eps**2)).mean()))
        rate = lr / max(1.0, rms)
        p = p - rate * decay * p - rate * m / (v.sqrt() + eps)
    return p


def trained(gradients: list[list[Tensor]], lr: float | Tensor = 0.1) -> list[nn.Parameter]:
    torch.manual_seed(0)
    weights = [nn.Parameter(torch.randn(g.shape)) for g in gradients[0]]
    groups = [{"params": weights[:2], "weight_decay": 0.3}, {"params": weights[2:]}]
    optimizer = StableAdamW(groups, 0.1)
    for group in optimizer.param_groups:
        group["lr"] = lr
    for step in gradients:
        for weight, gradient in zip(weights, step, strict=True):
            weight.grad = gradient.clone()
        optimizer.step()
    return weights


def some_gradients() -> list[list[Tensor]]:
    generator = torch.Generator().manual_seed(1)
    steps = [[torch.randn(s, generator=generator) for s in ((3, 4), (5,), ())] for _ in range(6)]
    steps[4] = [100 * g for g in steps[4]]  # the jump that it is made for
    return steps


def test_it_is_the_algorithm() -> None:
    steps = some_gradients()
    torch.manual_seed(0)
    first = [torch.randn(g.shape) for g in steps[0]]
    for rate in (0.1, torch.tensor(0.1)):
        for i, weight in enumerate(trained(steps, rate)):
            decay = 0.3 if i < 2 else 0.0
            expected = reference(first[i], [s[i] for s in steps], lr=0.1, decay=decay)
            torch.testing.assert_close(weight.double(), expected, rtol=1e-5, atol=1e-6)


def test_a_jump_is_shortened() -> None:
    """One gradient a hundred times the others moves a weight less than AdamW's does."""
    moved = {}
    for kind in (StableAdamW, torch.optim.AdamW):
        weight = nn.Parameter(torch.zeros(50))
        optimizer = kind([weight], lr=0.1, weight_decay=0.0)
        for step in range(30):
            weight.grad = torch.full_like(weight, 100.0 if step == 29 else (-1.0) ** step)
            before = weight.detach().clone()
            optimizer.step()
        moved[kind] = float((weight.detach() - before).abs().mean())
    assert moved[StableAdamW] < 0.3 * moved[torch.optim.AdamW]


def test_a_parameter_without_a_gradient_stays() -> None:
    one, other = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = StableAdamW([one, other], 0.1, weight_decay=0.5)
    one.grad = torch.ones(2)
    optimizer.step()
    assert torch.equal(other, torch.ones(2))
    assert not torch.equal(one, torch.ones(2))
    assert set(optimizer.state[one]) == {"step", "exp_avg", "exp_avg_sq"}


def test_a_late_gradient_is_a_first_step() -> None:
    """Each parameter's own steps count; those of its group's first would spoil the others."""
    weights = [nn.Parameter(torch.ones(2)) for _ in range(2)]
    optimizer = StableAdamW(weights, 0.1)
    steps = [torch.full((2,), float(n)) for n in range(1, 5)]
    for number, gradient in enumerate(steps):
        for weight in weights:
            weight.grad = gradient.clone()
        if number < 2:
            weights[0].grad = None
        optimizer.step()
    for weight, own in zip(weights, (steps[2:], steps), strict=True):
        expected = reference(torch.ones(2), own, lr=0.1, decay=0.0)
        torch.testing.assert_close(weight.double(), expected, rtol=1e-6, atol=1e-6)


def test_a_closure_is_called() -> None:
    weight = nn.Parameter(torch.ones(()))
    optimizer = StableAdamW([weight], 0.1)

    def closure() -> float:
        loss = weight**2
        loss.backward()
        return float(loss.detach())

    assert optimizer.step(closure) == 1.0
    assert float(weight.detach()) < 1


def test_a_copy_goes_on_alike() -> None:
    weight = nn.Parameter(torch.ones(3))
    optimizer = StableAdamW([weight], 0.1)
    weight.grad = torch.ones(3)
    optimizer.step()
    other = deepcopy(optimizer)
    (copied,) = other.param_groups[0]["params"]
    copied.grad = torch.ones(3)
    for each in (optimizer, other):
        each.step()
    assert copied is not weight
    assert torch.equal(copied, weight)
