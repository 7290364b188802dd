"""Losses and mining against their definitions in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mambaad.model.losses import EASY, LARGEST, RebuildingLoss, rebuilding_loss, scale_gradient
from mambaad.train_config import LossName, Mining, TrainConfig

SHAPES = ((2, 5, 6, 4), (2, 7, 3, 2), (2, 4, 2, 2))


def maps(dtype: torch.dtype = torch.float64) -> tuple[list[Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(0)

    def draw() -> list[Tensor]:
        return [torch.randn(s, generator=generator, dtype=dtype) for s in SHAPES]

    student, teacher = draw(), draw()
    return [s.requires_grad_() for s in student], teacher


def of_scale(kind: LossName, s: Tensor, t: Tensor) -> Tensor:
    if kind == "mse":
        return ((s - t) ** 2).mean()
    if kind == "cosine":
        return (1 - torch.cosine_similarity(s, t, dim=1)).mean()
    return (1 - torch.cosine_similarity(s.flatten(1), t.flatten(1), dim=1)).mean()


@pytest.mark.parametrize("kind", ["mse", "cosine", "global-cosine"])
def test_losses_by_scale(kind: LossName) -> None:
    student, teacher = maps()
    loss = RebuildingLoss(kind, weight=3.0, scale_weights=(1.0, 0.0, 2.0))
    parts = loss(student, teacher)
    assert list(parts) == ["stride4", "stride8", "stride16"]
    found = torch.stack(list(parts.values()))
    values = [of_scale(kind, s, t) for s, t in zip(student, teacher, strict=True)]
    expected = torch.stack([3 * values[0], 0 * values[1], 6 * values[2]])
    torch.testing.assert_close(found, expected)
    gradients = torch.autograd.grad(found.sum(), student)
    for a, b in zip(gradients, torch.autograd.grad(expected.sum(), student), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("kind", ["mse", "cosine", "global-cosine"])
@pytest.mark.parametrize("mining", ["hardest", "adaptive"])
def test_mining_scales_gradients_and_leaves_the_loss(kind: LossName, mining: Mining) -> None:
    student, teacher = maps()
    plain = RebuildingLoss(kind)(student, teacher)
    loss = RebuildingLoss(kind, mining=mining, mining_share=0.7, mining_ramp=0.5)
    loss.set_progress(0.25)  # half of the share
    mined = loss(student, teacher)
    assert {n: float(v.detach()) for n, v in mined.items()} == {
        n: pytest.approx(float(v.detach())) for n, v in plain.items()
    }
    wanted = torch.autograd.grad(sum(plain.values()), student)
    found = torch.autograd.grad(sum(mined.values()), student)
    for s, t, before, after in zip(student, teacher, wanted, found, strict=True):
        d = (1 - torch.cosine_similarity(s, t, dim=1)).detach()
        if mining == "adaptive":
            factor = (d / d.mean()).clamp(max=LARGEST)
        else:
            rank = d.flatten().argsort().argsort().view_as(d)
            factor = torch.where(rank < int(0.35 * (d.numel() - 1)), EASY, 1.0).double()
            assert 0 < (factor < 1).sum() < d.numel() / 2
        torch.testing.assert_close(after, before * factor.unsqueeze(1))


def test_the_share_rises_to_its_end() -> None:
    loss = RebuildingLoss(mining="hardest", mining_share=0.5, mining_ramp=0.1)
    shares, place = [], loss._share.data_ptr()
    for done in (0.0, 0.05, 0.1, 0.7):
        loss.set_progress(done)
        shares.append(float(loss._share))
    assert shares == pytest.approx([0.0, 0.25, 0.5, 0.5])
    assert loss._share.data_ptr() == place  # a CUDA graph reads it there
    at_once = RebuildingLoss(mining="hardest", mining_share=0.5, mining_ramp=0.0)
    assert float(at_once._share) == 0.5
    assert loss.state_dict() == {}


def test_in_16_bits_sums_are_wide() -> None:
    student, teacher = maps(torch.float32)
    narrow = [s.detach().bfloat16().requires_grad_() for s in student]
    rounded = [t.bfloat16() for t in teacher]
    for kind in ("mse", "cosine", "global-cosine"):
        loss = RebuildingLoss(kind, mining="adaptive")  # type: ignore[arg-type]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = loss(narrow, rounded)
        wide = loss([s.detach().float() for s in narrow], [t.float() for t in rounded])
        for name, value in found.items():
            assert value.dtype == torch.float32
            torch.testing.assert_close(value, wide[name], rtol=1e-6, atol=1e-6)
        sum(found.values()).backward()
    assert all(s.grad is not None and s.grad.dtype == torch.bfloat16 for s in narrow)


def test_the_published_loss_is_the_networks_own() -> None:
    assert rebuilding_loss(TrainConfig()) is None
    loss = rebuilding_loss(TrainConfig(loss="cosine", loss_weight=2.0))
    assert loss is not None
    assert (loss.kind, loss.weight) == ("cosine", 2.0)
    for settings in ({"mining": "adaptive"}, {"scale_weights": (1.0, 1.0, 0.5)}):
        assert rebuilding_loss(TrainConfig.from_mapping(settings)) is not None


def test_a_scaled_gradient() -> None:
    x = torch.ones(2, 3, requires_grad=True)
    y = scale_gradient(x, torch.tensor([[1.0], [0.5]]))
    assert torch.equal(x, y)
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [[1.0] * 3, [0.5] * 3]


def test_damping_weighs_points_by_the_teachers_length() -> None:
    student, teacher = maps()
    found = RebuildingLoss("cosine", weight=1.0, damping=0.5)(student, teacher)
    for part, s, t in zip(found.values(), student, teacher, strict=True):
        length, usual = t.square().sum(1), t.shape[1]
        damped = (1 - torch.cosine_similarity(s, t)) * length / (length + usual / 2)
        torch.testing.assert_close(part, damped.mean())
    whole = RebuildingLoss("global-cosine", weight=1.0, damping=0.5)(student, teacher)
    plain = RebuildingLoss("global-cosine", weight=1.0)(student, teacher)
    assert all(torch.equal(whole[name], plain[name]) for name in whole)


def test_mining_sees_damped_distances() -> None:
    """Of two points rebuilt as badly, the one of a short vector counts as easy."""
    teacher = torch.tensor([[1.0, 0.01], [0.0, 0.0]]).view(1, 2, 1, 2)
    student = teacher.flip(1).requires_grad_()
    plain = RebuildingLoss("mse")([student] * 3, [teacher] * 3)["stride4"]
    (whole,) = torch.autograd.grad(plain, student)
    for damping, pulls in ((0.0, [1.0, 1.0]), (0.5, [1.0, EASY])):
        loss = RebuildingLoss(
            "mse", mining="hardest", mining_share=1.0, mining_ramp=0.0, damping=damping
        )
        (mined,) = torch.autograd.grad(loss([student] * 3, [teacher] * 3)["stride4"], student)
        assert (mined / whole)[0, 0, 0].tolist() == pytest.approx(pulls)
