"""Mean squared differences: plain torch is the definition, the kernels are held to float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import deviation
from interpreter import interpreted_device
from torch import Tensor

from mambaad.fused import square
from mambaad.fused.square import square_losses

DEVICE = interpreted_device()


@pytest.fixture(autouse=True)
def _few_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(square, "PROGRAMS", 3)
    monkeypatch.setattr(square, "BLOCK", 32)


def pairs(dtype: torch.dtype = torch.float32) -> list[list[Tensor]]:
    """Students and teachers of three shapes, channels last as the decoder leaves them."""
    generator = torch.Generator().manual_seed(0)
    found: list[list[Tensor]] = [[], []]
    for shape in ((2, 3, 5, 4), (1, 1, 1, 3), (2, 4, 4, 4)):
        for maps in found:
            x = torch.randn(shape, generator=generator).to(DEVICE, dtype)
            maps.append(x.permute(0, 3, 1, 2))
    return found


def results(firsts: list[Tensor], seconds: list[Tensor], **options: Any) -> list[Tensor]:
    """The losses and the gradients of the firsts, each loss with a factor of its own."""
    leaves = [first.detach().requires_grad_() for first in firsts]
    losses = square_losses(leaves, seconds, 5.0, **options)
    upstream = torch.linspace(0.5, 2, len(leaves), device=DEVICE, dtype=losses.dtype)
    return [losses.detach(), *torch.autograd.grad(losses, leaves, upstream)]


def exact(maps: list[list[Tensor]]) -> list[Tensor]:
    return results(*([m.double() for m in part] for part in maps), kernel=False)


def test_float32_against_float64() -> None:
    maps = pairs()
    found = results(*maps, kernel=True)
    for a, b in zip(found, exact(maps), strict=True):
        assert deviation(a, b) < 1e-6
    for a, first in zip(found[1:], maps[0], strict=True):
        assert a.stride() == first.stride()


def test_16_bits_are_as_good_as_torchs() -> None:
    """The interpreter cuts what it stores as bfloat16, the GPU rounds."""
    maps = pairs(torch.bfloat16)
    both = [results(*maps, kernel=kernel) for kernel in (True, False)]
    for a, b, c in zip(*both, exact(maps), strict=True):
        assert a.dtype == b.dtype
        assert deviation(a, c) <= 2 * deviation(b, c) + 1e-6


def test_any_layout_and_dtype() -> None:
    firsts, seconds = pairs()
    turned = [x.contiguous() for x in firsts], [x.mT.contiguous().mT for x in seconds]
    gaps = [torch.stack([x, x], dim=-1)[..., 0] for x in firsts], [x.double() for x in seconds]
    for other in (turned, gaps):
        for a, b in zip(results(*other, kernel=True), exact([firsts, seconds]), strict=True):
            assert deviation(a, b) < 1e-6


def test_every_element_is_written_and_the_same_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    maps = pairs()
    first = results(*maps, kernel=True)
    for owner, make in ((Tensor, "new_empty"), (torch, "empty_like")):
        original = getattr(owner, make)
        poisoned = lambda *a, original=original, **k: original(*a, **k).fill_(torch.nan)  # noqa: E731
        monkeypatch.setattr(owner, make, poisoned)
    for a, b in zip(first, results(*maps, kernel=True), strict=True):
        assert b.isfinite().all()
        assert torch.equal(a, b)


def test_plain_is_what_torch_computes() -> None:
    firsts, seconds = pairs()
    expected = [5.0 * F.mse_loss(a, b) for a, b in zip(firsts, seconds, strict=True)]
    found = square_losses(firsts, seconds, 5.0, kernel=False)
    assert found.tolist() == [float(e) for e in expected]
    assert square_losses(firsts, [s.double() for s in seconds], kernel=False).dtype == torch.float64


def test_opcheck() -> None:
    firsts, seconds = pairs()
    leaves = [first.detach().requires_grad_() for first in firsts]
    torch.library.opcheck(square.square_forward, (leaves, seconds, 2.0))
    torch.library.opcheck(
        square.square_backward,
        (torch.ones(3, device=DEVICE), firsts, seconds, 2.0),
        test_utils=("test_schema", "test_faketensor"),  # it has no gradient of its own
    )


def test_wrong_shapes_are_named() -> None:
    firsts, seconds = pairs()
    with pytest.raises(ValueError, match=r"seconds must have shapes \[\(2, 4, 3, 5\), .* got \[\]"):
        square_losses(firsts, [])
    with pytest.raises(ValueError, match="at least one"):
        square_losses([], [])
    with pytest.raises(ValueError, match="seconds must have shapes"):
        square_losses(firsts, seconds[::-1])
