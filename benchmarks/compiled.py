"""Time torch.compile against the kernels fused by hand, and refuse to time a wrong result.

    python benchmarks/compiled.py > benchmarks/compiled.csv

The same network runs in four ways; the scan is this package's operator in all of them:

    fused           as shipped: what surrounds the scan in hand-fused Triton kernels
    plain           the same layers in torch's own operators
    compiled        torch.compile of the plain network
    fused compiled  torch.compile of the network as shipped

Inference goes through ``mambaad.inference.Scorer`` from normalised images on the device, in bf16 on
a GPU with the copy made for inference. A training step starts from kept features: copies of the
weights, loss, gradients, clipping, AdamW. On a GPU both are CUDA graphs; the column ``graph`` says
if a capture failed and kernels were launched one by one. ``first_s`` is the first call, compiling
included. Each way is compared with the network in float64, whose scan is the equation, beforehand.
"""

from __future__ import annotations

import argparse
import csv
import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import torch
from machine import ABOUT, about, use_device
from network import (
    LOSS_LIMITS,
    MAP_LIMITS,
    Case,
    check_gradients,
    make,
    named_gradients,
    random_images,
    with_backend,
)
from timing import SPREAD, PeakMemory, refuse, relative_error, spread, timed
from torch import Tensor, nn

import mambaad.fused
from mambaad.config import TOTAL_STRIDE, ModelConfig, TrainConfig
from mambaad.fit import build_optimizer, computing
from mambaad.graphs import EAGER_STEPS, Lane
from mambaad.inference import Method, Scorer
from mambaad.mixed import MixedPrecision
from mambaad.model import MambaAD
from mambaad.model.fold import inference_copy

WAYS = {
    "fused": (True, False),
    "plain": (False, False),
    "compiled": (False, True),
    "fused compiled": (True, True),
}
"""Whether hand-fused kernels run, and whether the network is compiled."""

HEADER = (
    *("what", "way", "encoder", "depths", "directions", "size", "batch", "precision"),
    *(*SPREAD, "pictures_per_second", "peak_gib", "peak_reserved_gib", "graph", "first_s", *ABOUT),
)


@dataclass(frozen=True)
class Row:
    """What was measured of one way."""

    times: list[float]
    """Milliseconds of each repeat."""

    memory: list[str]
    """``PeakMemory.cells``."""

    graph: str
    """``yes`` or ``no``; empty on the CPU."""

    first: float
    """Seconds of the first call."""


@contextmanager
def hand_fused(wanted: bool) -> Iterator[None]:
    """While it is open, the operators around the scan run their kernels, or plain torch."""
    if wanted:
        yield
        return
    with patch.object(mambaad.fused, "_triton_runs", lambda: False):
        yield


class Compiler:
    """``torch.compile`` with the options of this run; what does not fit one graph is an error."""

    def __init__(self, backend: str, mode: str) -> None:
        self.options: dict[str, Any] = {"backend": backend, "mode": mode}

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        torch.compiler.reset()  # a way's code must not be taken for another's
        return torch.compile(function, fullgraph=True, dynamic=False, **self.options)


class CompiledMaps:
    """A network's anomaly maps by compiled code."""

    def __init__(self, model: MambaAD, compiler: Compiler) -> None:
        self._maps = compiler(model.anomaly_maps)

    def anomaly_maps(self, images: Tensor) -> Tensor:
        """Args: images (B, 3, H, W), normalised. Returns: float32 (B, H, W)."""
        maps: Tensor = self._maps(images)
        return maps


def made(case: Case, device: torch.device) -> MambaAD:
    """The network with its scan paths, which compiled code cannot make."""
    model = make(case.model, device)
    for stage in range(4):
        side = case.size // TOTAL_STRIDE * 2**stage
        model.decoder.orders(side, side, device)
    return model


def scorer_of(case: Case, compiler: Compiler | None, device: torch.device) -> Scorer:
    """What scores in a way; ``compiler`` None leaves the network as it is."""
    model = made(case, device).eval()
    method: Method = model
    if compiler is not None:
        narrow = case.precision == "bf16" and device.type == "cuda"
        method = CompiledMaps(inference_copy(model, torch.bfloat16) if narrow else model, compiler)
    return Scorer(method, device, precision=case.precision)


class TrainingStep:
    """A step on features that stay where they are."""

    def __init__(self, case: Case, compiler: Compiler | None, device: torch.device) -> None:
        self.model = made(case, device).train()
        self.features = encoded(self.model, case, device)
        if compiler is not None:
            self.model.loss_parts = compiler(self.model.loss_parts)  # type: ignore[method-assign]
        self._case, self._device = case, device
        self._method = MixedPrecision(self.model, case.precision, device)
        # a rate at which noise can be learned from for ever
        self._optimizer = build_optimizer(self.model, TrainConfig(learning_rate=1e-5), case.batch)
        self._trainable = [p for p in self.model.parameters() if p.requires_grad]

    def compute(self) -> Tensor:
        """The loss; leaves the gradients with the parameters."""
        with computing(self._case.precision, self._device):
            self._optimizer.zero_grad(set_to_none=True)
            loss = torch.stack(list(self._method.loss_parts(None, self.features).values())).sum()
            loss.backward()
        self._method.collect_gradients()
        return loss.detach()

    def __call__(self) -> None:
        """Compute and update."""
        self.compute()
        nn.utils.clip_grad_norm_(self._trainable, 5.0)
        self._optimizer.step()


def encoded(model: MambaAD, case: Case, device: torch.device) -> list[Tensor]:
    """The encoder's maps of noise, as training on a GPU keeps them: channels last in memory."""
    with torch.no_grad(), computing(case.precision, device):
        maps = model.encode(random_images(case.batch, case.size, device))
    dtype = torch.bfloat16 if case.precision == "bf16" else torch.float32
    return [m.to(dtype).contiguous(memory_format=torch.channels_last) for m in maps]


def check_inference(case: Case, way: str, compiler: Compiler | None, device: torch.device) -> None:
    """Compare the map of one picture with float64.

    Raises:
        SystemExit: If it is further off than ``MAP_LIMITS``.
    """
    case = replace(case, batch=1)
    images = random_images(1, case.size, device)
    maps, _ = scorer_of(case, compiler, device).on_device(images)
    exact = with_backend(make(case.model, device).eval(), "reference").double()
    with torch.no_grad():
        error = relative_error(maps, exact.anomaly_maps(images.double()))
    limit = MAP_LIMITS[case.precision]
    if not error <= limit:
        refuse(f"{way}: the map in {case.precision} is off by {error:.1e}, not {limit:.0e}")


def check_training(case: Case, way: str, compiler: Compiler | None, device: torch.device) -> None:
    """Compare loss and gradients of two pictures with float64.

    In bf16 gradients may be as far off as twice what the plain torch path's are in bf16.

    Raises:
        SystemExit: If something is further off than that, or than the limits of ``network``.
    """
    case = replace(case, batch=2, model=replace(case.model, drop_path=0.0))
    step = TrainingStep(case, compiler, device)
    exact = with_backend(make(case.model, device).train(), "reference").double()
    rough = with_backend(make(case.model, device).train(), "torch")
    true_loss, truths = from_features(exact, step.features, "float32")
    error, limit = relative_error(step.compute(), true_loss), LOSS_LIMITS[case.precision]
    if not error <= limit:
        refuse(f"{way}: the loss in {case.precision} is off by {error:.1e}, not {limit:.0e}")
    others = None
    if case.precision != "float32":
        _, others = from_features(rough, step.features, case.precision)
    found = {name: p.grad for name, p in step.model.named_parameters() if p.grad is not None}
    check_gradients(found, truths, others, case.precision, way=f"{way}: ")


def from_features(
    model: MambaAD, features: Sequence[Tensor], precision: str
) -> tuple[Tensor, dict[str, Tensor]]:
    """``named_gradients`` of a network whose encoder has run already."""
    dtype = next(model.neck.parameters()).dtype
    kept = [f.to(dtype) if dtype == torch.float64 else f for f in features]
    with patch.object(model, "encode", lambda _: kept):
        return named_gradients(model, kept[0], precision)


def time_inference(
    case: Case, compiler: Compiler | None, device: torch.device, repeats: int
) -> Row:
    """``Scorer.on_device`` from normalised images on the device to maps and scores there."""
    images = random_images(case.batch, case.size, device)
    memory = PeakMemory(device)
    scorer = scorer_of(case, compiler, device)
    with _Messages("mambaad.replay") as complaints:
        began = time.perf_counter()
        scorer.on_device(images)
        first = time.perf_counter() - began
        times = timed(lambda: scorer.on_device(images), device, repeats)
    graph = "" if device.type != "cuda" else "no" if complaints.seen else "yes"
    return Row(times, memory.cells(), graph, first)


def time_training(case: Case, compiler: Compiler | None, device: torch.device, repeats: int) -> Row:
    """Steps after the eager ones and the capture."""
    memory = PeakMemory(device)
    step = TrainingStep(case, compiler, device)
    began = time.perf_counter()
    if device.type != "cuda":
        step()
        first = time.perf_counter() - began
        return Row(timed(step, device, repeats), memory.cells(), "", first)
    lane = Lane(device)
    with lane.open():
        step()
        torch.cuda.synchronize(device)
        first = time.perf_counter() - began
        for _ in range(EAGER_STEPS - 1):
            step()
        try:
            call, graph = lane.capture(step), "yes"
        except Exception as error:  # noqa: BLE001 - compiled code may raise anything
            print(f"no CUDA graph: {error}".splitlines()[0], file=sys.stderr)
            call, graph = step, "no"
        return Row(timed(call, device, repeats), memory.cells(), graph, first)


class _Messages(logging.Handler):
    """What a logger says while it is open."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.seen: list[str] = []
        self._log = logging.getLogger(name)

    def __enter__(self) -> _Messages:
        self._log.addHandler(self)
        self._log.setLevel(logging.INFO)
        return self

    def __exit__(self, *_: object) -> None:
        self._log.removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.seen.append(record.getMessage())


KINDS = {
    "inference": (check_inference, time_inference),
    "training": (check_training, time_training),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Check every way, then print the rows."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--encoder", default="resnet34")
    parser.add_argument("--depths", type=int, nargs=4, default=[3, 4, 6, 3])
    parser.add_argument("--directions", type=int, default=8)
    parser.add_argument("--size", type=int, default=256, help="height and width of a picture")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--precision", nargs="+", default=["bf16"])
    parser.add_argument("--what", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--way", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--backend", default="inductor", help="of torch.compile")
    parser.add_argument("--mode", default="default", help="of torch.compile, without its graphs")
    parser.add_argument("--repeats", type=int, default=30, help="timed calls, 2 at least")
    args = parser.parse_args(arguments)
    device = use_device(args.device)
    model = ModelConfig(args.encoder, tuple(args.depths), directions=args.directions)
    compiler, machine = Compiler(args.backend, args.mode), about(device)
    writer, header = csv.writer(sys.stdout, lineterminator="\n"), False
    for what, way, precision in [
        (w, y, p) for w in args.what for p in args.precision for y in args.way
    ]:
        check, measure = KINDS[what]
        fused, chosen = WAYS[way][0], compiler if WAYS[way][1] else None
        with hand_fused(fused):
            check(Case(model, args.size, 1, precision), way, chosen, device)
            for batch in args.batch:
                case = Case(model, args.size, batch, precision)
                row = measure(case, chosen, device, args.repeats)
                if not header:
                    writer.writerow(HEADER)
                    header = True
                figures = spread(row.times)
                writer.writerow(
                    [
                        *(what, way, args.encoder, "-".join(map(str, args.depths))),
                        *(args.directions, args.size, batch, precision),
                        *(f"{f:.3f}" for f in figures),
                        *(f"{1e3 * batch / figures[0]:.1f}", *row.memory, row.graph),
                        *(f"{row.first:.1f}", *machine),
                    ]
                )
                sys.stdout.flush()


if __name__ == "__main__":
    main()
