"""Instance normalisation with SiLU: plain torch is the definition, kernels are held to float64."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from interpreter import interpreted_device
from torch import Tensor

from mambaad.fused import instance
from mambaad.fused.instance import instance_norm_silu

DEVICE = interpreted_device()

# The interpreter cuts what it stores as bfloat16, the GPU rounds: up to twice the error.
CUT = {torch.bfloat16: 1.0 if DEVICE.type == "cuda" else 2.0}

SHAPES = [(2, 1, 3, 5), (1, 5, 7, 33), (2, 4, 4, 16), (1, 9, 5, 1)]


@pytest.fixture(params=["whole", "spans", "long spans"])
def split(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Maps of any size in one tile, in spans of one tile, in fewer spans than tiles."""
    if request.param != "whole":
        monkeypatch.setattr(instance, "WHOLE", 0)
        monkeypatch.setattr(instance, "TILE", 8)
    if request.param == "long spans":
        monkeypatch.setattr(instance, "SPANS", 2)
    name: str = request.param
    return name


def picture(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return (torch.randn(shape, generator=generator) * 2 + 0.5).to(DEVICE, dtype)


def results(x: Tensor, **options: Any) -> list[Tensor]:
    """y and dx."""
    leaf = x.detach().requires_grad_()
    y = instance_norm_silu(leaf, **options)
    generator = torch.Generator().manual_seed(0)
    dy = torch.randn(y.shape, generator=generator).to(DEVICE).bfloat16().to(y.dtype)
    return [y.detach(), *torch.autograd.grad(y, leaf, dy)]


def errors(found: Sequence[Tensor], expected: Sequence[Tensor]) -> list[float]:
    """The norm of what is wrong over the norm of what is right, of y and dx."""
    both = zip(found, expected, strict=True)
    return [float((a.double() - b).norm() / b.norm()) for a, b in both]


def assert_as_good_as_plain(x: Tensor, floor: float) -> None:
    expected = results(x.double(), kernel=False)
    plain, found = results(x, kernel=False), results(x, kernel=True)
    assert [t.dtype for t in found] == [t.dtype for t in plain]
    both = zip(errors(found, expected), errors(plain, expected), strict=True)
    for error, allowed in both:
        assert error <= 2 * allowed * CUT.get(x.dtype, 1.0) + floor


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.usefixtures("split")
def test_float32_against_float64(shape: tuple[int, ...]) -> None:
    x = picture(shape)
    for error in errors(results(x, kernel=True), results(x.double(), kernel=False)):
        assert error < 1e-6


def test_a_real_map_in_spans() -> None:
    """More pixels than one program holds: the tiling as it is, with a last tile in part."""
    x = picture((1, 33, 37, 3))
    assert instance.tiling(1, 33 * 37, 3, 4).spans == 10
    for error in errors(results(x, kernel=True), results(x.double(), kernel=False)):
        assert error < 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.usefixtures("split")
def test_16_bits_are_as_good_as_torchs(dtype: torch.dtype) -> None:
    assert_as_good_as_plain(picture((2, 5, 7, 33), dtype), floor=1e-6)


@pytest.mark.parametrize("offset", [1000.0, -1000.0])
@pytest.mark.usefixtures("split")
def test_a_large_mean_does_not_cancel(offset: float) -> None:
    assert_as_good_as_plain(picture((2, 9, 7, 5)) + offset, floor=2e-7)


@pytest.mark.usefixtures("split")
def test_one_bright_pixel() -> None:
    """Nearly all of the variance is in one pixel, and that one the first."""
    x = picture((1, 6, 6, 3))
    x[0, 0, 0] += 10000
    assert_as_good_as_plain(x, floor=2e-7)


@pytest.mark.parametrize("kernel", [True, False])
def test_a_map_of_one_pixel_is_0(kernel: bool) -> None:
    x = picture((2, 1, 1, 3))
    assert torch.equal(instance_norm_silu(x, kernel=kernel), torch.zeros_like(x))


def test_the_operator_takes_one_pixel_too() -> None:
    x = picture((2, 1, 1, 3)).requires_grad_()
    y, mean, _ = instance.instance_norm_forward(x, 1e-5)
    assert not y.any()
    assert torch.equal(mean, x[:, 0, 0])
    assert not torch.autograd.grad(y.sum(), x)[0].any()


@pytest.mark.usefixtures("split")
def test_a_flat_map_stays_finite() -> None:
    """y is 0 but for rounding: a GPU's 63/9 is off by up to two units in the last place, and
    centring a second time leaves that error's square of the 7."""
    y, dx = results(torch.full((1, 3, 3, 2), 7.0, device=DEVICE), kernel=True)
    error = 2 * 2.0**-23
    assert y.abs().max() <= 7 * error**2 / 1e-5**0.5
    assert dx.isfinite().all()


@pytest.mark.parametrize("kernel", [True, False])
def test_no_pictures(kernel: bool) -> None:
    for result in results(picture((0, 4, 4, 3)), kernel=kernel):
        assert result.shape == (0, 4, 4, 3)


@pytest.mark.usefixtures("split")
def test_every_element_is_written_and_the_same_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    x = picture((2, 5, 7, 5))
    first = results(x, kernel=True)
    monkeypatch.setattr(torch.Tensor, "new_empty", _nans(torch.Tensor.new_empty))
    monkeypatch.setattr(torch, "empty_like", _nans(torch.empty_like))
    for a, b in zip(first, results(x, kernel=True), strict=True):
        assert a.isfinite().all()
        assert torch.equal(a, b)


def _nans(make: Any) -> Any:
    return lambda *args, **options: make(*args, **options).fill_(torch.nan)


def test_any_layout() -> None:
    """A view of a map with channels first is copied, not misread, also as a gradient."""
    x = picture((2, 5, 7, 6))
    first = x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    for a, b in zip(results(first, kernel=True), results(x, kernel=True), strict=True):
        assert torch.equal(a, b)
    leaf = x.detach().requires_grad_()
    dy = picture((2, 6, 5, 7))
    turned = torch.autograd.grad(
        instance_norm_silu(leaf, kernel=True), leaf, dy.permute(0, 2, 3, 1)
    )[0]
    straight = torch.autograd.grad(
        instance_norm_silu(leaf, kernel=True), leaf, dy.permute(0, 2, 3, 1).contiguous()
    )[0]
    assert torch.equal(turned, straight)


@pytest.mark.usefixtures("split")
def test_the_gradient_of_a_part_of_joined_maps() -> None:
    """Its pixels lie apart and it begins in the middle of the whole's."""
    x = picture((2, 4, 5, 6)).requires_grad_()
    whole = picture((2, 4, 5, 18))
    y = instance_norm_silu(x, kernel=True)
    turned = whole[..., 6:12].transpose(1, 2).contiguous().transpose(1, 2)
    expected = torch.autograd.grad(y, x, whole[..., 6:12].contiguous(), retain_graph=True)[0]
    for dy in (whole[..., 6:12], turned, whole.permute(0, 1, 3, 2)[..., 6:12, :].mT):
        found = torch.autograd.grad(y, x, dy, retain_graph=True)[0]
        assert torch.equal(found, expected)


def test_plain_is_what_torch_computes() -> None:
    x = picture((2, 5, 7, 3))
    expected = F.silu(F.instance_norm(x.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)
    assert torch.equal(instance_norm_silu(x.requires_grad_(), kernel=False), expected)
    assert instance_norm_silu(x.double()).dtype == torch.float64


@pytest.mark.parametrize("batch", [1, 2])
def test_plain_is_the_equation(batch: int) -> None:
    """With its gradient, for a gradient that is channels last, which torch gets wrong for one."""
    x = picture((batch, 5, 7, 3)).double().requires_grad_()
    centred = x - x.mean((1, 2), keepdim=True)
    normal = centred / (centred.square().mean((1, 2), keepdim=True) + 1e-5).sqrt()
    expected, found = normal * normal.sigmoid(), instance_norm_silu(x, kernel=False)
    torch.testing.assert_close(found, expected)
    dy = picture((batch, 5, 7, 3)).double().flip(0, 1)
    gradients = [torch.autograd.grad(y, x, dy)[0] for y in (found, expected)]
    torch.testing.assert_close(*gradients)


@pytest.mark.usefixtures("split")
def test_the_epsilon_is_used() -> None:
    x = picture((2, 5, 7, 3))
    found = instance_norm_silu(x, 0.7, kernel=True)
    torch.testing.assert_close(found, instance_norm_silu(x, 0.7, kernel=False))


@pytest.mark.parametrize("split", ["whole", "spans"], indirect=True)
@pytest.mark.usefixtures("split")
def test_opcheck() -> None:
    x = picture((2, 3, 2, 5))
    torch.library.opcheck(instance.instance_norm_forward, (x.clone().requires_grad_(), 1e-5))
    y, mean, rstd = instance.instance_norm_forward(x, 1e-5)
    torch.library.opcheck(
        instance.instance_norm_backward,
        (torch.ones_like(y), x, mean, rstd),
        test_utils=("test_schema", "test_faketensor"),  # it has no gradient of its own
    )


@pytest.mark.parametrize("kernel", [True, False])
def test_compiled_as_one_graph(kernel: bool) -> None:
    x = picture((2, 3, 2, 5)).requires_grad_()
    compiled = torch.compile(instance_norm_silu, fullgraph=True, backend="aot_eager")
    found, expected = compiled(x, kernel=kernel), instance_norm_silu(x, kernel=kernel)
    assert torch.equal(found, expected)
    dx = [torch.autograd.grad(y.square().sum(), x)[0] for y in (found, expected)]
    torch.testing.assert_close(*dx)


def test_a_wrong_shape_is_named() -> None:
    with pytest.raises(ValueError, match="x must have shape") as error:
        instance_norm_silu(torch.zeros(2, 3, 4))
    assert str(error.value) == "x must have shape (B, H, W, C), got (2, 3, 4)"


@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("batch", [1, 16, 64])
@pytest.mark.parametrize(
    ("side", "channels"), [(64, 64), (32, 128), (16, 256), (8, 512), (256, 64)]
)
def test_tilings_of_the_real_sizes(batch: int, side: int, channels: int, itemsize: int) -> None:
    """All pixels covered, whole sectors read, no thread with more than 32 elements."""
    tiles = instance.tiling(batch, side * side, channels, itemsize)
    assert tiles.pixels * tiles.steps * tiles.spans >= side * side
    assert tiles.pixels * tiles.steps * (tiles.spans - 1) < side * side
    assert tiles.channels * itemsize in (32, 64)
    assert tiles.pixels * tiles.channels <= 32 * 32 * tiles.warps
    assert (tiles.pixels >= side * side) == (side <= 32)
    assert tiles.spans <= instance.SPANS
    if batch >= 16:
        assert batch * tiles.spans * channels // tiles.channels >= 128


def test_one_span_of_a_large_map_is_not_one_tile() -> None:
    """So many maps that each is one program's, in several steps."""
    tiles = instance.tiling(64, 4096, 512, 2)
    assert (tiles.pixels, tiles.steps, tiles.spans) == (128, 32, 1)


@pytest.mark.parametrize("offset", [0.0, 100.0])
@pytest.mark.parametrize("shape", [*SHAPES, (1, 64, 48, 20)], ids=str)
def test_without_a_gradient_against_float64(shape: tuple[int, ...], offset: float) -> None:
    """The mean is off by a rounding of the largest value, which counts in deviations; deviation
    and product by some roundings more. SiLU is no steeper than 1.1."""
    x = picture(shape) + offset
    given = x.clone()
    wide = x.double()
    exact = instance_norm_silu(wide, kernel=False)
    variance, mean = torch.var_mean(wide, (1, 2), correction=0, keepdim=True)
    deviation = (variance + 1e-5).sqrt()
    largest, normal = wide.abs().amax((1, 2), keepdim=True), (wide - mean) / deviation
    found = instance_norm_silu(x, kernel=False)
    assert found.is_contiguous()
    allowed = 2**-22 * (largest / deviation + normal.abs())
    assert ((found - exact).abs() <= allowed).all()
    assert torch.equal(x, given)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_without_a_gradient_in_other_dtypes(dtype: torch.dtype) -> None:
    """In 16 bits statistics are wider than the map, with a gradient and without."""
    x = picture((2, 9, 9, 16)).to(dtype) + 30
    with_gradient = instance_norm_silu(x.detach().requires_grad_(), kernel=False)
    found = instance_norm_silu(x, kernel=False)
    assert found.dtype == dtype
    tolerance = 0.0 if dtype == torch.bfloat16 else 1e-12
    torch.testing.assert_close(found, with_gradient.detach(), rtol=tolerance, atol=tolerance)


def test_parts_of_a_wider_map_and_no_mode() -> None:
    """A view in, and a result that a later gradient may pass through."""
    wide = picture((2, 4, 4, 16))
    exact = instance_norm_silu(wide[..., 4:9].double(), kernel=False)
    with torch.no_grad():
        found = instance_norm_silu(wide[..., 4:9], kernel=False)
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-6)
    assert instance.normalised(torch.full((1, 3, 3, 2), 7.0)).abs().max() < 1e-3
    assert not instance.normalised(torch.full((1, 1, 1, 2), 7.0)).any()
