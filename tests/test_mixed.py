"""A step with one copy of the weights: autocast's numbers to the bit, without its casts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from helpers import SMALL
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from mambaad.config import TrainConfig
from mambaad.fit import _Learner, build_optimizer, computing
from mambaad.mixed import MixedPrecision, cast_parameters
from mambaad.model import MambaAD, build
from mambaad.model.layers import DepthwiseConv

CPU = torch.device("cpu")


class Plain(nn.Linear):
    """A layer that is not torch's own: nobody knows how it uses its weight."""


class Small(nn.Module):
    """A method with every kind of parameter."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(5, 5)
        self.again = nn.Linear(5, 5, bias=False)
        self.again.weight = self.first.weight
        self.other = Plain(5, 5)
        self.frozen = nn.Linear(5, 5).requires_grad_(False)
        self.unused = nn.Linear(5, 5)
        self.norm = nn.LayerNorm(5)

    def loss_parts(
        self, images: Tensor | None, features: Sequence[Tensor] | None = None
    ) -> dict[str, Tensor]:
        x = images if features is None else features[0]
        x = self.again(self.norm(self.first(x)).relu()) + self.other(x) * self.frozen(x)
        return {"a": x.float().square().mean(), "b": x.float().abs().mean()}


Loss = Callable[..., dict[str, Tensor]]


def step(
    model: nn.Module, loss_parts: Loss, collect: Callable[[], None], *inputs: Any
) -> dict[str, Tensor | None]:
    """The parts of the loss and every gradient, after a pass in bf16 with the same drop path."""
    torch.manual_seed(1)
    with computing("bf16", CPU):
        parts = loss_parts(*inputs)
        torch.stack(list(parts.values())).sum().backward()
    collect()
    found: dict[str, Tensor | None] = {k: v.detach() for k, v in parts.items()}
    for name, parameter in model.named_parameters():
        found[name], parameter.grad = parameter.grad, None
    return found


def both_ways(model: Any, *inputs: Any) -> tuple[dict[str, Tensor | None], ...]:
    mixed = MixedPrecision(model, "bf16", CPU)
    expected = step(model, model.loss_parts, lambda: None, *inputs)
    return step(model, mixed.loss_parts, mixed.collect_gradients, *inputs), expected


def assert_same_bits(found: dict[str, Tensor | None], expected: dict[str, Tensor | None]) -> None:
    assert found.keys() == expected.keys()
    for name, right in expected.items():
        value = found[name]
        if right is None or value is None:
            assert value is right, name
            continue
        assert value.dtype == right.dtype, name
        assert value.stride() == right.stride(), name
        assert torch.equal(value, right), name


def small_network() -> MambaAD:
    torch.manual_seed(0)
    return build(SMALL).train()


@pytest.mark.parametrize("cached", [True, False], ids=["features", "pictures"])
def test_the_networks_step_has_autocasts_bits(cached: bool) -> None:
    model = small_network()
    images = torch.randn(2, 3, 64, 64)
    with computing("bf16", CPU):
        inputs = (None, model.encode(images)) if cached else (images,)
    buffers = {name: b.clone() for name, b in model.named_buffers()}
    found, expected = both_ways(model, *inputs)
    assert_same_bits(found, expected)
    assert sum(v is not None for v in found.values()) > 100
    for name, before in buffers.items():
        assert name.startswith("encoder") or not torch.equal(model.get_buffer(name), before), name


def test_frozen_shared_unused_and_unknown_parameters() -> None:
    model = Small()
    found, expected = both_ways(model, torch.randn(3, 5))
    assert_same_bits(found, expected)
    without = {name for name, value in found.items() if value is None}
    assert without == {"frozen.weight", "frozen.bias", "unused.weight", "unused.bias"}
    names = [name for name, _ in cast_parameters(model)]
    assert names == [
        f"{layer}.{leaf}" for layer in ("first", "frozen", "unused") for leaf in ("weight", "bias")
    ]


def test_what_the_networks_kernels_read_in_float32_is_left() -> None:
    model = small_network()
    names = {name for name, _ in cast_parameters(model)}
    for name, module in model.named_modules():
        own = {f"{name}.{leaf}" for leaf in ("weight", "bias")} & dict(
            model.named_parameters()
        ).keys()
        cast = isinstance(module, (nn.Linear, nn.Conv2d)) and not isinstance(module, DepthwiseConv)
        assert own & names == (own if cast else set()), name
    for leaf in ("a_log", "dt_weight", "dt_bias", "skip"):
        assert not any(name.endswith(leaf) for name in names)
    assert any(name.endswith("scan_proj") for name in names)


def test_copies_follow_the_weights_at_their_addresses() -> None:
    model = Small()
    mixed = MixedPrecision(model, "bf16", CPU)
    places = [copy.data_ptr() for copy in mixed._copies.values()]
    x = torch.randn(3, 5)
    first = step(model, mixed.loss_parts, mixed.collect_gradients, x)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.mul_(1.5)
    second = step(model, mixed.loss_parts, mixed.collect_gradients, x)
    assert_same_bits(second, step(model, model.loss_parts, lambda: None, x))
    assert not torch.equal(first["a"], second["a"])  # type: ignore[arg-type]
    assert [copy.data_ptr() for copy in mixed._copies.values()] == places
    assert all(copy.grad is None for copy in mixed._copies.values())


def test_the_model_has_nothing_new() -> None:
    model = Small()
    before = {name: (id(p), p.dtype) for name, p in model.named_parameters()}
    both_ways(model, torch.randn(3, 5))
    assert {name: (id(p), p.dtype) for name, p in model.named_parameters()} == before


def test_float32_is_the_method_itself() -> None:
    model = Small()
    mixed, x = MixedPrecision(model, "float32", CPU), torch.randn(3, 5)
    found, expected = mixed.loss_parts(x), model.loss_parts(x)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    found["a"].backward()
    before = model.first.weight.grad
    mixed.collect_gradients()
    assert model.first.weight.grad is before


class Casts(TorchDispatchMode):
    """Counts casts between float32 and bfloat16."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.count[function.__name__] += 1
        return function(*args, **(kwargs or {}))


def test_no_weight_is_cast_by_itself() -> None:
    model, x = Small(), torch.randn(3, 5)
    mixed = MixedPrecision(model, "bf16", CPU)
    step(model, mixed.loss_parts, mixed.collect_gradients, x)
    with Casts() as plain:
        step(model, model.loss_parts, lambda: None, x)
    with Casts() as one:
        step(model, mixed.loss_parts, mixed.collect_gradients, x)
    # weight and bias of two layers there, the weight's gradient and the bias's back; frozen: there
    saved = plain.count["_to_copy.default"] - one.count["_to_copy.default"]
    assert saved == 6
    assert one.count["_foreach_copy_.default"] == 2


def test_the_update_is_autocasts() -> None:
    """A whole step of training, with clipping and AdamW, on a copy of the network."""
    config = TrainConfig(precision="bf16", batch_size=2)
    images = torch.randn(2, 3, 64, 64)
    states = []
    for way in ("learner", "autocast"):
        model = small_network()
        optimizer = build_optimizer(model, config)
        torch.manual_seed(1)
        if way == "learner":
            _Learner(model, optimizer, config, CPU).compute(images, None)
        else:
            with computing("bf16", CPU):
                torch.stack(list(model.loss_parts(images).values())).sum().backward()
            trained = [p for p in model.parameters() if p.requires_grad]
            torch.nn.utils.clip_grad_norm_(trained, config.clip_norm)
        optimizer.step()
        states.append(model.state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
