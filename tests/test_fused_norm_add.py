"""A sum and its normalisation: plain torch is the definition, the kernels are held to float64."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import deviation
from interpreter import interpreted_device
from torch import Tensor

from mambaad.fused import norm, norm_add
from mambaad.fused.norm_add import add_layer_norm

DEVICE = interpreted_device()

NAMES = ("total", "y", "dx", "dbranch", "dweight", "dbias")


def inputs(
    shape: tuple[int, ...], *, dropped: bool = True, dtype: torch.dtype = torch.float32
) -> list[Tensor | None]:
    """x, branch, factor, weight, bias; the first three in ``dtype``."""
    generator = torch.Generator().manual_seed(sum(shape))
    x, branch = (torch.randn(shape, generator=generator) + 0.5 for _ in range(2))
    factor = torch.tensor([1.25, 0.0, 1.25, 0.75])[: shape[0]].view(-1, *[1] * (len(shape) - 1))
    weight, bias = (torch.randn(shape[-1], generator=generator) + 1 for _ in range(2))
    wide = [x, branch, factor if dropped else None]
    narrow = [None if t is None else t.to(DEVICE, dtype) for t in wide]
    return [*narrow, weight.to(DEVICE), bias.to(DEVICE)]


def results(tensors: Sequence[Tensor | None], **options: Any) -> list[Tensor]:
    """The sum, y and all gradients, in the order of ``NAMES``; the sum's own is a part of a map."""
    x, branch, factor, weight, bias = (None if t is None else t.detach() for t in tensors)
    leaves = [t.requires_grad_() for t in (x, branch, weight, bias) if t is not None]
    total, y = add_layer_norm(leaves[0], leaves[1], factor, leaves[2], leaves[3], **options)
    generator = torch.Generator().manual_seed(0)
    shape = (*y.shape[:-1], 3 * y.shape[-1])
    upstream = torch.randn(shape, generator=generator).bfloat16().to(DEVICE, y.dtype)
    dtotal, dy, _ = upstream.chunk(3, dim=-1)
    gradients = torch.autograd.grad((total, y), leaves, (dtotal, dy.contiguous()))
    return [total.detach(), y.detach(), *gradients]


def exact(tensors: Sequence[Tensor | None]) -> list[Tensor]:
    return results([None if t is None else t.double() for t in tensors], kernel=False)


def test_plain_is_what_torch_computes() -> None:
    x, branch, factor, weight, bias = inputs((3, 2, 5))
    assert x is not None
    assert branch is not None
    assert weight is not None
    assert bias is not None
    assert factor is not None
    total, y = add_layer_norm(x, branch, factor, weight, bias, 0.7, kernel=False)
    assert torch.equal(total, x + branch * factor)
    assert torch.equal(y, F.layer_norm(x + branch * factor, (5,), weight, bias, 0.7))
    assert torch.equal(add_layer_norm(x, branch, None, weight, bias, kernel=False)[0], x + branch)
    found = add_layer_norm(x, branch, factor, weight, bias, 0.7, kernel=True)
    torch.testing.assert_close(found, (total, y), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dropped", [True, False], ids=["factor", "no factor"])
@pytest.mark.parametrize("shape", [(3, 5, 3), (4, 2, 3, 65), (1, 128), (2, 70, 16)], ids=str)
def test_float32_against_float64(shape: tuple[int, ...], dropped: bool) -> None:
    tensors = inputs(shape, dropped=dropped)
    found = results(tensors, kernel=True)
    for name, a, b in zip(NAMES, found, exact(tensors), strict=True):
        assert deviation(a, b) < 1e-6, name
    plain = results(tensors, kernel=False)[0]
    if DEVICE.type == "cuda":  # product and sum become one fma there, rounded once
        torch.testing.assert_close(found[0], plain, rtol=2**-22, atol=2**-22)
    else:
        assert torch.equal(found[0], plain)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("dropped", [True, False], ids=["factor", "no factor"])
def test_16_bits_are_as_good_as_torchs(dtype: torch.dtype, dropped: bool) -> None:
    """Beside float32 weights. The interpreter cuts what it stores as bfloat16, the GPU rounds."""
    tensors = inputs((4, 10, 48), dropped=dropped, dtype=dtype)
    cut = 2.0 if dtype == torch.bfloat16 and DEVICE.type == "cpu" else 1.0
    both = [results(tensors, kernel=kernel) for kernel in (True, False)]
    for name, found, plain, truth in zip(NAMES, *both, exact(tensors), strict=True):
        assert found.dtype == plain.dtype, name
        assert deviation(found, truth) <= 2 * cut * deviation(plain, truth) + 1e-6, name


def test_dtypes_may_differ() -> None:
    x, branch, factor, weight, bias = inputs((2, 3, 8))
    assert branch is not None
    assert factor is not None
    tensors = [x, branch.bfloat16(), factor.bfloat16(), weight, bias]
    for kernel in (True, False):
        found = results(tensors, kernel=kernel)
        wide = [torch.float32] * 3
        assert [t.dtype for t in found] == [*wide, torch.bfloat16, *wide[:2]]
    for name, a, b in zip(NAMES, results(tensors, kernel=True), exact(tensors), strict=True):
        assert deviation(a, b) < 2e-2, name


def test_every_element_is_written_and_the_same_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one program for several tiles, as real sizes have, and outputs that start as NaN."""
    monkeypatch.setattr(norm, "PROGRAMS", 2)
    tensors = inputs((3, 57, 65))
    first = results(tensors, kernel=True)
    for owner, make in ((torch.Tensor, "new_empty"), (torch, "empty_like")):
        original = getattr(owner, make)
        poisoned = lambda *a, original=original, **k: original(*a, **k).fill_(torch.nan)  # noqa: E731
        monkeypatch.setattr(owner, make, poisoned)
    again = results(tensors, kernel=True)
    for name, a, b in zip(NAMES, first, again, strict=True):
        assert a.isfinite().all(), name
        assert torch.equal(a, b), name


@pytest.mark.parametrize("dropped", [True, False], ids=["factor", "no factor"])
@pytest.mark.parametrize("which", [0, 1], ids=["sum", "norm"])
def test_one_of_the_two_may_be_unused(which: int, dropped: bool) -> None:
    x, branch, factor, weight, bias = inputs((2, 3, 5), dropped=dropped)
    leaves = [t.detach().requires_grad_() for t in (x, branch, weight, bias) if t is not None]
    found = []
    for kernel in (True, False):
        both = add_layer_norm(leaves[0], leaves[1], factor, leaves[2], leaves[3], kernel=kernel)
        out = both[which]
        found.append(torch.autograd.grad(out.square().sum(), leaves, allow_unused=True))
    for a, b in zip(*found, strict=True):
        assert (a is None) == (b is None)
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_no_rows() -> None:
    total, y, dx, dbranch, dweight, dbias = results(inputs((0, 4, 8)), kernel=True)
    assert total.shape == y.shape == dx.shape == dbranch.shape == (0, 4, 8)
    assert not dweight.any()
    assert not dbias.any()


@pytest.mark.parametrize("dropped", [True, False], ids=["factor", "no factor"])
def test_opcheck(dropped: bool) -> None:
    x, branch, factor, weight, bias = inputs((2, 2, 5), dropped=dropped)
    leaves = [None if t is None else t.detach().requires_grad_() for t in (x, branch)]
    ends = [t.detach().requires_grad_() for t in (weight, bias) if t is not None]
    torch.library.opcheck(norm_add.add_layer_norm_forward, (*leaves, factor, *ends, 1e-5))
    total, y, mean, rstd = norm_add.add_layer_norm_forward(x, branch, factor, weight, bias, 1e-5)
    torch.library.opcheck(
        norm_add.add_layer_norm_backward,
        (total, y, total, factor, weight, mean, rstd, torch.float32),
        test_utils=("test_schema", "test_faketensor"),  # it has no gradient of its own
    )


def test_wrong_arguments() -> None:
    x, branch, factor, weight, bias = inputs((2, 3, 5))
    assert x is not None
    assert branch is not None
    assert factor is not None
    assert weight is not None
    assert bias is not None
    for arguments, complaint in {
        (x, branch[:1], factor, weight, bias): r"branch must have shape \(2, 3, 5\), got \(1, 3, 5",
        (
            x,
            branch,
            factor[:, 0],
            weight,
            bias,
        ): r"factor must have shape \(2, 1, 1\), got \(2, 1\)",
        (x, branch, factor, weight[1:], bias): r"weight must have shape \(5,\), got \(4,\)",
        (x, branch, factor, weight, x): r"bias must have shape \(5,\), got \(2, 3, 5\)",
    }.items():
        with pytest.raises(ValueError, match=complaint):
            add_layer_norm(*arguments)
