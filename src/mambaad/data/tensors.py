"""From prepared pictures to what the network takes: normalised tensors, and kept features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mambaad.config import IMAGENET_MEAN, IMAGENET_STD
from mambaad.data.cache import PictureStore, Progress

Encode = Callable[[Tensor], Sequence[Tensor]]


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
        pictures: PictureStore,
        encode: Encode,
        device: torch.device,
        *,
        batch_size: int = 16,
        progress: Progress | None = None,
    ) -> None:
        """Decode and encode every picture.

        Raises:
            ImageError: At the first picture that cannot be read.
        """
        self.maps: list[Tensor] = []
        for start in range(0, len(pictures), batch_size):
            indices = np.arange(start, min(start + batch_size, len(pictures)))
            for scale, part in enumerate(encode(to_tensor(pictures[indices], device))):
                if start == 0:
                    self.maps.append(
                        torch.empty((len(pictures), *part.shape[1:]), dtype=part.dtype)
                    )
                self.maps[scale][start : start + len(indices)] = part.cpu()
            if progress is not None:
                progress(int(indices[-1]) + 1, len(pictures))

    def __getitem__(self, indices: NDArray[np.integer]) -> list[Tensor]:
        """The maps of some pictures, each (B, C_i, H_i, W_i), on the CPU."""
        chosen = torch.from_numpy(np.asarray(indices, dtype=np.int64))
        return [maps[chosen] for maps in self.maps]


def feature_bytes(encode: Encode, size: tuple[int, int], device: torch.device) -> int:
    """Bytes of one picture's maps, found by encoding a black picture."""
    maps = encode(to_tensor(np.zeros((1, *size, 3), np.uint8), device))
    return sum(m.numel() * m.element_size() for m in maps)
