"""What is made of the pictures: of the right range, varied, and the same for the same seed."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import pytest
import torch
from distilling import distil_scripts
from torch import Tensor


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    with distil_scripts() as scripts:
        yield scripts["distil_augment"]


CPU = torch.device("cpu")


def tiles(count: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)


def test_batches(script: ModuleType) -> None:
    def batch(seed: int) -> Tensor:
        augment = script.Augment([tiles(5), tiles(3, 1)], script.Draw(CPU, seed))
        found: Tensor = augment.batch(6, 48)
        return found

    first = batch(0)
    assert first.shape == (6, 3, 48, 48)
    assert first.dtype == torch.float32
    assert 0 <= first.min() < first.max() <= 1
    assert torch.equal(first, batch(0))
    assert not torch.equal(first, batch(1))
    levels = 255 * first
    torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-4)


def test_a_small_source_is_seen_oftener_for_its_size(script: ModuleType) -> None:
    sources = [torch.full((n, 3, 8, 8), i, dtype=torch.uint8) for i, n in enumerate((400, 100))]
    augment = script.Augment(sources, script.Draw(CPU, 0))
    drawn = torch.searchsorted(augment.shares, torch.rand(4000))
    share = (drawn >= 400).float().mean()
    assert share == pytest.approx(1 / 3, abs=0.03)  # 10 : 20
    assert int(drawn.max()) == 499


def test_crops_are_pieces_of_one_picture(script: ModuleType) -> None:
    """Reflected at the edges, so nothing else than the picture is seen."""
    augment = script.Augment([tiles(2)], script.Draw(CPU, 0))
    pictures = torch.stack([torch.full((3, 32, 32), 0.25), torch.full((3, 32, 32), 0.75)])
    found = augment._crop(pictures, 64)
    torch.testing.assert_close(found, pictures[:, :, :1, :1].expand_as(found))


def test_clouds_are_smooth_or_rough(script: ModuleType) -> None:
    found = script.clouds(16, 32, script.Draw(CPU, 0))
    assert found.shape == (16, 3, 32, 32)
    assert (found >= 0).all()
    assert (found <= 1).all()
    steps = (found[..., 1:] - found[..., :-1]).std((1, 2, 3)) / found.std((1, 2, 3))
    assert steps.max() > 2 * steps.min()


def test_leaves_cover_what_is_below(script: ModuleType) -> None:
    black = torch.zeros(8, 3, 32, 32)
    found = script.leaves(black, 20, script.Draw(CPU, 0))
    assert 0 <= found.min() < found.max() <= 1
    assert (found.amax((1, 2, 3)) > 0.1).all()
    assert torch.equal(script.leaves(black, 0, script.Draw(CPU, 0)), black)


def test_the_pool(script: ModuleType) -> None:
    pool = script.drawn_pool(tiles(3), 70, script.Draw(CPU, 0), layers=3)
    assert pool.shape == (70, 3, 32, 32)
    assert pool.dtype == torch.uint8
    assert len({p.numpy().tobytes() for p in pool}) == 70


def test_blur_and_sharpen_keep_the_mean(script: ModuleType) -> None:
    flat = torch.full((4, 3, 24, 24), 0.3)
    torch.testing.assert_close(script.soften(flat, script.Draw(CPU, 0)), flat)
    spot = torch.zeros(1, 3, 33, 33)
    spot[:, :, 16, 16] = 1
    blurred = script._gauss(spot, 2.0)
    assert blurred.sum((2, 3)).tolist()[0] == pytest.approx([1.0] * 3)
    assert blurred[0, 0, 16, 16] == pytest.approx(1 / (2 * torch.pi * 4), rel=0.05)


def test_mixing_brings_in_another_picture(script: ModuleType) -> None:
    x = torch.stack([torch.zeros(3, 16, 16), torch.ones(3, 16, 16)])
    found = script.mix(x, script.Draw(CPU, 0), share=1.0)
    assert 0 < found[0].max() <= 1
    assert 0 <= found[1].min() < 1
    assert torch.equal(script.mix(x, script.Draw(CPU, 0), share=0.0), x)
