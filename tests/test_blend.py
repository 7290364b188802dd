"""Blending tiles: exact where tiles agree, weighted as defined where they do not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mambaad.blend import Blend
from mambaad.data.tensors import normalise, to_tensor
from mambaad.inference import Scorer
from mambaad.tiling import Tiling, tile_weights

CPU = torch.device("cpu")


class Red:
    """Anomaly = the normalised red channel: every tile says the same of a pixel."""

    def anomaly_maps(self, images: Tensor) -> Tensor:
        return images[:, 0]


class Noted:
    """Another map for every tile, kept to be looked at."""

    def __init__(self) -> None:
        self.maps: list[Tensor] = []

    def __call__(self, tiles: Tensor) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(len(self.maps))
        made = torch.rand(tiles.shape[:3], generator=generator)
        self.maps += list(made)
        return (made,)


def pictures(count: int, size: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, *size, 3), dtype=np.uint8)


@given(
    st.tuples(st.integers(1, 24), st.integers(1, 24)),
    st.tuples(st.integers(0, 60), st.integers(0, 60)),
    st.floats(0, 0.9),
    st.integers(1, 3),
    st.integers(1, 9),
)
@settings(max_examples=60, deadline=None)
def test_a_tiled_map_equals_the_whole_one_to_the_bit(
    tile: tuple[int, int], more: tuple[int, int], overlap: float, count: int, at_once: int
) -> None:
    """For any sizes, of a method that says the same of a pixel in whichever tile it lies."""
    size = (tile[0] + more[0], tile[1] + more[1])
    images = torch.from_numpy(pictures(count, size))

    def red(tiles: Tensor) -> tuple[Tensor, ...]:
        return (normalise(tiles)[:, 0],)

    maps, scores = Blend(red, Tiling(size, tile, overlap), CPU, at_once)(images)
    assert torch.equal(maps, red(images)[0])
    assert torch.equal(scores, maps.amax((1, 2)))


def test_a_constant_picture_gives_the_untiled_map() -> None:
    images = np.full((1, 100, 130, 3), 77, np.uint8)
    for overlap in (0.0, 0.25, 0.8):
        tiled, score = Scorer(Red(), CPU, tiling=Tiling((100, 130), (32, 48), overlap))(images)
        whole, expected = Scorer(Red(), CPU)(images)
        assert np.array_equal(tiled, whole)
        assert np.array_equal(score, expected)


@pytest.mark.parametrize("at_once", [1, 3, 100])
def test_tiles_that_differ_are_weighed(at_once: int) -> None:
    tiling = Tiling((23, 31), (8, 12), 0.4)
    method = Noted()
    images = torch.zeros(1, 23, 31, 3, dtype=torch.uint8)
    maps, _ = Blend(method, tiling, CPU, at_once)(images)
    assert len(method.maps) == tiling.count
    rows = tile_weights(23, 8, tiling.rows)
    columns = tile_weights(31, 12, tiling.columns)
    expected = np.zeros((23, 31))
    for number, (y, x) in enumerate(tiling.corners):
        weights = np.outer(rows[number // len(columns)], columns[number % len(columns)])
        expected[y : y + 8, x : x + 12] += (
            weights[y : y + 8, x : x + 12] * method.maps[number].double().numpy()
        )
    np.testing.assert_allclose(maps[0], expected, atol=1e-6)


def test_normalised_images_and_a_stream_give_the_same() -> None:
    images = pictures(3, (40, 64))
    scorer = Scorer(Red(), CPU, tiling=Tiling((40, 64), (32, 32), 0.25))
    expected = to_tensor(images, CPU)[:, 0].numpy()
    assert np.array_equal(scorer.on_device(to_tensor(images, CPU))[0].numpy(), expected)
    streamed = [maps for maps, _ in scorer.stream([images[:1], images[1:]])]
    assert np.array_equal(np.concatenate(streamed), expected)


def test_another_size_than_tiled_is_refused() -> None:
    scorer = Scorer(Red(), CPU, tiling=Tiling((40, 64), (32, 32), 0.25))
    with pytest.raises(ValueError, match=r"pictures must be \(40, 64\) as tiled, got \(64, 40\)"):
        scorer(pictures(1, (64, 40)))
