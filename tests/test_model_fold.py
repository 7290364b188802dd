"""The copy for inference: the same function with fewer and smaller parts."""

from __future__ import annotations

import pytest
import torch
from helpers import SMALL
from torch import Tensor, nn

from mambaad.model import MambaAD, build
from mambaad.model.blocks import HSSBlock
from mambaad.model.encoder import FrozenEncoder, build_encoder
from mambaad.model.fold import inference_copy
from mambaad.model.layers import DepthwiseConv
from mambaad.model.neck import HalfFPN


def settled(model: nn.Module) -> nn.Module:
    """With batch norms that do something."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.running_mean, module.running_var, module.weight, module.bias):
                if tensor is not None:
                    tensor.data.uniform_(0.5, 1.5, generator=generator)
    return model.eval()


def norms(model: nn.Module) -> int:
    return sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_folding_an_encoder_changes_nothing(name: str) -> None:
    torch.manual_seed(0)
    exact = settled(build_encoder(name)).double()
    copy = inference_copy(exact, torch.float64)
    assert norms(exact) == {"resnet18": 15, "resnet50": 43}[name]
    assert norms(copy) == 0
    images = torch.randn(1, 3, 32, 64, dtype=torch.float64)
    for found, expected in zip(copy(images), exact(images), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_folding_the_neck_changes_nothing() -> None:
    torch.manual_seed(0)
    exact = settled(HalfFPN((8, 12, 16))).double()
    copy = inference_copy(exact, torch.float64)
    assert (norms(exact), norms(copy)) == (15, 0)
    maps = [torch.randn(2, 4 + 4 * i, 32 >> i, 16 >> i, dtype=torch.float64) for i in (1, 2, 3)]
    torch.testing.assert_close(copy(maps), exact(maps), rtol=1e-12, atol=1e-12)


def test_maps_of_the_whole() -> None:
    torch.manual_seed(0)
    model = build(SMALL)
    settled(model).double()
    copy = inference_copy(model, torch.float64)
    images = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        expected = model.anomaly_maps(images)
        torch.testing.assert_close(copy.anomaly_maps(images), expected, rtol=0, atol=1e-12)
    assert expected.dtype == torch.float64


def test_bf16_is_as_near_as_autocast() -> None:
    torch.manual_seed(0)
    model = build(SMALL)
    settled(model)
    copy = inference_copy(model, torch.bfloat16)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        exact = model.anomaly_maps(images)
        with torch.autocast("cpu", torch.bfloat16):
            usual, found = model.anomaly_maps(images), copy.anomaly_maps(images)
    assert found.dtype == torch.float32
    assert (found - exact).abs().max() < 2 * (usual - exact).abs().max()


def test_what_is_cast_and_what_is_not() -> None:
    copy = inference_copy(build(SMALL), torch.bfloat16)
    assert not copy.training
    assert not any(p.requires_grad for p in copy.parameters())
    for module in copy.modules():
        if isinstance(module, DepthwiseConv):
            assert {p.dtype for p in module.parameters()} == {torch.float32}
        elif isinstance(module, (nn.Linear, nn.Conv2d)):
            assert {p.dtype for p in module.parameters()} == {torch.bfloat16}
        elif isinstance(module, nn.LayerNorm):
            assert module.weight.dtype == torch.float32
        elif isinstance(module, HSSBlock):
            own = dict(module.named_parameters(recurse=False))
            assert own.pop("scan_proj").dtype == torch.bfloat16
            assert {name: p.dtype for name, p in own.items()} == dict.fromkeys(
                ("dt_weight", "dt_bias", "a_log", "skip"), torch.float32
            )


def test_the_original_stays_as_it_was() -> None:
    model = build(SMALL).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    copy = inference_copy(model, torch.bfloat16)
    assert model.neck.training
    assert all(p.requires_grad for p in model.neck.parameters())
    assert isinstance(copy, MambaAD)
    for parameter in copy.parameters():
        parameter.data.zero_()
    for name, value in model.state_dict().items():
        assert value.dtype == before[name].dtype
        assert torch.equal(value, before[name])


class Odd(nn.Module):
    """Batch norms that must stay: shared, read twice, after an activation, without statistics."""

    def __init__(self, branch: bool) -> None:
        super().__init__()
        self.branch = branch
        self.twice = nn.Conv2d(3, 3, 1)
        self.both = nn.Conv2d(3, 3, 1)
        self.plain = nn.Conv2d(3, 3, 1)
        self.bare = nn.Conv2d(3, 3, 1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(3) for _ in range(3))
        self.own = nn.BatchNorm2d(3, track_running_stats=False)

    def forward(self, x: Tensor) -> list[Tensor]:
        if self.branch and x.sum() > 1e9:
            return [x, x, x]
        twice = self.norms[0](self.twice(x)) + self.norms[0](self.twice(x + 1))
        read = self.both(x)
        both = self.norms[1](read) + read
        return [twice, both, self.norms[2](self.plain(x).relu()) + self.own(self.bare(x))]


@pytest.mark.parametrize("branch", [False, True])
def test_what_cannot_be_folded_stays(branch: bool) -> None:
    exact = settled(FrozenEncoder(Odd(branch), (3, 3, 3))).double()
    copy = inference_copy(exact, torch.float64)
    assert norms(copy) == 4
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    for found, expected in zip(copy(images), exact(images), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_convolutions_are_channels_last() -> None:
    copy = inference_copy(HalfFPN((8, 16, 32)), torch.bfloat16)
    for parameter in copy.parameters():
        if parameter.dim() == 4:
            assert parameter.is_contiguous(memory_format=torch.channels_last)
