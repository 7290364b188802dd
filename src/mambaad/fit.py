"""The training loop: the published recipe, one step after the other.

``fit`` prints nothing and decides nothing: it yields every step, and the caller logs, saves and
stops by what it does between two of them.

The recipe (published code): AdamW with betas 0.9 and 0.999, the rate scaled by the batch and
multiplied by 0.1 once after 80 % of the epochs; weight decay on tensors of two or more dimensions
there; gradients clipped at norm 5; every epoch a new order, an incomplete last batch left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mambaad.config import TrainConfig
from mambaad.data import PictureStore
from mambaad.data.tensors import FeatureStore, to_tensor
from mambaad.errors import TrainingError


@dataclass(frozen=True)
class Step:
    """What one training step did."""

    number: int
    """1 for the first."""

    epoch: int
    """1 for the first."""

    loss: float
    """The loss before the update."""

    parts: dict[str, float]
    """The loss by scale."""

    gradient_norm: float
    """L2 norm of the gradient before clipping."""

    learning_rate: float
    """The rate of this step."""


class Method(Protocol):
    """What training needs of a method; it is an ``nn.Module`` as well."""

    def loss_parts(
        self, images: Tensor | None, features: Sequence[Tensor] | None = None
    ) -> dict[str, Tensor]:
        """The parts of the loss, whose sum is the loss."""
        ...


@dataclass
class Batches:
    """Training pictures in batches: which ones a step sees depends on seed and step alone."""

    store: PictureStore
    size: int
    seed: int
    device: torch.device
    features: FeatureStore | None = None

    @property
    def per_epoch(self) -> int:
        """Steps in an epoch."""
        return max(1, len(self.store) // self.size)

    def indices(self, step: int) -> NDArray[np.intp]:
        """The pictures of a step, counted from 0."""
        epoch, batch = divmod(step, self.per_epoch)
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.store))
        return order[batch * self.size : (batch + 1) * self.size]

    def load(self, step: int) -> tuple[Tensor | None, list[Tensor] | None]:
        """Images, or kept features instead."""
        indices = self.indices(step)
        if self.features is not None:
            return None, [maps.to(self.device) for maps in self.features[indices]]
        return to_tensor(self.store[indices], self.device), None


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
    """AdamW at the rate for a batch of ``batch_size`` (the configured one if None)."""
    rate = config.learning_rate * (batch_size or config.batch_size) / 16
    groups = parameter_groups(model, config.weight_decay)
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.999), eps=1e-8)


def fit(
    model: nn.Module,
    data: Batches,
    optimizer: torch.optim.AdamW,
    config: TrainConfig,
    *,
    start: int = 0,
) -> Iterator[Step]:
    """Train from step ``start`` to the end of the last epoch; yield every step.

    ``model`` (a ``Method``) and ``optimizer`` are changed in place. The caller decides what to log
    and when to save, by what it does between two steps.

    Raises:
        TrainingError: If the loss or the gradient is not finite; names the batch's pictures.
    """
    method: Method = model  # type: ignore[assignment]
    trainable = [p for p in model.parameters() if p.requires_grad]
    full_rate = optimizer.param_groups[0]["lr"]
    decay_step = max(1, int(config.decay_at * config.epochs)) * data.per_epoch
    limit = config.clip_norm or math.inf
    model.train()
    for index in range(start, config.epochs * data.per_epoch):
        rate = full_rate * (config.decay_factor if index >= decay_step else 1.0)
        for group in optimizer.param_groups:
            group["lr"] = rate
        images, features = data.load(index)
        with torch.autocast(data.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            parts = method.loss_parts(images, features)
            loss = torch.stack(list(parts.values())).sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(trainable, limit)
        if not bool(torch.isfinite(loss + norm)):
            files = ["/".join(data.store.paths[i].parts[-4:]) for i in data.indices(index)]
            raise TrainingError(
                f"the loss is {loss.item():g} and the gradient's norm {norm.item():g} at step "
                f"{index + 1}; the pictures of its batch: {', '.join(files)}. Try a lower "
                "train.learning_rate"
            )
        optimizer.step()
        yield Step(
            number=index + 1,
            epoch=index // data.per_epoch + 1,
            loss=loss.item(),
            parts={name: part.item() for name, part in parts.items()},
            gradient_norm=norm.item(),
            learning_rate=rate,
        )
