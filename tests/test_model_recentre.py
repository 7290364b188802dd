"""Recentring: measured lines, and where the network uses them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from mambaad.config import ModelConfig
from mambaad.errors import ConfigError
from mambaad.model import build
from mambaad.model.mambaad import _seen, anomaly_maps, gaussian_smooth
from mambaad.model.recentre import Recentring

SMALL = ModelConfig(encoder="filterbank", depths=(1, 1, 1, 1), directions=2)


def test_it_centres_every_channel_and_scales_them_alike() -> None:
    generator = torch.Generator().manual_seed(0)
    batches = [
        [(3 + torch.rand(n, c, 4, 4, generator=generator)) * 2 ** torch.arange(c)[:, None, None]
         for c in (3, 2)]
        for n in (4, 2)
    ]  # fmt: skip
    recentring = Recentring((3, 2))
    first = recentring(batches[0])
    assert all(torch.equal(a, b) for a, b in zip(first, batches[0], strict=True))
    recentring.measure(batches)
    for scale in range(2):
        found = torch.cat([recentring(b)[scale] for b in batches]).double()
        torch.testing.assert_close(found.mean((0, 2, 3)), torch.zeros(found.shape[1]).double(),
                                   rtol=0, atol=1e-5)  # fmt: skip
        # the usual squared length is the number of channels, and their proportions are kept
        assert found.square().sum(1).mean().item() == pytest.approx(found.shape[1], rel=1e-4)
        deviation = found.var((0, 2, 3), unbiased=False).sqrt()
        assert deviation[1] / deviation[0] == pytest.approx(2, rel=0.3)
    assert recentring([m.bfloat16() for m in batches[0]])[0].dtype == torch.bfloat16


def test_a_silent_channel_stays_small() -> None:
    maps = torch.rand(4, 2, 3, 3)
    maps[:, 1] = 0
    recentring = Recentring((2,))
    recentring.measure([[maps]])
    assert torch.isfinite(recentring([maps])[0]).all()
    assert recentring([maps])[0][:, 1].abs().max() == 0


def test_the_network_compares_and_rebuilds_deviations() -> None:
    torch.manual_seed(0)
    config = ModelConfig.from_mapping({**SMALL.to_mapping(), "recentre": True})
    model = build(config).eval()
    images = torch.randn(2, 3, 64, 64)
    plain = model.encode(images)
    assert model.recentring is not None
    model.recentring.measure([plain])
    teacher, student = model(images)
    for found, expected in zip(teacher, model.recentring(plain), strict=True):
        assert torch.equal(found, expected)
    # kept features are the encoder's, and give the same loss as pictures do
    kept, fresh = model.loss_parts(None, plain), model.loss_parts(images)
    assert all(torch.equal(kept[name], fresh[name]) for name in kept)
    torch.testing.assert_close(
        kept["stride4"], 5 * ((student[0] - teacher[0]) ** 2).mean(), rtol=1e-4, atol=1e-5
    )
    assert "recentring.gain0" in model.state_dict()
    assert not any(name.startswith("recentring") for name in build(SMALL).state_dict())


def test_damped_distances_are_damped_by_the_usual_squared_length() -> None:
    torch.manual_seed(0)
    settings = {**SMALL.to_mapping(), "recentre": True}
    plain = build(ModelConfig.from_mapping(settings)).eval()
    damped = build(ModelConfig.from_mapping({**settings, "damping": 0.25})).eval()
    images = torch.randn(2, 3, 64, 64)
    assert plain.recentring is not None
    plain.recentring.measure([plain.encode(images)])
    damped.load_state_dict(plain.state_dict())
    teacher, student = damped(images)
    by_hand = []
    for t, s in zip(teacher, student, strict=True):
        length = t.square().sum(1)
        usual = t.shape[1]
        assert length.mean().item() == pytest.approx(usual, rel=1e-3)
        by_hand.append((1 - F.cosine_similarity(t, s)) * length / (length + usual / 4))
    expected = sum(
        F.interpolate(d[:, None], size=(64, 64), mode="bilinear", align_corners=True)[:, 0] / 9
        for d in by_hand
    )
    assert isinstance(expected, torch.Tensor)
    torch.testing.assert_close(damped.anomaly_maps(images), gaussian_smooth(expected, 4.0))
    assert (damped.anomaly_maps(images) < plain.anomaly_maps(images)).all()


def test_weights_of_the_scales_in_the_map() -> None:
    torch.manual_seed(0)
    images = torch.randn(1, 3, 64, 64)
    one = [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (1.0, 1.0, 1.0), (0.5, 2.0, 0.0)]
    found = []
    for weights in one:
        torch.manual_seed(1)
        settings = {**SMALL.to_mapping(), "map_weights": weights}
        found.append(build(ModelConfig.from_mapping(settings)).eval().anomaly_maps(images))
    fine, middle, coarse, whole, mixed = found
    torch.testing.assert_close(whole, fine + middle + coarse)
    torch.testing.assert_close(mixed, 0.5 * fine + 2 * middle)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ((1.0, 2.0), r"^map_weights must be three numbers, of strides 4, 8 and 16; got \(1.0, 2.0"),
        ((0.0, 0.0, 0.0), r"^map_weights must not all be 0; got \[0.0, 0.0, 0.0\]$"),
        ((1.0, -1.0, 0.0), "^map_weights"),
    ],
)
def test_weights_that_are_none(weights: tuple[float, float, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ModelConfig(map_weights=weights)


def test_the_finest_maps_are_compared_twice() -> None:
    torch.manual_seed(0)
    only = {**SMALL.to_mapping(), "map_weights": (1.0, 0.0, 0.0)}
    pooled = build(ModelConfig.from_mapping({**only, "fine_pooling": 3})).eval()
    plain = build(ModelConfig.from_mapping(only)).eval()
    plain.load_state_dict(pooled.state_dict())
    images = torch.randn(1, 3, 64, 64)
    averages = []
    for maps in plain(images):
        mean = torch.empty_like(maps[0])
        for i in range(16):
            for j in range(16):
                square = maps[0][:, :, max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2]
                mean[:, :, i, j] = square.mean((2, 3))
        averages.append(mean)
    distances = [
        1 - F.cosine_similarity(t, s) for t, s in ([m[0] for m in plain(images)], averages)
    ]
    both = (distances[0] * distances[1]).sqrt()
    resized = F.interpolate(both[:, None], size=(64, 64), mode="bilinear", align_corners=True)[:, 0]
    torch.testing.assert_close(pooled.anomaly_maps(images), gaussian_smooth(resized / 9, 4.0))
    assert not torch.allclose(pooled.anomaly_maps(images), plain.anomaly_maps(images), rtol=1e-2)


def test_pooling_stands_equal_maps() -> None:
    maps = [torch.randn(1, 4, size, size) for size in (8, 4, 2)]
    found = anomaly_maps(maps, maps, (32, 32), pooling=3)
    assert found.isfinite().all()
    assert found.abs().max() < 1e-5


@pytest.mark.parametrize("side", [0, 2, 17, -1])
def test_a_square_without_a_middle(side: int) -> None:
    with pytest.raises(ConfigError, match=rf"^fine_pooling must be odd, 1 to 15; got {side}$"):
        ModelConfig(fine_pooling=side)


def test_damping_needs_recentring() -> None:
    with pytest.raises(ConfigError, match=r"^damping needs recentre = true; got 0.25 without it$"):
        ModelConfig(damping=0.25)


def test_masking_hides_whole_positions() -> None:
    torch.manual_seed(0)
    model = build(ModelConfig.from_mapping({**SMALL.to_mapping(), "neck_masking": 0.5}))
    seen: list[torch.Tensor] = []
    model.decoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    features = model.encode(torch.randn(8, 3, 64, 64))
    model.decode(features)
    hidden = (seen[0] == 0).all(1)
    assert torch.equal(hidden, (seen[0] == 0).float().mean(1) > 0.99)
    assert 0.2 < hidden.float().mean() < 0.8
    model.eval()
    model.decode(features)
    assert not (seen[1] == 0).all(1).any()


def test_masking_leaves_something_of_every_picture() -> None:
    torch.manual_seed(0)
    seen = _seen(torch.zeros(64, 3, 2, 2), 0.99)
    assert set(seen.unique().tolist()) == {0.0, 1.0}
    assert (seen.sum((1, 2, 3)) >= 1).all()
    shares = [float(_seen(torch.zeros(8, 3, 32, 32), h).mean()) for h in (0.0, 0.3)]
    assert shares[0] == 1.0
    # 8 192 draws: four deviations of their mean
    assert abs(shares[1] - 0.7) < 4 * (0.3 * 0.7 / 8192) ** 0.5


def test_noise_and_dropout_are_in_training_only() -> None:
    settings = {**SMALL.to_mapping(), "drop_path": 0.0}
    for change in ({"neck_dropout": 0.5}, {"neck_noise": 20.0}, {"neck_masking": 0.5}):
        torch.manual_seed(0)
        model = build(ModelConfig.from_mapping({**settings, **change}))
        features = model.encode(torch.randn(2, 3, 64, 64))
        first, second = model.decode(features)[0], model.decode(features)[0]
        assert not torch.equal(first, second)
        model.eval()
        assert torch.equal(model.decode(features)[0], model.decode(features)[0])
