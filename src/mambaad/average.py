"""A running mean of the weights over the steps: what is tested and saved instead of the last ones.

    w = max(1 - decay, 1 / t)        mean = mean + w (weights - mean)

with t the step: the plain mean of all steps so far, until those are more than the mean's memory
of 1 / (1 - decay) steps. A step that went astray weighs little in it. The running statistics of
batch norms are averaged as the weights are, since they belong to them.

Source: Polyak & Juditsky 1992, Acceleration of stochastic approximation by averaging; with a decay
as in Tarvainen & Valpola 2017, Mean teachers, arXiv 1703.01780.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from mambaad.errors import CheckpointError
from mambaad.train_config import TrainConfig


class WeightAverage:
    """The running mean of a network's trained weights and their statistics.

    Its tensors keep their places and nothing is read back: a CUDA graph can hold ``update``.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        """Begin with the network as it is.

        Args:
            model: The network, on its device. Frozen parts are left out.
            decay: Share of the mean that a step keeps, in [0, 1).
        """
        self._live = dict(averaged_tensors(model))
        self._means = {name: live.clone() for name, live in self._live.items()}
        self._least = 1 - decay
        self._share = 1.0
        self._weight = torch.ones((), device=next(iter(self._live.values())).device)

    def set_step(self, number: int) -> None:
        """Args: the number of the step that ``update`` comes after, 1 for the first."""
        share = max(self._least, 1 / number)
        if share != self._share:
            self._share = share
            self._weight.fill_(share)

    @torch.no_grad()
    def update(self) -> None:
        """Take in the network's weights as they are now."""
        means = list(self._means.values())
        changes = torch._foreach_sub(list(self._live.values()), means)
        torch._foreach_mul_(changes, self._weight)
        torch._foreach_add_(means, changes)

    @torch.no_grad()
    def give(self) -> None:
        """Put the means into the network."""
        torch._foreach_copy_(list(self._live.values()), list(self._means.values()))

    def state_dict(self) -> dict[str, Tensor]:
        """The means by name."""
        return dict(self._means)

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take back what ``state_dict`` gave.

        Raises:
            CheckpointError: If it is of another network.
        """
        shapes = {name: mean.shape for name, mean in self._means.items()}
        if {name: value.shape for name, value in state.items()} != shapes:
            raise CheckpointError("the mean of the weights is not of this network; train anew")
        for name, mean in self._means.items():
            mean.copy_(state[name])


def average_of(model: nn.Module, config: TrainConfig) -> WeightAverage | None:
    """The running mean that a recipe asks for."""
    return WeightAverage(model, config.ema_decay) if config.ema_decay else None


def averaged_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Trained parameters, and the floating-point statistics of the layers that own them."""
    for prefix, module in model.named_modules():
        own = dict(module.named_parameters(recurse=False))
        trained = {name: p.detach() for name, p in own.items() if p.requires_grad}
        statistics = {
            name: b for name, b in module.named_buffers(recurse=False) if b.is_floating_point()
        }
        for name, tensor in {**trained, **(statistics if trained else {})}.items():
            yield f"{prefix}.{name}".lstrip("."), tensor
