"""The gated layer normalisation: plain torch is the definition, the kernels are held to float64."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from interpreter import interpreted_device
from torch import Tensor

from mambaad.fused import norm
from mambaad.fused.norm import layer_norm

DEVICE = interpreted_device()

NAMES = ("y", "dx", "dweight", "dbias", "dgate")

# The interpreter cuts what it stores as bfloat16, the GPU rounds: up to twice the error.
CUT = {torch.bfloat16: 1.0 if DEVICE.type == "cuda" else 2.0}


def inputs(
    shape: tuple[int, ...], *, gated: bool = True, dtype: torch.dtype = torch.float32
) -> list[Tensor | None]:
    """x, weight, bias, gate; x and the gate in ``dtype``, the gate half of a wider tensor."""
    generator = torch.Generator().manual_seed(sum(shape))
    channels = shape[-1]
    x = torch.randn(shape, generator=generator) * 2 + 0.5
    wide = torch.randn(*shape[:-1], 2 * channels, generator=generator)
    weight = torch.randn(channels, generator=generator) + 1
    bias = torch.randn(channels, generator=generator)
    gate = wide.to(DEVICE, dtype).chunk(2, dim=-1)[1] if gated else None
    return [x.to(DEVICE, dtype), weight.to(DEVICE), bias.to(DEVICE), gate]


def results(tensors: Sequence[Tensor | None], **options: Any) -> list[Tensor]:
    """y and the gradients of all inputs, in the order of ``NAMES``."""
    leaves = [None if t is None else t.detach().requires_grad_() for t in tensors]
    x, weight, bias, gate = leaves
    assert x is not None
    assert weight is not None
    assert bias is not None
    y = layer_norm(x, weight, bias, gate=gate, **options)
    generator = torch.Generator().manual_seed(0)
    dy = torch.randn(y.shape, generator=generator).to(DEVICE).bfloat16().to(y.dtype)
    wanted = [leaf for leaf in leaves if leaf is not None]
    return [y.detach(), *torch.autograd.grad(y, wanted, dy)]


def exact(tensors: Sequence[Tensor | None]) -> list[Tensor]:
    return results([None if t is None else t.double() for t in tensors], kernel=False)


def errors(found: Sequence[Tensor], expected: Sequence[Tensor]) -> dict[str, float]:
    """The norm of what is wrong over the norm of what is right, for each of ``NAMES``."""
    both = zip(NAMES[: len(found)], found, expected, strict=True)
    return {name: float((a.double() - b).norm() / b.norm().clamp_min(1e-30)) for name, a, b in both}


def assert_as_good_as_plain(tensors: Sequence[Tensor | None], floor: float) -> None:
    expected = exact(tensors)
    plain = results(tensors, kernel=False)
    found = results(tensors, kernel=True)
    assert [t.dtype for t in found] == [t.dtype for t in plain]
    wrong, allowed = errors(found, expected), errors(plain, expected)
    for name, error in wrong.items():
        assert error <= 2 * allowed[name] * CUT.get(found[0].dtype, 1.0) + floor, name


@pytest.mark.parametrize("gated", [True, False], ids=["gate", "no gate"])
@pytest.mark.parametrize(
    "shape", [(5, 3), (7, 65), (2, 3, 3, 64), (1, 128), (70, 16), (3, 1030), (2, 2048)], ids=str
)
def test_float32_against_float64(shape: tuple[int, ...], gated: bool) -> None:
    tensors = inputs(shape, gated=gated)
    for name, error in errors(results(tensors, kernel=True), exact(tensors)).items():
        assert error < 1e-6, name


def test_one_channel_is_its_bias() -> None:
    """Without a spread only the bias and the gate are left, and x has no influence."""
    tensors = inputs((6, 1))
    y, dx, dweight, dbias, dgate = results(tensors, kernel=True)
    _, _, bias, gate = tensors
    assert gate is not None
    assert bias is not None
    torch.testing.assert_close(y, bias * F.silu(gate))
    assert not dx.any()
    assert not dweight.any()
    expected = exact(tensors)
    torch.testing.assert_close(dbias.double(), expected[3], rtol=1e-6, atol=0)
    torch.testing.assert_close(dgate.double(), expected[4], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("gated", [True, False], ids=["gate", "no gate"])
def test_16_bits_are_as_good_as_torchs(dtype: torch.dtype, gated: bool) -> None:
    """Beside float32 weights, whose gradients are float32 too."""
    assert_as_good_as_plain(inputs((40, 48), gated=gated, dtype=dtype), floor=1e-6)


@pytest.mark.parametrize("gated", [True, False], ids=["gate", "no gate"])
def test_a_large_mean_does_not_cancel(gated: bool) -> None:
    x, *others = inputs((40, 65), gated=gated)
    assert x is not None
    assert_as_good_as_plain([x + 1000, *others], floor=2e-7)


def test_the_gate_decides_the_dtype() -> None:
    x, weight, bias, gate = inputs((5, 8))
    assert x is not None
    assert weight is not None
    assert bias is not None
    assert gate is not None
    tensors = [x, weight, bias, gate.bfloat16()]
    for kernel in (True, False):
        y, dx, _, _, dgate = results(tensors, kernel=kernel)
        assert (y.dtype, dx.dtype, dgate.dtype) == (torch.bfloat16, torch.float32, torch.bfloat16)
    assert layer_norm(x.bfloat16(), weight, bias, gate=gate).dtype == torch.float32
    assert layer_norm(x.bfloat16(), weight, bias, kernel=True).dtype == torch.bfloat16
    assert_as_good_as_plain(tensors, floor=1e-6)


@pytest.mark.parametrize("kernel", [True, False])
def test_no_rows(kernel: bool) -> None:
    y, dx, dweight, dbias, dgate = results(inputs((0, 4, 8)), kernel=kernel)
    assert y.shape == dx.shape == dgate.shape == (0, 4, 8)
    assert not dweight.any()
    assert not dbias.any()


def test_any_layout() -> None:
    """Rows that do not lie evenly, channels that do not lie side by side: copied, not misread."""
    x, weight, bias, gate = inputs((4, 6, 5))
    assert x is not None
    assert gate is not None
    straight = results([x, weight, bias, gate], kernel=True)
    uneven = torch.empty(4, 7, 5, device=DEVICE)[:, :6].copy_(gate)
    turned = gate.transpose(1, 2).contiguous().transpose(1, 2)
    for other in (uneven, turned, gate.transpose(0, 1).contiguous().transpose(0, 1)):
        for a, b in zip(results([x, weight, bias, other], kernel=True), straight, strict=True):
            assert torch.equal(a, b)
    aside = x.transpose(0, 1).contiguous().transpose(0, 1)
    for a, b in zip(results([aside, weight, bias, gate], kernel=True), straight, strict=True):
        assert torch.equal(a, b)


def test_every_element_is_written_and_the_same_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one program for several tiles, as real sizes have, and outputs that start as NaN."""
    monkeypatch.setattr(norm, "PROGRAMS", 2)
    tensors = inputs((167, 65))
    first = results(tensors, kernel=True)
    monkeypatch.setattr(torch.Tensor, "new_empty", _nans(torch.Tensor.new_empty))
    monkeypatch.setattr(torch, "empty_like", _nans(torch.empty_like))
    again = results(tensors, kernel=True)
    for name, a, b in zip(NAMES, first, again, strict=True):
        assert a.isfinite().all(), name
        assert torch.equal(a, b), name
    for name, error in errors(first, exact(tensors)).items():
        assert error < 1e-6, name


def _nans(make: Any) -> Any:
    return lambda *args, **options: make(*args, **options).fill_(torch.nan)


def test_plain_is_what_torch_computes() -> None:
    x, weight, bias, gate = inputs((5, 7))
    assert x is not None
    assert weight is not None
    assert bias is not None
    assert gate is not None
    normal = F.layer_norm(x, (7,), weight, bias, 1e-5)
    assert torch.equal(layer_norm(x, weight, bias, kernel=False), normal)
    assert torch.equal(layer_norm(x, weight, bias, gate=gate, kernel=False), normal * F.silu(gate))
    wide = [t.double() for t in (x, weight, bias)]
    assert layer_norm(*wide).dtype == torch.float64


def test_the_epsilon_is_used() -> None:
    x, weight, bias, _ = inputs((5, 7))
    assert x is not None
    assert weight is not None
    assert bias is not None
    found = layer_norm(x, weight, bias, 0.7, kernel=True)
    expected = F.layer_norm(x, (7,), weight, bias, 0.7)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("gated", [True, False], ids=["gate", "no gate"])
def test_opcheck(gated: bool) -> None:
    tensors = inputs((3, 2, 5), gated=gated)
    leaves = [None if t is None else t.detach().requires_grad_() for t in tensors]
    torch.library.opcheck(norm.layer_norm_forward, (*leaves, 1e-5))
    y, mean, rstd = norm.layer_norm_forward(*tensors, 1e-5)
    torch.library.opcheck(
        norm.layer_norm_backward,
        (torch.ones_like(y), *tensors, mean, rstd),
        test_utils=("test_schema", "test_faketensor"),  # it has no gradient of its own
    )


@pytest.mark.parametrize("kernel", [True, False])
def test_compiled_as_one_graph(kernel: bool) -> None:
    leaves = [None if t is None else t.detach().requires_grad_() for t in inputs((3, 2, 5))]
    compiled = torch.compile(layer_norm, fullgraph=True, backend="aot_eager")
    x, weight, bias, gate = leaves
    found = compiled(x, weight, bias, gate=gate, kernel=kernel)
    expected = results(leaves, kernel=kernel)
    assert torch.equal(found, expected[0])
    found.sum().backward()
    assert x is not None
    assert x.grad is not None


@pytest.mark.parametrize(("name", "shape"), [("weight", (3,)), ("bias", (3,)), ("gate", (2, 5, 4))])
def test_a_wrong_shape_is_named(name: str, shape: tuple[int, ...]) -> None:
    given = dict(zip(("x", "weight", "bias", "gate"), inputs((2, 5, 4)), strict=True))
    tensor = given[name]
    assert tensor is not None
    wrong: dict[str, Any] = given | {name: tensor.new_zeros(*tensor.shape[:-1], 3)}
    with pytest.raises(ValueError, match=name) as error:
        layer_norm(**wrong)
    expected, found = ((2, 5, 4), (2, 5, 3)) if name == "gate" else ((4,), shape)
    assert str(error.value) == f"{name} must have shape {expected}, got {found}"


def test_tilings_of_the_real_sizes() -> None:
    """No thread holds more than eight 16-byte pieces of a tensor, or two in the backward kernel."""
    for itemsize in (2, 4):
        for block in (64, 128, 256, 512, 1024):
            rows, warps = norm.forward_tiling(block, itemsize)
            assert rows * block * itemsize <= warps * 32 * 16 * 8
            rows, warps = norm.backward_tiling(block, itemsize)
            assert rows * block * itemsize <= warps * 32 * 16 * 2
    assert [norm.backward_steps(tiles) for tiles in (0, 1, 1056, 1057, 5000)] == [2, 2, 2, 4, 16]
