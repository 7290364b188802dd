"""Batch normalisation with what follows it: plain torch is the definition, kernels are held to it
in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import deviation
from interpreter import interpreted_device
from torch import Tensor, nn

from mambaad.fused import batch
from mambaad.fused.batch import batch_norm

DEVICE = interpreted_device()

NAMES = ("y", "mean", "variance", "dx", "dweight", "dbias", "dresidual")

SHAPES = [(2, 5, 3, 5), (1, 33, 5, 7), (3, 16, 4, 4), (1, 1, 1, 2)]


@pytest.fixture(params=["whole", "spans", "long spans"])
def split(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """All pixels in one tile, in spans of one tile, in fewer spans than tiles."""
    if request.param != "whole":
        monkeypatch.setattr(batch, "WHOLE", 0)
        monkeypatch.setattr(batch, "TILE", 8)
    if request.param == "long spans":
        monkeypatch.setattr(batch, "SPANS", 2)
    name: str = request.param
    return name


def inputs(
    shape: tuple[int, ...], *, added: bool = True, dtype: torch.dtype = torch.float32
) -> list[Tensor | None]:
    """x, weight, bias, residual; the maps in ``dtype`` and channels last."""
    generator = torch.Generator().manual_seed(sum(shape))
    x = torch.randn(shape, generator=generator) * 2 + 0.5
    residual = torch.randn(shape, generator=generator) if added else None
    weight, bias = (torch.randn(shape[1], generator=generator) + 1 for _ in range(2))
    last = torch.channels_last
    narrow = [None if t is None else t.to(DEVICE, dtype, memory_format=last) for t in (x, residual)]
    return [narrow[0], weight.to(DEVICE), bias.to(DEVICE), narrow[1]]


def results(tensors: Sequence[Tensor | None], **options: Any) -> list[Tensor]:
    """y, the moments and all gradients, in the order of ``NAMES``."""
    leaves = [None if t is None else t.detach().requires_grad_() for t in tensors]
    x, weight, bias, residual = leaves
    assert x is not None
    assert weight is not None
    assert bias is not None
    y, moments = batch_norm(x, weight, bias, residual=residual, **options)
    generator = torch.Generator().manual_seed(0)
    dy = torch.randn(y.shape, generator=generator).to(DEVICE).bfloat16().to(y.dtype)
    found = torch.autograd.grad(y, [leaf for leaf in leaves if leaf is not None], dy)
    return [y.detach(), *moments, *found]


def exact(tensors: Sequence[Tensor | None], **options: Any) -> list[Tensor]:
    return results([None if t is None else t.double() for t in tensors], kernel=False, **options)


@pytest.mark.parametrize(("added", "relu"), [(True, True), (False, True), (False, False)])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.usefixtures("split")
def test_float32_against_float64(shape: tuple[int, ...], added: bool, relu: bool) -> None:
    tensors = inputs(shape, added=added)
    truth = exact(tensors, relu=relu)
    plain = results(tensors, kernel=False, relu=relu)
    found = results(tensors, kernel=True, relu=relu)
    for name, a, b, c in zip(NAMES, found, plain, truth, strict=False):
        assert a.shape == b.shape, name
        assert deviation(a, c) <= 2 * deviation(b, c) + 1e-6, name
    assert found[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.usefixtures("split")
def test_a_large_mean_does_not_cancel() -> None:
    x, *others = inputs((2, 3, 5, 7))
    assert x is not None
    tensors = [x + 1000, *others]
    both = [results(tensors, kernel=kernel) for kernel in (True, False)]
    for name, a, b, c in zip(NAMES, *both, exact(tensors), strict=True):
        # the spans' means have seven digits, of which the offset takes three
        floor = 5e-6 if name == "variance" else 1e-6
        assert deviation(a, c) <= 2 * deviation(b, c) + floor, name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.usefixtures("split")
def test_16_bits_are_as_good_as_torchs(dtype: torch.dtype) -> None:
    """Beside float32 weights. The interpreter cuts what it stores as bfloat16, the GPU rounds."""
    tensors = inputs((2, 9, 5, 7), dtype=dtype)
    cut = 2.0 if dtype == torch.bfloat16 and DEVICE.type == "cpu" else 1.0
    both = [results(tensors, kernel=kernel) for kernel in (True, False)]
    for name, a, b, c in zip(NAMES, *both, exact(tensors), strict=True):
        assert a.dtype == (torch.float32 if name in ("mean", "variance") else b.dtype), name
        if name not in ("mean", "variance"):
            assert deviation(a, c) <= 2 * cut * deviation(b, c) + 1e-2, name
        else:
            assert deviation(a, c) <= 1e-6, name


@pytest.mark.usefixtures("split")
def test_moments_are_what_running_statistics_take() -> None:
    """With the shift, as of a convolution's bias that was not added."""
    x, weight, bias, _ = inputs((2, 6, 3, 5), added=False)
    assert x is not None
    assert weight is not None
    assert bias is not None
    shift = torch.linspace(-1, 1, 6, device=DEVICE)
    layer = nn.BatchNorm2d(6, momentum=1.0).to(DEVICE)
    layer(x + shift.view(-1, 1, 1))
    for kernel in (True, False):
        y, moments = batch_norm(x, weight, bias, shift=shift, kernel=kernel)
        torch.testing.assert_close(moments.mean, layer.running_mean)
        torch.testing.assert_close(moments.variance, layer.running_var)
        assert torch.equal(y, batch_norm(x, weight, bias, kernel=kernel)[0])


@pytest.mark.usefixtures("split")
def test_every_element_is_written_and_the_same_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = inputs((2, 5, 5, 7))
    first = results(tensors, kernel=True)
    for owner, make in ((Tensor, "new_empty"), (torch, "empty_like")):
        monkeypatch.setattr(owner, make, _poisoned(getattr(owner, make)))
    for name, a, b in zip(NAMES, first, results(tensors, kernel=True), strict=True):
        assert b.isfinite().all(), name
        assert torch.equal(a, b), name


def _poisoned(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda *args, **options: make(*args, **options).fill_(torch.nan)


def test_what_is_not_a_number_stays_so() -> None:
    x, weight, bias, _ = inputs((2, 2, 3, 3), added=False)
    assert x is not None
    assert weight is not None
    assert bias is not None
    x[0, 0, 0, 0] = torch.nan
    y, _ = batch_norm(x, weight, bias, kernel=True)
    assert y[:, 0].isnan().all()
    assert y[:, 1].isfinite().all()


def test_any_layout() -> None:
    """Maps with channels first are copied, not misread, also as a gradient."""
    tensors = inputs((2, 5, 3, 4))
    first = [None if t is None else t.contiguous() for t in tensors]
    for name, a, b in zip(NAMES, *(results(t, kernel=True) for t in (tensors, first)), strict=True):
        assert torch.equal(a, b), name


def test_plain_is_what_torch_computes() -> None:
    x, weight, bias, residual = inputs((2, 5, 3, 4))
    assert x is not None
    assert weight is not None
    assert bias is not None
    assert residual is not None
    normal = F.batch_norm(x, None, None, weight, bias, training=True, eps=0.7)
    found = batch_norm(x, weight, bias, 0.7, residual=residual, kernel=False)[0]
    assert torch.equal(found, F.relu(normal + residual))
    assert torch.equal(batch_norm(x, weight, bias, 0.7, relu=False, kernel=False)[0], normal)
    found = batch_norm(x, weight, bias, 0.7, relu=False, kernel=True)[0]
    torch.testing.assert_close(found, normal)


@pytest.mark.parametrize("split", ["whole", "spans"], indirect=True)
@pytest.mark.usefixtures("split")
def test_opcheck() -> None:
    x, weight, bias, residual = (
        None if t is None else t.detach().requires_grad_() for t in inputs((2, 3, 3, 4))
    )
    assert x is not None
    assert residual is not None
    last = [t.detach().permute(0, 2, 3, 1).requires_grad_() for t in (x, residual)]
    torch.library.opcheck(
        batch.batch_norm_forward, (last[0], weight, bias, None, last[1], True, 1e-5)
    )
    with torch.no_grad():
        y, mean, rstd, _ = batch.batch_norm_forward(last[0], weight, bias, None, None, True, 1e-5)
        torch.library.opcheck(
            batch.batch_norm_backward,
            (torch.ones_like(y), y, last[0].detach(), mean, rstd, weight, True, True),
            test_utils=("test_schema", "test_faketensor"),  # it has no gradient of its own
        )


def test_wrong_shapes_are_named() -> None:
    x, weight, bias, residual = inputs((2, 5, 3, 4))
    assert x is not None
    assert weight is not None
    assert bias is not None
    assert residual is not None
    for options, message in (
        ({"x": x[0]}, r"x must be \(B, C, H, W\) of more than one pixel, got \(5, 3, 4\)"),
        ({"x": x[:1, :, :1, :1]}, r"more than one pixel, got \(1, 5, 1, 1\)"),
        ({"weight": weight[1:]}, r"weight must have shape \(5,\), got \(4,\)"),
        ({"shift": x}, r"shift must have shape \(5,\), got \(2, 5, 3, 4\)"),
        ({"residual": residual[:1]}, r"residual must have shape \(2, 5, 3, 4\), got \(1, 5, 3"),
    ):
        with pytest.raises(ValueError, match=message):
            batch_norm(**({"x": x, "weight": weight, "bias": bias} | options))


@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("rows", [2, 1024, 1025, 4096, 16384, 65536, 1 << 20])
@pytest.mark.parametrize("channels", [64, 128, 512, 2048])
def test_tilings_of_the_real_sizes(rows: int, channels: int, itemsize: int) -> None:
    """All pixels covered, no thread with more than 32 elements."""
    tiles = batch.tiling(rows, channels, itemsize)
    assert tiles.pixels * tiles.steps * tiles.spans >= rows
    assert tiles.pixels * tiles.steps * (tiles.spans - 1) < rows
    assert tiles.pixels * tiles.channels <= 32 * 32 * tiles.warps
    assert (tiles.pixels >= rows) == (rows <= 1024)
    assert tiles.spans <= batch.SPANS
