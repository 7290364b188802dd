"""The local branches and their join as one operator, against the module's layers in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from helpers import deviation
from interpreter import interpreted_device
from torch import Tensor

from mambaad.model import joined
from mambaad.model.blocks import LSSModule, initialise_decoder

DEVICE = interpreted_device()

UNUSED = (".0.bias", ".4.bias")
"""Ends of the names of biases that a norm takes away."""


def lss(channels: int, *, kernels: tuple[int, ...] = (3, 5), residual: bool = True) -> LSSModule:
    """With weights that leave no term out, and a cascade of one block whose parts are given."""
    torch.manual_seed(0)
    made = LSSModule(channels, 2, blocks=1, kernels=kernels, residual=residual)
    made.apply(initialise_decoder)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return made.to(DEVICE)


def maps(shape: tuple[int, ...], *, dropped: bool = True) -> list[Tensor | None]:
    """x, total, branch and factor."""
    generator = torch.Generator().manual_seed(1)
    found: list[Tensor | None] = [torch.randn(shape, generator=generator) for _ in range(3)]
    factor = torch.tensor([1.25, 0.0])[: shape[0]].view(-1, 1, 1, 1) if dropped else None
    return [None if t is None else t.to(DEVICE) for t in (*found, factor)]


def results(module: LSSModule, given: list[Tensor | None], runs: bool) -> dict[str, Tensor | None]:
    """out and the gradients of the maps and of all weights that are not the cascade's."""
    leaves = [t if t is None else t.detach().requires_grad_(i < 3) for i, t in enumerate(given)]
    x, *parts = leaves
    assert x is not None
    named = {n: p for n, p in module.named_parameters() if not n.startswith("blocks")}
    wanted = [*(t for t in leaves[:3] if t is not None), *named.values()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(joined, "runs", lambda _: runs)
        patch.setattr(LSSModule, "_cascade_parts", lambda *_: tuple(parts))
        y = module(x, torch.zeros(0, device=DEVICE))
    generator = torch.Generator().manual_seed(2)
    dy = torch.randn(y.shape, generator=generator).to(DEVICE).bfloat16().to(y.dtype)
    found = torch.autograd.grad(y, wanted, dy, allow_unused=True)
    names = ["x", "total", "branch", *named]
    return {"y": y.detach(), **dict(zip(names, found, strict=True))}


def exact(module: LSSModule, given: list[Tensor | None]) -> dict[str, Tensor | None]:
    wide = [None if t is None else t.double() for t in given]
    return results(copy.deepcopy(module).double(), wide, runs=False)


@pytest.mark.parametrize(
    ("shape", "kernels", "residual", "dropped"),
    [
        ((2, 3, 5, 8), (3, 5), True, True),
        ((1, 4, 1, 6), (5, 7), False, False),
        ((2, 3, 3, 5), (3,), True, True),
        ((1, 2, 3, 4), (3, 5, 7), True, False),
    ],
    ids=str,
)
def test_float32_against_float64(
    shape: tuple[int, ...], kernels: tuple[int, ...], residual: bool, dropped: bool
) -> None:
    module, given = lss(shape[3], kernels=kernels, residual=residual), maps(shape, dropped=dropped)
    found, truth = results(module, given, runs=True), exact(module, given)
    weights = dict(module.named_parameters())
    assert found.keys() == truth.keys()
    for name, expected in truth.items():
        value = found[name]
        assert expected is not None, name
        if name.endswith(UNUSED):
            assert value is None, name
            assert expected.abs().max() < 1e-12, name
            continue
        assert value is not None, name
        assert value.shape == expected.shape, name
        assert name not in weights or value.stride() == weights[name].stride(), name
        assert deviation(value, expected) < 2e-6, name


def test_bf16_is_as_good_as_the_layers() -> None:
    """As in training: matrices in bfloat16, depth-wise filters in float32."""
    module, given = lss(8), maps((2, 5, 5, 8))
    given = [None if t is None else t.bfloat16() for t in given]
    truth = exact(module, given)
    for name, parameter in module.named_parameters():
        if not name.startswith("blocks") and not name.endswith(".2.weight"):
            parameter.data = parameter.bfloat16()
    # the interpreter cuts what it stores as bfloat16, the GPU rounds
    allowed = 2.0 if DEVICE.type == "cuda" else 4.0
    one, layers = (results(module, given, runs=runs) for runs in (True, False))
    for name, expected in truth.items():
        value, plain = one[name], layers[name]
        if name.endswith(UNUSED):
            continue
        assert value is not None, name
        assert plain is not None, name
        assert expected is not None, name
        assert value.dtype == plain.dtype, name
        assert deviation(value, expected) <= allowed * deviation(plain, expected) + 1e-4, name


def test_matrices_may_be_wider_than_the_maps() -> None:
    module, given = lss(4), maps((1, 3, 3, 4), dropped=False)
    given = [None if t is None else t.bfloat16() for t in given]
    for name, value in results(module, given, runs=True).items():
        if value is not None:
            expected = torch.bfloat16 if name in ("y", "x", "total", "branch") else torch.float32
            assert value.dtype == expected, name


def test_every_element_is_written_and_the_same_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    module, given = lss(4), maps((2, 3, 3, 4))
    first = results(module, given, runs=True)
    for owner, make in ((Tensor, "new_empty"), (torch, "empty_like")):
        monkeypatch.setattr(owner, make, _poisoned(getattr(owner, make)))
    for name, again in results(module, given, runs=True).items():
        if again is not None:
            assert again.isfinite().all(), name
            assert torch.equal(again, first[name]), name  # type: ignore[arg-type]


def _poisoned(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda *args, **options: make(*args, **options).fill_(torch.nan)


def test_what_the_layers_take() -> None:
    """Without a GPU or a gradient, and modules that are made up otherwise."""
    x = torch.zeros(1, 2, 2, 4, device=DEVICE)
    assert joined.runs(x) == x.is_cuda
    assert not joined.runs(x.double())
    with torch.no_grad():
        assert not joined.runs(x)
    assert lss(4)._weights() is not None
    assert LSSModule(4, 2, blocks=1, kernels=())._weights() is None
    assert LSSModule(4, 2, blocks=1, kernels=(3,), pointwise=False)._weights() is None


@pytest.mark.parametrize("dropped", [True, False], ids=["factor", "no factor"])
def test_opcheck(dropped: bool) -> None:
    given, module = maps((1, 2, 2, 4), dropped=dropped), lss(4, kernels=(3,))
    weights = module._weights()
    assert weights is not None
    matrices = [torch.cat([w.flatten(1) for w in weights.firsts]), list(weights.filters)]
    matrices += [torch.stack([w.flatten(1) for w in weights.seconds]), weights.fuse.flatten(1)]
    leaves = [t if t is None else t.requires_grad_(i < 3) for i, t in enumerate(given)]
    torch.library.opcheck(
        joined.join_forward,
        (*leaves, *matrices, weights.bias, True),
        test_utils=("test_schema", "test_faketensor", "test_autograd_registration"),
    )
    with torch.no_grad():
        y, *kept = joined.join_forward(*leaves, *matrices, weights.bias, True)
    torch.library.opcheck(
        joined.join_backward,
        (torch.ones_like(y), given[0], given[3], *matrices, weights.bias, kept, True),
        test_utils=("test_schema", "test_faketensor"),  # it has no gradient of its own
    )


def test_wrong_maps_are_named() -> None:
    module, (x, total, branch, _) = lss(4), maps((1, 2, 2, 4))
    weights = module._weights()
    assert weights is not None
    assert x is not None
    assert total is not None
    assert branch is not None
    for arguments, message in {
        (
            x,
            total[:, 1:],
            branch,
        ): r"total must be torch.float32 of shape \(1, 2, 2, 4\), got torch",
        (x, total, branch.double()): r"branch must be .* got torch.float64 \(1, 2, 2, 4\)",
    }.items():
        with pytest.raises(ValueError, match=message):
            joined.join(*arguments, None, weights, residual=True)
