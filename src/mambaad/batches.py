"""Which pictures each training step sees, and how they come to the network.

The order is a new permutation every epoch, drawn from seed and epoch alone; an incomplete last
batch is left out. On the CPU a batch is read when it is needed. On a GPU ``Feed`` hands it over
without stopping the host: picked out of a store on the GPU, or prepared by threads in pinned
memory while the steps before run.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mambaad.data.cache import Store
from mambaad.data.tensors import DevicePictures, FeatureStore, normalise, to_tensor

Inputs = tuple[Tensor | None, list[Tensor] | None]
"""Images, or kept features instead."""

AHEAD = 4
"""Batches that are prepared before they are needed, so that a slow one is made up for."""

READERS = 2
"""Threads that prepare them: one copies while the other waits for a disk."""


@dataclass
class Batches:
    """Training pictures in batches: which ones a step sees depends on seed and step alone."""

    store: Store
    size: int
    seed: int
    device: torch.device
    features: FeatureStore | None = None
    """The encoder's maps, if they are kept."""

    pictures: DevicePictures | None = None
    """The pictures, if they are kept on the device."""

    @property
    def per_epoch(self) -> int:
        """Steps in an epoch."""
        return max(1, len(self.store) // self.size)

    def order(self, epoch: int) -> NDArray[np.intp]:
        """The pictures of an epoch, both counted from 0: (steps, batch)."""
        order = _permutation(self.seed, epoch, len(self.store))
        return order[: self.per_epoch * self.size].reshape(self.per_epoch, -1)

    def indices(self, step: int) -> NDArray[np.intp]:
        """The pictures of a step, counted from 0."""
        epoch, batch = divmod(step, self.per_epoch)
        chosen: NDArray[np.intp] = self.order(epoch)[batch].copy()
        return chosen

    def load(self, step: int) -> Inputs:
        """The batch of a step, on the device."""
        indices = self.indices(step)
        if self.features is not None:
            return None, [maps.to(self.device) for maps in self.features[indices]]
        return to_tensor(self.store[indices], self.device), None


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, count: int) -> NDArray[np.intp]:
    """Kept, because every step asks for its epoch's, which takes as long as reading a batch."""
    order: NDArray[np.intp] = np.random.default_rng([seed, epoch]).permutation(count)
    order.setflags(write=False)
    return order


class Feed:
    """Hands batches to steps through buffers that stay where they are, as a CUDA graph needs."""

    def __init__(self, data: Batches) -> None:
        self._data = data
        self._table: tuple[int, Tensor] | None = None
        self._buffers: list[Tensor] = []
        self._coming: deque[tuple[int, Future[list[Tensor]]]] = deque()

    @cached_property
    def _threads(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(READERS, "mambaad-batch")

    @property
    def _resident(self) -> bool:
        features = self._data.features
        if features is not None:
            return features.home.type == self._data.device.type
        return self._data.pictures is not None

    def fill(self, step: int) -> None:
        """Bring a step's batch into the buffers, in the order of the device's queue.

        Raises:
            ImageError: If a picture cannot be read.
        """
        if self._resident:
            self._write([self._row(step)])
            return
        if self._coming and self._coming[0][0] != step:
            for _, future in self._coming:
                future.cancel()
            self._coming.clear()
        for later in range(step + len(self._coming), step + 1 + AHEAD):
            self._coming.append((later, self._threads.submit(self._prepare, later)))
        self._write(self._coming.popleft()[1].result())

    def inputs(self) -> Inputs:
        """What the network takes, made from the buffers; a CUDA graph may hold this."""
        features, pictures = self._data.features, self._data.pictures
        if self._resident and features is not None:
            return None, features.take(self._buffers[0])
        if pictures is not None:
            return normalise(pictures.take(self._buffers[0])), None
        if features is not None:
            return None, features.as_maps(self._buffers)
        return normalise(self._buffers[0]), None

    def close(self) -> None:
        """Let the threads end."""
        if "_threads" in self.__dict__:
            self._threads.shutdown(cancel_futures=True)
            self._coming.clear()

    def _write(self, tensors: list[Tensor]) -> None:
        if not self._buffers:
            self._buffers = [torch.empty_like(t, device=self._data.device) for t in tensors]
        for buffer, tensor in zip(self._buffers, tensors, strict=True):
            buffer.copy_(tensor, non_blocking=True)

    def _row(self, step: int) -> Tensor:
        """The indices of a step, on the device, where an epoch's lie together."""
        epoch, batch = divmod(step, self._data.per_epoch)
        if self._table is None or self._table[0] != epoch:
            order = self._pinned(torch.from_numpy(self._data.order(epoch).astype(np.int64)))
            self._table = (epoch, order.to(self._data.device, non_blocking=True))
        return self._table[1][batch]

    def _prepare(self, step: int) -> list[Tensor]:
        indices = self._data.indices(step)
        if self._data.features is not None:
            rows = self._data.features.rows(torch.from_numpy(indices.astype(np.int64)))
        else:
            rows = [torch.from_numpy(self._data.store[indices])]
        return [self._pinned(row) for row in rows]

    def _pinned(self, tensor: Tensor) -> Tensor:
        return tensor.pin_memory() if self._data.device.type == "cuda" else tensor
