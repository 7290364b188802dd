"""One bfloat16 copy of the weights that autocast casts, made anew once a step by a few launches.

Autocast casts every weight by itself in the forward pass and every gradient back in the backward
pass: two small kernels for each. Here the step is taken with copies that are bfloat16 beforehand:

    copies <- weights        loss, gradients of the copies        gradients <- those of the copies

with one call for all tensors in each arrow. The numbers are autocast's, bit for bit. The weights
stay float32, and so do their gradients, the optimiser and all that is saved. Copies stay at their
addresses, as a CUDA graph needs.

The idea is that of the master weights of Micikevicius et al. 2018, Mixed Precision Training,
arXiv 1710.03740, section 3.1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from mambaad.devices import resolve_precision

CAST = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
"""Layers whose weight and bias autocast casts. A subclass may use them otherwise: it is asked."""

ANSWER = "autocast_parameters"
"""Attribute by which another module names its own parameters that are only read under autocast, and
only by matrix products and convolutions. Others are left to autocast."""


class MixedPrecision:
    """Computes a method's loss with the copies, and brings their gradients to the weights.

    Args:
        model: A ``Method`` of ``mambaad.fit``. Its own parameters stay where they are.
        precision: ``auto``, ``float32`` or ``bf16``; see ``mambaad.devices``. In float32 there are
            no copies and nothing differs from calling the model.
        device: Where it is.
    """

    def __init__(self, model: nn.Module, precision: str, device: torch.device) -> None:
        self._method = _LossParts(model)
        found = dict(cast_parameters(self._method))
        if resolve_precision(precision, device) != "bf16":
            found = {}
        self._frozen = {name: p for name, p in found.items() if not p.requires_grad}
        self._weights = {name: p for name, p in found.items() if p.requires_grad}
        self._copies: dict[str, Tensor] = {
            name: torch.empty_like(p, dtype=torch.bfloat16, requires_grad=True)
            for name, p in self._weights.items()
        }
        self._frozen_copies: dict[str, Tensor] = {}

    def loss_parts(
        self, images: Tensor | None, features: Sequence[Tensor] | None = None
    ) -> dict[str, Tensor]:
        """The method's ``loss_parts`` with the weights as they are now; to be called in autocast.

        Frozen weights are copied once, when pictures come: with features, an encoder does not run.
        """
        if features is None and not self._frozen_copies:
            self._frozen_copies = {n: p.detach().bfloat16() for n, p in self._frozen.items()}
        if self._copies:
            with torch.no_grad():
                torch._foreach_copy_(list(self._copies.values()), list(self._weights.values()))
        replaced = self._copies | self._frozen_copies
        parts: dict[str, Tensor] = functional_call(self._method, replaced, (images, features))
        return parts

    def collect_gradients(self) -> None:
        """After the backward pass: the copies' gradients become the weights', in float32."""
        weights, gradients = [], []
        for name, copy in self._copies.items():
            if copy.grad is not None:
                weights.append(self._weights[name])
                gradients.append(copy.grad)
                copy.grad = None
        wide = [torch.empty_like(weight) for weight in weights]
        if wide:
            torch._foreach_copy_(wide, gradients)
        for weight, gradient in zip(weights, wide, strict=True):
            weight.grad = gradient


class _LossParts(nn.Module):
    """The method's loss as a forward pass, which ``functional_call`` wants."""

    def __init__(self, method: nn.Module) -> None:
        super().__init__()
        self.method = method

    def forward(
        self, images: Tensor | None, features: Sequence[Tensor] | None
    ) -> dict[str, Tensor]:
        parts: dict[str, Tensor] = self.method.loss_parts(images, features)  # type: ignore[operator]
        return parts


def cast_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The float32 parameters that autocast casts wherever they are read, by name, each once."""
    chosen: set[int] = set()
    for module in model.modules():
        own = ("weight", "bias") if type(module) in CAST else getattr(module, ANSWER, ())
        chosen.update(id(getattr(module, name)) for name in own)
    for name, parameter in model.named_parameters():
        if id(parameter) in chosen and parameter.dtype == torch.float32:
            yield name, parameter
