"""Which of their two homes the fused operations choose."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import mambaad.fused as fused
from mambaad import triton_support
from mambaad.fused import depthwise
from mambaad.fused.cosine import cosine_distance
from mambaad.fused.instance import instance_norm_silu
from mambaad.fused.norm import layer_norm

OPERATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "cosine_distance": lambda x: cosine_distance(x, x).unsqueeze(-1).expand(x.shape),
    "depthwise_conv": lambda x: depthwise.depthwise_conv(x, x.new_ones(4, 1, 3, 3)),
    "instance_norm_silu": instance_norm_silu,
    "layer_norm": lambda x: layer_norm(x, x.new_ones(4), x.new_zeros(4), gate=x),
}


class Calls(TorchDispatchMode):
    """Notes the names of our own operators."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        namespace, _, name = func.name().partition("::")
        if namespace == "mambaad":
            self.names.append(name)
        return func(*args, **(kwargs or {}))


@pytest.fixture(autouse=True)
def asked_anew() -> Iterator[None]:
    triton_support.missing_for_triton.cache_clear()
    yield
    triton_support.missing_for_triton.cache_clear()


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("runs", [True, False])
def test_a_gpu_without_triton_computes_in_plain_torch(
    monkeypatch: pytest.MonkeyPatch, name: str, runs: bool
) -> None:
    monkeypatch.setattr(triton_support, "find_spec", lambda _: object() if runs else None)
    monkeypatch.setattr(triton_support.shutil, "which", lambda _: "/usr/bin/cc")
    # torch's convolution needs a GPU even to pretend
    monkeypatch.setattr(depthwise, "definition", lambda x, *_, **__: x)
    with FakeTensorMode(), Calls() as calls:
        y = OPERATIONS[name](torch.empty(1, 4, 4, 4, device="cuda"))
    assert (tuple(y.shape), y.device.type) == ((1, 4, 4, 4), "cuda")
    assert calls.names == ([name] if runs else [])


def test_triton_needs_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_support, "find_spec", lambda _: object())
    monkeypatch.setattr(triton_support.shutil, "which", lambda _: None)
    assert not fused.triton_runs()
    assert not torch.compile(lambda: fused.triton_runs(), backend="eager", fullgraph=True)()
