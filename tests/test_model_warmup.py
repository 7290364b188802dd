"""Running a step's parts once beforehand: the same kernels as in a step, and no traces."""

from __future__ import annotations

import inspect
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers import SMALL
from torch import Tensor, nn

from mambaad.config import ModelConfig, TrainConfig
from mambaad.devices import autocast
from mambaad.fit import computing
from mambaad.fused import depthwise
from mambaad.mixed import MixedPrecision
from mambaad.model import MambaAD, blocks, build, decoder, gated_scan, joined, layers, warmup
from mambaad.model.blocks import LSSModule
from mambaad.model.fold import inference_copy
from mambaad.model.losses import rebuilding_loss
from mambaad.model.recentre import Recentring
from mambaad.model.warmup import (
    MESSAGE,
    NOT_AHEAD,
    STOPPING,
    Setting,
    Stage,
    parts_of,
    run_parts,
    run_scan_gradient,
    run_stage,
    scoring_parts_of,
    warm_up,
)
from mambaad.scan import tuning

CPU = torch.device("cpu")

DEEPER = ModelConfig(encoder="filterbank", depths=(3, 2, 1, 2), directions=2, hss_per_lss=1)
"""Several modules in a stage."""

LOCAL = ModelConfig(encoder="filterbank", depths=(1, 1, 1, 1), directions=2, branches="local")


def network(config: ModelConfig = SMALL) -> MambaAD:
    torch.manual_seed(0)
    return build(config, backend="torch" if config is DEEPER else "auto")


def warm(
    model: MambaAD,
    batch: int = 2,
    precision: str = "float32",
    size: tuple[int, int] = (32, 64),
    *,
    training: bool,
    **options: Any,
) -> None:
    setting = Setting.of(model, batch, size, CPU, precision, training=training)
    run_parts(parts_of(model, setting), CPU, **options)


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
    model.objective = rebuilding_loss(TrainConfig(mining="hardest"))
    model.recentring = Recentring(model.encoder.channels)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    warm(model, training=training)
    assert torch.equal(torch.get_rng_state(), random)
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(p.grad is None for p in model.parameters())
    assert all(module.training for part in (model.neck, model.decoder) for module in part.modules())
    assert not any(module.training for module in model.encoder.modules())
    assert all(p.requires_grad for p in model.decoder.parameters())
    assert not any(orders.is_inference() for orders in model.decoder._tables.values())
    model.loss(torch.randn(2, 3, 32, 64)).backward()


@pytest.mark.parametrize(("training", "count"), [(True, 10), (False, 5)])
def test_the_parts_run_side_by_side_and_have_ended(
    monkeypatch: pytest.MonkeyPatch, training: bool, count: int
) -> None:
    together, names = threading.Barrier(count, timeout=20), set()

    def meet(run: Callable[..., None]) -> Callable[..., None]:
        def meeting(*arguments: object) -> None:
            together.wait()
            names.add(threading.current_thread().name)
            run(*arguments)

        return meeting

    for name in ("run_scan_gradient", "run_stage", "run_neck", "run_loss", "run_ends"):
        monkeypatch.setattr(warmup, name, meet(getattr(warmup, name)))
    before = threading.active_count()
    with torch.no_grad():  # of this thread only
        warm(network(), training=training)
    assert len(names) == count
    assert threading.active_count() == before


def test_gradients_are_taken_in_the_parts_own_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a GPU's would be taken in one thread of torch's."""
    seen: list[bool] = []
    original = torch.autograd.grad

    def grad(*arguments: Any, **options: Any) -> tuple[Tensor, ...]:
        seen.append(torch._C._is_multithreading_enabled())
        gradients: tuple[Tensor, ...] = original(*arguments, **options)
        return gradients

    monkeypatch.setattr(torch.autograd, "grad", grad)
    warm(network(), training=True)
    assert seen == [False] * 6
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


def test_a_mistake_is_the_callers_with_its_traceback() -> None:
    model = network()
    model.decoder.expands[2] = Failing(TypeError("no such argument"))
    before = threading.active_count()
    with pytest.raises(TypeError, match="no such argument") as caught:
        warm(model, training=True)
    assert "raise self.error" in "".join(traceback.format_tb(caught.value.__traceback__))
    assert threading.active_count() == before


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 TiB"),
        RuntimeError("GET was unable to find an engine to execute this computation\nat a place"),
    ],
    ids=["memory", "engine"],
)
def test_what_a_step_may_manage_is_left_to_it(error: Exception) -> None:
    model, lines = network(), []
    model.decoder.expands[0] = Failing(error)
    calls, threads = Failing.calls, threading.active_count()
    warm(model, training=True)
    warm(model, training=True, tell=lines.append)
    assert lines == [f"{NOT_AHEAD}: {str(error).splitlines()[0]}"]
    assert Failing.calls == calls + 2
    assert threading.active_count() == threads
    assert all(p.grad is None for p in model.parameters())


def test_ctrl_c_is_answered_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends when the parts do: a compilation cannot be broken off."""
    lines: list[str] = []

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(warmup, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        warm(network(), training=False, tell=lines.append)
    assert lines == [STOPPING]


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
    monkeypatch.setattr(warmup, "parts_of", lambda *a: used.append(a))
    warm_up(model, 2, (32, 64), CPU, "auto", training=True, tell=used.append)
    assert used == []


@pytest.mark.parametrize("fails", [False, True])
def test_tools_first_then_parts_then_memory(monkeypatch: pytest.MonkeyPatch, fails: bool) -> None:
    done: list[object] = []

    def make(*arguments: object) -> list[Callable[[], None]]:
        done.append(arguments)
        return []

    def run(*arguments: object, **options: object) -> None:
        done.append((*arguments, options))
        if fails:
            raise RuntimeError("no such instruction")

    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: done.append("emptied"))
    monkeypatch.setattr(warmup, "resolve_precision", lambda precision, _: precision)
    monkeypatch.setattr(warmup, "parts_of", make)
    monkeypatch.setattr(warmup, "_set_up_tools", done.append)
    monkeypatch.setattr(warmup, "run_parts", run)
    model, here = network(), torch.device("cuda:1")
    with pytest.raises(RuntimeError, match="no such") if fails else nullcontext():
        warm_up(model, 2, (32, 64), torch.device("cuda"), "bf16", training=True, tell=sys.exit)
    setting = Setting(2, (32, 64), here, "bf16", True, torch.bfloat16)
    assert done == [(model, setting), here, ([], here, {"tell": sys.exit}), "emptied"]


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
    stage = Stage(decoder.PatchExpand(4, 4), module, (1, 1, 1, 4), orders)
    ready = threading.Event()
    ready.set()
    run_stage(stage, Setting(1, (32, 32), CPU, "bf16", training, torch.bfloat16), ready)
    # in training all else is inside the two operators of the block's middle and the branches
    others = set() if training else {"cross_scan", "depthwise_conv", "instance_norm_silu"}
    assert {call[0] for call in calls.seen} == {"layer_norm"} | others  # type: ignore[index]
    assert sorted(joint) == (["gated_scan", "join"] if training else [])
    monkeypatch.undo()
    assert all(p.grad is None for p in module.parameters())


def test_a_stage_waits_for_the_scan_before_its_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    model, done = network(), []
    setting = Setting.of(model, 1, (32, 32), CPU, "float32", training=True)
    stage = warmup.decoder_stages(model.decoder, setting)[0]

    class Scanned(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            done.append("waited")
            return super().wait(timeout)

    scanned = Scanned()
    monkeypatch.setattr(warmup, "_differentiate", lambda *_: done.append("gradient"))
    monkeypatch.setattr(warmup, "_run_scan_gradient", lambda *_: done.append("scan"))
    run_scan_gradient(stage, setting, scanned)
    run_stage(stage, setting, scanned)
    assert done == ["scan", "waited", "gradient"]


def test_a_stage_does_not_wait_for_a_scan_that_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no such instruction")

    monkeypatch.setattr(warmup, "_run_scan_gradient", fail)
    lines: list[str] = []
    warm(network(), training=True, tell=lines.append)
    assert lines == [f"{NOT_AHEAD}: no such instruction"] * 4


@contextmanager
def launches() -> Iterator[set[tuple[object, ...]]]:
    """Take CPU tensors for a GPU's, and collect what Triton would compile; no kernel runs."""
    from triton.runtime.jit import KernelInterface

    found: set[tuple[object, ...]] = set()

    def launch(kernel: Any, _: object) -> Callable[..., None]:
        parameters = inspect.signature(kernel.fn).parameters
        alike = kernel.kwargs["do_not_specialize"] or ()  # as the interpreter keeps it

        def run(*arguments: object, **named: object) -> None:
            given = dict(zip(parameters, arguments, strict=False)) | named
            kinds = [
                (name, value if is_constant(parameters.get(name)) else kind(value))
                for name, value in sorted(given.items())
                if name not in alike
            ]
            found.add((kernel.fn.__name__, *kinds))

        return run

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tensor, "is_cuda", property(lambda _: True))
        patch.setattr(KernelInterface, "__getitem__", launch)
        yield found


def is_constant(parameter: inspect.Parameter | None) -> bool:
    """Whether a kernel is compiled for the value; options of a launch are no parameters."""
    return parameter is None or "constexpr" in str(parameter.annotation)


def kind(value: object) -> object:
    """All that Triton looks at in an argument when it decides whether to compile anew."""
    if isinstance(value, Tensor):
        return value.dtype, value.data_ptr() % 16 == 0
    if isinstance(value, int):
        return value if value == 1 else (value % 16 == 0, abs(value) < 2**31)
    return None if value is None else type(value)


def encoded(model: MambaAD, batch: int, size: tuple[int, int], dtype: torch.dtype) -> list[Tensor]:
    """Features as they are kept on a GPU."""
    return [
        torch.randn(batch, size[0] // stride, size[1] // stride, width)
        .to(dtype)
        .permute(0, 3, 1, 2)
        for stride, width in zip((4, 8, 16), model.encoder.channels, strict=True)
    ]


DROPPING = replace(SMALL, depths=(3, 2, 1, 1), hss_per_lss=None, drop_path=0.3)
"""Drop path everywhere but at the end."""

MIXED = replace(SMALL, depths=(1, 1, 1, 2), hss_per_lss=1, drop_path=0.3, recentre=True)
"""One block a module, so no sum beside a norm."""

LOSSES = {
    "mse": TrainConfig(),
    "hardest": TrainConfig(mining="hardest"),
    "adaptive": TrainConfig(loss="cosine", mining="adaptive"),
    "global": TrainConfig(loss="global-cosine"),
}


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize(
    ("config", "loss", "batch", "size"),
    [
        (DROPPING, "mse", 3, (32, 64)),
        (DROPPING, "hardest", 2, (64, 64)),
        (MIXED, "adaptive", 2, (32, 64)),
        (replace(LOCAL, drop_path=0.3), "global", 2, (32, 64)),
    ],
)
def test_a_training_step_launches_no_kernel_that_is_new(
    config: ModelConfig, loss: str, batch: int, size: tuple[int, int], precision: str
) -> None:
    torch.manual_seed(0)
    model = build(config, backend="triton").train()
    model.objective = rebuilding_loss(LOSSES[loss])
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    features = encoded(model, batch, size, dtype)
    with launches() as beforehand:
        warm(model, batch, precision, size, training=True)
    with launches() as step, computing(precision, CPU):
        parts = MixedPrecision(model, precision, CPU).loss_parts(None, features)
        torch.stack(list(parts.values())).sum().backward()
    names = {name for name, *_ in step}
    assert {"batch_norm_kernel", "batch_gradient_kernel"} <= names
    assert ("square_gradient_kernel" in names) == (loss == "mse")
    assert step == beforehand


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("config", [DROPPING, MIXED], ids=["dropping", "mixed"])
def test_a_prediction_launches_no_kernel_that_is_new(config: ModelConfig, precision: str) -> None:
    torch.manual_seed(0)
    model = build(config, backend="triton").eval()
    if precision == "bf16":
        model = inference_copy(model, torch.bfloat16)
    images = torch.randn(2, 32, 64, 3).permute(0, 3, 1, 2)
    with launches() as beforehand:
        warm(model, 2, precision, training=False)
    with launches() as step, torch.no_grad(), autocast(precision, CPU):
        model.anomaly_maps(images)
    assert {"cosine_kernel", "layer_norm_kernel"} <= {name for name, *_ in step}
    assert step == beforehand


def test_scans_are_compiled_once_for_all_batches() -> None:
    """Such as ``mambaad tune`` relies on, and a last batch of fewer pictures."""
    module = LSSModule(64, 2, blocks=1, kernels=(3,), backend="triton")
    orders = torch.arange(16, dtype=torch.int32).repeat(2, 1)
    found = []
    for batch in (1, 3, 16):
        stage = Stage(nn.Identity(), module, (batch, 4, 4, 64), orders)
        setting = Setting(batch, (32, 32), CPU, "bf16", True, torch.bfloat16)
        with launches() as kernels, tuning.forced(tuning.Tiling(16, 4, 2, 1)):
            run_scan_gradient(stage, setting, threading.Event())
        found.append({k for k in kernels if k[0] in {"backward_kernel", "sum_parameters_kernel"}})
    assert len(found[0]) == 2
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_the_scan_gradient_compiles_what_the_step_needs(precision: str) -> None:
    """Other kernels would be compiled for nothing, and the step's would follow all the same."""
    model = build(MIXED, backend="triton").train()
    setting = Setting.of(model, 2, (32, 64), CPU, precision, training=True)
    for stage in warmup.decoder_stages(model.decoder, setting):
        with launches() as alone:
            run_scan_gradient(stage, setting, threading.Event())
        ready = threading.Event()
        ready.set()
        with launches() as whole:
            run_stage(stage, setting, ready)
        assert "backward_kernel" in {name for name, *_ in alone}
        assert alone < whole
        scan = {"backward_kernel", "sum_rows_kernel", "sum_parameters_kernel"}
        assert {call for call in whole if call[0] in scan} <= alone


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_what_scores_after_a_training_launches_no_kernel_that_is_new(precision: str) -> None:
    torch.manual_seed(0)
    model = build(MIXED, backend="triton").train()
    setting = Setting.of(model, 3, (32, 64), CPU, precision, training=True)
    with launches() as beforehand:
        run_parts(scoring_parts_of(model, setting, 2), CPU)
    assert model.decoder.training
    model.eval()
    scorer = inference_copy(model, torch.bfloat16) if precision == "bf16" else model
    images = torch.randn(2, 32, 64, 3).permute(0, 3, 1, 2)
    with launches() as step, torch.no_grad(), autocast(precision, CPU):
        scorer.anomaly_maps(images)
    assert step == beforehand


def test_other_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"image_size must be multiples of 32, got \(32, 48\)"):
        Setting.of(network(), 1, (32, 48), CPU, "float32", training=True)
