"""The depth-wise convolution: plain torch, and the Triton kernels (interpreted without a GPU)."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from helpers import deviation
from hypothesis import given, settings
from hypothesis import strategies as st
from interpreter import interpreted_device
from torch import Tensor

from mambaad.fused.depthwise import depthwise_backward, depthwise_conv, depthwise_forward

DEVICE = interpreted_device()

from mambaad.fused import depthwise_kernels  # noqa: E402 - after the interpreter is chosen

SHAPES = {
    "even": (2, 4, 4, 8),
    "odd": (1, 5, 3, 5),
    "wide": (1, 2, 19, 3),
    "tall": (2, 11, 1, 2),
    "two blocks of channels": (1, 2, 2, 67),
    "one pixel": (3, 1, 1, 1),
}


class Case(NamedTuple):
    """Inputs and the gradient of the output."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    dy: Tensor

    def to(self, dtype: torch.dtype, weights: torch.dtype | None = None) -> Case:
        wide = weights or dtype
        bias = None if self.bias is None else self.bias.to(wide)
        return Case(self.x.to(dtype), self.weight.to(wide), bias, self.dy.to(dtype))


def draw(shape: tuple[int, ...], size: int, *, bias: bool = True) -> Case:
    """float32 on the device; x is the first half of a map of twice the channels."""
    generator = torch.Generator().manual_seed(size)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(DEVICE)

    channels = shape[3]
    return Case(
        normal(*shape[:3], 2 * channels).chunk(2, -1)[0],
        normal(channels, 1, size, size) / size,
        normal(channels) if bias else None,
        normal(*shape),
    )


def run(case: Case, *, silu: bool, kernel: bool) -> dict[str, Tensor]:
    """The output and every gradient."""
    leaves = {k: v.detach().requires_grad_() for k, v in case._asdict().items() if v is not None}
    dy = leaves.pop("dy").detach()
    y = depthwise_conv(**leaves, silu=silu, kernel=kernel)
    gradients = torch.autograd.grad(y, list(leaves.values()), dy)
    return {"y": y.detach()} | dict(zip(leaves, gradients, strict=True))


def torch_run(case: Case, *, silu: bool) -> dict[str, Tensor]:
    """The same by torch's own layers in the dtype of the inputs."""
    leaves = {k: v.detach().requires_grad_() for k, v in case._asdict().items() if v is not None}
    dy = leaves.pop("dy").detach()
    x, weight = leaves["x"].permute(0, 3, 1, 2), leaves["weight"]
    z = F.conv2d(x, weight, leaves.get("bias"), 1, weight.shape[-1] // 2, 1, len(weight))
    y = (F.silu(z) if silu else z).permute(0, 2, 3, 1)
    gradients = torch.autograd.grad(y, list(leaves.values()), dy)
    return {"y": y.detach()} | dict(zip(leaves, gradients, strict=True))


def wrong(case: Case, *, silu: bool, tolerance: float = 5e-7) -> dict[str, float]:
    """What is off from float64, and by how much; NaN is.

    Errors are shares of what the summands' sizes add up to: of few pixels a sum may be next to
    nothing, and no rounding is small beside it.
    """
    found, exact = run(case, silu=silu, kernel=True), case.to(torch.float64)
    truth = torch_run(exact, silu=silu)
    sizes = torch_run(Case(*(None if t is None else t.abs() for t in exact)), silu=False)
    errors = {n: float((found[n] - truth[n]).norm() / sizes[n].norm()) for n in truth}
    return {name: error for name, error in errors.items() if not error < tolerance}


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that is not written shows up as NaN."""
    empty_like, new_empty = torch.empty_like, torch.Tensor.new_empty
    monkeypatch.setattr(torch, "empty_like", lambda t: empty_like(t).fill_(torch.nan))
    monkeypatch.setattr(
        torch.Tensor, "new_empty", lambda t, *a, **k: new_empty(t, *a, **k).fill_(torch.nan)
    )


@pytest.mark.parametrize("size", [1, 3, 5, 7])
def test_definition_is_the_equation(size: int) -> None:
    case = draw((2, 4, 3, 2), size).to(torch.float64)
    assert case.bias is not None
    p = size // 2
    padded = F.pad(case.x, (0, 0, p, p, p, p))
    expected = case.bias.expand(2, 4, 3, 2).clone()
    for i in range(size):
        for j in range(size):
            expected += case.weight[:, 0, i, j] * padded[:, i : i + 4, j : j + 3]
    y = depthwise_conv(*case[:3])
    assert deviation(y, expected) < 1e-14
    assert deviation(depthwise_conv(*case[:3], silu=True), expected * expected.sigmoid()) < 1e-14
    assert y.is_contiguous()


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("silu", [True, False], ids=["silu", "identity"])
@pytest.mark.parametrize("size", [1, 3, 5, 7])
def test_every_size(size: int, silu: bool) -> None:
    assert wrong(draw((1, 3, 5, 5), size, bias=silu), silu=silu) == {}


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_every_shape(shape: tuple[int, ...]) -> None:
    assert wrong(draw(shape, 3), silu=True) == {}


@pytest.mark.parametrize("silu", [True, False], ids=["silu", "identity"])
def test_bias_goes_with_or_without_silu(silu: bool) -> None:
    assert wrong(draw((1, 3, 4, 2), 3, bias=not silu), silu=silu) == {}


@settings(max_examples=5, deadline=None)
@given(st.tuples(*[st.integers(1, 5)] * 4), st.booleans())
def test_any_shape(shape: tuple[int, ...], silu: bool) -> None:
    assert wrong(draw(shape, 3), silu=silu) == {}


@pytest.mark.parametrize("size", [1, 3, 7])
def test_a_program_works_through_several_tiles(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """High ones, as of large maps, and the last program has fewer than the others."""
    monkeypatch.setattr(depthwise_kernels, "SUMMING", 2)
    assert wrong(draw((3, 5, 5, 2), size), silu=True) == {}


@pytest.mark.parametrize("silu", [True, False], ids=["silu", "identity"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_16_bit_is_as_exact_as_torch(dtype: torch.dtype, silu: bool) -> None:
    """Error against float64 at most twice that of torch's own layers in 16 bits.

    Or that of cutting instead of rounding, which is what the interpreter does to bfloat16.
    """
    case = draw((2, 6, 5, 8), 3).to(dtype)
    truth = torch_run(case.to(torch.float64), silu=silu)
    plain = torch_run(case, silu=silu)
    found = run(case, silu=silu, kernel=True)
    wide = run(case.to(dtype, torch.float32), silu=silu, kernel=True)
    least = torch.finfo(dtype).eps if DEVICE.type == "cpu" else 0.0
    for name in truth:
        assert found[name].dtype == dtype
        limit = max(2 * deviation(plain[name], truth[name]), least)
        assert deviation(found[name], truth[name]) <= limit, name
        assert deviation(wide[name], truth[name]) <= limit, name
    assert wide["y"].dtype == wide["x"].dtype == dtype
    assert wide["weight"].dtype == torch.float32


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")
@pytest.mark.parametrize("shift", [1e3, -1e3])
def test_far_from_zero_silu_stays_finite(shift: float) -> None:
    case = draw((1, 2, 2, 2), 1)
    case = case._replace(bias=torch.full((2,), shift, device=DEVICE))
    truth = torch_run(case.to(torch.float64), silu=True)
    for name, found in run(case, silu=True, kernel=True).items():
        torch.testing.assert_close(found.double(), truth[name], rtol=1e-5, atol=1e-30, msg=name)


def test_the_same_bits_twice() -> None:
    case = draw((2, 5, 6, 3), 3)
    first, second = (run(case, silu=True, kernel=True) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_strides_change_nothing() -> None:
    """A half of a map, channels apart from each other, weights side by side, a spread gradient."""
    case = draw((2, 3, 4, 5), 3)
    dense = case._replace(x=case.x.contiguous())
    planes = case._replace(x=case.x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1))
    turned = case.weight.permute(2, 3, 1, 0).contiguous().permute(3, 2, 0, 1)
    beside = case._replace(weight=turned)
    expected = run(case, silu=True, kernel=True)
    for other in (dense, planes, beside):
        found = run(other, silu=True, kernel=True)
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert run(beside, silu=True, kernel=True)["weight"].stride() == turned.stride()
    spread = case._replace(dy=torch.ones((), device=DEVICE).expand(case.dy.shape))
    found = run(spread, silu=True, kernel=True)
    expected = run(spread._replace(dy=torch.ones_like(case.dy)), silu=True, kernel=True)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_opcheck(bias: bool) -> None:
    x, weight, shift, dy = draw((1, 2, 3, 2), 3, bias=bias)
    leaves = [None if t is None else t.detach().requires_grad_() for t in (x, weight, shift)]
    torch.library.opcheck(depthwise_forward, (*leaves, True))
    checks = ("test_schema", "test_faketensor")  # it has no gradient of its own
    torch.library.opcheck(depthwise_backward, (dy, x, weight, shift, True), test_utils=checks)


@pytest.mark.parametrize("kernel", [True, False], ids=["kernel", "plain"])
def test_compiled_as_one_graph(kernel: bool) -> None:
    case = draw((1, 3, 2, 2), 3)

    def twice(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return 2 * depthwise_conv(x, weight, bias, silu=True, kernel=kernel)

    leaves = [t.detach().requires_grad_() for t in case[:3] if t is not None]
    found = torch.compile(twice, fullgraph=True, backend="aot_eager")(*leaves)
    expected = twice(*leaves)
    assert torch.equal(found, expected)
    for a, b in zip(
        torch.autograd.grad(found.sum(), leaves),
        torch.autograd.grad(expected.sum(), leaves),
        strict=True,
    ):
        assert torch.equal(a, b)


@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("size", [1, 3, 5, 7])
@pytest.mark.parametrize("sums", [True, False])
def test_tiles_fit_the_map(itemsize: int, size: int, sums: bool) -> None:
    for shape in (*SHAPES.values(), (16, 64, 64, 128), (16, 8, 8, 1024), (1, 16, 16, 512)):
        tile = depthwise_kernels.choose_tile(shape, size, itemsize, sums=sums)
        for side, limit in zip(tile[:3], shape[1:], strict=True):
            assert 1 <= side < 2 * limit
        assert all(n & (n - 1) == 0 for n in tile)
        threads = tile.warps * 32
        assert tile.columns * tile.channels in (threads * 4, threads * 8) or tile.warps == 1


def test_wrong_arguments() -> None:
    x, weight, bias, _ = draw((1, 2, 3, 4), 3)
    for arguments, complaint in {
        (x[0], weight, bias): r"x must have shape \(B, H, W, C\), got \(2, 3, 4\)",
        (x, weight[:3], bias): r"weight must have shape \(4, 1, k, k\).*got \(3, 1, 3, 3\)",
        (x, weight[..., :2, :2], None): r"one of \[1, 3, 5, 7\], got \(4, 1, 2, 2\)",
        (x, weight, weight): r"bias must have shape \(4,\), got \(4, 1, 3, 3\)",
    }.items():
        with pytest.raises(ValueError, match=complaint):
            depthwise_conv(*arguments)
    with pytest.raises(ValueError, match=r"for kernel=True, got torch.float64 \(1, 2, 3, 4\)"):
        depthwise_conv(x.double(), weight, kernel=True)
    huge = torch.empty(1, device=DEVICE).expand(1, 2**20, 2**11, 1)
    with pytest.raises(ValueError, match=r"within 2\^31 elements"):
        depthwise_conv(huge, weight[:1], kernel=True)


def test_plain_torch_unless_on_cuda() -> None:
    case = draw((1, 4, 4, 2), 3)
    chosen = depthwise_conv(*case[:3], silu=True)
    assert torch.equal(chosen, depthwise_conv(*case[:3], silu=True, kernel=DEVICE.type == "cuda"))
    wide = depthwise_conv(*case.to(torch.float64)[:3], silu=True)
    assert wide.dtype == torch.float64
    assert deviation(chosen, wide) < 1e-6
