"""Compiles a network's Triton kernels before the first step, its parts side by side.

Triton compiles a kernel when it is first called, once for every combination of types, constants
and divisibilities of its arguments, and keeps it on disk. The first step would compile them one
after the other, for minutes. A compilation leaves Python's lock alone for most of its time, so
here threads run what a step runs, once, on random maps as the step will have them: one for each
decoder stage, one for the neck and one for the loss in training, one for all that is around the
decoder in inference. The scan's gradient, whose kernel takes longest to compile, begins at once in
threads of its own. The layers are copies without drop path: no gradient, weight, buffer or random
state of the network or of torch is touched.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar, cast

import torch
from torch import Tensor, nn
from torch.autograd.grad_mode import set_multithreading_enabled

from mambaad.config import TOTAL_STRIDE
from mambaad.devices import autocast, resolve_precision
from mambaad.errors import first_line
from mambaad.fused.norm import layer_norm
from mambaad.fused.square import square_losses
from mambaad.model import gated_scan
from mambaad.model.blocks import HSSBlock, LSSModule
from mambaad.model.decoder import Decoder, PatchExpand, empty_factors
from mambaad.model.encoder import STRIDES
from mambaad.model.fold import inference_copy
from mambaad.model.layers import DropPath
from mambaad.model.mambaad import MambaAD

PATIENCE = 2.0
"""Seconds after which the caller is told what takes so long."""

MESSAGE = "compiling GPU kernels (first use on this machine)"
STOPPING = "stopping when the kernels under way are compiled"
NOT_AHEAD = "not compiled ahead, so the first step takes longer"

LONGEST = 120.0
"""Seconds that a part waits for another, which may have ended before it began."""

_Layers = TypeVar("_Layers", bound=nn.Module)

Work = Callable[[], None]


@dataclass(frozen=True)
class Setting:
    """What the steps are like."""

    batch: int
    """Pictures of a step."""

    size: tuple[int, int]
    """Their height and width, multiples of 32."""

    device: torch.device
    precision: str
    """``auto``, ``float32`` or ``bf16``; see ``mambaad.devices``."""

    training: bool
    """Whether a step has a backward pass."""

    dtype: torch.dtype
    """Of the encoder's maps, the neck's and the student's."""

    @classmethod
    def of(
        cls,
        model: MambaAD,
        batch: int,
        size: tuple[int, int],
        device: torch.device,
        precision: str,
        *,
        training: bool,
    ) -> Setting:
        """That of steps with this network.

        Raises:
            ConfigError: If the precision is none of the three.
            ValueError: If a side of the pictures is not a multiple of 32.
        """
        if any(side % TOTAL_STRIDE for side in size):
            raise ValueError(f"image_size must be multiples of {TOTAL_STRIDE}, got {size}")
        dtype = _first(model.decoder.stages[0]).fuse.weight.dtype
        if resolve_precision(precision, device) == "bf16":
            dtype = torch.bfloat16  # what convolutions leave under autocast
        return cls(batch, size, device, precision, training, dtype)


def warm_up(
    model: MambaAD,
    batch_size: int,
    image_size: tuple[int, int],
    device: torch.device,
    precision: str,
    *,
    training: bool,
    scored: int = 0,
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
        scored: Pictures of a batch that the network will score afterwards: what that needs is
            compiled beside the rest. 0: it will not.
        tell: Told in a line, from this thread, if it takes longer than ``PATIENCE``.

    Raises:
        ConfigError: If ``precision`` is none of the three.
        ValueError: If a side of the pictures is not a multiple of 32.
        Exception: Whatever a layer raises, apart from torch's and Triton's RuntimeErrors, which are
            told: a step may have the memory for it, or will raise them itself.
    """
    if device.type != "cuda":
        return
    index = torch.cuda.current_device() if device.index is None else device.index
    device = torch.device("cuda", index)
    with torch.cuda.device(device):
        setting = Setting.of(model, batch_size, image_size, device, precision, training=training)
        works = parts_of(model, setting)
        if scored:
            works += scoring_parts_of(model, setting, scored)
        _set_up_tools(device)
        try:
            run_parts(works, device, tell=tell)
        finally:
            torch.cuda.empty_cache()


def parts_of(model: MambaAD, setting: Setting) -> list[Work]:
    """What a step does, in parts that can run side by side, each on copies of its layers.

    All must run at the same time, or in this order: some wait for earlier ones.
    """
    works: list[Work] = []
    for stage in decoder_stages(model.decoder, setting):
        scanned = threading.Event()
        if setting.training:
            works.append(partial(run_scan_gradient, stage, setting, scanned))
        works.append(partial(run_stage, stage, setting, scanned))
    others = (run_neck, run_loss) if setting.training else (run_ends,)
    return works + [partial(run, model, setting) for run in others]


def scoring_parts_of(model: MambaAD, setting: Setting, batch: int) -> list[Work]:
    """What ``mambaad.inference.Scorer`` does with a batch on a GPU, once a training has ended."""
    if setting.dtype == torch.bfloat16:
        model = inference_copy(model, setting.dtype)
    return parts_of(model, replace(setting, batch=batch, training=False))


def run_parts(
    works: Sequence[Work], device: torch.device, *, tell: Callable[[str], None] | None = None
) -> None:
    """Run every part of ``parts_of`` once, each in a thread and on a stream of its own, on any
    device. ``tell`` is that of ``warm_up``.

    Raises:
        Exception: As of ``warm_up``, from the first such part, when all have ended.
    """
    say = tell or (lambda _: None)
    with ThreadPoolExecutor(len(works), "mambaad-warm-up") as threads:
        lanes = [_lane(device) for _ in works]
        futures = [
            threads.submit(_run_in_lane, lane, work)
            for lane, work in zip(lanes, works, strict=True)
        ]
        try:
            if wait(futures, timeout=PATIENCE).not_done:
                say(MESSAGE)
            wait(futures)
        except KeyboardInterrupt:
            say(STOPPING)
            raise
    for future in futures:
        error = future.exception()
        if isinstance(error, RuntimeError):
            say(f"{NOT_AHEAD}: {first_line(error)}")
        elif error is not None:
            raise error


@dataclass(frozen=True)
class Stage:
    """A decoder stage: the way into it, and one of its modules."""

    expand: nn.Module
    module: LSSModule
    """The first. None has more blocks, and if it drops no paths, those that sum maps do not."""

    shape: tuple[int, int, int, int]
    """Of the map that comes in, (B, H, W, C)."""

    orders: Tensor
    """The scan paths over the stage's map, where the network is."""

    @property
    def drops(self) -> bool:
        """Whether drop path's factors come to the module in training."""
        blocks = self.module.blocks
        return bool(blocks) and cast(HSSBlock, blocks[0]).drop_path.rate > 0


def decoder_stages(decoder: Decoder, setting: Setting) -> list[Stage]:
    """All stages; other modules of a stage run on maps of the same shapes."""
    height, width = (side // TOTAL_STRIDE for side in setting.size)
    stages = []
    for expand, stage in zip(decoder.expands, decoder.stages, strict=True):
        module = _first(stage)
        shape = (setting.batch, height, width, module.fuse.out_channels)
        if isinstance(expand, PatchExpand):
            shape = (*shape[:3], expand.expand.in_features)
            height, width = 2 * height, 2 * width
        orders = decoder.orders(height, width, setting.device)
        stages.append(Stage(expand, module, shape, orders))
    return stages


def run_scan_gradient(stage: Stage, setting: Setting, done: threading.Event) -> None:
    """The scan's backward pass by itself, on the current stream, if kernels will do it.

    ``done`` is set at the end, whatever happens.
    """
    try:
        for block in stage.module.blocks[:1]:
            _run_scan_gradient(cast(HSSBlock, _copied(block, setting)), stage.orders, setting)
    finally:
        done.set()


def _run_scan_gradient(block: HSSBlock, orders: Tensor, setting: Setting) -> None:
    paths, width, channels = block.scan_proj.shape
    pixels = _random((setting.batch, orders.shape[1], channels), setting)
    if gated_scan.runs(pixels, block.a_log, block.backend):
        from mambaad.scan import cuda

        projections = _random((*pixels.shape[:2], paths, width), setting)
        shape = cuda.states_shape(pixels, block.a_log, orders)
        states = torch.zeros(shape, dtype=cuda.states_dtype(pixels), device=pixels.device)
        scan = (block.a_log, block.dt_weight, block.dt_bias, block.skip)
        with torch.no_grad():
            cuda.backward(pixels, pixels, projections, *scan, orders, saved=states)


def run_stage(stage: Stage, setting: Setting, scanned: threading.Event) -> None:
    """The stage's layers, forward and, in training, backward, on the current stream.

    ``scanned`` is waited for in between: the backward pass would compile the same once more.
    """
    layers = _copied(nn.ModuleList([stage.expand, stage.module]), setting)
    expand, module = layers[0], cast(LSSModule, layers[1])
    x = _random(stage.shape, setting).requires_grad_(setting.training)
    factors = None
    if setting.training and stage.drops:
        factors = empty_factors(len(module.blocks), x).fill_(1.0)
    with _computing(setting):
        y = module(expand(x), stage.orders, factors)
        if setting.training:
            scanned.wait(LONGEST)
            _differentiate(y, [x, *layers.parameters()])


def run_neck(model: MambaAD, setting: Setting) -> None:
    """The neck in training, forward and backward, on the current stream."""
    neck = _copied(model.neck, setting)
    with _computing(setting):
        _differentiate(neck(_encoded(model, setting)), list(neck.parameters()))


def run_loss(model: MambaAD, setting: Setting) -> None:
    """The loss and its gradient, on the current stream."""
    teacher = _encoded(model, setting)
    student = [maps.requires_grad_() for maps in _encoded(model, setting)]
    with _computing(setting):
        if model.objective is None:
            loss = square_losses(student, teacher, model.loss_weight).sum()
        else:
            parts = copy.deepcopy(model.objective)(student, teacher)
            loss = torch.stack(list(parts.values())).sum()
        _differentiate(loss, student)


def run_ends(model: MambaAD, setting: Setting) -> None:
    """What inference does before and after the decoder, on the current stream."""
    encoder, neck = _copied(model.encoder, setting), _copied(model.neck, setting)
    recentring = copy.deepcopy(model.recentring)
    images = _random((setting.batch, *setting.size, 3), setting)
    with _computing(setting):
        teacher = encoder(images.permute(0, 3, 1, 2))
        if recentring is not None:
            teacher = recentring(teacher)
        neck(teacher)
        student = _encoded(model, setting)
        model.compare(teacher, student, setting.size)


def _copied(layers: _Layers, setting: Setting) -> _Layers:
    """A copy as a step has it. In training under autocast its weights are 16-bit copies
    (``mambaad.mixed``), and its kernels are compiled for these."""
    twin = copy.deepcopy(layers).train(setting.training)
    for module in twin.modules():
        if isinstance(module, DropPath):
            module.rate = 0.0  # it would move the random numbers of the training
        if setting.training and setting.dtype == torch.bfloat16:
            usual = type(module) in (nn.Linear, nn.Conv2d)
            for name in ("weight", "bias") if usual else getattr(module, "autocast_parameters", ()):
                parameter = getattr(module, name)
                if parameter is not None:
                    parameter.data = parameter.data.bfloat16()
    return twin


def _encoded(model: MambaAD, setting: Setting) -> list[Tensor]:
    """Random maps (B, C, H, W) with the shapes of the encoder's, channels last in memory as theirs
    are on a GPU and the decoder's are."""
    sides = [[side // stride for side in setting.size] for stride in STRIDES]
    shapes = zip(sides, model.encoder.channels, strict=True)
    return [
        _random((setting.batch, height, width, channels), setting).permute(0, 3, 1, 2)
        for (height, width), channels in shapes
    ]


def _random(shape: tuple[int, ...], setting: Setting) -> Tensor:
    generator = torch.Generator(setting.device).manual_seed(0)
    return torch.randn(shape, generator=generator, dtype=setting.dtype, device=setting.device)


def _first(stage: nn.Module) -> LSSModule:
    return cast(LSSModule, cast(nn.ModuleList, stage)[0])


@contextmanager
def _computing(setting: Setting) -> Iterator[None]:
    inference = torch.inference_mode(not setting.training)
    with inference, autocast(setting.precision, setting.device):
        yield


def _differentiate(y: Tensor, sources: Sequence[Tensor]) -> None:
    """Backward in this thread: torch has one thread a GPU for the gradients of all others, and in
    that the parts' backward kernels would be compiled one after the other."""
    wanted = [source for source in sources if source.requires_grad]
    with set_multithreading_enabled(False):
        torch.autograd.grad(y, wanted, y.detach(), allow_unused=True)


def _run_in_lane(lane: torch.cuda.Stream | None, work: Work) -> None:
    with _on(lane):
        work()


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
