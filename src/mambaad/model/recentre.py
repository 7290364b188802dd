"""The teacher's maps as deviations from what is usual in training, scale by scale.

    t' = (t - mean) / deviation

with the mean feature vector over all pixels of good training pictures, and one number for the
deviation: the root of the channels' mean variance. So the usual squared length of a vector is the
number of channels. After a ReLU all values are positive, so any two feature vectors point much the
same way and cosines tell little; deviations point everywhere. The student gets and rebuilds
deviations, and is compared with them. Dividing each channel by its own deviation was measured and
is worse: it makes much of channels that hold little but noise (LOG.md).

Recentring for models of many classes is from Dinomaly2 (arXiv 2510.17611), by each picture's own
class token; here it is by constants of the data set, since a CNN has no such token.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn


class Recentring(nn.Module):
    """A line for each channel; y = x until it is measured. Its values are saved with the weights.

    Args:
        channels: Of each scale.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self._count = len(channels)
        for i, width in enumerate(channels):
            self.register_buffer(f"gain{i}", torch.ones(1, 1, 1))
            self.register_buffer(f"shift{i}", torch.zeros(width, 1, 1))

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Args: maps (B, C_i, H_i, W_i). Returns: the same shapes and dtypes."""
        return [
            torch.addcmul(shift, m.to(shift.dtype), gain).to(m.dtype)
            for m, (gain, shift) in zip(maps, self._lines(), strict=True)
        ]

    @torch.no_grad()
    def measure(self, batches: Iterable[Sequence[Tensor]]) -> None:
        """Set the lines by good pictures.

        Args:
            batches: The encoder's maps, at least one batch.
        """
        counts = [0] * self._count
        sums = [torch.zeros(()).double()] * self._count
        squares = list(sums)
        for maps in batches:
            for i, part in enumerate(maps):
                values = part.detach().double()
                counts[i] += values[:, 0].numel()
                sums[i] = sums[i].to(values.device) + values.sum((0, 2, 3))
                squares[i] = squares[i].to(values.device) + values.square().sum((0, 2, 3))
        for (gain, shift), count, total, square in zip(
            self._lines(), counts, sums, squares, strict=True
        ):
            mean = total / count
            variance = (square / count - mean.square()).clamp_min(0.0).mean()
            slope = 1 / variance.sqrt().clamp_min(1e-12)
            gain.copy_(slope)
            shift.copy_((-mean * slope).view_as(shift))

    def _lines(self) -> list[tuple[Tensor, Tensor]]:
        return [
            (self.get_buffer(f"gain{i}"), self.get_buffer(f"shift{i}")) for i in range(self._count)
        ]
