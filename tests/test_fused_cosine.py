"""The cosine distance: plain torch is the definition, the kernel is held to float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from interpreter import interpreted_device
from torch import Tensor

from mambaad.fused import cosine
from mambaad.fused.cosine import cosine_distance

DEVICE = interpreted_device()


def maps(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Two maps that have much in common, as teacher and student."""
    generator = torch.Generator().manual_seed(sum(shape))
    first = torch.randn(shape, generator=generator) * 2 + 0.5
    second = first + 0.3 * torch.randn(shape, generator=generator)
    return [m.to(DEVICE, dtype) for m in (first, second)]


def exact(first: Tensor, second: Tensor) -> Tensor:
    return 1 - F.cosine_similarity(first.double(), second.double(), dim=1)


def last(x: Tensor) -> Tensor:
    return x.to(memory_format=torch.channels_last)


def apart(x: Tensor) -> Tensor:
    """The same map, rows and pixels with gaps between them."""
    wide = x.new_full((*x.shape[:2], x.shape[2] + 1, 2 * x.shape[3] + 1), torch.nan)
    view = wide[:, :, 1:, 1::2]
    return view.copy_(x)


def turned(x: Tensor) -> Tensor:
    """The same map, column after column."""
    return x.transpose(2, 3).contiguous().transpose(2, 3)


@pytest.mark.parametrize(
    "shape",
    [(2, 5, 3, 4), (1, 64, 8, 8), (2, 3, 1, 7), (3, 4, 7, 1), (1, 1, 1, 1), (2, 700, 1, 3)],
)
@pytest.mark.parametrize("layout", [torch.Tensor.contiguous, last, apart, turned])
def test_float32_against_float64(
    shape: tuple[int, ...], layout: Callable[[Tensor], Tensor]
) -> None:
    first, second = maps(shape)
    found = cosine_distance(layout(first), layout(second), kernel=True)
    assert found.is_contiguous()
    torch.testing.assert_close(found.double(), exact(first, second), rtol=0, atol=5e-7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_maps_are_summed_in_32(dtype: torch.dtype) -> None:
    first, second = maps((2, 70, 3, 5), dtype)
    for student in (last(second), second.float()):
        found = cosine_distance(last(first), student, kernel=True)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), exact(first, second), rtol=0, atol=5e-7)


@settings(max_examples=25, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 5)] * 4),
    layouts=st.tuples(*[st.sampled_from([torch.Tensor.contiguous, last, apart, turned])] * 2),
)
def test_both_maps_may_lie_in_their_own_way(shape: tuple[int, ...], layouts: Any) -> None:
    first, second = maps(shape)
    found = cosine_distance(layouts[0](first), layouts[1](second), kernel=True)
    torch.testing.assert_close(found.double(), exact(first, second), rtol=0, atol=5e-7)


def test_every_pixel_is_written_the_same_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """More pixels than one program takes, the last ones outside the map."""
    monkeypatch.setattr(cosine, "TILE", 64)
    first, second = map(last, maps((2, 10, 3, 7)))
    once = cosine_distance(first, second, kernel=True)
    make = torch.Tensor.new_empty
    monkeypatch.setattr(
        torch.Tensor, "new_empty", lambda *args, **options: make(*args, **options).fill_(torch.nan)
    )
    again = cosine_distance(first, second, kernel=True)
    assert again.isfinite().all()
    assert torch.equal(once, again)


@pytest.mark.parametrize("kernel", [True, False])
def test_short_vectors(kernel: bool) -> None:
    """Zeros are at distance 1 of anything; what is shorter than 1e-8 counts as that long."""
    first = torch.tensor([[0.0, 0.0], [3.0, 4.0], [6e-9, 0.0]], device=DEVICE).T[None, :, None]
    second = torch.tensor([[1.0, 2.0], [0.0, 0.0], [5.0, 0.0]], device=DEVICE).T[None, :, None]
    found = cosine_distance(first, second, kernel=kernel)
    torch.testing.assert_close(found, torch.tensor([[[1.0, 1.0, 0.4]]], device=DEVICE))


@pytest.mark.parametrize("kernel", [True, False])
def test_damping_halves_the_distance_at_that_squared_length(kernel: bool) -> None:
    """Opposite vectors, 2 apart, of squared lengths 4, 8, 400 and 0."""
    first = torch.tensor([[0.0, 2.0], [2.0, -2.0], [20.0, 0.0], [0.0, 0.0]], device=DEVICE)
    first = first.T[None, :, None]
    found = cosine_distance(first, -first, damping=4.0, kernel=kernel)
    expected = torch.tensor([[[1.0, 4 / 3, 800 / 404, 0.0]]], device=DEVICE)
    torch.testing.assert_close(found, expected)


def test_damped_against_float64() -> None:
    first, second = maps((2, 70, 3, 5))
    found = cosine_distance(last(first), second, damping=30.0, kernel=True)
    length = first.double().square().sum(1)
    expected = exact(first, second) * length / (length + 30)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=5e-7)


def test_opposite_and_orthogonal() -> None:
    first = torch.tensor([[1.0, 1.0], [2.0, -3.0], [0.0, 4.0]], device=DEVICE).T[None, :, None]
    second = torch.tensor([[2.0, 2.0], [-2.0, 3.0], [9.0, 0.0]], device=DEVICE).T[None, :, None]
    found = cosine_distance(first, second, kernel=True)
    torch.testing.assert_close(found, torch.tensor([[[0.0, 2.0, 1.0]]], device=DEVICE))


def test_plain_keeps_float64_and_gradients() -> None:
    first, second = maps((1, 3, 2, 2))
    assert cosine_distance(first.double(), second).dtype == torch.float64
    leaves = [m.double().requires_grad_() for m in (first, second)]
    assert torch.autograd.gradcheck(cosine_distance, leaves)


@pytest.mark.parametrize("learnt", [0, 1, None])
def test_where_a_gradient_is_asked_for_plain_torch_computes(
    monkeypatch: pytest.MonkeyPatch, learnt: int | None
) -> None:
    called: list[str] = []
    monkeypatch.setattr(cosine, "triton_runs", lambda: True)
    monkeypatch.setattr(cosine, "cosine_forward", lambda x, *_: called.append("kernel") or x)
    monkeypatch.setattr(cosine, "_plain", lambda x, *_: called.append("plain") or x)
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda _: True))
    pair = maps((1, 2, 2, 2))
    if learnt is not None:
        pair[learnt].requires_grad_()
    cosine_distance(*pair)
    with torch.no_grad():
        cosine_distance(*pair)
    assert called == ["kernel" if learnt is None else "plain", "kernel"]


def test_no_pictures() -> None:
    empty = torch.zeros(0, 3, 2, 2, device=DEVICE)
    for kernel in (True, False):
        assert cosine_distance(empty, empty, kernel=kernel).shape == (0, 2, 2)


def test_operator_is_well_formed() -> None:
    torch.library.opcheck(
        cosine.cosine_forward,
        (*map(last, maps((2, 3, 2, 5))), 0.5),
        test_utils=("test_schema", "test_faketensor"),  # it has no gradient
    )


@pytest.mark.parametrize("kernel", [True, False])
def test_compiled_and_exported_as_one_graph(kernel: bool) -> None:
    class Distance(torch.nn.Module):
        def forward(self, first: Tensor, second: Tensor) -> Tensor:
            return cosine_distance(first, second, kernel=kernel)

    pair = tuple(map(last, maps((2, 3, 2, 5))))
    expected = Distance()(*pair)
    compiled = torch.compile(Distance(), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*pair), expected)
    assert torch.equal(torch.export.export(Distance(), pair).module()(*pair), expected)


def test_wrong_arguments_are_named() -> None:
    first, second = maps((2, 3, 4, 5))
    with pytest.raises(ValueError, match=r"^first must have shape \(B, C, H, W\), got \(3, 4, 5\)"):
        cosine_distance(first[0], second)
    with pytest.raises(
        ValueError, match=r"^second must have shape \(2, 3, 4, 5\), got \(2, 3, 4, 4\)$"
    ):
        cosine_distance(first, second[..., :4])
    with pytest.raises(ValueError, match=r"kernel=True, got torch.float32 and torch.float64$"):
        cosine_distance(first, second.double(), kernel=True)
