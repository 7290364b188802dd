"""Running every decoder stage once beforehand: the same calls as in a step, and no traces."""

from __future__ import annotations

import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from helpers import SMALL
from torch import Tensor, nn

from mambaad.config import ModelConfig
from mambaad.devices import autocast
from mambaad.fused import depthwise
from mambaad.model import MambaAD, blocks, build, decoder, gated_scan, joined, layers, warmup
from mambaad.model.blocks import LSSModule
from mambaad.model.warmup import MESSAGE, Part, decoder_parts, run_part, run_parts, warm_up

CPU = torch.device("cpu")

DEEPER = ModelConfig(encoder="filterbank", depths=(3, 2, 1, 2), directions=2, hss_per_lss=1)
"""Several modules in a stage."""

LOCAL = ModelConfig(encoder="filterbank", depths=(1, 1, 1, 1), directions=2, branches="local")


def network(config: ModelConfig = SMALL) -> MambaAD:
    torch.manual_seed(0)
    return build(config, backend="torch" if config is DEEPER else "auto")


def warm(model: MambaAD, batch: int = 2, precision: str = "float32", **options: Any) -> None:
    run_parts(decoder_parts(model.decoder, batch, (32, 64), CPU), precision, **options)


def layout(value: object) -> object:
    if not isinstance(value, Tensor):
        return value
    return value.dtype, tuple(value.shape), value.stride(), value.storage_offset() % 16


class Calls:
    """What the functions with kernels are called with, in any thread: types, shapes, strides."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: set[object] = set()
        for module, name in (
            (blocks, "cross_scan"),
            (layers, "depthwise_conv"),
            (layers, "instance_norm_silu"),
            (layers, "layer_norm"),
        ):
            monkeypatch.setattr(module, name, self._spy(name, getattr(module, name)))

    def _spy(self, name: str, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(x: Tensor, *others: object, **options: object) -> Tensor:
            # all but the convolution make it contiguous, in forward and in backward
            read = depthwise._channels_last(x) if name == "depthwise_conv" else x.contiguous()
            y = function(x, *others, **options)
            key = [name, torch.is_grad_enabled(), y.requires_grad, y.dtype]
            values = (read, *others, *options.values())
            self.seen.add((*key, *(layout(value) for value in values)))
            if y.requires_grad:
                y.register_hook(lambda dy: self.seen.add((name, "backward", dy.dtype, *dy.shape)))
            return y

        return call


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("config", [SMALL, DEEPER, LOCAL], ids=["small", "deeper", "local"])
@pytest.mark.parametrize("training", [True, False])
def test_every_call_of_a_step_is_made_and_no_other(
    monkeypatch: pytest.MonkeyPatch, config: ModelConfig, precision: str, training: bool
) -> None:
    model = network(config).train(training)
    images = torch.randn(2, 3, 32, 64)
    calls = Calls(monkeypatch)
    with autocast(precision, CPU), torch.set_grad_enabled(training):
        loss = model.loss(images)
        if training:
            loss.backward()
    step, calls.seen = calls.seen, set()
    warm(model, precision=precision, training=training)
    assert any("backward" in call for call in step) == training  # type: ignore[operator]
    assert calls.seen == step


@pytest.mark.parametrize("training", [True, False])
def test_it_leaves_no_traces(training: bool) -> None:
    model = network(ModelConfig(**{**vars(SMALL), "drop_path": 0.5})).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    warm(model, training=training)
    assert torch.equal(torch.get_rng_state(), random)
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(p.grad is None for p in model.parameters())
    assert all(module.training for module in model.decoder.modules())
    assert all(p.requires_grad for p in model.decoder.parameters())
    assert not any(orders.is_inference() for orders in model.decoder._tables.values())
    model.loss(torch.randn(2, 3, 32, 64)).backward()


def test_the_stages_run_side_by_side_and_have_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    together, names = threading.Barrier(4, timeout=20), set()
    original = LSSModule.forward

    def meeting(self: LSSModule, x: Tensor, orders: Tensor) -> Tensor:
        together.wait()
        names.add(threading.current_thread().name)
        return original(self, x, orders)

    monkeypatch.setattr(LSSModule, "forward", meeting)
    before = threading.active_count()
    with torch.no_grad():  # of this thread only
        warm(network(), training=True)
    assert len(names) == 4
    assert threading.active_count() == before


def test_gradients_are_taken_in_the_stages_own_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a GPU's would be taken in one thread of torch's."""
    seen: list[bool] = []
    original = torch.autograd.grad

    def grad(*arguments: Any, **options: Any) -> tuple[Tensor, ...]:
        seen.append(torch._C._is_multithreading_enabled())
        gradients: tuple[Tensor, ...] = original(*arguments, **options)
        return gradients

    monkeypatch.setattr(torch.autograd, "grad", grad)
    warm(network(), training=True)
    assert seen == [False] * 4
    assert torch._C._is_multithreading_enabled()


class Failing(nn.Module):
    """Stands for a stage's layers."""

    calls = 0  # of all, since warming up works on copies

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def forward(self, _: Tensor) -> Tensor:
        Failing.calls += 1
        raise self.error


def test_an_error_is_the_callers_with_its_traceback() -> None:
    model = network()
    model.decoder.expands[2] = Failing(RuntimeError("no such instruction"))
    before = threading.active_count()
    with pytest.raises(RuntimeError, match="no such instruction") as caught:
        warm(model, training=True)
    assert "raise self.error" in "".join(traceback.format_tb(caught.value.__traceback__))
    assert threading.active_count() == before


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 TiB"),
        RuntimeError("Triton Error [CUDA]: out of memory"),
    ],
    ids=["torch", "triton"],
)
def test_a_lack_of_memory_is_left_to_the_step(error: Exception) -> None:
    model = network()
    model.decoder.expands[0] = Failing(error)
    calls, threads = Failing.calls, threading.active_count()
    warm(model, training=True)
    assert Failing.calls == calls + 1
    assert threading.active_count() == threads
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(("patience", "told"), [(0.0, [MESSAGE]), (60.0, [])])
def test_a_line_is_told_only_if_it_takes_long(
    monkeypatch: pytest.MonkeyPatch, patience: float, told: list[str]
) -> None:
    lines: list[str] = []
    monkeypatch.setattr(warmup, "PATIENCE", patience)
    warm(network(), training=False, tell=lines.append)
    assert lines == told
    warm(network(), training=False)


def test_nothing_is_done_without_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    model, used = network(), []
    monkeypatch.setattr(warmup, "decoder_parts", lambda *a: used.append(a))
    warm_up(model, 2, (32, 64), CPU, "auto", training=True, tell=used.append)
    assert used == []


@pytest.mark.parametrize("fails", [False, True])
def test_tools_first_then_stages_then_memory(monkeypatch: pytest.MonkeyPatch, fails: bool) -> None:
    done: list[object] = []

    def make(*arguments: object) -> list[Part]:
        done.append(arguments)
        return []

    def run(*arguments: object, **options: object) -> None:
        done.append((*arguments, options))
        if fails:
            raise RuntimeError("no such instruction")

    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: done.append("emptied"))
    monkeypatch.setattr(warmup, "decoder_parts", make)
    monkeypatch.setattr(warmup, "_set_up_tools", done.append)
    monkeypatch.setattr(warmup, "run_parts", run)
    model, here = network(), torch.device("cuda:1")
    with pytest.raises(RuntimeError, match="no such") if fails else nullcontext():
        warm_up(model, 2, (32, 64), torch.device("cuda"), "bf16", training=True, tell=sys.exit)
    options = {"training": True, "tell": sys.exit}
    assert done == [(model.decoder, 2, (32, 64), here), here, ([], "bf16", options), "emptied"]


@pytest.mark.parametrize("training", [True, False])
def test_the_kernels_operators_in_the_interpreter(
    monkeypatch: pytest.MonkeyPatch, training: bool
) -> None:
    monkeypatch.setattr(Tensor, "is_cuda", property(lambda _: True))
    module = LSSModule(4, 1, blocks=1, kernels=(3,), backend="triton")
    orders = torch.arange(4, dtype=torch.int32)[None]
    calls, joint = Calls(monkeypatch), []
    for home, name in ((gated_scan, "gated_scan"), (joined, "join")):
        original = getattr(home, name)
        spy = lambda *a, name=name, call=original, **o: (joint.append(name), call(*a, **o))[1]  # noqa: E731
        monkeypatch.setattr(home, name, spy)
    run_part(
        Part(decoder.PatchExpand(4, 4), module, (1, 1, 1, 4), orders), "bf16", training=training
    )
    # in training all else is inside the two operators of the block's middle and the branches
    others = set() if training else {"cross_scan", "depthwise_conv", "instance_norm_silu"}
    assert {call[0] for call in calls.seen} == {"layer_norm"} | others  # type: ignore[index]
    assert sorted(joint) == (["gated_scan", "join"] if training else [])
    monkeypatch.undo()
    assert all(p.grad is None for p in module.parameters())


def test_other_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"image_size must be multiples of 32, got \(32, 48\)"):
        decoder_parts(network().decoder, 1, (32, 48), CPU)
