from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mambaad.config import ModelConfig
from mambaad.model import parameter_count
from mambaad.model.blocks import LSSModule
from mambaad.model.decoder import (
    Decoder,
    PatchExpand,
    drop_path_rates,
    empty_factors,
    lss_sizes,
)
from mambaad.scan import direction_orders

WIDTHS = (64, 128, 256)


def decoder(**settings: Any) -> Decoder:
    return Decoder(ModelConfig(**settings), (8, 12, 16), 32)


def lss(model: Decoder) -> list[list[LSSModule]]:
    return [[m for m in stage.children() if isinstance(m, LSSModule)] for stage in model.stages]


def test_parameters_per_stage() -> None:
    """The figures of the published code for ResNet-34."""
    with torch.device("meta"):
        model = Decoder(ModelConfig(), WIDTHS, 512)
    expands = [parameter_count(part) for part in model.expands]
    stages = [parameter_count(part) for part in model.stages]
    assert expands == [0, 524_800, 131_328, 32_896]
    totals = [a + b for a, b in zip(expands, stages, strict=True)]
    assert totals == [9_435_648, 4_425_728, 1_801_728, 323_520]
    assert parameter_count(model) == sum(totals)


@pytest.mark.parametrize(
    ("depths", "sizes"),
    [
        ((3, 4, 6, 3), [[3], [2, 2], [3, 3], [3]]),
        ((2, 2, 2, 2), [[2], [2], [2], [2]]),
        ((2, 9, 2, 2), [[2], [3, 3, 3], [2], [2]]),
        ((1, 5, 7, 11), [[1], [3, 2], [3, 2, 2], [3, 3, 3, 2]]),
    ],
    ids=str,
)
def test_modules(depths: tuple[int, ...], sizes: list[list[int]]) -> None:
    model = decoder(depths=depths)
    assert [[len(m.blocks) for m in stage] for stage in lss(model)] == sizes


@given(st.integers(1, 60))
def test_lss_sizes_add_up(depth: int) -> None:
    sizes = lss_sizes(depth)
    assert sum(sizes) == depth
    assert set(sizes) <= ({1} if depth == 1 else {2, 3})
    if depth > 1 and depth % 3 and depth % 2 == 0:
        assert set(sizes) == {2}  # the published rule, though fewer modules would do


@given(st.integers(1, 20), st.integers(1, 5))
def test_lss_of_equal_size(modules: int, size: int) -> None:
    assert lss_sizes(modules * size, size) == [size] * modules


def test_drop_path_rates() -> None:
    """Per LSS: 0.200 | 0.160 0.147 | 0.107 0.093 | 0.027, as measured in the published code."""
    model = decoder()
    rates = [[m.blocks[0].drop_path.rate for m in stage] for stage in lss(model)]  # type: ignore[union-attr]
    expected = [[0.2], [0.16, 0.1467], [0.1067, 0.0933], [0.0267]]
    for found, wanted in zip(rates, expected, strict=True):
        assert found == pytest.approx(wanted, abs=5e-5)
    # one rate for all blocks of a module
    assert {b.drop_path.rate for b in lss(model)[0][0].blocks} == {0.2}  # type: ignore[union-attr]


def test_drop_path_rates_fall_to_zero() -> None:
    rates = drop_path_rates((2, 1, 3, 1), 0.6)
    assert [len(stage) for stage in rates] == [2, 1, 3, 1]
    flat = [rate for stage in rates for rate in stage]
    np.testing.assert_allclose(flat, [0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0], atol=1e-15)


@pytest.mark.parametrize("size", [(2, 2), (2, 3), (1, 1)], ids=str)
def test_shapes(size: tuple[int, int]) -> None:
    """Three maps, finest first, each twice as fine as the next; the coarsest is not given out."""
    height, width = size
    maps = decoder(depths=(1, 1, 1, 1), directions=2)(torch.randn(2, 32, height, width))
    assert [tuple(m.shape) for m in maps] == [
        (2, 8, 8 * height, 8 * width),
        (2, 12, 4 * height, 4 * width),
        (2, 16, 2 * height, 2 * width),
    ]


def parts(**settings: Any) -> tuple[int, set[str]]:
    """The parameter count, and the layers of the first stage's module."""
    model = decoder(depths=(1, 1, 1, 1), directions=2, **settings)
    module = lss(model)[0][0]
    names = {
        name.removesuffix(".weight").removesuffix(".bias") for name, _ in module.named_parameters()
    }
    return parameter_count(model), names


def test_options_change_the_network() -> None:
    count, names = parts()
    local = {f"local.kernel{k}.{i}" for k in (5, 7) for i in (0, 2, 4)}
    blocks = {name for name in names if name.startswith("blocks.0.")}
    assert names == local | blocks | {"fuse"}
    assert {"blocks.0.in_proj", "blocks.0.a_log", "blocks.0.conv"} <= blocks

    fewer, plain = parts(pointwise=False)
    assert fewer < count
    assert plain == blocks | {"fuse", "local.kernel5.0", "local.kernel7.0"}
    assert parts(branches="local")[1] == local | {"fuse"}
    assert parts(branches="global")[1] == blocks | {"fuse"}
    assert parts(branches="global", kernels=()) == parts(branches="global")
    small = {name.split(".")[1] for name in parts(kernels=(1, 3))[1] if name.startswith("local")}
    assert small == {"kernel1", "kernel3"}
    assert parts(residual=False) == (count, names)


@pytest.mark.parametrize(
    "settings",
    [
        {"kernels": (1, 3, 5, 7)},
        {"pointwise": False},
        {"residual": False},
        {"branches": "local"},
        {"branches": "global", "kernels": ()},
        {"depths": (2, 2, 2, 2), "hss_per_lss": 1},
        {"depths": (5, 1, 1, 7)},
        {"scan": {"zigzag": 2, "hilbert": 4}, "directions": 6},
        {"scan": "zorder", "directions": "distinct"},
    ],
    ids=str,
)
def test_options_run_and_learn(settings: dict[str, Any]) -> None:
    model = decoder(**({"depths": (1, 1, 1, 1), "directions": 2} | settings))
    x = torch.randn(2, 32, 2, 2, requires_grad=True)
    sum((m**2).sum() for m in model(x)).backward()
    assert x.grad is not None
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_residual_option_reaches_the_modules() -> None:
    for residual in (True, False):
        model = decoder(depths=(2, 2, 2, 2), residual=residual, hss_per_lss=1)
        assert {m.residual for stage in lss(model) for m in stage} == {residual}
        assert [len(stage) for stage in lss(model)] == [2, 2, 2, 2]


def test_paths_come_from_the_configuration() -> None:
    model = decoder(depths=(1, 1, 1, 1), scan={"zigzag": 2, "sweep": 2})
    table = model.orders(3, 5, torch.device("cpu"))
    expected = direction_orders({"zigzag": 2, "sweep": 2}, 4, 3, 5)
    assert table.dtype == torch.int32
    np.testing.assert_array_equal(table.numpy(), expected)
    assert model.orders(3, 5, torch.device("cpu")) is table  # made once
    assert not [name for name in model.state_dict() if "order" in name or "table" in name]


def test_patch_expand_places_pixels() -> None:
    """Output pixel (2i + a, 2j + b) is made of channels 4-way group 2a + b of input (i, j)."""
    part = PatchExpand(6, 3)
    x = torch.randn(2, 2, 3, 6)
    with torch.no_grad():
        wide, y = part.expand(x), part(x)
    assert y.shape == (2, 4, 6, 3)
    for a in (0, 1):
        for b in (0, 1):
            group = wide[..., 3 * (2 * a + b) : 3 * (2 * a + b) + 3]
            torch.testing.assert_close(y[:, a::2, b::2], part.norm(group).detach())


def test_drop_path_acts_in_training_only() -> None:
    model = decoder(depths=(1, 1, 1, 1), directions=2, drop_path=0.9)
    x = torch.randn(1, 32, 2, 2)
    torch.manual_seed(0)
    with torch.no_grad():
        a, b = model(x)[0], model(x)[0]
        model.eval()
        c, d = model(x)[0], model(x)[0]
    assert not torch.equal(a, b)
    assert torch.equal(c, d)


def test_drop_path_of_all_modules_drawn_at_once() -> None:
    """Every module has its own rate, and each picture its own draw."""
    torch.manual_seed(0)
    model = Decoder(ModelConfig(depths=(1, 2, 1, 1), drop_path=0.5), (8, 12, 16), 20)
    x = torch.zeros(4000, 2, 2, 20)
    factors = model._draw(x.bfloat16())
    modules = [module for stage in lss(model) for module in stage]
    rates = [module.blocks[0].drop_path.rate for module in modules]
    assert len(set(rates)) > 2
    for found, module, rate in zip(factors, modules, rates, strict=True):
        if rate == 0:
            assert found is None
            continue
        assert found is not None
        assert found.shape == (len(module.blocks), 4000, 1, 1, 1)
        assert set(found.unique().tolist()) == {0.0, torch.tensor(1 / (1 - rate)).bfloat16().item()}
        assert found.float().mean().item() == pytest.approx(1.0, abs=0.06)
    again = model._draw(x.bfloat16())
    assert again[0] is not None
    assert not torch.equal(again[0], factors[0])  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_factors_begin_at_multiples_of_16_bytes(dtype: torch.dtype) -> None:
    x = torch.zeros(3, 2, 2, 4, dtype=dtype)
    factors = empty_factors(5, x)
    assert factors.shape == (5, 3, 1, 1, 1)
    assert factors.dtype == dtype
    assert all(block.data_ptr() % 16 == 0 and block.is_contiguous() for block in factors.unbind())


def test_given_factors_are_used() -> None:
    torch.manual_seed(0)
    model = Decoder(ModelConfig(depths=(1, 1, 1, 1), drop_path=0.5), (8, 12, 16), 20)
    module, x = lss(model)[0][0], torch.randn(2, 2, 2, 20)
    orders = model.orders(2, 2, x.device)
    whole = module.eval()(x, orders)
    module.train()
    torch.testing.assert_close(module(x, orders, torch.ones(1, 2, 1, 1, 1)), whole)
    dropped = module(x, orders, torch.tensor([1.0, 0.0]).view(1, 2, 1, 1, 1))
    torch.testing.assert_close(dropped[0], whole[0])
    assert not torch.allclose(dropped[1], whole[1])


def test_tables_made_in_prediction_serve_a_training() -> None:
    decoder = Decoder(ModelConfig(depths=(1, 1, 1, 1), directions=2), (4, 8, 16), 32)
    with torch.inference_mode():
        table = decoder.orders(2, 2, torch.device("cpu"))
    assert not table.is_inference()
