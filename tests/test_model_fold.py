"""The copy for inference: the same function with fewer and smaller parts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import SMALL
from torch import Tensor, nn

from mambaad.model import MambaAD, build
from mambaad.model.blocks import HSSBlock, LSSModule
from mambaad.model.encoder import FrozenEncoder, build_encoder
from mambaad.model.fold import ConvReLU, JoinedLSS, Residual, inference_copy
from mambaad.model.layers import DepthwiseConv
from mambaad.model.neck import Bottleneck, HalfFPN


def settled(model: nn.Module) -> nn.Module:
    """With batch norms that do something."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.running_mean, module.running_var, module.weight, module.bias):
                if tensor is not None:
                    tensor.data.uniform_(0.5, 1.5, generator=generator)
    return model.eval()


def count(model: nn.Module, kind: type[nn.Module]) -> int:
    return sum(isinstance(m, kind) for m in model.modules())


def norms(model: nn.Module) -> int:
    return count(model, nn.BatchNorm2d)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_folding_an_encoder_changes_nothing(name: str) -> None:
    torch.manual_seed(0)
    exact = settled(build_encoder(name)).double()
    copy = inference_copy(exact, torch.float64)
    assert norms(exact) == {"resnet18": 15, "resnet50": 43}[name]
    assert norms(copy) == 0
    images = torch.randn(1, 3, 32, 64, dtype=torch.float64)
    for found, expected in zip(copy(images), exact(images), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)


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


@pytest.mark.parametrize(
    ("name", "joined", "residuals", "activations", "biases"),
    [
        ("resnet18", 13, 6, 0, 13),  # all of them, the stem too; the shortcuts' biases have moved
        ("resnet26d", 21, 6, 0, 21),  # three convolutions in the stem, pooling in the shortcuts
        ("seresnet18", 13, 0, 6, 27),  # attention before the sum
        ("resnetblur18", 11, 4, 2, 15),  # smoothing where the map gets coarser
    ],
)
def test_what_is_joined(
    name: str, joined: int, residuals: int, activations: int, biases: int
) -> None:
    torch.manual_seed(0)
    exact = settled(build_encoder(name)).double()
    copy = inference_copy(exact, torch.float64)
    assert (count(copy, ConvReLU), count(copy, Residual)) == (joined, residuals)
    assert count(copy, nn.ReLU) == activations
    biased = [m for m in copy.modules() if isinstance(m, nn.Conv2d) and m.bias is not None]
    assert len(biased) == biases
    images = torch.randn(1, 3, 64, 32, dtype=torch.float64).to(memory_format=torch.channels_last)
    for found, expected in zip(copy(images), exact(images), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)
        assert found.is_contiguous(memory_format=torch.channels_last)


def test_the_neck_is_joined() -> None:
    copy = inference_copy(HalfFPN((8, 12, 16)), torch.float64)
    assert (count(copy, ConvReLU), count(copy, Residual)) == (14, 3)
    assert (count(copy, nn.ReLU), count(copy, Bottleneck)) == (0, 0)


class Watched(nn.Module):
    """ReLUs that must stay: read twice, called twice, of a watched convolution, of a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(nn.Conv2d(3, 3, 1) for _ in range(4))
        self.relu = nn.ReLU()
        self.relus = nn.ModuleList(nn.ReLU(inplace=i == 1) for i in range(3))
        self.seen: list[Tensor] = []
        self.convolutions[2].register_forward_hook(lambda _m, _x, y: self.seen.append(y))

    def forward(self, x: Tensor) -> list[Tensor]:
        a, b, c, d = (convolution(x) for convolution in self.convolutions)
        read = self.relus[0](a) + a
        return [read, self.relu(b) + self.relu(d), self.relus[1](c) + self.relus[2](x + read)]


def test_what_cannot_be_joined_stays() -> None:
    torch.manual_seed(0)
    exact = FrozenEncoder(Watched(), (3, 3, 3)).double()
    copy = inference_copy(exact, torch.float64)
    assert count(copy, ConvReLU) == 0
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    for found, expected in zip(copy(images), exact(images), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("residual", [False, True])
def test_one_call_gets_what_the_three_steps_use(
    monkeypatch: pytest.MonkeyPatch, residual: bool
) -> None:
    """cuDNN's calls exist on CUDA only; stand-ins that compute the same take their place."""
    torch.manual_seed(0)
    convolution = nn.Conv2d(4, 6, 3, stride=2, padding=(1, 2), dilation=(1, 2), groups=2)
    joined = ConvReLU(convolution.bfloat16().requires_grad_(False))
    x, z = torch.randn(2, 4, 6, 8), torch.randn(2, 6, 3, 4) if residual else None
    last = torch.channels_last

    def relu(x: Tensor, weight: Tensor, bias: Tensor, *sizes: Any) -> Tensor:
        assert x.is_contiguous(memory_format=last)
        return F.conv2d(x, weight, bias, *sizes).relu()

    def add_relu(x: Tensor, weight: Tensor, z: Tensor, alpha: float, *rest: Any) -> Tensor:
        assert z.is_contiguous(memory_format=last)
        return (F.conv2d(x, weight, *rest) + alpha * z).relu()

    with torch.autocast("cpu", torch.bfloat16):
        expected = joined(x, None if z is None else z.bfloat16())
    monkeypatch.setattr(ConvReLU, "_has_one_call", lambda *_: True)
    monkeypatch.setattr(torch, "cudnn_convolution_relu", relu)
    monkeypatch.setattr(torch, "cudnn_convolution_add_relu", add_relu)
    found = joined(x, z)
    assert not joined.refused
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, expected)


def test_a_call_that_cudnn_refuses_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []

    def refuse(*_: Any) -> Tensor:
        tried.append(1)
        raise RuntimeError("GET was unable to find an engine to execute this computation")

    joined = ConvReLU(nn.Conv2d(4, 4, 3)).requires_grad_(False)
    monkeypatch.setattr(ConvReLU, "_has_one_call", lambda self, _: not self.refused)
    monkeypatch.setattr(torch, "cudnn_convolution_relu", refuse)
    x = torch.randn(1, 4, 8, 8)
    for _ in range(2):
        assert torch.equal(joined(x), joined.convolution(x).relu())
    assert len(tried) == 1


def test_a_lack_of_memory_is_not_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*_: Any) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    joined = ConvReLU(nn.Conv2d(4, 4, 3))
    monkeypatch.setattr(ConvReLU, "_has_one_call", lambda *_: True)
    monkeypatch.setattr(torch, "cudnn_convolution_relu", exhausted)
    with pytest.raises(torch.OutOfMemoryError):
        joined(torch.randn(1, 4, 8, 8))
    assert not joined.refused


@pytest.mark.parametrize(
    ("dtype", "options", "learns", "one"),
    [
        (torch.bfloat16, {}, False, True),
        (torch.float16, {"padding": 1}, False, True),
        (torch.bfloat16, {}, True, False),
        (torch.float32, {}, False, False),
        (torch.bfloat16, {"bias": False}, False, False),
        (torch.bfloat16, {"padding": "same"}, False, False),
        (torch.bfloat16, {"padding": 1, "padding_mode": "reflect"}, False, False),
    ],
)
def test_when_there_is_one_call(
    monkeypatch: pytest.MonkeyPatch,
    dtype: torch.dtype,
    options: dict[str, Any],
    learns: bool,
    one: bool,
) -> None:
    joined = ConvReLU(nn.Conv2d(4, 4, 3, **options).to(dtype).requires_grad_(False))
    x = torch.zeros(1, 4, 8, 8, requires_grad=learns)
    assert not joined._has_one_call(x)  # on the CPU
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda _: True))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert joined._has_one_call(x) == one
    with torch.no_grad():
        assert joined._has_one_call(x) == (one or learns)
    monkeypatch.setattr(torch.backends.cudnn, "enabled", False)
    assert not joined._has_one_call(x)


def test_depthwise_filters_lie_as_their_kernel_reads_them() -> None:
    model = build(SMALL).decoder
    twins = dict(inference_copy(model, torch.bfloat16).named_modules())
    filters = {n: m.weight for n, m in model.named_modules() if isinstance(m, DepthwiseConv)}
    assert filters
    for name, weight in filters.items():
        twin = twins[name].weight
        assert isinstance(twin, Tensor)
        assert twin.permute(2, 3, 1, 0).is_contiguous()
        assert torch.equal(twin, weight)


@pytest.mark.parametrize(
    ("kernels", "pointwise", "blocks", "joined"),
    [
        ((5, 7), True, 1, True),
        ((3, 5, 7), True, 0, True),
        ((5,), True, 1, False),
        ((5, 7), False, 1, False),
        ((), True, 1, False),
    ],
)
def test_local_branches_begin_together(
    kernels: tuple[int, ...], pointwise: bool, blocks: int, joined: bool
) -> None:
    torch.manual_seed(0)
    module = LSSModule(8, 2, blocks=blocks, kernels=kernels, pointwise=pointwise)
    exact = nn.ModuleList([module]).double()
    drawn = torch.get_rng_state()
    copy = inference_copy(exact, torch.float64)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert count(copy, JoinedLSS) == joined
    weights = sum(p.numel() for p in exact.parameters())
    assert sum(p.numel() for p in copy.parameters()) == weights
    x = torch.randn(2, 4, 6, 8, dtype=torch.float64)
    orders = torch.stack([torch.arange(24), torch.arange(24).flip(0)]).int()
    with torch.no_grad():
        expected = exact.eval()[0](x, orders)
        torch.testing.assert_close(copy[0](x, orders), expected, rtol=1e-12, atol=1e-12)


def test_joined_weights_are_narrow_and_frozen() -> None:
    copy = inference_copy(build(SMALL), torch.bfloat16)
    modules = [m for m in copy.modules() if isinstance(m, JoinedLSS)]
    assert len(modules) == 4
    for module in modules:
        assert {p.dtype for p in module.first.parameters()} == {torch.bfloat16}
        assert not any(p.requires_grad for p in module.first.parameters())
        assert not module.training
