"""From prepared pictures to what the network takes: normalised tensors, and what is kept of them.

What is kept lies in rows, one a picture, in the host's memory or the device's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mambaad.config import IMAGENET_MEAN, IMAGENET_STD
from mambaad.data.cache import Progress, Store

Encode = Callable[[Tensor], Sequence[Tensor]]

CPU = torch.device("cpu")


def to_tensor(pictures: NDArray[np.uint8], device: torch.device) -> Tensor:
    """Normalise pictures with ImageNet's mean and deviation.

    Args:
        pictures: uint8, (B, H, W, 3).
        device: Where the result goes; normalising happens there.

    Returns:
        float32, (B, 3, H, W).
    """
    return normalise(torch.from_numpy(pictures).to(device))


def normalise(pictures: Tensor) -> Tensor:
    """Normalise pictures with ImageNet's mean and deviation, on the device where they are.

    Nothing is copied from the host, so a CUDA graph can hold it.

    Args:
        pictures: uint8, (B, H, W, 3).

    Returns:
        float32, (B, 3, H, W).
    """
    mean, std = _imagenet(pictures.device)
    return (pictures.permute(0, 3, 1, 2).float() / 255 - mean) / std


@lru_cache(maxsize=16)
def _imagenet(device: torch.device) -> tuple[Tensor, Tensor]:
    with torch.inference_mode(False):  # so that training can use what prediction made first
        mean = torch.tensor(IMAGENET_MEAN, device=device).view(3, 1, 1)
        return mean, torch.tensor(IMAGENET_STD, device=device).view(3, 1, 1)


class FeatureStore:
    """The frozen encoder's maps of every picture, computed once and kept in memory."""

    def __init__(
        self,
        pictures: Store,
        encode: Encode,
        device: torch.device,
        *,
        home: torch.device = CPU,
        channels_last: bool = False,
        batch_size: int = 16,
        progress: Progress | None = None,
    ) -> None:
        """Decode and encode every picture.

        Args:
            pictures: The pictures.
            encode: From images (B, 3, H, W) to maps (B, C_i, H_i, W_i).
            device: Where ``encode`` runs.
            home: Where the maps are kept.
            channels_last: Keep and hand out maps with the channels of a pixel side by side.
            batch_size: Pictures encoded at once.
            progress: Called after each batch.

        Raises:
            ImageError: At the first picture that cannot be read.
        """
        self.home = home
        self._last = channels_last
        self._rows: list[Tensor] = []
        self._shapes: list[torch.Size] = []
        for start in range(0, len(pictures), batch_size):
            indices = np.arange(start, min(start + batch_size, len(pictures)))
            for scale, part in enumerate(encode(to_tensor(pictures[indices], device))):
                rows = part.permute(0, 2, 3, 1) if channels_last else part
                if start == 0:
                    size = (len(pictures), rows[0].numel())
                    self._rows.append(torch.empty(size, dtype=part.dtype, device=home))
                    self._shapes.append(rows.shape[1:])
                # blocking on purpose where the home is the host: pageable memory
                self._rows[scale][start : start + len(indices)] = rows.flatten(1).to(home)
            if progress is not None:
                progress(int(indices[-1]) + 1, len(pictures))

    def __getitem__(self, indices: NDArray[np.integer]) -> list[Tensor]:
        """The maps of some pictures, each (B, C_i, H_i, W_i), where they are kept."""
        return self.take(torch.from_numpy(np.asarray(indices, dtype=np.int64)).to(self.home))

    def take(self, index: Tensor) -> list[Tensor]:
        """The same for an index, int64 (B,), that lies where the maps are kept."""
        return self.as_maps(self.rows(index))

    def rows(self, index: Tensor) -> list[Tensor]:
        """The same as they are kept, each (B, C_i·H_i·W_i), to be copied and then ``as_maps``."""
        return [rows.index_select(0, index) for rows in self._rows]

    def as_maps(self, rows: Sequence[Tensor]) -> list[Tensor]:
        """Views of rows as maps (B, C_i, H_i, W_i)."""
        maps = [r.view(-1, *shape) for r, shape in zip(rows, self._shapes, strict=True)]
        return [m.permute(0, 3, 1, 2) for m in maps] if self._last else maps


class DevicePictures:
    """All prepared pictures as uint8 in a device's memory."""

    def __init__(
        self,
        pictures: Store,
        device: torch.device,
        *,
        batch_size: int = 64,
        progress: Progress | None = None,
    ) -> None:
        """Decode every picture, and copy it.

        Raises:
            ImageError: At the first picture that cannot be read.
        """
        self._shape = (*pictures.size, 3)
        row = int(np.prod(self._shape))
        self._rows = torch.empty((len(pictures), row), dtype=torch.uint8, device=device)
        for start in range(0, len(pictures), batch_size):
            end = min(start + batch_size, len(pictures))
            part = torch.from_numpy(pictures[np.arange(start, end)])
            self._rows[start:end] = part.flatten(1).to(device)
            if progress is not None:
                progress(end, len(pictures))

    def take(self, index: Tensor) -> Tensor:
        """Some pictures, uint8 (B, H, W, 3), for an index, int64 (B,), on the same device."""
        return self._rows.index_select(0, index).view(-1, *self._shape)


def feature_bytes(encode: Encode, size: tuple[int, int], device: torch.device) -> int:
    """Bytes of one picture's maps, found by encoding a black picture."""
    maps = encode(to_tensor(np.zeros((1, *size, 3), np.uint8), device))
    return sum(m.numel() * m.element_size() for m in maps)


def free_device_memory(device: torch.device) -> int | None:
    """Free bytes of a GPU's memory; None for a device that uses the host's."""
    return torch.cuda.mem_get_info(device.index)[0] if device.type == "cuda" else None
