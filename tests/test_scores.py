"""Scores of maps, on the host and on a device."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mambaad.inference import Scorer, score_pictures
from mambaad.scores import device_scores, picture_scores, score_top_of
from mambaad.tiling import Tiling

CPU = torch.device("cpu")


class Red:
    """Maps that are the red channel; scored by the mean of a share."""

    def __init__(self, top: float) -> None:
        self.score_top = top

    def anomaly_maps(self, images: torch.Tensor) -> torch.Tensor:
        return images[:, 0].float()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 99), st.floats(0, 1), st.integers(1, 3), st.integers(1, 40))
def test_host_and_device_agree_to_the_bit(seed: int, top: float, count: int, side: int) -> None:
    maps = np.random.default_rng(seed).random((count, side, 7), dtype=np.float32)
    found = picture_scores(maps, top)
    assert found.dtype == np.float32
    assert np.array_equal(found, device_scores(torch.from_numpy(maps), top).numpy())
    ordered = np.sort(maps.reshape(count, -1).astype(np.float64))[:, ::-1]
    pixels = min(side * 7, max(1, round(top * side * 7))) if top else 1
    assert found == pytest.approx(ordered[:, :pixels].mean(axis=1), rel=1e-6)


def test_who_says_nothing_is_scored_by_the_maximum() -> None:
    assert score_top_of(object()) == 0.0
    maps = np.array([[[1.0, 4.0], [3.0, 2.0]]], np.float32)
    assert picture_scores(maps).tolist() == [4.0]
    assert picture_scores(maps, 0.5).tolist() == [3.5]
    assert picture_scores(maps, 0.01).tolist() == [4.0]


class Pictures:
    """A store of random pictures."""

    size = (64, 96)

    def __init__(self) -> None:
        shape = (3, *self.size, 3)
        self.pictures = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, indices: np.ndarray) -> np.ndarray:
        return self.pictures[indices]


@pytest.mark.parametrize("tiling", [None, Tiling((64, 96), (32, 32), 0.25)])
def test_every_way_of_scoring_takes_the_methods_own(tiling: Tiling | None) -> None:
    store = Pictures()
    maps, scores = Scorer(Red(0.1), CPU, tiling=tiling)(store.pictures)
    assert scores.tolist() == picture_scores(maps, 0.1).tolist()
    assert scores.tolist() == score_pictures(Red(0.1), store, CPU, tiling=tiling)  # type: ignore[arg-type]
    assert all(scores < maps.max((1, 2)))
