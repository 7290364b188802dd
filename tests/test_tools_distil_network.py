"""What learns: folded it computes the same, its mean follows it, its loss is zero at the goal."""

from __future__ import annotations

import copy
import doctest
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch
from distilling import distil_scripts


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    with distil_scripts() as scripts:
        yield scripts["distil_network"]


def test_examples(script: ModuleType) -> None:
    assert doctest.testmod(script).failed == 0


def test_folding_changes_nothing(script: ModuleType) -> None:
    torch.manual_seed(0)
    student = script.Student()
    for _ in range(3):  # statistics that are not those it began with
        student(torch.randn(2, 3, 32, 32))
    student.eval()
    images = torch.randn(2, 3, 64, 48)
    with torch.no_grad():
        for found, expected in zip(student.folded()(images), student(images), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
            assert expected.any()


def test_it_begins_near_the_teacher(script: ModuleType) -> None:
    torch.manual_seed(0)
    student = script.Student()
    means = [torch.full((c,), 5.0 + i) for i, c in enumerate((64, 128, 256))]
    deviations = [torch.full((c,), 0.5) for c in (64, 128, 256)]
    student.start_near(means, deviations)
    with torch.no_grad():
        found = student(torch.randn(2, 3, 64, 64))
    for maps, mean in zip(found, means, strict=True):
        per_channel = maps.mean((0, 2, 3))
        torch.testing.assert_close(per_channel, mean, rtol=1e-3, atol=1e-3)
        assert float(maps.std()) == pytest.approx(0.5, rel=0.02)


def test_the_mean_over_time(script: ModuleType) -> None:
    torch.manual_seed(0)
    student = script.Student()
    average = script.Average(student, 0.5)
    before = copy.deepcopy(student.state_dict())
    with torch.no_grad():
        for parameter in student.parameters():
            parameter += 1
    for _ in range(2):
        average.follow(student)
    kept = (1 / 11) * (2 / 12)  # at first less is kept than the decay says
    for name, tensor in average.network.named_parameters():
        torch.testing.assert_close(tensor, before[name] + 1 - kept)
    assert not any(p.requires_grad for p in average.network.parameters())


def test_the_loss(script: ModuleType) -> None:
    wanted = torch.rand(2, 4, 3, 3) + 0.1
    deviation = torch.tensor([0.5, 1.0, 2.0, 4.0])
    assert script.stage_loss(wanted, wanted, deviation) == pytest.approx(0, abs=1e-6)
    # twice as large: no angle, and the mean of (t / σ)²
    expected = (wanted / deviation.view(-1, 1, 1)).square().mean()
    assert script.stage_loss(2 * wanted, wanted, deviation) == pytest.approx(float(expected))
    one, other = torch.zeros(1, 4, 1, 1), torch.zeros(1, 4, 1, 1)
    one[0, 0], other[0, 1] = 1, 1
    right_angle = (1 / 0.5**2 + 1) / 4 + script.ANGLE
    assert script.stage_loss(one, other, deviation) == pytest.approx(right_angle)
