"""The copy for CPUs: the same maps by other kernels."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers import SMALL
from torch import Tensor, nn

from mambaad.config import ModelConfig
from mambaad.model import MambaAD, build, onednn
from mambaad.model.blocks import HSSBlock, LSSModule
from mambaad.model.layers import PointwiseConv
from mambaad.model.onednn import BesideLSS, Product, SplitHSS, cpu_copy

pytestmark = pytest.mark.skipif(
    not onednn.runs(build(SMALL)), reason="this torch has no such operator for this CPU"
)


def settled(config: ModelConfig) -> MambaAD:
    """With random weights, and batch norms that do something."""
    torch.manual_seed(0)
    model = build(config).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.running_mean, module.running_var, module.weight, module.bias):
                if tensor is not None:
                    tensor.data.uniform_(0.5, 1.5)
    return model


def count(model: nn.Module, kind: type[nn.Module]) -> int:
    return sum(type(m) is kind for m in model.modules())


def distance(found: Tensor, exact: Tensor) -> float:
    return float((found - exact).norm() / exact.norm())


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"pointwise": False},
        {"residual": False},
        {"branches": "local"},
        {"branches": "global"},
        {"encoder": "resnet18"},
        {"encoder": "builtin"},
        {"recentre": True},
    ],
    ids=str,
)
@torch.no_grad()
def test_maps_are_as_near_to_float64_as_the_networks_own(change: dict[str, Any]) -> None:
    model = settled(replace(SMALL, **change))
    images = torch.randn(2, 3, 96, 64)
    exact = copy.deepcopy(model).double().anomaly_maps(images.double())
    found = cpu_copy(model).anomaly_maps(images)
    assert found.dtype == torch.float32
    assert distance(found, exact) < 2 * distance(model.anomaly_maps(images), exact) + 1e-7
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-7)


@torch.no_grad()
def test_other_sizes_and_the_same_bits_twice() -> None:
    model = settled(SMALL)
    twin = cpu_copy(model)
    for shape in ((1, 64, 64), (3, 32, 32), (1, 96, 64), (1, 64, 64)):
        images = torch.randn(shape[0], 3, *shape[1:])
        found = twin.anomaly_maps(images)
        torch.testing.assert_close(found, model.anomaly_maps(images), rtol=1e-5, atol=1e-6)
        assert torch.equal(found, twin.anomaly_maps(images))


def test_every_part_is_replaced() -> None:
    model = settled(replace(SMALL, encoder="resnet18"))
    twin = cpu_copy(model)
    assert count(twin, nn.BatchNorm2d) == 0
    gone = (nn.Linear, PointwiseConv, HSSBlock, LSSModule)
    assert [count(twin.decoder, kind) for kind in gone] == [0] * len(gone)
    assert count(twin, SplitHSS) == count(model, HSSBlock) > 0
    assert count(twin, BesideLSS) == count(model, LSSModule) > 0
    assert not twin.training
    assert not any(p.requires_grad for p in twin.parameters())


def test_the_original_stays_as_it_was() -> None:
    model = build(SMALL).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for parameter in cpu_copy(model).parameters():
        parameter.data.zero_()
    assert model.neck.training
    assert count(model, LSSModule) > 0
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize(
    "name", ["expands.1.expand", "stages.0.0", "stages.1.0.fuse", "stages.1.0.blocks.0.in_proj"]
)
def test_what_has_a_hook_stays(name: str) -> None:
    model = settled(SMALL)
    seen: list[Tensor] = []
    part = model.decoder.get_submodule(name)
    part.register_forward_hook(lambda _m, _i, y: seen.append(y))
    twin = cpu_copy(model)
    assert type(twin.decoder.get_submodule(name)) is type(part)
    images = torch.randn(1, 3, 32, 64)
    with torch.no_grad():
        found, expected = twin.anomaly_maps(images), model.anomaly_maps(images)
    assert len(seen) == 2
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def apart(x: Tensor) -> Tensor:
    """The same values in every other place of memory."""
    wide = x.new_full((*x.shape, 2), float("nan"))
    wide[..., 0] = x
    return wide[..., 0]


@pytest.mark.parametrize("layout", [lambda x: x, apart], ids=["dense", "apart"])
@pytest.mark.parametrize("bias", [False, True])
@torch.no_grad()
def test_a_product(layout: Callable[[Tensor], Tensor], bias: bool) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(6, 10, bias=bias)
    x, z = torch.randn(2, 3, 5, 6), torch.randn(2, 3, 5, 10)
    exact = copy.deepcopy(linear).double()(x.double())
    product = Product(linear.weight, linear.bias)
    assert product(layout(x)).is_contiguous()
    assert distance(product(layout(x)), exact) < 5e-7
    assert distance(product(layout(x), layout(z)), exact + z) < 5e-7


def test_where_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(SMALL)
    assert onednn.runs(model)
    assert not onednn.runs(model.decoder)
    assert not onednn.runs(build(SMALL).double())
    with torch.device("meta"):
        assert not onednn.runs(build(SMALL))
    monkeypatch.setattr("mambaad.model.onednn.OPERATOR", "_not_there")
    assert not onednn.runs(model)
    monkeypatch.undo()
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert not onednn.runs(model)
