from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mambaad.model import parameter_count
from mambaad.model.blocks import (
    HSSBlock,
    LSSModule,
    initialise_decoder,
)
from mambaad.scan import cross_scan, direction_orders


def orders(height: int, width: int, paths: int) -> Tensor:
    return torch.from_numpy(direction_orders("hilbert", paths, height, width))


@pytest.mark.parametrize(
    ("channels", "hss", "lss", "blocks"),
    [
        (512, 2_520_064, 9_435_648, 3),
        (256, 735_744, 1_950_464, 2),
        (128, 236_800, 835_200, 3),
        (64, 85_632, 290_624, 3),
    ],
)
def test_parameters(channels: int, hss: int, lss: int, blocks: int) -> None:
    """The figures of the published code."""
    with torch.device("meta"):
        assert parameter_count(HSSBlock(channels, 8)) == hss
        assert parameter_count(LSSModule(channels, 8, blocks=blocks, kernels=(5, 7))) == lss


def test_hss_initial_values() -> None:
    torch.manual_seed(0)
    block = HSSBlock(64, 8).apply(initialise_decoder)
    step = F.softplus(block.dt_bias)
    assert step.shape == (8, 128)
    assert 0.001 <= step.min() < 0.0012
    assert 0.085 < step.max() <= 0.1
    # uniform in the logarithm: the median is the geometric mean of the ends
    assert step.median().item() == pytest.approx(0.01, rel=0.15)
    rows = torch.log(torch.arange(1, 17.0)).expand(8, 128, 16)
    assert torch.equal(block.a_log, rows)
    assert (block.skip == 1).all()
    for weight, limit in ((block.scan_proj, 128**-0.5), (block.dt_weight, 4**-0.5)):
        assert weight.abs().max() <= limit
        assert weight.std().item() == pytest.approx(limit / 3**0.5, rel=0.05)
    for linear in (block.in_proj, block.out_proj):
        assert linear.bias is None
        assert linear.weight.std().item() == pytest.approx(0.02, rel=0.05)
    for norm in (block.norm, block.out_norm):
        assert norm.eps == 1e-5
        assert (norm.weight == 1).all()
        assert (norm.bias == 0).all()
    assert block.conv.weight.std().item() == pytest.approx(0.471, rel=0.06)
    assert block.conv.bias is not None
    assert (block.conv.bias == 0).all()


def test_lss_initial_values() -> None:
    torch.manual_seed(0)
    module = LSSModule(256, 2, blocks=1, kernels=(5, 7)).apply(initialise_decoder)
    expected = {5: 0.283, 7: 0.202, 1: math.sqrt(2 / 256)}
    found = [m for m in [*module.local.modules(), module.fuse] if isinstance(m, nn.Conv2d)]
    assert len(found) == 7
    for convolution in found:
        size = convolution.kernel_size[0]
        assert convolution.weight.std().item() == pytest.approx(expected[size], rel=0.05)
        if size > 1:
            assert convolution.bias is None
        else:
            assert convolution.bias is not None
            assert (convolution.bias == 0).all()


def test_hss_is_equation_8() -> None:
    """Written out with the scan along each path as a sequence of its own."""
    torch.manual_seed(1)
    block = HSSBlock(8, 4).apply(initialise_decoder)
    x, table = torch.randn(2, 3, 4, 8), orders(3, 4, 4)
    with torch.no_grad():
        inner, gate = block.in_proj(block.norm(x)[1]).split(16, dim=-1)
        conv = block.conv
        inner = F.conv2d(inner.permute(0, 3, 1, 2), conv.weight, conv.bias, padding=1, groups=16)
        inner = F.silu(inner).flatten(2).transpose(1, 2)
        total = torch.zeros_like(inner)
        straight = torch.arange(12, dtype=torch.int32)[None]
        for k, order in enumerate(table.long()):
            sequence = inner[:, order]
            one = slice(k, k + 1)
            y = cross_scan(
                sequence,
                (sequence @ block.scan_proj[k].T)[:, :, None],
                block.a_log[one],
                block.dt_weight[one],
                block.dt_bias[one],
                block.skip[one],
                straight,
            )
            total[:, order] += y
        expected = x + block.out_proj(block.out_norm(total.reshape(2, 3, 4, 16)) * F.silu(gate))
        torch.testing.assert_close(block(x, table), expected, rtol=1e-5, atol=1e-6)


def test_hss_backends_agree() -> None:
    torch.manual_seed(2)
    block = HSSBlock(8, 2)
    x, table = torch.randn(1, 5, 5, 8), orders(5, 5, 2)
    first = block(x, table)
    block.backend = "reference"
    torch.testing.assert_close(block(x, table), first, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(2, 3), (4, 4)], ids=str)
@pytest.mark.parametrize(
    ("blocks", "kernels"), [(0, (5, 7)), (1, (1, 3)), (2, (3,)), (2, ())], ids=str
)
def test_lss_runs_and_learns(shape: tuple[int, int], kernels: tuple[int, ...], blocks: int) -> None:
    module = LSSModule(16, 2, blocks=blocks, kernels=kernels)
    x = torch.randn(2, *shape, 16, requires_grad=True)
    y = module(x, orders(*shape, 2))
    assert y.shape == x.shape
    (y**2).sum().backward()
    assert x.grad is not None
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_lss_on_a_single_pixel() -> None:
    """A 32 x 32 picture's coarsest map: the local branches are silent, training goes on."""
    module = LSSModule(16, 2, blocks=1, kernels=(5, 7))
    x = torch.randn(2, 1, 1, 16, requires_grad=True)
    y = module(x, orders(1, 1, 2))
    y.sum().backward()
    assert y.isfinite().all()
    assert x.grad is not None
    assert module.fuse.weight.grad is not None
    assert module.fuse.weight.grad[:, :16].any()
    assert not module.fuse.weight.grad[:, 16:].any()


def test_lss_parts() -> None:
    """Names are part of the run folder's format."""

    def names(**options: object) -> set[str]:
        module = LSSModule(16, 2, **options)  # type: ignore[arg-type]
        return {n.rpartition(".")[0] for n, _ in module.named_parameters() if "local" in n} | {
            f"fuse {tuple(module.fuse.weight.shape[:2])}"
        }

    assert names(blocks=1, kernels=(5,)) == {
        "fuse (16, 32)",
        "local.kernel5.0",
        "local.kernel5.2",
        "local.kernel5.4",
    }
    assert names(blocks=1, kernels=(1, 3), pointwise=False) == {
        "fuse (16, 48)",
        "local.kernel1.0",
        "local.kernel3.0",
    }
    assert names(blocks=2, kernels=()) == {"fuse (16, 16)"}
    assert names(blocks=0, kernels=(7,), pointwise=False) == {"fuse (16, 16)", "local.kernel7.0"}


def test_lss_residual() -> None:
    """With the last convolution at 0 the module is the identity, or nothing."""
    x, table = torch.randn(1, 4, 4, 16), orders(4, 4, 2)
    for residual in (True, False):
        module = LSSModule(16, 2, blocks=1, kernels=(5,), residual=residual)
        nn.init.zeros_(module.fuse.weight)
        assert module.fuse.bias is not None
        nn.init.zeros_(module.fuse.bias)
        assert torch.equal(module(x, table), x if residual else torch.zeros_like(x))


def test_local_branch_is_convolution_norm_silu() -> None:
    torch.manual_seed(3)
    module = LSSModule(8, 2, blocks=0, kernels=(3,), residual=False).apply(initialise_decoder)
    branch = module.local["kernel3"]
    assert isinstance(branch, nn.Sequential)
    x = torch.randn(2, 5, 6, 8)
    y = x.permute(0, 3, 1, 2)
    for i in (0, 2, 4):
        layer = branch[i]
        assert isinstance(layer, nn.Conv2d)
        y = F.conv2d(y, layer.weight, layer.bias, padding=layer.padding, groups=layer.groups)
        mean, variance = y.mean((2, 3), keepdim=True), y.var((2, 3), correction=0, keepdim=True)
        y = F.silu((y - mean) / torch.sqrt(variance + 1e-5))
    y = y.permute(0, 2, 3, 1)
    torch.testing.assert_close(branch(x), y, rtol=1e-4, atol=1e-5)
    joined = module(x, orders(5, 6, 2))
    torch.testing.assert_close(joined, module.fuse(y), rtol=1e-4, atol=1e-5)


def test_drop_path_is_on_the_branch_only() -> None:
    torch.manual_seed(0)
    block = HSSBlock(8, 2, drop_path=1 - 1e-7)
    x, table = torch.randn(3, 4, 4, 8), orders(4, 4, 2)
    assert torch.equal(block(x, table), x)
    assert not torch.equal(block.eval()(x, table), x)


def one_by_one(module: LSSModule, x: Tensor, table: Tensor) -> Tensor:
    """The module without anything done for several layers together."""
    y = x
    for block in module.blocks:
        y = block(y, table)
    branches = [y] + [branch(x) for branch in module.local.values()]
    out: Tensor = x + module.fuse(torch.cat(branches, dim=-1))
    return out


@pytest.mark.parametrize("kernels", [(3,), (5, 7)])
def test_layers_taken_together_change_nothing(kernels: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    module = LSSModule(8, 2, blocks=3, kernels=kernels).double()
    x = torch.randn(2, 4, 5, 8, dtype=torch.float64, requires_grad=True)
    leaves = [x, *module.parameters()]
    table, found = orders(4, 5, 2), []
    for y in (module(x, table), one_by_one(module, x, table)):
        upstream = torch.arange(y.numel(), dtype=torch.float64).view(y.shape).cos()
        found.append([y, *torch.autograd.grad(y, leaves, upstream)])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_drop_path_drops_each_branch_of_a_cascade() -> None:
    """Sums of subsets of the branches, and in time every subset, each scaled up."""
    torch.manual_seed(0)
    module = LSSModule(1, 2, blocks=2, kernels=(), drop_path=0.5)
    for block, value in zip(module.blocks, (1.0, 10.0), strict=True):
        block.branch = _constant(value)  # type: ignore[assignment]
    x, table = torch.zeros(64, 2, 2, 1), orders(2, 2, 2)
    sums = module._cascade(x, table)
    assert torch.equal(sums, sums[:, :1, :1].expand_as(sums))
    assert set(sums[:, 0, 0, 0].tolist()) == {0.0, 2.0, 20.0, 22.0}
    assert torch.equal(module.eval()._cascade(x, table), x + 11)


def _constant(value: float) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda normal, _: torch.full_like(normal, value)
