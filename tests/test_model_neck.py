from __future__ import annotations

import copy
import math

import pytest
import torch
from helpers import deviation
from interpreter import interpreted_device
from torch import Tensor, nn

from mambaad.fused import batch
from mambaad.model import parameter_count
from mambaad.model.neck import Bottleneck, HalfFPN, _FusedNorms

DEVICE = interpreted_device()


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


def step(neck: HalfFPN, maps: list[Tensor], *, kernel: bool) -> dict[str, Tensor | None]:
    """The neck's map, the gradients of all that it reads, and its statistics, in training."""
    leaves = [m.detach().requires_grad_() for m in maps]
    named = dict(neck.named_parameters())
    exact = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
    with pytest.MonkeyPatch.context() as patch, exact:
        patch.setattr(batch, "runs", lambda _: kernel)
        out = neck(leaves)
        generator = torch.Generator().manual_seed(1)
        dy = torch.randn(out.shape, generator=generator).to(DEVICE, out.dtype)
        found = torch.autograd.grad(out, [*leaves, *named.values()], dy, allow_unused=True)
    gradients = zip(["fine", "middle", "coarse", *named], found, strict=True)
    return {"out": out.detach(), **dict(gradients), **dict(neck.named_buffers())}


def test_norms_with_sum_and_relu_in_one_kernel() -> None:
    """Two steps against float64: values, gradients and running statistics."""
    torch.manual_seed(0)
    neck = HalfFPN((4, 6, 8)).to(DEVICE)
    for norm in neck.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.normal_(norm.weight, 1.0, 0.3)
            nn.init.normal_(norm.bias)
    exact = copy.deepcopy(neck).double()
    maps = [torch.rand(3, c, 16 // 2**i, 8 // 2**i).to(DEVICE) for i, c in enumerate((4, 6, 8))]
    for _ in range(2):
        found = step(neck, maps, kernel=True)
        truth = step(exact, [m.double() for m in maps], kernel=False)
    assert found.keys() == truth.keys()
    for name, expected in truth.items():
        value = found[name]
        assert expected is not None, name
        if name in ("side1.0.bias", "side2.0.bias", "join.0.bias"):
            assert value is None, name
            assert expected.abs().max() < 1e-12, name
        elif expected.dtype == torch.int64:
            assert torch.equal(value, expected), name
            assert expected == 2, name
        else:
            assert value is not None, name
            assert deviation(value, expected) < 2e-5, name


def test_other_norms_run_by_themselves() -> None:
    """Evaluation, a norm that is held, and one of another kind: the layers as they are."""
    maps = [torch.rand(2, c, 8 // 2**i, 8 // 2**i, device=DEVICE) for i, c in enumerate((4, 6, 8))]
    for change in (
        lambda neck: neck.eval(),
        lambda neck: neck.join[1].eval(),
        lambda neck: setattr(neck.join[1], "momentum", None),
        lambda neck: neck.join.__setitem__(1, nn.SyncBatchNorm(8)),
    ):
        neck = HalfFPN((4, 6, 8)).to(DEVICE)
        change(neck)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(batch, "runs", lambda _: True)
            assert _FusedNorms.of(neck, maps[2]) is None
    neck = HalfFPN((4, 6, 8)).to(DEVICE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch, "runs", lambda _: True)
        assert _FusedNorms.of(neck, maps[2]) is not None
        assert _FusedNorms.of(neck, maps[2][:1, :, :1, :1]) is None
        with torch.no_grad():
            assert _FusedNorms.of(neck, maps[2]) is None
