"""From pictures to tensors, and kept features."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mambaad.data import IMAGENET_MEAN, IMAGENET_STD, PictureStore
from mambaad.data.tensors import (
    DevicePictures,
    FeatureStore,
    feature_bytes,
    free_device_memory,
    normalise,
    to_tensor,
)

CPU = torch.device("cpu")


@pytest.fixture
def store(tiny_data: Path) -> PictureStore:
    return PictureStore(sorted((tiny_data / "metal" / "train").rglob("*.png")), (32, 48))


def test_pictures_are_normalised_as_imagenet() -> None:
    pictures = np.zeros((1, 2, 2, 3), np.uint8)
    pictures[0, 0, 1] = (255, 0, 51)
    found = to_tensor(pictures, CPU)
    assert found.shape == (1, 3, 2, 2)
    expected = (np.array([1.0, 0.0, 0.2]) - IMAGENET_MEAN) / IMAGENET_STD
    assert found[0, :, 0, 1].tolist() == pytest.approx(expected.tolist(), abs=1e-6)


def test_features_are_kept_as_encoded(store: PictureStore) -> None:
    def encode(images: Tensor) -> list[Tensor]:
        return [images, images[:, :1, ::2, ::2]]

    features = FeatureStore(store, encode, CPU, batch_size=4)
    chosen = features[np.array([4, 0])]
    images = to_tensor(store[[4, 0]], CPU)
    assert torch.equal(chosen[0], images)
    assert torch.equal(chosen[1], images[:, :1, ::2, ::2])
    assert feature_bytes(encode, (32, 48), CPU) == 4 * (3 * 32 * 48 + 16 * 24)


def test_channels_last_maps_are_the_same_in_another_order(store: PictureStore) -> None:
    def encode(images: Tensor) -> list[Tensor]:
        return [images.bfloat16(), images[:, :2, ::2, ::2]]

    plain = FeatureStore(store, encode, CPU, batch_size=4)
    last = FeatureStore(store, encode, CPU, channels_last=True, batch_size=4)
    index = torch.tensor([5, 1, 1])
    for a, b in zip(plain.take(index), last.take(index), strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)
        assert a.is_contiguous()
        assert b.is_contiguous(memory_format=torch.channels_last)


def test_pictures_of_the_device_are_those_of_the_store(store: PictureStore) -> None:
    seen: list[tuple[int, int]] = []
    kept = DevicePictures(store, CPU, batch_size=4, progress=lambda d, n: seen.append((d, n)))
    found = kept.take(torch.tensor([5, 0]))
    assert found.dtype == torch.uint8
    assert torch.equal(normalise(found), to_tensor(store[[5, 0]], CPU))
    assert seen == [(4, 6), (6, 6)]


def test_the_cpu_has_no_memory_of_its_own() -> None:
    assert free_device_memory(CPU) is None
