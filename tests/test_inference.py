"""Running a network over pictures in batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mambaad.data import PictureStore
from mambaad.inference import anomaly_maps, batches, picture_scores

CPU = torch.device("cpu")


class Red:
    """Anomaly = the normalised red channel."""

    def anomaly_maps(self, images: Tensor) -> Tensor:
        return images[:, 0]


@pytest.fixture
def store(tiny_data: Path) -> PictureStore:
    return PictureStore(sorted((tiny_data / "metal" / "train").rglob("*.png")), (32, 48))


def test_batches_go_through_all_pictures_in_order(store: PictureStore) -> None:
    calls: list[tuple[int, int]] = []
    parts = list(
        batches(Red(), store, CPU, batch_size=4, progress=lambda d, n: calls.append((d, n)))
    )
    assert [p[0].tolist() for p in parts] == [[0, 1, 2, 3], [4, 5]]
    assert calls == [(4, 6), (6, 6)]
    pictures = store[np.arange(6)]
    assert np.array_equal(np.concatenate([p[1] for p in parts]), pictures)
    maps = anomaly_maps(Red(), pictures, CPU)
    assert np.array_equal(np.concatenate([p[2] for p in parts]), maps)
    assert picture_scores(maps).tolist() == [m.max() for m in maps]


def test_chosen_pictures_only(store: PictureStore) -> None:
    parts = list(batches(Red(), store, CPU, indices=[5, 1]))
    assert parts[0][0].tolist() == [5, 1]
    assert np.array_equal(parts[0][1], store[[5, 1]])
