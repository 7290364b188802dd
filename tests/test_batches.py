"""Batches: the order of pictures, and the feed's buffers, which here lie on the CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mambaad.batches import AHEAD, Batches, Feed
from mambaad.data import PictureStore
from mambaad.data.tensors import DevicePictures, FeatureStore
from mambaad.errors import ImageError

CPU, META = torch.device("cpu"), torch.device("meta")


def encode(images: Tensor) -> list[Tensor]:
    return [images * 2, images[:, :1, ::2, ::2]]


@pytest.fixture
def data(tiny_data: Path) -> Batches:
    paths = sorted((tiny_data / "metal" / "train").rglob("*.png"))
    return Batches(PictureStore(paths[:5], (32, 64)), 2, 7, CPU)


def test_every_epoch_has_its_own_order_without_repeats(data: Batches) -> None:
    assert data.per_epoch == 2
    orders = [data.order(epoch) for epoch in range(4)]
    assert all(len(set(order.ravel().tolist())) == 4 for order in orders)
    assert any((orders[0] != order).any() for order in orders[1:])
    steps = [data.indices(step).tolist() for step in range(4)]
    assert steps == [*orders[0].tolist(), *orders[1].tolist()]


def test_a_set_smaller_than_a_batch_is_one_batch(data: Batches) -> None:
    data.size = 64
    assert sorted(data.indices(3).tolist()) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("kept", ["features", "channels last", "device pictures", "none"])
def test_the_feed_gives_what_loading_gives_in_the_same_buffers(data: Batches, kept: str) -> None:
    plain = Batches(data.store, data.size, data.seed, CPU)
    if kept in ("features", "channels last"):
        last = kept == "channels last"
        data.features = plain.features = FeatureStore(
            data.store, encode, CPU, channels_last=last, batch_size=2
        )
    elif kept == "device pictures":
        data.pictures = DevicePictures(data.store, CPU, batch_size=2)
    feed = Feed(data)
    places = set()
    for step in (0, 1, 2, 3, 1):  # through an epoch's end, and back as after a fresh start
        feed.fill(step)
        images, maps = feed.inputs()
        expected_images, expected_maps = plain.load(step)
        if expected_images is not None:
            assert images is not None
            assert torch.equal(images, expected_images)
        for a, b in zip(maps or [], expected_maps or [], strict=True):
            assert torch.equal(a, b)
            assert a.is_contiguous(memory_format=torch.channels_last) or kept == "features"
        assert (images is None) == (expected_images is None)
        places.add(tuple(buffer.data_ptr() for buffer in feed._buffers))
    assert len(places) == 1
    feed.close()


@pytest.mark.parametrize("last", [False, True])
def test_features_of_the_host_are_brought_by_the_thread(data: Batches, last: bool) -> None:
    # a store whose home is another kind of device than the network's is copied row by row
    features = FeatureStore(data.store, encode, CPU, channels_last=last, batch_size=2)
    expected = features[data.indices(1)]
    features.home = META
    data.features = features
    feed = Feed(data)
    feed.fill(1)
    images, maps = feed.inputs()
    assert images is None
    assert maps is not None
    assert all(torch.equal(a, b) for a, b in zip(maps, expected, strict=True))
    feed.close()


def test_an_unreadable_picture_is_raised_where_it_is_needed(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.png" for i in range(2)]
    for path in paths:
        path.write_bytes(b"no picture")
    feed = Feed(Batches(PictureStore(paths, (32, 32), "none"), 1, 0, CPU))
    with pytest.raises(ImageError, match=r"\.png"):
        feed.fill(0)
    feed.close()


def test_an_epoch_is_uploaded_once(data: Batches, monkeypatch: pytest.MonkeyPatch) -> None:
    data.pictures = DevicePictures(data.store, CPU)
    feed, asked = Feed(data), []
    original = Batches.order

    def order(self: Batches, epoch: int) -> np.ndarray:
        asked.append(epoch)
        return original(self, epoch)

    monkeypatch.setattr(Batches, "order", order)
    for step in range(4):
        feed.fill(step)
    assert asked == [0, 1]


def test_batches_are_prepared_ahead_and_no_further(
    data: Batches, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared: list[int] = []
    original = Feed._prepare

    def prepare(self: Feed, step: int) -> list[Tensor]:
        prepared.append(step)
        return original(self, step)

    monkeypatch.setattr(Feed, "_prepare", prepare)
    feed = Feed(data)
    for step in (5, 6, 7):
        feed.fill(step)
    for _, future in feed._coming:
        future.result()
    assert sorted(prepared) == list(range(5, 8 + AHEAD))
    feed.close()


def test_the_caller_owns_the_indices(data: Batches) -> None:
    first = data.indices(0)
    expected = first.tolist()
    first[:] = 0
    assert data.indices(0).tolist() == expected
