"""The decoder's plain layers against torch's functions on channels-first maps."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from mambaad.model.layers import (
    DepthwiseConv,
    DropPath,
    InstanceNormSiLU,
    LayerNorm,
    PointwiseConv,
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
