"""The decoder's plain layers against torch's functions on channels-first maps."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from mambaad.model.layers import (
    DepthwiseConv,
    DropPath,
    InstanceNormSiLU,
    LayerNorm,
    PointwiseConv,
    SumLayerNorm,
)


def first(x: torch.Tensor) -> torch.Tensor:
    return x.permute(0, 3, 1, 2)


def test_pointwise_convolution() -> None:
    layer, x = PointwiseConv(6, 4), torch.randn(2, 3, 5, 6)
    torch.testing.assert_close(first(layer(x)), F.conv2d(first(x), layer.weight, layer.bias))


@pytest.mark.parametrize("silu", [False, True])
def test_depthwise_convolution(silu: bool) -> None:
    layer, x = DepthwiseConv(6, 5, bias=True, silu=silu), torch.randn(2, 3, 7, 6)
    plain = F.conv2d(first(x), layer.weight, layer.bias, padding=2, groups=6)
    torch.testing.assert_close(first(layer(x)), F.silu(plain) if silu else plain)
    assert DepthwiseConv(6, 5).bias is None


def test_layer_norm_and_its_gate() -> None:
    layer, x, gate = LayerNorm(6), torch.randn(2, 3, 6), torch.randn(2, 3, 6)
    torch.nn.init.normal_(layer.weight)
    normed = F.layer_norm(x, (6,), layer.weight, layer.bias)
    torch.testing.assert_close(layer(x), normed)
    torch.testing.assert_close(layer(x, gate), normed * F.silu(gate))


def test_instance_norm_with_silu() -> None:
    assert torch.equal(InstanceNormSiLU()(torch.randn(2, 1, 1, 3)), torch.zeros(2, 1, 1, 3))
    x = torch.randn(2, 4, 5, 3)
    torch.testing.assert_close(first(InstanceNormSiLU()(x)), F.silu(F.instance_norm(first(x))))


def test_drop_path() -> None:
    torch.manual_seed(0)
    drop = DropPath(0.25)
    x = torch.ones(4000, 2, 3)
    y = drop(x)
    pictures = y.flatten(1)
    assert torch.equal(pictures, pictures[:, :1].expand(-1, 6))  # all of a picture or nothing
    assert set(pictures[:, 0].tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    assert y.mean().item() == pytest.approx(1.0, abs=0.05)
    assert torch.equal(drop.eval()(x), x)
    assert DropPath(0.0)(x) is x


def test_depthwise_weights_lie_side_by_side_whatever_happens_to_them() -> None:
    torch.manual_seed(0)
    drawn = torch.nn.Conv2d(6, 6, 5, groups=6).weight
    torch.manual_seed(0)
    layer = DepthwiseConv(6, 5, bias=True)
    assert torch.equal(layer.weight, drawn)
    beside = (1, 6, 30, 6)
    assert layer.weight.stride() == beside
    twin = copy.deepcopy(layer)
    twin.load_state_dict({"weight": drawn.detach().clone(), "bias": torch.ones(6)})
    assert twin.double().weight.stride() == beside
    layer(torch.randn(1, 3, 3, 6)).sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.stride() == beside
    other = layer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    other.lay_out_weight()
    assert other.weight.stride() == beside
    assert torch.equal(other.weight, drawn)


def test_the_norm_of_a_sum() -> None:
    layer, factor = SumLayerNorm(4), torch.tensor([2.0, 0.0]).view(2, 1, 1)
    x, branch = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    total, y = layer(x, branch, factor)
    assert torch.equal(total, x + factor * branch)
    assert torch.equal(y, F.layer_norm(total, (4,), layer.weight, layer.bias))
    assert torch.equal(layer(x, branch)[0], x + branch)
    alone, y = layer(x)
    assert alone is x
    assert torch.equal(y, F.layer_norm(x, (4,), layer.weight, layer.bias))
