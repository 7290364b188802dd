"""Compiles the decoder's Triton kernels before the first step, the stages side by side.

Triton compiles a kernel when it is first called, once for every combination of types, constants
and divisibilities of its arguments, and keeps it on disk. The first step would compile them one
after the other, for minutes. A compilation leaves Python's lock alone for most of its time, so
here a thread for each decoder stage runs the stage's kinds of layers once on random maps, as the
step will. The layers are copies without drop path: no gradient, weight, buffer or random state
of the network or of torch is touched.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.autograd.grad_mode import set_multithreading_enabled

from mambaad.config import TOTAL_STRIDE
from mambaad.devices import autocast, resolve_precision
from mambaad.fused.norm import layer_norm
from mambaad.model.blocks import LSSModule
from mambaad.model.decoder import Decoder, PatchExpand
from mambaad.model.layers import DropPath
from mambaad.model.mambaad import MambaAD

PATIENCE = 2.0
"""Seconds after which the caller is told what takes so long."""

MESSAGE = "compiling GPU kernels (first use on this machine)"


def warm_up(
    model: MambaAD,
    batch_size: int,
    image_size: tuple[int, int],
    device: torch.device,
    precision: str,
    *,
    training: bool,
    tell: Callable[[str], None] | None = None,
) -> None:
    """Compile and load what steps of this size will need. Does nothing if ``device`` is not CUDA.

    Args:
        model: On ``device``; not changed.
        batch_size: Pictures of a step.
        image_size: Their height and width, multiples of 32.
        device: Where the steps will run.
        precision: ``auto``, ``float32`` or ``bf16``; see ``mambaad.devices``.
        training: Whether a step has a backward pass.
        tell: Told in a line, from this thread, if it takes longer than ``PATIENCE``.

    Raises:
        ConfigError: If ``precision`` is none of the three.
        ValueError: If a side of the pictures is not a multiple of 32.
        Exception: Whatever a layer raises, apart from a lack of memory: a step may have enough.
    """
    if device.type != "cuda":
        return
    index = torch.cuda.current_device() if device.index is None else device.index
    device = torch.device("cuda", index)
    with torch.cuda.device(device):
        parts = decoder_parts(model.decoder, batch_size, image_size, device)
        _set_up_tools(device)
        try:
            run_parts(parts, precision, training=training, tell=tell)
        finally:
            torch.cuda.empty_cache()


@dataclass(frozen=True)
class Part:
    """What one thread runs: the way into a decoder stage, and one of the stage's modules."""

    expand: nn.Module
    module: LSSModule
    shape: tuple[int, int, int, int]
    """Of the map that comes in, (B, H, W, C)."""

    orders: Tensor
    """The scan paths over the stage's map, where the network is."""


def decoder_parts(
    decoder: Decoder, batch_size: int, image_size: tuple[int, int], device: torch.device
) -> list[Part]:
    """One part for each stage; the other modules of a stage run on maps of the same shapes.

    Raises:
        ValueError: If a side of the pictures is not a multiple of 32.
    """
    if any(side % TOTAL_STRIDE for side in image_size):
        raise ValueError(f"image_size must be multiples of {TOTAL_STRIDE}, got {image_size}")
    height, width = (side // TOTAL_STRIDE for side in image_size)
    parts = []
    for expand, stage in zip(decoder.expands, decoder.stages, strict=True):
        module = cast(LSSModule, cast(nn.ModuleList, stage)[0])
        shape = (batch_size, height, width, module.fuse.out_channels)
        if isinstance(expand, PatchExpand):
            shape = (*shape[:3], expand.expand.in_features)
            height, width = 2 * height, 2 * width
        parts.append(Part(expand, module, shape, decoder.orders(height, width, device)))
    return parts


def run_parts(
    parts: list[Part],
    precision: str,
    *,
    training: bool,
    tell: Callable[[str], None] | None = None,
) -> None:
    """Run every part once, each in a thread and on a stream of its own, on any device.

    Args:
        parts: From ``decoder_parts``.
        precision: As for ``warm_up``.
        training: Whether gradients are computed too.
        tell: As for ``warm_up``.

    Raises:
        Exception: What the first of the failing parts raised, when all have ended.
    """
    with ThreadPoolExecutor(len(parts), "mambaad-warm-up") as threads:
        lanes = [_lane(part.orders.device) for part in parts]
        futures = [
            threads.submit(_run_in_lane, lane, part, precision, training)
            for lane, part in zip(lanes, parts, strict=True)
        ]
        _, late = wait(futures, timeout=PATIENCE)
        if late and tell is not None:
            tell(MESSAGE)
    for future in futures:
        future.result()


def run_part(part: Part, precision: str, *, training: bool) -> None:
    """A copy of the part's layers, forward and, if ``training``, backward, on the current stream.

    Backward in this thread: torch has one thread a GPU for the gradients of all others, and in
    that the stages' backward kernels would be compiled one after the other.
    """
    device = part.orders.device
    expand, module = copy.deepcopy((part.expand, part.module))
    layers = nn.ModuleList([expand, module]).train(training)
    for layer in layers.modules():
        if isinstance(layer, DropPath):
            layer.rate = 0.0  # it would move the random numbers of the training
    dtype = module.fuse.weight.dtype
    if resolve_precision(precision, device) == "bf16":
        dtype = torch.bfloat16  # the neck's last convolution leaves that under autocast
    generator = torch.Generator(device).manual_seed(0)
    x = torch.randn(part.shape, generator=generator, dtype=dtype, device=device)
    sources = [x.requires_grad_(training), *(p for p in layers.parameters() if p.requires_grad)]
    with torch.inference_mode(not training), autocast(precision, device):
        y = module(expand(x), part.orders)
        if training:
            with set_multithreading_enabled(False):
                torch.autograd.grad(y, sources, y.detach(), allow_unused=True)


def _run_in_lane(
    lane: torch.cuda.Stream | None, part: Part, precision: str, training: bool
) -> None:
    with _on(lane):
        try:
            run_part(part, precision, training=training)
        except RuntimeError as error:  # torch's and Triton's own
            if "out of memory" not in str(error):
                raise


def _lane(device: torch.device) -> torch.cuda.Stream | None:
    """A new stream, after the current one's work so far: it may still be writing the weights."""
    if device.type != "cuda":
        return None
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    return stream


@contextmanager
def _on(lane: torch.cuda.Stream | None) -> Iterator[None]:
    """Work inside goes to the stream, and is over afterwards."""
    if lane is None:
        yield
        return
    with torch.cuda.device(lane.device), torch.cuda.stream(lane):
        try:
            yield
        finally:
            lane.synchronize()


def _set_up_tools(device: torch.device) -> None:
    """Run a first kernel before there are threads.

    Torch's operators import the compiler of torch at their first call, and Triton looks for its
    driver: modules that import each other must not be imported from several threads at once.
    """
    line = torch.ones(32, device=device)
    layer_norm(line, line, line)
