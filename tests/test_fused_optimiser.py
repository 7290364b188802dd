"""StableAdamW by the kernels: against the algorithm in float64, for any place in memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from helpers import deviation
from interpreter import interpreted_device
from test_optimisers import reference
from torch import Tensor, nn

from mambaad import optimisers
from mambaad.fused import optimiser
from mambaad.fused.optimiser import Addresses, Group, takes
from mambaad.optimisers import StableAdamW

DEVICE = interpreted_device()

SHAPES = ((), (1,), (5,), (4097,), (8, 16), (6, 4, 3, 3), (3, 4100))
"""The kernels' programs take 1024 numbers here, and add up the parts of two at once."""

DECAYED = 4
"""The first of them are in a group with weight decay."""


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimiser, "CHUNK", 1024)
    monkeypatch.setattr(optimiser, "BLOCK", 2)


@pytest.fixture
def updates(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tensors the kernels updated, call by call."""
    counts = []

    def counted(group: Group, *rest: Any, **options: Any) -> None:
        counts.append(len(group.parameters))
        optimiser.update(group, *rest, **options)

    monkeypatch.setattr(optimisers, "update", counted)
    return counts


def draw(seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).to(DEVICE) for shape in SHAPES]


def gradients(steps: int = 4) -> list[list[Tensor]]:
    drawn = [draw(seed) for seed in range(1, steps + 1)]
    return [[100 * g for g in s] if i == 2 else s for i, s in enumerate(drawn)]  # a jump


def made(weights: list[Tensor], **options: Any) -> StableAdamW:
    options = {"lr": 0.1, "kernel": True, **options}
    groups = [{"params": weights[:DECAYED], "weight_decay": 0.3}, {"params": weights[DECAYED:]}]
    return StableAdamW(groups, **options)


def take_steps(
    optimizer: torch.optim.Optimizer, steps: list[list[Tensor]], like: bool = False
) -> None:
    weights = [p for group in optimizer.param_groups for p in group["params"]]
    for step in steps:
        for weight, gradient in zip(weights, step, strict=True):
            weight.grad = torch.empty_like(weight).copy_(gradient) if like else gradient
        optimizer.step()


def trained(**options: Any) -> list[Tensor]:
    weights = [nn.Parameter(w) for w in draw(0)]
    take_steps(made(weights, **options), gradients())
    return [w.detach() for w in weights]


def exact(index: int, steps: list[list[Tensor]]) -> Tensor:
    decay = 0.3 if index < DECAYED else 0.0
    own = [s[index].cpu() for s in steps]
    return reference(draw(0)[index].cpu(), own, lr=0.1, decay=decay)


@pytest.mark.parametrize("kind", ["number", "tensor"])
def test_against_float64(kind: str, updates: list[int]) -> None:
    rate = 0.1 if kind == "number" else torch.tensor(0.1, device=DEVICE)
    for i, weight in enumerate(trained(lr=rate)):
        assert deviation(weight.cpu(), exact(i, gradients())) < 3e-6, SHAPES[i]
    assert updates == [DECAYED, len(SHAPES) - DECAYED] * 4


def test_as_near_to_float64_as_plain_torch() -> None:
    """After many steps too, when 1 - β̂ is small."""
    generator = torch.Generator().manual_seed(0)
    steps = [[torch.randn(300, generator=generator).to(DEVICE)] for _ in range(40)]
    truth = reference(torch.ones(300), [s[0].cpu() for s in steps], lr=0.1, decay=0.1)
    errors = {}
    for kernel in (True, False):
        weight = nn.Parameter(torch.ones(300, device=DEVICE))
        take_steps(StableAdamW([weight], 0.1, weight_decay=0.1, kernel=kernel), steps)
        errors[kernel] = deviation(weight.detach().cpu(), truth)
    assert errors[True] <= 2 * errors[False] + 1e-7


def test_no_memory_at_all() -> None:
    """β = 0: the means are the last step's."""
    weight = nn.Parameter(torch.ones(3, device=DEVICE))
    optimizer = StableAdamW([weight], 0.1, betas=(0.0, 0.0), kernel=True)
    last = torch.tensor([1.0, -2.0, 1e-3], device=DEVICE)
    take_steps(optimizer, [[torch.full_like(last, 1e3)], [last]])
    state = optimizer.state[weight]
    assert torch.equal(state["exp_avg"], last)
    torch.testing.assert_close(state["exp_avg_sq"], last**2)
    expected = torch.tensor([0.8, 1.0, 0.8], device=DEVICE)
    torch.testing.assert_close(weight.detach(), expected)


@pytest.mark.parametrize("offset", [0, 1, 4])
def test_anywhere_in_memory(offset: int) -> None:
    """Four numbers at once only where that can be; what lies around stays as it is."""
    lines = [torch.full((1040,), 7.0, device=DEVICE) for _ in range(4)]
    for size in (1028, 1029, 3):
        inside = slice(offset, offset + size)
        weight = nn.Parameter(lines[0][inside].fill_(1.0))
        weight.grad = lines[1][inside].copy_(torch.linspace(-1, 2, size))
        optimizer = StableAdamW([weight], 0.1, weight_decay=0.5, kernel=True)
        moments = {"exp_avg": lines[2][inside].zero_(), "exp_avg_sq": lines[3][inside].zero_()}
        optimizer.state[weight] = {"step": torch.zeros((), device=DEVICE), **moments}
        optimizer.step()
        truth = reference(torch.ones(size), [weight.grad.cpu()], lr=0.1, decay=0.5)
        assert deviation(weight.detach().cpu(), truth) < 1e-6
        for line in lines:
            line[inside] = 7.0
            assert (line == 7).all()


def test_a_gradient_may_lie_otherwise(updates: list[int]) -> None:
    """Filters are channels last, and a gradient need not be; a filter of 1 x 1 is both. Depth-wise
    ones are laid out otherwise, (1, C, 3 C, C) of 3 x 3."""
    shapes = ((6, 4, 3, 3), (6, 4, 1, 1), (24, 1, 3, 3))
    weights = [torch.linspace(-1, 1, 24 * s[-1] ** 2).view(s) for s in shapes]
    step = [(3 * w + 1).to(DEVICE) for w in weights]
    found = []
    for like in (True, False):
        filters = [w.to(DEVICE, memory_format=torch.channels_last, copy=True) for w in weights]
        parameters = [nn.Parameter(f) for f in filters]
        optimizer = StableAdamW(parameters, 0.1, kernel=True)
        take_steps(optimizer, [step] * 3, like)
        assert optimizer.state[parameters[0]]["exp_avg"].stride() == filters[0].stride()
        found.append(filters)
    for weight, gradient, one, other in zip(weights, step, *found, strict=True):
        assert torch.equal(one, other)
        truth = reference(weight, [gradient.cpu()] * 3, lr=0.1, decay=0.0)
        assert deviation(one.cpu(), truth) < 1e-6
    assert updates == [3] * 6


def test_a_parameter_without_a_gradient_waits() -> None:
    """Its own steps count: the first with a gradient is its first."""
    steps = gradients()
    weights = [nn.Parameter(w) for w in draw(0)]
    optimizer = made(weights)
    for number, step in enumerate(steps):
        for i, weight in enumerate(weights):
            weight.grad = step[i] if i % 3 or number >= 2 else None
        optimizer.step()
        if number == 1:
            assert torch.equal(weights[3].detach(), draw(0)[3])
    for i, weight in enumerate(weights):
        own = steps if i % 3 else steps[2:]
        assert float(optimizer.state[weight]["step"]) == len(own)
        assert deviation(weight.detach().cpu(), exact(i, own)) < 3e-6


def test_the_same_bits_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    first, original = trained(), Tensor.new_empty

    def poisoned(like: Tensor, *sizes: Any, **options: Any) -> Tensor:
        x = original(like, *sizes, **options)
        return x.fill_(torch.nan) if x.is_floating_point() else x

    monkeypatch.setattr(Tensor, "new_empty", poisoned)
    assert all(map(torch.equal, first, trained()))


def test_the_same_bits_after_a_stop() -> None:
    through = trained()
    weights = [nn.Parameter(w) for w in draw(0)]
    optimizer = made(weights)
    take_steps(optimizer, gradients()[:2])
    saved = optimizer.state_dict()
    assert {frozenset(s) for s in saved["state"].values()} == {
        frozenset({"step", "exp_avg", "exp_avg_sq"})
    }
    again = [nn.Parameter(w.detach().clone()) for w in weights]
    other = made(again)
    state = {i: {k: v.clone() for k, v in s.items()} for i, s in saved["state"].items()}
    other.load_state_dict({**saved, "state": state})
    for each in (optimizer, other):
        take_steps(each, gradients()[2:])
    for kept, resumed, straight in zip(weights, again, through, strict=True):
        assert torch.equal(kept.detach(), straight)
        assert torch.equal(resumed.detach(), straight)


def test_torch_is_told_of_the_change() -> None:
    weight = nn.Parameter(torch.ones(3, device=DEVICE))
    loss = (weight * weight).sum()
    take_steps(StableAdamW([weight], 0.1, kernel=True), [[torch.ones(3, device=DEVICE)]])
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def group_of(weight: Tensor) -> Group:
    lines = [torch.zeros_like(weight) for _ in range(3)]
    step = torch.zeros((), device=weight.device)
    return Group([weight], *([line] for line in lines), [step])


def test_what_the_kernels_take() -> None:
    plain = torch.ones(2, 3, 4, 5)
    group = group_of(plain)
    assert takes(group)
    assert takes(group_of(plain.contiguous(memory_format=torch.channels_last)))
    turned = plain.transpose(0, 3).contiguous().transpose(0, 3)
    assert takes(group_of(turned))
    assert takes(group._replace(gradients=[turned]))
    assert takes(group._replace(gradients=[torch.ones(()).expand(plain.shape)]))
    for refused in (
        group_of(plain.double()),
        group_of(plain[..., ::2]),
        group_of(plain[:1].expand(2, 3, 4, 5)),
        group_of(plain[:0]),
        group_of(plain.to("meta"))._replace(gradients=[plain]),
        group._replace(gradients=[plain.bfloat16()]),
        group._replace(gradients=[plain.to_sparse()]),
        group._replace(means=[turned]),
        group._replace(squares=[plain[:1]]),
        group._replace(steps=[torch.zeros((), dtype=torch.float64)]),
    ):
        assert not takes(refused)


def test_others_are_updated_in_plain_torch(updates: list[int]) -> None:
    parts = [torch.ones(4, 6)[:, ::2], torch.ones(3).double()]
    weights = [nn.Parameter(p) for p in parts]
    for weight in weights:
        optimizer = StableAdamW([weight], 0.1, kernel=True)
        take_steps(optimizer, [[torch.ones_like(weight)]])
        torch.testing.assert_close(weight.detach(), torch.full_like(weight, 0.9))
    assert updates == []


@pytest.mark.parametrize("gpu", [True, False])
@pytest.mark.parametrize("runs", [True, False])
def test_the_kernels_run_on_a_gpu_with_triton(
    monkeypatch: pytest.MonkeyPatch, gpu: bool, runs: bool
) -> None:
    chosen = []
    monkeypatch.setattr(Tensor, "is_cuda", property(lambda _: gpu))
    monkeypatch.setattr(optimisers, "triton_runs", lambda: runs)
    monkeypatch.setattr(optimisers, "update", lambda *_, **__: chosen.append("kernels"))
    monkeypatch.setattr(optimisers, "_plain", lambda *_, **__: chosen.append("plain"))
    optimizer = StableAdamW([nn.Parameter(torch.ones(2))], 0.1)
    take_steps(optimizer, [[torch.ones(2)]])
    assert chosen == ["kernels" if gpu and runs else "plain"]


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Tensor]]:
    """What is copied to a GPU, which is the CPU here."""
    seen: list[Tensor] = []

    def to(self: Tensor, *_: Any, **__: Any) -> Tensor:
        seen.append(self)
        return self.clone()

    empty_like = torch.empty_like
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch, "empty_like", lambda x, **_: empty_like(x).fill_(-1))
    monkeypatch.setattr(Tensor, "pin_memory", Tensor.clone)
    monkeypatch.setattr(Tensor, "to", to)
    return seen


def test_a_table_is_copied_when_it_changed(copies: list[Tensor]) -> None:
    addresses, device = Addresses(), torch.device("cuda")
    first, second = torch.arange(5), torch.arange(1, 6)
    placed = addresses.place(first, device)
    assert addresses.place(first.clone(), device) is placed
    assert torch.equal(addresses.place(second, device), second)
    assert torch.equal(placed, first)
    assert len(copies) == 2


def test_a_graph_has_a_table_of_its_own(
    monkeypatch: pytest.MonkeyPatch, copies: list[Tensor]
) -> None:
    """A graph copies it anew whenever it runs, so what it copies from must never change."""
    addresses, device = Addresses(), torch.device("cuda")
    tables = [torch.arange(i, i + 5) for i in range(4)]
    eager = addresses.place(tables[0], device)
    for table in tables:
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        assert torch.equal(addresses.place(table, device), table)
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
        assert torch.equal(addresses.place(tables[0], device), eager)
    captured = copies[1:]
    assert len({c.data_ptr() for c in captured}) == len(captured) == len(tables)
    assert all(map(torch.equal, captured, tables))
    assert {id(c) for c in addresses._captured} == {id(c) for c in captured}
