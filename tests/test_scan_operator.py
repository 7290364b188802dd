"""The ``torch.library`` operator, and ``cross_scan`` which chooses who computes it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import ScanInputs, deviation, scan_inputs
from torch import Tensor

from mambaad.errors import BackendError
from mambaad.scan import cross_scan, resolve_backend
from mambaad.scan.operator import cross_scan_backward, cross_scan_forward

BACKENDS = ["numba", "torch", "reference"]
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("skip", [True, False], ids=["skip", "no skip"])
def test_opcheck_with_gradients(backend: str, skip: bool) -> None:
    inputs = scan_inputs(2, 2, 5, 3, 2, 1, 2, skip=skip)
    torch.library.opcheck(cross_scan_forward, (*inputs, backend, True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_opcheck_without_gradients(backend: str) -> None:
    inputs = [None if v is None else v.detach() for v in scan_inputs(2, 2, 5, 3, 2, 1, 2)]
    torch.library.opcheck(cross_scan_forward, (*inputs, backend, False))


@pytest.mark.parametrize("backend", BACKENDS)
def test_opcheck_of_the_backward_operator(backend: str) -> None:
    inputs = [None if v is None else v.detach() for v in scan_inputs(2, 2, 5, 3, 2, 1, 2)]
    y, saved = cross_scan_forward(*inputs, backend, True)
    checks = ("test_schema", "test_faketensor")  # it has no gradient of its own
    torch.library.opcheck(
        cross_scan_backward, (torch.ones_like(y), *inputs, saved, backend), test_utils=checks
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiled_as_one_graph(backend: Any) -> None:
    inputs = scan_inputs(1, 3, 4, 5, 2, 1, 2)

    def twice(*tensors: Any) -> Tensor:
        return 2 * cross_scan(*tensors, backend=backend)

    compiled = torch.compile(twice, fullgraph=True, backend="aot_eager")
    leaves = list(inputs.leaves().values())
    found, expected = compiled(*inputs), twice(*inputs)
    assert torch.equal(found, expected)
    for a, b in zip(
        torch.autograd.grad(found.sum(), leaves),
        torch.autograd.grad(expected.sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_no_gradient_for_what_needs_none() -> None:
    inputs = scan_inputs(1, 3, 4, 5, 2, 1, 2)
    inputs.projections.requires_grad_(False)
    cross_scan(*inputs).sum().backward()
    assert inputs.x.grad is not None
    assert inputs.projections.grad is None


def test_skip_may_be_left_out() -> None:
    inputs = scan_inputs(1, 3, 4, 5, 2, 1, 2)
    without = inputs._replace(skip=None)
    assert inputs.skip is not None
    expected = cross_scan(*without) + inputs.x * inputs.skip.sum(0)
    torch.testing.assert_close(cross_scan(*inputs), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_16_bit_inputs_are_widened(dtype: torch.dtype) -> None:
    """Exact but for the rounding of the result: the states are float32."""
    inputs = scan_inputs(1, 8, 8, 16, 16, 2, 4).to(dtype)
    y = cross_scan(*inputs)
    wide = cross_scan(*inputs.to(torch.float32))
    assert y.dtype == dtype
    assert torch.equal(y, wide.to(dtype))
    y.sum().backward()
    for name, leaf in inputs.leaves().items():
        assert leaf.grad is not None
        assert leaf.grad.dtype == dtype, name
    assert deviation(y.detach(), cross_scan(*inputs.to(torch.float64)).detach()) < 2**-8


def test_float64_keeps_its_precision() -> None:
    inputs = scan_inputs(1, 4, 4, 3, 2, 1, 2, dtype=torch.float64)
    y = cross_scan(*inputs)
    assert y.dtype == torch.float64
    assert deviation(y.detach(), cross_scan(*inputs, backend="torch").detach()) < 1e-14


@pytest.mark.parametrize(
    ("device", "dtype", "chosen"),
    [
        (CPU, torch.float32, "numba"),
        (CPU, torch.float64, "reference"),
        (CUDA, torch.float32, "triton"),
        (CUDA, torch.float64, "torch"),
    ],
)
def test_auto(device: torch.device, dtype: torch.dtype, chosen: str) -> None:
    assert resolve_backend("auto", device, dtype) == chosen


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_torch_takes_anything(backend: str) -> None:
    for device in (CPU, CUDA):
        for dtype in (torch.float32, torch.float64):
            assert resolve_backend(backend, device, dtype) == backend


def test_a_named_backend_runs_or_raises() -> None:
    wide = scan_inputs(1, 2, 2, 3, 2, 1, 2, dtype=torch.float64)
    with pytest.raises(
        BackendError, match=r"backend='numba' needs float32.*got torch.float64 on c"
    ):
        cross_scan(*wide, backend="numba")
    with pytest.raises(BackendError, match=r"backend='numba' needs float32.*on cuda"):
        resolve_backend("numba", CUDA, torch.float32)
    with pytest.raises(
        BackendError, match=r"backend must be one of \['auto', 'triton', 'numba'.*got 'cuda'"
    ):
        cross_scan(*wide, backend="cuda")  # type: ignore[arg-type]


def _cut(tensor: Tensor | None) -> Tensor:
    """Without the last entry along the last dimension."""
    assert tensor is not None
    return tensor[..., :-1]


@pytest.mark.parametrize(
    ("name", "expected", "found"),
    [
        ("projections", (2, 6, 2, 7), (2, 6, 2, 6)),
        ("dt_bias", (2, 4), (2, 3)),
        ("skip", (2, 4), (2, 3)),
        ("orders", (2, 6), (2, 5)),
    ],
)
def test_a_wrong_shape_is_named(
    name: str, expected: tuple[int, ...], found: tuple[int, ...]
) -> None:
    inputs = scan_inputs(2, 2, 3, 4, 3, 1, 2)
    wrong = ScanInputs(**(inputs._asdict() | {name: _cut(inputs._asdict()[name])}))
    with pytest.raises(ValueError, match=name) as error:
        cross_scan(*wrong)
    assert str(error.value) == f"{name} must have shape {expected}, got {found}"


def test_shapes_that_others_follow_from() -> None:
    inputs = scan_inputs(2, 2, 3, 4, 3, 1, 2)
    with pytest.raises(ValueError, match=r"a_log must have shape \(2, 3, 3\), got \(2, 4, 3\)"):
        cross_scan(*inputs._replace(x=_cut(inputs.x)))
    with pytest.raises(ValueError, match=r"projections must have shape \(2, 6, 2, 5\)"):
        cross_scan(*inputs._replace(a_log=_cut(inputs.a_log)))
    with pytest.raises(ValueError, match=r"dt_weight must have shape \(2, 4, 1\), got \(1, 4, 1\)"):
        cross_scan(*inputs._replace(dt_weight=inputs.dt_weight[:1]))
    with pytest.raises(ValueError, match="must have three dimensions, got "):
        cross_scan(*inputs._replace(x=inputs.x[0]))


def test_orders_must_be_int32() -> None:
    inputs = scan_inputs(1, 2, 2, 3, 2, 1, 2)
    with pytest.raises(ValueError, match=r"orders must be int32, got torch\.int64"):
        cross_scan(*inputs._replace(orders=inputs.orders.long()))


def test_asking_for_triton_does_not_break_a_compiled_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)

    def ask(x: Tensor) -> Tensor:
        chosen = resolve_backend("auto", torch.device("cuda"), torch.float32)
        return x + (1 if chosen == "triton" else 2)

    found = torch.compile(ask, backend="eager", fullgraph=True)(torch.zeros(1))
    assert torch.equal(found, ask(torch.zeros(1)))
