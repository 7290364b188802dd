"""The middle of an HSS block as one operator, against the block's own steps in float64."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers import deviation
from interpreter import interpreted_device
from torch import Tensor

from mambaad.model import gated_scan
from mambaad.model.blocks import HSSBlock, initialise_decoder
from mambaad.scan import direction_orders

DEVICE = interpreted_device()

# cuBLAS in the thread of the gradients finds no context when it is the first to run there
pytestmark = pytest.mark.filterwarnings("ignore:Attempting to run cuBLAS:UserWarning")


def block(channels: int) -> HSSBlock:
    """With weights that leave no term out."""
    torch.manual_seed(0)
    made = HSSBlock(channels, 2, backend="triton").apply(initialise_decoder)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return made.to(DEVICE)


def results(module: HSSBlock, x: Tensor, *, parts: bool = False) -> dict[str, Tensor]:
    """The branch and the gradients of x and of all weights that it has.

    Args:
        parts: Whether the steps are taken by themselves.
    """
    orders = torch.from_numpy(direction_orders("hilbert", 2, *x.shape[1:3])).to(DEVICE)
    leaf = x.detach().requires_grad_()
    named = {n: p for n, p in module.named_parameters() if not n.startswith("norm")}
    with pytest.MonkeyPatch.context() as patch:
        if parts:
            patch.setattr(gated_scan, "runs", lambda *_: False)
        y = module.branch(leaf, orders)
    generator = torch.Generator().manual_seed(1)
    dy = torch.randn(y.shape, generator=generator).to(DEVICE).bfloat16().to(y.dtype)
    found = torch.autograd.grad(y, [leaf, *named.values()], dy)
    return {"y": y.detach(), "x": found[0], **dict(zip(named, found[1:], strict=True))}


def exact(module: HSSBlock, x: Tensor) -> dict[str, Tensor]:
    twin = copy.deepcopy(module).double()
    twin.backend = "reference"
    return results(twin, x.double(), parts=True)


def picture(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(shape, generator=generator).to(DEVICE, dtype)


@pytest.mark.parametrize("shape", [(2, 2, 3, 4), (1, 3, 1, 3)], ids=str)
def test_float32_against_float64(shape: tuple[int, ...]) -> None:
    module, x = block(shape[3]), picture(shape)
    found, truth = results(module, x), exact(module, x)
    weights = dict(module.named_parameters())
    assert found.keys() == truth.keys()
    for name, expected in truth.items():
        assert found[name].shape == expected.shape, name
        assert name not in weights or found[name].stride() == weights[name].stride(), name
        assert deviation(found[name], expected) < 5e-6, name


def test_bf16_is_as_good_as_its_steps() -> None:
    """As in training: linear layers and ``scan_proj`` in bfloat16, all else in float32."""
    module, x = block(4), picture((1, 3, 3, 4), torch.bfloat16)
    truth = exact(module, x)
    for layer in (module.in_proj, module.out_proj):
        layer.bfloat16()
    module.scan_proj.data = module.scan_proj.bfloat16()
    # the interpreter cuts what it stores as bfloat16, the GPU rounds
    allowed = 2.0 if DEVICE.type == "cuda" else 4.0
    one, parts = results(module, x), results(module, x, parts=True)
    for name, expected in truth.items():
        assert one[name].dtype == parts[name].dtype, name
        assert (
            deviation(one[name], expected) <= allowed * deviation(parts[name], expected) + 1e-3
        ), name


def test_every_element_is_written_and_the_same_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """NumPy, which interprets, warns of arithmetic with a signalling NaN, used or not."""
    module, x = block(2), picture((1, 2, 2, 2))
    first = results(module, x)
    for owner, make in ((Tensor, "new_empty"), (torch, "empty_like"), (torch, "empty")):
        original = getattr(owner, make)

        def poisoned(*args: object, original: object = original, **options: object) -> Tensor:
            made: Tensor = original(*args, **options)  # type: ignore[operator]
            if made.dtype == torch.float32:
                made.view(torch.int32).fill_(0x7FA00000)
            elif made.is_floating_point():
                made.fill_(torch.nan)
            return made

        monkeypatch.setattr(owner, make, poisoned)
    for name, again in results(module, x).items():
        assert again.isfinite().all(), name
        assert torch.equal(again, first[name]), name


def test_prediction_takes_the_steps() -> None:
    module, projected = block(4), picture((1, 2, 2, 16))
    assert gated_scan.runs(projected, module.a_log, "triton")
    assert not gated_scan.runs(projected.double(), module.a_log, "triton")
    assert not gated_scan.runs(projected, module.a_log, "reference")
    with torch.no_grad():
        assert not gated_scan.runs(projected, module.a_log, "triton")


def test_opcheck() -> None:
    module, x = block(2), picture((1, 1, 2, 8))
    orders = torch.from_numpy(direction_orders("hilbert", 2, 1, 2)).to(DEVICE)
    weights = [module.conv.weight, module.conv.bias, module.scan_proj, module.a_log]
    weights += [module.dt_weight, module.dt_bias, module.skip]
    ends = [module.out_norm.weight, module.out_norm.bias]
    torch.library.opcheck(
        gated_scan.gated_scan_forward,
        (x, *weights, orders, *ends, 1e-5),
        test_utils=("test_schema", "test_faketensor"),  # the others take long in the interpreter
    )
    with torch.no_grad():
        y, *kept = gated_scan.gated_scan_forward(x, *weights, orders, *ends, 1e-5)
    torch.library.opcheck(
        gated_scan.gated_scan_backward,
        (torch.ones_like(y), *(t.detach() for t in (x, *weights, orders, *ends, *kept))),
        test_utils=("test_schema", "test_faketensor"),  # it has no gradient of its own
    )


def test_a_wrong_shape_is_named() -> None:
    module = block(2)
    orders = torch.from_numpy(direction_orders("hilbert", 2, 2, 3)).to(DEVICE)
    scan = (module.scan_proj, module.a_log, module.dt_weight, module.dt_bias, module.skip)
    bias = module.conv.bias
    assert bias is not None
    with pytest.raises(ValueError, match="projected must have shape") as error:
        gated_scan.gated_scan(
            picture((1, 2, 2, 8)),
            (module.conv.weight, bias),
            scan,
            orders,
            (module.out_norm.weight, module.out_norm.bias, 1e-5),
        )
    assert str(error.value) == (
        "projected must have shape (B, H, W, 8) with H W = 6, got (1, 2, 2, 8)"
    )
