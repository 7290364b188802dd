"""The training loop: the published recipe, one step after the other.

``fit`` prints nothing and decides nothing: it yields every step, and the caller logs, saves and
stops by what it does between two of them.

The recipe (published code): AdamW with betas 0.9 and 0.999, the rate scaled by the batch and
multiplied by 0.1 once after 80 % of the epochs; weight decay on tensors of two or more dimensions
there; gradients clipped at norm 5; every epoch a new order, an incomplete last batch left out.

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

from mambaad.batches import Batches, Feed
from mambaad.config import TrainConfig
from mambaad.devices import autocast
from mambaad.errors import TrainingError
from mambaad.graphs import GraphedStep, Lane
from mambaad.inference import exact_float32
from mambaad.steps import LaterStep, Numbers, Ring, Step

__all__ = ["Method", "Step", "build_optimizer", "computing", "fit", "parameter_groups"]


class Method(Protocol):
    """What training needs of a method; it is an ``nn.Module`` as well."""

    def loss_parts(
        self, images: Tensor | None, features: Sequence[Tensor] | None = None
    ) -> dict[str, Tensor]:
        """The parts of the loss, whose sum is the loss."""
        ...


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """AdamW's two groups. As published, ``a_log`` and ``dt_bias`` decay, ``skip`` does not.

    (There ``skip`` has one dimension; here it has two, so it is told by its name.)
    """
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        keep = parameter.dim() < 2 or name.endswith((".bias", ".skip"))
        (plain if keep else decayed).append(parameter)
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]


def build_optimizer(
    model: nn.Module, config: TrainConfig, batch_size: int | None = None
) -> torch.optim.AdamW:
    """AdamW at the rate for a batch of ``batch_size`` (the configured one if None).

    On a GPU it is torch's fused one, with the rate in a tensor there, so that a CUDA graph holds
    it and the rate can still change. ``defaults["lr"]`` is the rate as a number on any device.
    """
    rate = config.learning_rate * (batch_size or config.batch_size) / 16
    groups = parameter_groups(model, config.weight_decay)
    device = groups[0]["params"][0].device
    if device.type != "cuda":
        return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.999), eps=1e-8)
    optimizer = torch.optim.AdamW(
        groups, lr=rate, betas=(0.9, 0.999), eps=1e-8, fused=True, capturable=True
    )
    for group in optimizer.param_groups:
        group["lr"] = torch.tensor(rate, dtype=torch.float32, device=device)  # as fused wants
    return optimizer


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
    optimizer: torch.optim.AdamW,
    config: TrainConfig,
    *,
    start: int = 0,
    graph: bool = True,
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
        start: Steps done already.
        graph: Whether a GPU's steps become a CUDA graph. The numbers are the same without.
        tell: Told in a line if that is not possible.

    Raises:
        TrainingError: If the loss or the gradient is not finite; names the batch's pictures. On a
            GPU up to ``mambaad.steps.SLOTS`` steps later.
    """
    learner = _Learner(model, optimizer, config, data.device)
    moments = _schedule(config, optimizer.defaults["lr"], data.per_epoch, start)
    model.train()
    if data.device.type != "cuda":
        yield from _fit_directly(learner, data, moments)
        return
    with torch.cuda.device(data.device):
        ring, lane = Ring(lambda step, n: _not_finite(data, step, n)), Lane(data.device)
    feed = Feed(data)
    step = GraphedStep(
        lambda: learner.learn(feed), lane.capture if graph else None, tell or (lambda _: None)
    )
    yield from _fit_ahead(learner, feed, step, ring, lane.open, moments)


class _Moment(NamedTuple):
    """What is known of a step beforehand."""

    number: int
    epoch: int
    rate: float


def _schedule(config: TrainConfig, rate: float, per_epoch: int, start: int) -> Iterator[_Moment]:
    decay_step = max(1, int(config.decay_at * config.epochs)) * per_epoch
    for index in range(start, config.epochs * per_epoch):
        factor = config.decay_factor if index >= decay_step else 1.0
        yield _Moment(index + 1, index // per_epoch + 1, rate * factor)


class _Learner:
    """The parts of a step. Nothing in it reads a value back from the device."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.AdamW,
        config: TrainConfig,
        device: torch.device,
    ) -> None:
        self.optimizer = optimizer
        self.names: tuple[str, ...] = ()
        self.values = torch.empty(0)
        self._method: Method = model  # type: ignore[assignment]
        self._trainable = [p for p in model.parameters() if p.requires_grad]
        self._limit = config.clip_norm or math.inf
        self._precision, self._device = config.precision, device
        self._rate: float | None = None

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
        norm = nn.utils.clip_grad_norm_(self._trainable, self._limit)
        self.names = tuple(parts)
        return torch.stack([loss.detach(), norm, *(part.detach() for part in parts.values())])

    def learn(self, feed: Feed) -> None:
        """A whole step on the batch in the feed's buffers; leaves its numbers in ``values``."""
        values = self.compute(*feed.inputs())
        self.optimizer.step()
        if self.values.shape != values.shape:
            self.values = torch.empty_like(values)  # in the first step, which no graph holds
        self.values.copy_(values)


def _fit_directly(learner: _Learner, data: Batches, moments: Iterator[_Moment]) -> Iterator[Step]:
    """Every step's numbers are looked at before its update."""
    for number, epoch, rate in moments:
        learner.set_rate(rate)
        numbers = Numbers.of(learner.compute(*data.load(number - 1)), learner.names)
        if not numbers.finite:
            raise _not_finite(data, number, numbers)
        learner.optimizer.step()
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
        for number, epoch, rate in moments:
            with queue():
                learner.set_rate(rate)
                feed.fill(number - 1)
                step()
                pending = ring.push(number, learner.values, learner.names)
            yield LaterStep(epoch, rate, pending)
        ring.drain()
    finally:
        feed.close()
        learner.optimizer.zero_grad(set_to_none=True)  # they lie in the graph's memory


def _not_finite(data: Batches, step: int, numbers: Numbers) -> TrainingError:
    files = ["/".join(data.store.paths[i].parts[-4:]) for i in data.indices(step - 1)]
    return TrainingError(
        f"the loss is {numbers.loss:g} and the gradient's norm {numbers.gradient_norm:g} at step "
        f"{step}; the pictures of its batch: {', '.join(files)}. Try a lower train.learning_rate"
    )
