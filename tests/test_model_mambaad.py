from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import SMALL
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from torch import Tensor, nn

from mambaad.config import ModelConfig
from mambaad.model import MambaAD, anomaly_maps, build, parameter_count
from mambaad.model.mambaad import SMOOTHING, gaussian_smooth


@pytest.fixture(scope="module")
def small() -> MambaAD:
    torch.manual_seed(0)
    return build(SMALL).eval()


def index_tables(depths: tuple[int, ...]) -> int:
    """What the published code counts beside ours: two tables of a map's size for each HSS block."""
    return sum(2 * depth * side**2 for depth, side in zip(depths, (8, 16, 32, 64), strict=True))


def test_parameters_of_the_published_default() -> None:
    with torch.device("meta"):
        model = build(ModelConfig())
    assert index_tables((3, 4, 6, 3)) == 39_296
    assert parameter_count(model) + 39_296 == 25_654_528
    assert parameter_count(model.encoder) == 8_170_304
    assert parameter_count(model.neck) + parameter_count(model.decoder) == 17_444_928
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trainable == 17_444_928


@pytest.mark.parametrize(
    ("encoder", "depths", "directions", "millions"),
    [
        ("resnet18", (2, 2, 2, 2), 8, 14.621),
        ("resnet18", (3, 4, 6, 3), 8, 20.267),
        ("resnet34", (2, 2, 2, 2), 8, 20.009),
        ("resnet34", (2, 9, 2, 2), 8, 26.121),
        ("resnet34", (3, 4, 6, 3), 8, 25.655),
        ("resnet34", (3, 4, 6, 3), 4, 23.087),
        ("resnet34", (3, 4, 6, 3), 2, 21.804),
        ("resnet50", (3, 4, 6, 3), 8, 251),
        ("wide_resnet50_2", (3, 4, 6, 3), 8, 268),
    ],
)
def test_parameters_of_the_published_variants(
    encoder: str, depths: tuple[int, ...], directions: int, millions: float
) -> None:
    """The paper's Table 2 and 7, with its index tables; the last two are given without decimals."""
    with torch.device("meta"):
        model = build(ModelConfig(encoder, depths, directions=directions))
    count = parameter_count(model) + index_tables(depths)
    assert round(count / 1e6, 3 if millions < 100 else None) == millions


def test_shapes(small: MambaAD) -> None:
    """Teacher and student agree, finest map first, on pictures that are not square too."""
    with torch.no_grad():
        teacher, student = small(torch.rand(2, 3, 64, 96))
        maps = small.anomaly_maps(torch.rand(2, 3, 64, 96))
    shapes = [(2, 32, 16, 24), (2, 64, 8, 12), (2, 128, 4, 6)]
    assert [tuple(m.shape) for m in teacher] == shapes
    assert [tuple(m.shape) for m in student] == shapes
    assert maps.shape == (2, 64, 96)
    assert maps.dtype == torch.float32
    assert 0 <= maps.min() < maps.max() <= 2 / 3


@pytest.mark.parametrize(
    "shape", [(1, 3, 64, 65), (1, 3, 48, 64), (1, 1, 64, 64), (3, 64, 64)], ids=str
)
def test_a_wrong_size_is_named(small: MambaAD, shape: tuple[int, ...]) -> None:
    message = r"images must be \(B, 3, H, W\) with H and W multiples of 32, got "
    with pytest.raises(ValueError, match=message) as error:
        small(torch.rand(shape))
    assert str(error.value).endswith(str(shape))


def test_loss(small: MambaAD) -> None:
    """Five times the sum over the scales of the mean squared error; its parts add up to it."""
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        teacher, student = small(images)
        parts = small.loss_parts(images)
        loss = small.loss(images)
    expected = [5 * ((s - t) ** 2).mean().item() for s, t in zip(student, teacher, strict=True)]
    assert list(parts) == ["stride4", "stride8", "stride16"]
    assert [p.item() for p in parts.values()] == pytest.approx(expected, rel=1e-5)
    assert loss.item() == pytest.approx(sum(expected), rel=1e-5)


def test_loss_weight() -> None:
    torch.manual_seed(0)
    model = build(SMALL, loss_weight=5.0).eval()
    images = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        five = model.loss(images)
        model.loss_weight = 1.0
        torch.testing.assert_close(5 * model.loss(images), five)


def test_loss_of_kept_features(small: MambaAD) -> None:
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        kept = small.loss_parts(None, small.encode(images))
        direct = small.loss_parts(images)
    for name, part in direct.items():
        assert torch.equal(kept[name], part)
    with pytest.raises(ValueError, match="loss_parts needs images or features, got neither"):
        small.loss_parts(None)


def test_everything_but_the_encoder_learns() -> None:
    model = build(ModelConfig("resnet18", (1, 1, 1, 1), directions=2)).train()
    assert not any(m.training for m in model.encoder.modules())
    model.loss(torch.rand(2, 3, 64, 64)).backward()
    for name, parameter in model.named_parameters():
        if name.startswith("encoder."):
            assert parameter.grad is None, name
        else:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize(
    "options",
    [
        {"scan": {"zigzag": 2, "sweep": 2}},
        {"directions": "distinct"},
        {"hss_per_lss": 1, "depths": (2, 1, 1, 1)},
        {"branches": "local", "kernels": (3,), "pointwise": False, "residual": False},
    ],
    ids=str,
)
def test_options(options: dict[str, Any]) -> None:
    model = build(ModelConfig(**({"encoder": "filterbank", "depths": (1, 1, 1, 1)} | options)))
    model.loss(torch.rand(2, 3, 64, 64)).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_training_lowers_the_loss() -> None:
    torch.manual_seed(0)
    model = build(SMALL).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.005)
    images = torch.rand(4, 3, 64, 64)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = model.loss(images)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0], losses


def test_named_backend() -> None:
    """All agree on the same weights, and the name reaches every block."""
    torch.manual_seed(0)
    fast = build(SMALL, backend="numba").eval()
    torch.manual_seed(0)
    slow = build(SMALL, backend="torch").eval()
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(
            fast.anomaly_maps(images), slow.anomaly_maps(images), rtol=1e-4, atol=1e-6
        )
    names = {m.backend for m in slow.modules() if hasattr(m, "in_proj")}
    assert names == {"torch"}


def test_identical_maps_are_not_anomalous() -> None:
    maps = [torch.randn(2, 5, 8 // 2**i, 8 // 2**i) for i in range(3)]
    found = anomaly_maps(maps, [3 * m for m in maps], (32, 48))  # the length does not matter
    assert found.shape == (2, 32, 48)
    assert found.abs().max() < 1e-6


def test_orthogonal_and_opposite_maps() -> None:
    """1 - cos is 1 for orthogonal vectors, 2 for opposite ones; each scale is divided by 9."""
    first = torch.zeros(1, 2, 4, 4)
    first[:, 0] = 7.0
    second = torch.zeros(1, 2, 4, 4)
    second[:, 1] = 0.1
    found = anomaly_maps([first, first, first], [second, -first, first], (16, 16))
    torch.testing.assert_close(found, torch.full((1, 16, 16), (1 + 2 + 0) / 9))


def test_corners_of_a_map_are_corners_of_the_result() -> None:
    """Aligned corners: the distance falls linearly from the first row to the last, then blurs."""
    teacher = torch.tensor([[1.0, 1.0], [0.0, 0.0]]).reshape(1, 2, 1, 2)  # two pixels
    student = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).reshape(1, 2, 1, 2)  # distances 0 and 1
    found = anomaly_maps([teacher] * 3, [student] * 3, (1, 65))
    ramp = np.linspace(0, 1, 65)[None] / 3
    expected = ndimage.gaussian_filter(ramp, SMOOTHING)
    np.testing.assert_allclose(found[0].numpy(), expected, atol=1e-6)


def test_maps_are_the_published_ones() -> None:
    """As defined, in float64: torch's cosine and resize, scipy's filter."""
    torch.manual_seed(0)
    teacher = [torch.randn(2, 6, *size) for size in ((16, 24), (8, 12), (4, 6))]
    student = [t + torch.randn_like(t) for t in teacher]
    total = np.zeros((2, 64, 96))
    for t, s in zip(teacher, student, strict=True):
        distance = 1 - F.cosine_similarity(t.double(), s.double(), dim=1)
        total += F.interpolate(
            distance[:, None], (64, 96), mode="bilinear", align_corners=True
        ).numpy()[:, 0]
    expected = np.stack([ndimage.gaussian_filter(one / 9, SMOOTHING) for one in total])
    found = anomaly_maps(teacher, student, (64, 96))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6, atol=0)
    wide = anomaly_maps([t.double() for t in teacher], [s.double() for s in student], (64, 96))
    np.testing.assert_allclose(wide.numpy(), expected, rtol=1e-12, atol=0)


def test_maps_of_16_bit_features_are_computed_in_32() -> None:
    torch.manual_seed(0)
    teacher = [torch.randn(1, 8, 8, 8).bfloat16() for _ in range(3)]
    student = [(t + torch.randn_like(t)).float() for t in teacher]
    expected = anomaly_maps([t.float() for t in teacher], student, (32, 32))
    with torch.autocast("cpu", torch.bfloat16):
        found = anomaly_maps(teacher, student, (32, 32))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


class Maps(nn.Module):
    """``anomaly_maps`` of three teacher's and three student's maps as a module."""

    def forward(self, *maps: Tensor) -> Tensor:
        return anomaly_maps(maps[:3], maps[3:], (48, 80))


def test_maps_are_exported_and_compiled() -> None:
    """And leave nothing behind that a later call would trip over."""
    torch.manual_seed(0)
    maps = tuple(torch.randn(1, 4, 5, 7) for _ in range(6))
    exported = torch.export.export(Maps(), maps).module()(*maps)
    compiled = torch.compile(Maps(), backend="aot_eager", fullgraph=True)(*maps)
    expected = Maps()(*maps)
    torch.testing.assert_close(exported, expected)
    torch.testing.assert_close(compiled, expected)


def test_a_vector_of_zeros_is_at_distance_one() -> None:
    zeros, ones = torch.zeros(1, 3, 2, 2), torch.ones(1, 3, 2, 2)
    torch.testing.assert_close(anomaly_maps([zeros], [ones], (8, 8)), torch.ones(1, 8, 8))


@given(
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    sigma=st.sampled_from([0.8, 2.0, 4.0]),
)
@settings(max_examples=40, deadline=None)
def test_gaussian_is_scipys(height: int, width: int, sigma: float) -> None:
    """Also on maps smaller than the filter's radius, where the mirror repeats."""
    draw = np.random.default_rng(height * 100 + width)
    maps = draw.standard_normal((2, height, width)).astype(np.float32)
    found = gaussian_smooth(torch.from_numpy(maps), sigma).numpy()
    for one, smoothed in zip(maps, found, strict=True):
        wide = one.astype(np.float64)
        expected = ndimage.gaussian_filter(wide, sigma, mode="reflect")
        np.testing.assert_allclose(smoothed, expected, atol=2e-6)


def test_score_of_a_defect() -> None:
    """A student that is wrong in one place makes the map's maximum there."""
    teacher = [torch.ones(1, 4, 64 // 2**i, 64 // 2**i) for i in range(3)]
    student = [t.clone() for t in teacher]
    student[0][0, :2, 40, 12] = -1
    found = anomaly_maps(teacher, student, (256, 256))[0]
    row, column = divmod(int(found.argmax()), 256)
    assert [row, column] == pytest.approx([40 * 255 / 63, 12 * 255 / 63], abs=1)


def test_meta_device_needs_no_weights() -> None:
    with torch.device("meta"):
        model = build(ModelConfig("resnet18", (1, 1, 1, 1)))
    assert {p.device.type for p in model.parameters()} == {"meta"}


def test_without_first_values_it_lies_in_memory_as_with_them() -> None:
    """And no random numbers are drawn: what is loaded afterwards fills all of it."""
    config = ModelConfig(**{**vars(SMALL), "recentre": True})
    drawn, random = build(config).state_dict(), torch.get_rng_state()
    empty = build(config, drawn=False)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(p.is_cpu for p in (*empty.parameters(), *empty.buffers()))
    layout = {n: (t.shape, t.stride(), t.dtype) for n, t in empty.state_dict().items()}
    assert layout == {n: (t.shape, t.stride(), t.dtype) for n, t in drawn.items()}
    saved = {*drawn, "encoder.scale", "encoder.shift"}  # the encoder is built as ever
    assert saved >= {name for name, _ in (*empty.named_parameters(), *empty.named_buffers())}


def test_a_fresh_network_is_one_graph() -> None:
    """The scan is one operator, and the paths of a size not seen yet are constants."""
    torch.manual_seed(0)
    config = ModelConfig(encoder="filterbank", depths=(1, 1, 1, 1), directions=2)
    model = build(config).eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        compiled = torch.compile(model.anomaly_maps, backend="aot_eager", fullgraph=True)(images)
        torch.testing.assert_close(compiled, model.anomaly_maps(images))
