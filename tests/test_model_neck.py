from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from mambaad.model import parameter_count
from mambaad.model.neck import Bottleneck, HalfFPN


def test_parameters() -> None:
    """Of ResNet-18 and 34's widths; the figures are those of the published code."""
    neck = HalfFPN((64, 128, 256))
    convolutions = {
        name.partition(".")[0]: parameter_count(part)
        for name, part in neck.named_modules()
        if isinstance(part, nn.Conv2d) and "bottlenecks" not in name
    }
    assert convolutions == {
        "down1": 73_728,
        "side1": 16_512,
        "down2": 294_912,
        "side2": 65_792,
        "join": 65_792,
    }
    assert parameter_count(neck) == 1_458_304
    assert neck.out_channels == 512


@pytest.mark.parametrize("channels", [(64, 128, 256), (256, 512, 1024), (8, 16, 24)], ids=str)
def test_shapes(channels: tuple[int, int, int]) -> None:
    """Height and width go to a half of the coarsest map's, channels to twice its."""
    neck = HalfFPN(channels)
    maps = [
        torch.rand(2, width, 16 // 2**i, 24 // 2**i, requires_grad=True)
        for i, width in enumerate(channels)
    ]
    out = neck(maps)
    assert out.shape == (2, 2 * channels[2], 2, 3)
    out.sum().backward()
    assert all(p.grad is not None for p in neck.parameters())
    assert all(m.grad is not None for m in maps)


def test_every_map_counts() -> None:
    neck = HalfFPN((8, 16, 24)).eval()
    maps = [torch.rand(1, width, 16 // 2**i, 16 // 2**i) for i, width in enumerate((8, 16, 24))]
    with torch.no_grad():
        before = neck(maps)
        for i in range(3):
            changed = [m + 1 if i == j else m for j, m in enumerate(maps)]
            assert not torch.allclose(neck(changed), before)


def test_initial_values() -> None:
    """Convolutions: normal with variance 2 / fan out; batch normalisation: 1 and 0."""
    torch.manual_seed(0)
    neck = HalfFPN((64, 128, 256))
    for module in neck.modules():
        if isinstance(module, nn.Conv2d):
            deviation = math.sqrt(2 / (module.out_channels * math.prod(module.kernel_size)))
            assert module.weight.std().item() == pytest.approx(deviation, rel=0.05)
            if module.bias is not None:
                limit = module.in_channels**-0.5  # torch's own uniform
                assert module.bias.abs().max() <= limit
                assert module.bias.std().item() == pytest.approx(limit / 3**0.5, rel=0.2)
        elif isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all()
            assert (module.bias == 0).all()


def test_bottleneck_shortcut() -> None:
    """A projection only where the size or the channels change."""
    assert isinstance(Bottleneck(64, 16).shortcut, nn.Identity)
    assert isinstance(Bottleneck(32, 16).shortcut, nn.Sequential)
    strided = Bottleneck(64, 16, stride=2)
    assert isinstance(strided.shortcut, nn.Sequential)
    assert strided(torch.rand(2, 64, 6, 4)).shape == (2, 64, 3, 2)


def test_bottleneck_adds_its_input() -> None:
    """With the branch's last scale at 0 the block is ReLU."""
    block = Bottleneck(64, 16)
    last = block.body[-1]
    assert isinstance(last, nn.BatchNorm2d)
    nn.init.zeros_(last.weight)
    x = torch.randn(2, 64, 4, 4)
    assert torch.equal(block(x), x.clamp_min(0))
