"""Scores of maps, on the host and on a device."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mambaad import inference
from mambaad.inference import Scorer, batches, score_pictures
from mambaad.scores import device_scores, score_top_of
from mambaad.tiling import Tiling

CPU = torch.device("cpu")


def host_scores(maps: np.ndarray, top: float) -> np.ndarray:
    """The definition, without torch: another order of the pixels and of the sum."""
    flat = np.sort(maps.reshape(len(maps), -1), axis=1)
    count = min(flat.shape[1], max(1, round(top * flat.shape[1])))
    scores: np.ndarray = flat[:, -count:].mean(axis=1, dtype=np.float64).astype(np.float32)
    return scores


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
    found = device_scores(torch.from_numpy(maps), top).numpy()
    assert found.dtype == np.float32
    assert np.array_equal(found, host_scores(maps, top))
    ordered = np.sort(maps.reshape(count, -1).astype(np.float64))[:, ::-1]
    pixels = min(side * 7, max(1, round(top * side * 7))) if top else 1
    assert found == pytest.approx(ordered[:, :pixels].mean(axis=1), rel=1e-6)


def test_who_says_nothing_is_scored_by_the_maximum() -> None:
    assert score_top_of(object()) == 0.0
    maps = torch.tensor([[[1.0, 4.0], [3.0, 2.0]]])
    assert device_scores(maps, 0.0).tolist() == [4.0]
    assert device_scores(maps, 0.5).tolist() == [3.5]
    assert device_scores(maps, 0.01).tolist() == [4.0]


class Pictures:
    """A store of random pictures."""

    size = (64, 96)

    def __init__(self) -> None:
        shape = (3, *self.size, 3)
        self.pictures = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)

    def path(self, index: int) -> Path:
        return Path(f"{index}.png")

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        found: np.ndarray = self.pictures[indices]
        return found


@pytest.mark.parametrize("tiling", [None, Tiling((64, 96), (32, 32), 0.25)])
def test_every_way_of_scoring_takes_the_methods_own(tiling: Tiling | None) -> None:
    store = Pictures()
    maps, scores = Scorer(Red(0.1), CPU, tiling=tiling)(store.pictures)
    assert scores.tolist() == host_scores(maps, 0.1).tolist()
    assert scores.tolist() == score_pictures(Red(0.1), store, CPU, tiling=tiling)
    assert all(scores < maps.max((1, 2)))


class Rising(Red):
    """Higher towards the right of a tile, so that neighbours differ where they overlap."""

    def anomaly_maps(self, images: torch.Tensor) -> torch.Tensor:
        return (images[:, 0] * 0.229 + 0.485) * torch.arange(1.0, images.shape[3] + 1)


@pytest.mark.parametrize("top", [0.0, 0.1])
def test_a_tiled_picture_is_scored_by_its_blended_map(top: float) -> None:
    store, tiling = Pictures(), Tiling((64, 96), (64, 64), 0.5)
    assert tiling.columns == (0, 32)
    store.pictures[:, :, :32] = store.pictures[:, :, 64:] = 0  # bright where both tiles lie
    scorer, method = Scorer(Rising(top), CPU, tiling=tiling), Rising(top)
    maps, scores = scorer(store.pictures)
    tiles = [Scorer(method, CPU)(store.pictures[:, :, x : x + 64])[1] for x in tiling.columns]
    assert all(scores < np.maximum(*tiles))
    assert scores.tolist() == host_scores(maps, top).tolist()
    assert scores.tolist() == score_pictures(method, store, CPU, tiling=tiling)
    parts = list(batches(scorer, store, batch_size=2))
    assert np.array_equal(np.concatenate([p[1] for p in parts]), maps)
    assert np.array_equal(np.concatenate([p[2] for p in parts]), scores)


@pytest.mark.parametrize("tiling", [None, Tiling((64, 96), (32, 32), 0.25)])
def test_every_picture_is_scored_once_and_no_tile(
    monkeypatch: pytest.MonkeyPatch, tiling: Tiling | None
) -> None:
    scored: list[tuple[int, ...]] = []

    def noting(maps: torch.Tensor, top: float) -> torch.Tensor:
        scored.append(tuple(maps.shape))
        return device_scores(maps, top)

    monkeypatch.setattr(inference, "device_scores", noting)
    score_pictures(Red(0.1), Pictures(), CPU, tiling=tiling)
    assert scored == [(3, 64, 96)]
