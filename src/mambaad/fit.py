"""The training loop: the published recipe, one step after the other.

``fit`` prints nothing and decides nothing: it yields every step, and the caller logs, saves and
stops by what it does between two of them.

The published recipe (its code): AdamW with betas 0.9 and 0.999, the rate scaled by the batch and
multiplied by 0.1 once after 80 % of the epochs; weight decay on tensors of two or more dimensions
there; gradients clipped at norm 5; every epoch a new order, an incomplete last batch left out.
Others are settings of ``TrainConfig``; see ``optimisers``, ``schedules`` and ``average``.

On a GPU the host never waits for a step: numbers arrive later (``mambaad.steps``), batches come
through fixed buffers (``mambaad.batches``), and a step is one CUDA graph (``mambaad.graphs``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from mambaad.average import WeightAverage
from mambaad.batches import Batches, Feed
from mambaad.config import TrainConfig
from mambaad.devices import autocast, exact_float32
from mambaad.errors import TrainingError
from mambaad.graphs import GraphedStep, Lane
from mambaad.mixed import MixedPrecision
from mambaad.optimisers import StableAdamW
from mambaad.schedules import rate_factor
from mambaad.steps import LaterStep, Numbers, Ring, Step

__all__ = ["Method", "Step", "build_optimizer", "computing", "fit", "parameter_groups"]


class Method(Protocol):
    """What training needs of a method; it is an ``nn.Module`` as well.

    If it has a method ``set_progress``, that is told before each step what share of them is done.
    """

    def loss_parts(
        self, images: Tensor | None, features: Sequence[Tensor] | None = None
    ) -> dict[str, Tensor]:
        """The parts of the loss, whose sum is the loss."""
        ...


def parameter_groups(
    model: nn.Module, weight_decay: float, *, decay_states: bool = True
) -> list[dict[str, Any]]:
    """AdamW's two groups. As published, ``a_log`` and ``dt_bias`` decay, ``skip`` does not.

    (There ``skip`` has one dimension; here it has two, so it is told by its name.)

    Args:
        model: Its trained parameters are grouped.
        weight_decay: Of the first group; the second has none.
        decay_states: Whether ``a_log`` and ``dt_bias`` are in the first.
    """
    kept = (".bias", ".skip") if decay_states else (".bias", ".skip", ".a_log", ".dt_bias")
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        keep = parameter.dim() < 2 or name.endswith(kept)
        (plain if keep else decayed).append(parameter)
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]


def build_optimizer(
    model: nn.Module, config: TrainConfig, batch_size: int | None = None
) -> torch.optim.Optimizer:
    """The recipe's optimiser at the rate for a batch of ``batch_size`` (the configured if None).

    On a GPU AdamW is torch's fused one, and the rate is in a tensor there, so that a CUDA graph
    holds it and the rate can still change. ``defaults["lr"]`` is the rate as a number anywhere.
    """
    rate = config.learning_rate * (batch_size or config.batch_size) / 16
    groups = parameter_groups(model, config.weight_decay, decay_states=config.decay_states)
    device = groups[0]["params"][0].device
    gpu = device.type == "cuda"
    optimizer: torch.optim.Optimizer
    if config.optimizer == "stable-adamw":
        optimizer = StableAdamW(groups, rate)
    else:
        optimizer = torch.optim.AdamW(
            groups, lr=rate, betas=(0.9, 0.999), eps=1e-8, fused=gpu or None, capturable=gpu
        )
    optimizer.register_load_state_dict_post_hook(_lay_out_moments)
    if gpu:
        _lay_out_filters(model)
        for group in optimizer.param_groups:
            group["lr"] = torch.tensor(rate, dtype=torch.float32, device=device)  # as fused wants
    return optimizer


def _lay_out_filters(model: nn.Module) -> None:
    """Put trained filters in channels-last format, as cuDNN reads them; else it copies each of them
    in both directions, and its gradient back. Not a value changes."""
    for module in model.modules():
        if type(module) is nn.Conv2d and module.weight.requires_grad:
            filters = module.weight
            filters.data = filters.data.contiguous(memory_format=torch.channels_last)


def _lay_out_moments(optimizer: torch.optim.Optimizer) -> None:
    """Let moments lie in memory as their parameters do: fused AdamW wants that, files keep none."""
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if value.shape == parameter.shape and value.stride() != parameter.stride():
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


@contextmanager
def computing(precision: str, device: torch.device) -> Iterator[None]:
    """Autocast as ``precision`` says, and cuDNN so that a repeated run gives the same bits.

    Convolutions and matrix products in float32 are float32 here: torch would let cuDNN's round
    their inputs to TF32 on a GPU, as the published code did, but float32 is what parity is measured
    in, and who wants speed takes bf16. Algorithms are chosen by rule, not by timing.
    """
    flags = torch.backends.cudnn.flags(
        enabled=torch.backends.cudnn.enabled,
        benchmark=False,
        deterministic=True,
        allow_tf32=False,
    )
    with flags, exact_float32(device), autocast(precision, device):
        yield


def fit(
    model: nn.Module,
    data: Batches,
    optimizer: torch.optim.Optimizer,
    config: TrainConfig,
    *,
    average: WeightAverage | None = None,
    start: int = 0,
    tell: Callable[[str], None] | None = None,
) -> Iterator[Step]:
    """Train from step ``start`` to the end of the last epoch; yield every step.

    ``model`` (a ``Method``) and ``optimizer`` are changed in place, and are in the state after a
    step when that step is yielded; on a GPU, as far as its queue is concerned. The caller decides
    what to log and when to save, by what it does between two steps; before saving it waits for
    the step with ``Step.wait``, which raises if the weights are spoilt.

    Args:
        model: The network, on the device of ``data``.
        data: The pictures.
        optimizer: From ``build_optimizer``.
        config: The recipe.
        average: Follows the weights, if given; put it into the model when all is done.
        start: Steps done already.
        tell: Told in a line if a GPU's steps cannot become a CUDA graph.

    Raises:
        TrainingError: If the loss or the gradient is not finite; names the batch's pictures. On a
            GPU up to ``mambaad.steps.SLOTS`` steps later.
    """
    learner = _Learner(model, optimizer, config, data.device, average)
    moments = _schedule(config, optimizer.defaults["lr"], data.per_epoch, start)
    model.train()
    if data.device.type != "cuda":
        yield from _fit_directly(learner, data, moments)
        return
    with torch.cuda.device(data.device):
        ring, lane = Ring(lambda step, n: _not_finite(data, step, n)), Lane(data.device)
    feed = Feed(data)
    step = GraphedStep(lambda: learner.learn(feed), lane.capture, tell or (lambda _: None))
    yield from _fit_ahead(learner, feed, step, ring, lane.open, moments)


class _Moment(NamedTuple):
    """What is known of a step beforehand."""

    number: int
    epoch: int
    rate: float

    done: float
    """Share of all steps before it."""


def _schedule(config: TrainConfig, rate: float, per_epoch: int, start: int) -> Iterator[_Moment]:
    total = config.epochs * per_epoch
    for index in range(start, total):
        factor = rate_factor(config, index, per_epoch)
        yield _Moment(index + 1, index // per_epoch + 1, rate * factor, index / total)


class _Learner:
    """The parts of a step. Nothing in it reads a value back from the device."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        config: TrainConfig,
        device: torch.device,
        average: WeightAverage | None = None,
    ) -> None:
        self.optimizer = optimizer
        self._average = average
        self._set_progress: Callable[[float], None] | None = getattr(model, "set_progress", None)
        self.names: tuple[str, ...] = ()
        self.values = torch.empty(0)
        self._method = MixedPrecision(model, config.precision, device)
        self._trainable = [p for p in model.parameters() if p.requires_grad]
        self._limit = config.clip_norm or math.inf
        self._precision, self._device = config.precision, device
        self._rate: float | None = None

    def begin(self, moment: _Moment) -> None:
        """Put in place what a step differs by; the tensors of it stay, a CUDA graph reads them."""
        self.set_rate(moment.rate)
        if self._average is not None:
            self._average.set_step(moment.number)
        if self._set_progress is not None:
            self._set_progress(moment.done)

    def set_rate(self, rate: float) -> None:
        """The learning rate from here on."""
        if rate == self._rate:
            return
        self._rate = rate
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)  # the tensor stays: a CUDA graph reads it
            else:
                group["lr"] = rate

    def compute(self, images: Tensor | None, features: Sequence[Tensor] | None) -> Tensor:
        """Loss and clipped gradients. Returns: loss, norm before clipping, and the loss's parts."""
        with computing(self._precision, self._device):
            self.optimizer.zero_grad(set_to_none=True)  # first: the forward pass has their memory
            parts = self._method.loss_parts(images, features)
            loss = torch.stack(list(parts.values())).sum()
            loss.backward()
        self._method.collect_gradients()
        norm = nn.utils.clip_grad_norm_(self._trainable, self._limit)
        self.names = tuple(parts)
        return torch.stack([loss.detach(), norm, *(part.detach() for part in parts.values())])

    def update(self) -> None:
        """Take the step, and let the running mean follow."""
        self.optimizer.step()
        if self._average is not None:
            self._average.update()

    def learn(self, feed: Feed) -> None:
        """A whole step on the batch in the feed's buffers; leaves its numbers in ``values``."""
        values = self.compute(*feed.inputs())
        self.update()
        if self.values.shape != values.shape:
            self.values = torch.empty_like(values)  # in the first step, which no graph holds
        self.values.copy_(values)


def _fit_directly(learner: _Learner, data: Batches, moments: Iterator[_Moment]) -> Iterator[Step]:
    """Every step's numbers are looked at before its update."""
    for moment in moments:
        number, epoch, rate, _ = moment
        learner.begin(moment)
        numbers = Numbers.of(learner.compute(*data.load(number - 1)), learner.names)
        if not numbers.finite:
            raise _not_finite(data, number, numbers)
        learner.update()
        yield Step(number, epoch, numbers.loss, numbers.parts, numbers.gradient_norm, rate)


def _fit_ahead(
    learner: _Learner,
    feed: Feed,
    step: Callable[[], None],
    ring: Ring,
    queue: Callable[[], AbstractContextManager[None]],
    moments: Iterator[_Moment],
) -> Iterator[Step]:
    """Steps are put into the device's queue, and their numbers are looked at when they come."""
    try:
        for moment in moments:
            with queue():
                learner.begin(moment)
                feed.fill(moment.number - 1)
                step()
                pending = ring.push(moment.number, learner.values, learner.names)
            yield LaterStep(moment.epoch, moment.rate, pending)
        ring.drain()
    finally:
        feed.close()
        learner.optimizer.zero_grad(set_to_none=True)  # they lie in the graph's memory


def _not_finite(data: Batches, step: int, numbers: Numbers) -> TrainingError:
    files = ["/".join(data.store.path(i).parts[-4:]) for i in data.indices(step - 1)]
    return TrainingError(
        f"the loss is {numbers.loss:g} and the gradient's norm {numbers.gradient_norm:g} at step "
        f"{step}; the pictures of its batch: {', '.join(files)}. Try a lower train.learning_rate"
    )
