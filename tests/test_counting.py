"""Parameters and multiply-adds against the published table and a count from outside."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from mambaad.config import ModelConfig
from mambaad.counting import Count, count_parts, hss_blocks, sum_counts
from mambaad.model import MambaAD, build, parameter_count


def on_meta(config: ModelConfig) -> MambaAD:
    with torch.device("meta"):
        return build(config).eval()


def counts(config: ModelConfig, height: int = 256, width: int = 256) -> list[Count]:
    return count_parts(on_meta(config), height, width)


def small(**settings: Any) -> ModelConfig:
    return ModelConfig("filterbank", (1, 1, 1, 1), directions=2, **settings)


def test_the_published_network_part_by_part() -> None:
    found = counts(ModelConfig())
    rows = [(c.part, c.trainable, c.frozen, round(c.products / 1e9, 3)) for c in found]
    assert rows == [
        ("encoder", 0, 8_170_304, 3.955),
        ("neck", 1_458_304, 0, 0.269),
        ("decoder 8x8", 9_435_648, 0, 0.577),
        ("decoder 16x16", 4_425_728, 0, 0.961),
        ("decoder 32x32", 1_801_728, 0, 1.529),
        ("decoder 64x64", 323_520, 0, 1.009),
    ]
    scans = [round(c.scan_products / 1e9, 3) for c in found]
    assert scans == [0, 0, 0.226, 0.604, 1.812, 1.812]
    total = sum_counts(found)
    assert (total.trainable, total.frozen) == (17_444_928, 8_170_304)
    assert round(total.products / 1e9, 2) == 8.30
    assert round((total.products + total.scan_products) / 1e9, 2) == 12.75


@pytest.mark.parametrize(
    ("encoder", "depths", "directions", "published"),
    [
        ("resnet18", (2, 2, 2, 2), 8, 4.337),
        ("resnet18", (3, 4, 6, 3), 8, 6.183),
        ("resnet34", (2, 2, 2, 2), 8, 6.454),
        ("resnet34", (2, 9, 2, 2), 8, 7.892),
        ("resnet34", (3, 4, 6, 3), 8, 8.3001),
        ("resnet34", (3, 4, 6, 3), 4, 7.537),
        ("resnet34", (3, 4, 6, 3), 2, 7.155),
    ],
)
def test_the_published_totals(
    encoder: str, depths: tuple[int, ...], directions: int, published: float
) -> None:
    """They hold einsum products that ``np.einsum_path`` rounded to four digits, two for each."""
    model = on_meta(ModelConfig(encoder, depths, directions=directions))
    total = sum_counts(count_parts(model, 256, 256)).products
    for stage, pixels in zip(model.decoder.stages, (64, 256, 1024, 4096), strict=True):
        for block in hss_blocks(stage):
            for weight in (block.scan_proj, block.dt_weight):
                exact = pixels * weight.numel()
                total += int(float(f"{2 * exact:.3e}")) // 2 - exact
    assert total / 1e9 == pytest.approx(published, abs=6e-5 if published == 8.3001 else 6e-4)


@pytest.mark.parametrize("settings", [{}, {"branches": "local"}, {"branches": "global"},
                                      {"pointwise": False}, {"kernels": (3,)}])  # fmt: skip
def test_the_decoder_as_its_layers_would_count(settings: dict[str, Any]) -> None:
    """Each layer's hook sees what the formulas take from its weights."""
    model = build(small(**settings)).eval()
    seen = 0

    def see(layer: nn.Module, taken: tuple[torch.Tensor, ...], out: torch.Tensor) -> None:
        nonlocal seen
        if isinstance(layer, nn.LayerNorm):
            seen += 5 * taken[0].numel()
        elif isinstance(layer, nn.Conv2d):
            seen += out.numel() * layer.weight[0].numel()
        elif isinstance(layer, nn.Linear):
            seen += out.numel() * layer.in_features
        else:
            seen += 4 * taken[0].numel()

    from mambaad.model.layers import InstanceNormSiLU

    kinds = (nn.LayerNorm, nn.Conv2d, nn.Linear, InstanceNormSiLU)
    for layer in model.decoder.modules():
        if isinstance(layer, kinds):
            layer.register_forward_hook(see)
    with torch.no_grad():
        model(torch.randn(1, 3, 64, 32))
    pixels = (2, 8, 32, 128)
    for stage, length in zip(model.decoder.stages, pixels, strict=True):
        for block in hss_blocks(stage):
            seen += length * (block.scan_proj.numel() + block.dt_weight.numel())
    stages = count_parts(model, 64, 32)[2:]
    assert sum(c.products for c in stages) == seen
    assert [c.part for c in stages] == [f"decoder {2 * n}x{n}" for n in (1, 2, 4, 8)]
    scans = [c.scan_products for c in stages]
    if settings.get("branches") == "local":
        assert scans == [0, 0, 0, 0]
    else:  # 9 L (K D) N with two paths and an inner width of twice 256, 128, 64, 32
        assert scans == [9 * n * 2 * 2 * w * 16 for n, w in zip(pixels, (256, 128, 64, 32),
                                                               strict=True)]  # fmt: skip


def test_an_encoder_without_layers_is_counted() -> None:
    encoder = counts(small(), 64, 64)[0]
    first = 32 * 32 * 32 * 3 * 81
    second, third = 16 * 16 * 64 * 32 * 9, 8 * 8 * 128 * 64 * 9
    assert (encoder.trainable, encoder.frozen) == (0, 0)
    assert encoder.products == first + second + third


def test_norms_of_an_encoder() -> None:
    class Body(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norms = nn.ModuleList(
                [
                    nn.BatchNorm2d(3),
                    nn.BatchNorm2d(3, affine=False),
                    nn.GroupNorm(1, 3),
                    nn.InstanceNorm2d(3),
                    nn.LayerNorm(32),
                ]
            )

        def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
            for norm in self.norms:
                x = norm(x)
            wide = x.mean((2, 3), keepdim=True).repeat(1, 1, 8, 8)
            return [wide.repeat(1, c // 3 + 1, 1, 1)[:, :c, :s, :s]
                    for c, s in ((32, 8), (64, 4), (128, 2))]  # fmt: skip

    model = on_meta(small())
    model.encoder.body = Body().to("meta").eval()
    encoder = count_parts(model, 32, 32)[0]
    assert encoder.products == 3 * 32 * 32 * (2 + 1 + 5 + 4 + 5)


def test_counts_grow_with_the_pixels_and_leave_the_model_as_it_was() -> None:
    model = on_meta(small())
    one, four = (sum_counts(count_parts(model, s, s)) for s in (64, 128))
    assert 4 * one.products == four.products
    assert 4 * one.scan_products == four.scan_products
    assert one.trainable + one.frozen == parameter_count(model)
    assert not any(m._forward_hooks for m in model.modules())
