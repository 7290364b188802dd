"""StableAdamW: AdamW whose step is shortened where the gradient outgrew what is known of it.

AdamW divides by a mean of past squared gradients. When a gradient is suddenly larger, that mean is
out of date, the step is too long, and the loss jumps. Here each tensor's rate is divided by how far
it is out of date. With g the gradient, m and v the debiased means of g and g², t the step:

    β̂ = β (1 - β^(t-1)) / (1 - β^t)        m = β̂₁ m + (1 - β̂₁) g        v = β̂₂ v + (1 - β̂₂) g²
    rate = lr / max(1, √ mean(g² / max(v, ε²)))          p = p - rate (λ p + m / (√v + ε))

Source: Wortsman et al. 2023, Stable and low-precision training for large-scale vision-language
models, arXiv 2304.13013, algorithm 2.

``_plain`` is that in torch, for any tensors; for float32 on a GPU ``fused.optimiser`` does the same
in three launches for each group.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from mambaad.fused import triton_runs
from mambaad.fused.optimiser import Addresses, Group, takes, update


class StableAdamW(torch.optim.Optimizer):
    """AdamW with update clipping. No value is read back from the device: a CUDA graph can hold it.

    The state of a parameter has the names of torch's AdamW: ``step``, ``exp_avg``, ``exp_avg_sq``.
    ``lr`` of a group may be a number or a tensor on the parameters' device.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        kernel: bool | None = None,
    ) -> None:
        """Make the state's places; it is filled at the first step.

        Args:
            params: Parameters, or groups of them with settings of their own.
            lr: Learning rate.
            betas: Memory of the two means, each in [0, 1).
            eps: Added to √v, and least √v in the ratio.
            weight_decay: λ.
            kernel: Whether Triton kernels update the groups that they can take. By default they do
                on a GPU where Triton runs.
        """
        self._kernel = kernel
        self._addresses: defaultdict[int, Addresses] = defaultdict(Addresses)
        # by "capturable" the base class knows that counts belong on the parameters' device
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, {**defaults, "capturable": True})

    def __setstate__(self, state: dict[str, Any]) -> None:
        """What a copy begins with; loading a state ends here too, and keeps what there is."""
        self.__dict__.setdefault("_kernel", None)
        self.__dict__.setdefault("_addresses", defaultdict(Addresses))
        super().__setstate__(state)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update all parameters that have a gradient.

        Args:
            closure: Computes the loss anew first, as torch's optimisers allow.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for number, settings in enumerate(self.param_groups):
            parameters = [p for p in settings["params"] if p.grad is not None]
            if parameters:
                self._update(self._group_of(parameters), settings, self._addresses[number])
        return loss

    def _update(self, group: Group, settings: dict[str, Any], addresses: Addresses) -> None:
        names = ("lr", "betas", "eps", "weight_decay")
        kernel = self._kernel
        if kernel is None:
            kernel = group.parameters[0].is_cuda and triton_runs()
        if kernel and takes(group):
            update(group, addresses, **{name: settings[name] for name in names})
        else:
            _plain(group, **{name: settings[name] for name in names})

    def _group_of(self, parameters: list[Tensor]) -> Group:
        gradients = [p.grad for p in parameters if p.grad is not None]
        states = [self._state_of(p) for p in parameters]
        means, squares, steps = (
            [state[name] for state in states] for name in ("exp_avg", "exp_avg_sq", "step")
        )
        return Group(parameters, gradients, means, squares, steps)

    def _state_of(self, parameter: Tensor) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        return state


def _plain(
    group: Group,
    *,
    lr: float | Tensor,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> None:
    """The definition."""
    parameters, gradients, means, squares, steps = group
    torch._foreach_add_(steps, 1)
    first, second = (_debiased(beta, torch.stack(steps)) for beta in betas)
    _mix(means, gradients, first)
    _mix(squares, torch._foreach_mul(gradients, gradients), second)
    roots = torch._foreach_sqrt(squares)
    rates = _rates(gradients, roots, lr, eps)
    torch._foreach_add_(roots, eps)
    changes = torch._foreach_div(means, roots)
    if weight_decay:
        torch._foreach_add_(changes, parameters, alpha=weight_decay)
    torch._foreach_mul_(changes, rates)
    torch._foreach_sub_(parameters, changes)


def _debiased(beta: float, step: Tensor) -> Tensor:
    """β (1 - β^(t-1)) / (1 - β^t); 0 in the first step."""
    log = math.log(beta) if beta else -math.inf
    # expm1: in float32 the difference of 1 and 0.999^t would keep four digits
    shorter = torch.where(step > 1, torch.expm1((step - 1) * log), 0.0)
    return beta * shorter / torch.expm1(step * log)


def _mix(means: list[Tensor], values: Iterable[Tensor], shares: Tensor) -> None:
    """mean = share · mean + (1 - share) · value, for each tensor with its own share."""
    torch._foreach_mul_(means, shares.unbind())
    torch._foreach_add_(means, torch._foreach_mul(list(values), (1 - shares).unbind()))


def _rates(
    gradients: list[Tensor], roots: Iterable[Tensor], rate: float | Tensor, eps: float
) -> list[Tensor]:
    """lr / max(1, RMS) of each tensor, 0-dimensional."""
    ratios = torch._foreach_div(gradients, torch._foreach_clamp_min(list(roots), eps))
    norms = list(torch._foreach_norm(ratios))
    # the counts are arguments of a kernel: a tensor of them would be copied from the host
    excess = torch._foreach_div(norms, [math.sqrt(g.numel()) for g in gradients])
    torch._foreach_clamp_min_(excess, 1.0)
    rates = torch._foreach_reciprocal(excess)
    torch._foreach_mul_(rates, rate)
    return list(rates)
