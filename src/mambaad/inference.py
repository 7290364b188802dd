"""Running a trained network over pictures, batch by batch. Shared by calibration, evaluation and
prediction, so that a picture is prepared and scored in one way only.

    score of a picture = maximum of its anomaly map
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mambaad.data.cache import PictureStore, Progress
from mambaad.data.tensors import to_tensor

BATCH_SIZE = 8


class Method(Protocol):
    """What scoring needs of a method: pictures in, anomaly maps out."""

    def anomaly_maps(self, images: Tensor) -> Tensor:
        """Args: images (B, 3, H, W), normalised. Returns: float32, (B, H, W)."""
        ...


def anomaly_maps(
    method: Method, pictures: NDArray[np.uint8], device: torch.device
) -> NDArray[np.float32]:
    """Anomaly maps, (B, H, W), of prepared pictures, uint8 (B, H, W, 3)."""
    with torch.inference_mode():
        maps: NDArray[np.float32] = method.anomaly_maps(to_tensor(pictures, device)).cpu().numpy()
    return maps


def picture_scores(maps: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scores, (B,), of anomaly maps (B, H, W)."""
    scores: NDArray[np.float32] = maps.max(axis=(1, 2))
    return scores


def score_pictures(
    method: Method,
    store: PictureStore,
    device: torch.device,
    *,
    indices: Sequence[int] | None = None,
    progress: Progress | None = None,
) -> list[float]:
    """The scores of all pictures of a store, or of some.

    Raises:
        ImageError: At the first picture that cannot be read.
    """
    scores: list[float] = []
    for _, _, maps in batches(method, store, device, indices=indices, progress=progress):
        scores += picture_scores(maps).tolist()
    return scores


def batches(
    method: Method,
    store: PictureStore,
    device: torch.device,
    *,
    indices: Sequence[int] | None = None,
    batch_size: int = BATCH_SIZE,
    progress: Progress | None = None,
) -> Iterator[tuple[NDArray[np.intp], NDArray[np.uint8], NDArray[np.float32]]]:
    """Go through a store; yield indices, prepared pictures and anomaly maps of each batch.

    Raises:
        ImageError: At the first picture that cannot be read.
    """
    chosen = np.arange(len(store)) if indices is None else np.asarray(indices, dtype=np.intp)
    for start in range(0, len(chosen), batch_size):
        part = chosen[start : start + batch_size]
        pictures = store[part]
        yield part, pictures, anomaly_maps(method, pictures, device)
        if progress is not None:
            progress(start + len(part), len(chosen))
