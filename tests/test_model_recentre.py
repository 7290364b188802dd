"""Recentring: measured lines, and where the network uses them."""

from __future__ import annotations

import torch

from mambaad.config import ModelConfig
from mambaad.model import build
from mambaad.model.recentre import Recentring

SMALL = ModelConfig(encoder="filterbank", depths=(1, 1, 1, 1), directions=2)


def test_it_centres_and_scales_every_channel() -> None:
    generator = torch.Generator().manual_seed(0)
    batches = [
        [3 + 5 * torch.rand(n, c, 4, 4, generator=generator) for c in (3, 2)] for n in (4, 2)
    ]
    recentring = Recentring((3, 2))
    first = recentring(batches[0])
    assert all(torch.equal(a, b) for a, b in zip(first, batches[0], strict=True))
    recentring.measure(batches)
    for scale in range(2):
        found = torch.cat([recentring(b)[scale] for b in batches]).double()
        torch.testing.assert_close(found.mean((0, 2, 3)), torch.zeros(found.shape[1]).double(),
                                   rtol=0, atol=1e-5)  # fmt: skip
        deviation = found.var((0, 2, 3), unbiased=False).sqrt()
        torch.testing.assert_close(
            deviation, torch.ones(found.shape[1]).double(), rtol=1e-4, atol=0
        )
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


def test_noise_and_dropout_are_in_training_only() -> None:
    settings = {**SMALL.to_mapping(), "drop_path": 0.0}
    for change in ({"neck_dropout": 0.5}, {"neck_noise": 20.0}):
        torch.manual_seed(0)
        model = build(ModelConfig.from_mapping({**settings, **change}))
        features = model.encode(torch.randn(2, 3, 64, 64))
        first, second = model.decode(features)[0], model.decode(features)[0]
        assert not torch.equal(first, second)
        model.eval()
        assert torch.equal(model.decode(features)[0], model.decode(features)[0])
