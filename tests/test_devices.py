"""Devices and precisions by name."""

from __future__ import annotations

import pytest
import torch

from mambaad.devices import autocast, exact_float32, pick_device, resolve_precision
from mambaad.errors import ConfigError

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", ["gpu", "meta", "mps", "cuda:", "cuda:x", "cpu:0", "CUDA", ""])
def test_a_name_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        pick_device(name)
    assert str(caught.value) == f"device must be auto, cpu, cuda or cuda:N; got {name!r}"


def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match="device 'cuda:99' cannot be used") as caught:
        pick_device("cuda:99")
    assert "\n" not in str(caught.value)


def test_auto_is_a_device_that_is_there() -> None:
    assert pick_device("auto").type in ("cpu", "cuda")
    assert pick_device("cpu").type == "cpu"


@pytest.mark.parametrize(
    ("asked", "found"), [("auto", "float32"), ("bf16", "bf16"), ("float32", "float32")]
)
def test_precision_on_the_cpu(asked: str, found: str) -> None:
    assert resolve_precision(asked, CPU) == found


def test_a_precision_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="must be auto, float32 or bf16, got 'half'"):
        resolve_precision("half", CPU)


def test_auto_is_bf16_where_a_gpu_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for has_it, found in ((True, "bf16"), (False, "float32")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda _=has_it, **__: _)
        assert resolve_precision("auto", torch.device("cuda")) == found


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("auto", torch.float)])
def test_autocast_is_the_precision_of_a_matrix_product(precision: str, dtype: torch.dtype) -> None:
    with autocast(precision, CPU):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


@pytest.mark.parametrize("products", ["highest", "high"])
def test_float32_on_cuda_is_float32_whatever_the_program_asked_for(products: str) -> None:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(products)
    try:
        with exact_float32(torch.device("cuda")):
            assert torch.get_float32_matmul_precision() == "highest"
            assert not torch.backends.cudnn.allow_tf32
        assert torch.get_float32_matmul_precision() == products
        assert torch.backends.cudnn.allow_tf32
        with exact_float32(torch.device("cpu")):
            assert torch.get_float32_matmul_precision() == products
    finally:
        torch.set_float32_matmul_precision(before)


def test_who_leaves_first_takes_float32_from_nobody() -> None:
    """As two threads do that score with networks of their own."""
    gpu = torch.device("cuda")
    torch.backends.cudnn.allow_tf32 = True
    one, other = exact_float32(gpu), exact_float32(gpu)
    one.__enter__()
    other.__enter__()
    one.__exit__(None, None, None)
    assert not torch.backends.cudnn.allow_tf32
    other.__exit__(None, None, None)
    assert torch.backends.cudnn.allow_tf32
