"""The learning rate over a training, as a factor on the recipe's rate; a pure function of the step.

    step     1, then ``decay_factor`` from ``decay_at`` of the epochs on            as published
    cosine   decay_factor + (1 - decay_factor) (1 + cos πx) / 2, x the share that is done

In both the first ``warmup`` of the steps rise linearly, and the cosine begins after them. Cosine
decay: Loshchilov & Hutter 2017, SGDR, arXiv 1608.03983, without its restarts.
"""

from __future__ import annotations

import math

from mambaad.train_config import TrainConfig


def rate_factor(config: TrainConfig, index: int, per_epoch: int) -> float:
    """What the rate is multiplied by in a step.

    >>> config = TrainConfig(epochs=10, schedule="cosine", warmup=0.2, decay_factor=0.0)
    >>> [round(rate_factor(config, index, 1), 2) for index in range(10)]
    [0.5, 1.0, 1.0, 0.96, 0.85, 0.69, 0.5, 0.31, 0.15, 0.04]

    Args:
        config: The recipe.
        index: The step, 0 for the first.
        per_epoch: Steps in an epoch.

    Returns:
        Between 0 and 1.
    """
    total = config.epochs * per_epoch
    rising = int(config.warmup * total)
    if index < rising:
        return (index + 1) / rising
    if config.schedule == "step":
        decay_step = max(1, int(config.decay_at * config.epochs)) * per_epoch
        return config.decay_factor if index >= decay_step else 1.0
    done = (index - rising) / max(1, total - rising)
    return config.decay_factor + (1 - config.decay_factor) * (1 + math.cos(math.pi * done)) / 2
