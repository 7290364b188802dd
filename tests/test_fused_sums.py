"""Sums of columns by the Triton kernel, in one pass and in two."""

from __future__ import annotations

import pytest
import torch
from helpers import deviation
from interpreter import interpreted_device
from torch import Tensor

from mambaad.fused import sums

DEVICE = interpreted_device()


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sums, "ROWS", 4)
    monkeypatch.setattr(sums, "BLOCK", 8)
    monkeypatch.setattr(sums, "SINGLE", 16)
    monkeypatch.setattr(sums, "PARTS", 3)


def table(rows: int, columns: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(rows)
    return torch.randn(rows, columns, generator=generator).to(DEVICE, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "shape", [(1, 1), (16, 8), (17, 9), (50, 20), (121, 3), (0, 5), (5, 0)], ids=str
)
def test_against_float64(shape: tuple[int, int], dtype: torch.dtype) -> None:
    x = table(*shape, dtype)
    found, truth = sums.column_sums(x, torch.float32), x.double().sum(0)
    assert found.dtype == torch.float32
    assert found.shape == truth.shape
    assert deviation(found, truth) < 1e-6 or not truth.any()
    parts = sums.partial_sums(x)
    assert 1 <= len(parts) <= sums.PARTS
    torch.testing.assert_close(parts.double().sum(0), truth, rtol=1e-5, atol=1e-5)


def test_rows_may_lie_apart() -> None:
    wide = table(40, 24)
    assert torch.equal(
        sums.column_sums(wide[:, 8:16], torch.float32),
        sums.column_sums(wide[:, 8:16].contiguous(), torch.float32),
    )


def test_the_result_is_rounded_once() -> None:
    x = table(40, 8)
    exact = sums.column_sums(x, torch.float32)
    found = sums.column_sums(x, torch.float16)
    assert torch.equal(found, exact.half())


def test_every_element_is_written_and_the_same_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    x = table(50, 20)
    first = sums.column_sums(x, torch.float32)
    original = Tensor.new_empty
    poisoned = lambda *a, **k: original(*a, **k).fill_(torch.nan)  # noqa: E731
    monkeypatch.setattr(Tensor, "new_empty", poisoned)
    assert torch.equal(sums.column_sums(x, torch.float32), first)
