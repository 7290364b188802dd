from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from helpers import ScanInputs, deviation, run_scan, scan_inputs
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mambaad.scan import cross_scan
from mambaad.scan.reference import chunked, forward, sequential, softplus

Backends = ["reference", "torch"]


def by_hand(x: list[float], b: list[float], c: list[float], skip: float | None) -> ScanInputs:
    """One channel, one state, the step of every pixel ln 2, and A = -1: every decay is 1/2."""
    length = len(x)
    step = math.log(2)
    before_softplus = math.log(math.exp(step) - 1)  # 0
    rows = [[0.0, b_t, c_t] for b_t, c_t in zip(b, c, strict=True)]
    return ScanInputs(
        x=torch.tensor(x, dtype=torch.float64).reshape(1, length, 1),
        projections=torch.tensor(rows, dtype=torch.float64).reshape(1, length, 1, 3),
        a_log=torch.zeros(1, 1, 1, dtype=torch.float64),
        dt_weight=torch.ones(1, 1, 1, dtype=torch.float64),
        dt_bias=torch.full((1, 1), before_softplus, dtype=torch.float64),
        skip=None if skip is None else torch.full((1, 1), skip, dtype=torch.float64),
        orders=torch.arange(length, dtype=torch.int32)[None],
    )


@pytest.mark.parametrize("backend", Backends)
def test_by_hand(backend: Any) -> None:
    """h = ln 2 * (1, 1/2 + 0, 1/4 + 3 * 2 / 1), y = c h + 10 x."""
    inputs = by_hand(x=[1.0, 5.0, 2.0], b=[1.0, 0.0, 3.0], c=[1.0, 2.0, -4.0], skip=10.0)
    y = cross_scan(*inputs, backend=backend).flatten().tolist()
    ln2 = math.log(2)
    assert y == pytest.approx([ln2 + 10, 2 * ln2 / 2 + 50, -4 * ln2 * (1 / 4 + 6) + 20], rel=1e-12)


@pytest.mark.parametrize("backend", Backends)
def test_by_hand_backwards(backend: Any) -> None:
    """The same pixels visited from the last: h = ln 2 * (6, 3 + 0, 3/2 + 1)."""
    inputs = by_hand(x=[1.0, 5.0, 2.0], b=[1.0, 0.0, 3.0], c=[1.0, 2.0, -4.0], skip=None)
    inputs = inputs._replace(orders=inputs.orders.flip(1))
    y = cross_scan(*inputs, backend=backend).flatten().tolist()
    ln2 = math.log(2)
    assert y == pytest.approx([ln2 * 2.5, 2 * ln2 * 3, -4 * ln2 * 6], rel=1e-12)


@pytest.mark.parametrize("backend", Backends)
def test_without_decay_it_is_a_cumulative_sum(backend: Any) -> None:
    length = 100
    inputs = by_hand([1.0] * length, [1.0] * length, [1.0] * length, None)
    inputs = inputs._replace(a_log=torch.full((1, 1, 1), -80.0, dtype=torch.float64))
    y = cross_scan(*inputs, backend=backend).flatten()
    steps = torch.arange(1, length + 1, dtype=torch.float64)
    torch.testing.assert_close(y, math.log(2) * steps, rtol=1e-12, atol=0)


def test_paths_are_summed() -> None:
    """Twice the same path with the same weights doubles the result."""
    two = scan_inputs(1, 3, 4, 3, 2, 2, 2, dtype=torch.float64)

    def chosen(*paths: int) -> ScanInputs:
        keep = torch.tensor(paths)
        return two.map(lambda v: v[keep])._replace(
            x=two.x, projections=two.projections[:, :, keep], orders=two.orders[keep]
        )

    single, double = chosen(0), chosen(0, 0)
    torch.testing.assert_close(cross_scan(*double), 2 * cross_scan(*single), rtol=1e-12, atol=0)


@pytest.mark.parametrize("backend", Backends)
@pytest.mark.parametrize("skip", [True, False], ids=["skip", "no skip"])
def test_gradients(backend: Any, skip: bool) -> None:
    inputs = scan_inputs(1, 2, 3, 2, 2, 1, 2, dtype=torch.float64, skip=skip)
    with torch.no_grad():
        inputs.dt_bias.add_(3)  # steps near 0.5, so that every gradient counts

    def scan(*leaves: Tensor) -> Tensor:
        x, projections, a_log, dt_weight, dt_bias, *rest = leaves
        factor = rest[0] if rest else None
        return cross_scan(
            x, projections, a_log, dt_weight, dt_bias, factor, inputs.orders, backend=backend
        )

    assert torch.autograd.gradcheck(scan, tuple(inputs.leaves().values()))


@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 128, 200])
def test_chunked_is_sequential(length: int) -> None:
    generator = torch.Generator().manual_seed(length)
    decay = torch.rand(2, length, 3, 2, generator=generator, dtype=torch.float64)
    drive = torch.randn(2, length, 3, 2, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(
        chunked(decay, drive), sequential(decay, drive), rtol=1e-12, atol=1e-14
    )


@given(
    length=st.integers(1, 200),
    slow=st.floats(0.0, 1.0),
    shape=st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(1, 3)),
    seed=st.integers(0, 1000),
)
@settings(max_examples=25, deadline=None)
def test_chunked_is_sequential_for_any_decay(
    length: int, slow: float, shape: tuple[int, int, int], seed: int
) -> None:
    """Decays of exactly 0 and 1 included."""
    generator = torch.Generator().manual_seed(seed)
    batch, channels, size = shape
    full = (batch, length, channels, size)
    decay = torch.rand(full, generator=generator, dtype=torch.float64) ** (1 - slow)
    decay[:, ::7] = 0
    drive = torch.randn(full, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(
        chunked(decay, drive), sequential(decay, drive), rtol=1e-11, atol=1e-12
    )


def test_sequential_is_its_definition() -> None:
    decay = torch.tensor([9.0, 0.5, 0.0, 2.0], dtype=torch.float64).reshape(1, 4, 1, 1)
    drive = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64).reshape(1, 4, 1, 1)
    assert sequential(decay, drive).flatten().tolist() == [1.0, 2.5, 3.0, 10.0]


@pytest.mark.parametrize("skip", [True, False], ids=["skip", "no skip"])
def test_torch_backend_in_float32(skip: bool) -> None:
    inputs = scan_inputs(2, 5, 13, 10, 4, 3, 4, skip=skip)
    truth = run_scan(inputs.to(torch.float64), "reference")
    found = run_scan(inputs, "torch")
    for name, value in truth.items():
        assert deviation(found[name], value) <= (1e-6 if name == "y" else 1e-5), name


def test_backward_without_skip_is_that_with_a_skip_of_zero() -> None:
    without = scan_inputs(1, 4, 4, 3, 2, 2, 2, dtype=torch.float64, skip=False)
    zero = without._replace(skip=torch.zeros_like(without.dt_bias).requires_grad_())
    a, b = run_scan(without, "reference"), run_scan(zero, "reference")
    for name, value in a.items():
        torch.testing.assert_close(value, b[name], rtol=0, atol=0)
    assert "skip" not in a


def test_forward_takes_any_dtype() -> None:
    for dtype, limit in ((torch.float64, 0.0), (torch.float32, 1e-6)):
        inputs = scan_inputs(1, 3, 3, 2, 2, 1, 2).to(dtype)
        y = forward(*inputs)
        assert y.dtype == dtype
        assert deviation(y.detach(), forward(*inputs.to(torch.float64)).detach()) <= limit


def test_softplus() -> None:
    z = torch.tensor([-800.0, -40.0, -8.0, 0.0, 8.0, 800.0], dtype=torch.float64)
    expected = [math.exp(-800), math.log1p(math.exp(-40)), math.log1p(math.exp(-8)), math.log(2)]
    expected += [math.log1p(math.exp(8)), 800.0]
    assert softplus(z).tolist() == pytest.approx(expected, rel=1e-12)
