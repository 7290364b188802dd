"""The score of a picture, from its anomaly map.

    top = 0    the map's maximum                                                   as published
    top > 0    the mean of that share of its pixels, the highest ones, at least of one

The mean of the top 1 % is Dinomaly's (Guo et al. 2025, arXiv 2405.14325); one pixel decides less.
The mean is computed in 64 bits and rounded once, so that it is the same number in any order of
summing: scores of a GPU can be held against thresholds made here. A method says in its attribute
``score_top`` how it is scored; all that score ask it, so training, test and prediction agree.
"""

from __future__ import annotations

import torch
from torch import Tensor


def score_top_of(method: object) -> float:
    """Which share of a map's highest pixels a method's score is the mean of; 0: the maximum."""
    return float(getattr(method, "score_top", 0.0))


def device_scores(maps: Tensor, top: float) -> Tensor:
    """Scores, (B,), of anomaly maps, where they are: on a GPU without waiting for it.

    Args:
        maps: (B, H, W).
        top: From ``score_top_of``. The mean is of at least one pixel.
    """
    if not top:
        return maps.amax((1, 2))
    flat = maps.flatten(1)
    pixels = flat.shape[1]
    highest = flat.topk(min(pixels, max(1, round(top * pixels))), dim=1).values
    return highest.mean(dim=1, dtype=torch.float64).float()
