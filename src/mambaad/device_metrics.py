"""The pixel metrics of ``mambaad.metrics`` computed by sorting on a device, in parts that fit.

The definitions are those of ``metrics.ranking``, ``metrics.regions`` and ``metrics.ader``, and the
results are equal to theirs up to the rounding of float64 sums. What is different is the way:

    1.  If the pixels do not fit the device, the range of scores is cut into bands, highest first.
        A histogram over the upper 16 bits of the scores says where to cut, so that equal scores
        are always in one band.
    2.  Of each band, the scores of anomalous and of normal pixels are sorted, and the normal ones
        are counted at the anomalous ones' distinct scores.
    3.  All metrics are sums, or a maximum, over those scores, so a band adds its share and hands
        on how many pixels were above. Only these few numbers leave the device.

Regions are found on the host, where 200 masks of 256 x 256 take 16 ms. A repeated run gives the
same bits: counts are whole numbers, and no float64 is summed in an order left to the device.

Letters: P anomalous pixels, M normal ones, K distinct scores of anomalous pixels in a band,
T thresholds of the protocol ``ader``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from mambaad.metrics.ader import (
    SCALED_THRESHOLDS,
    aupro_of_points,
    check_range,
    f1_max_of_counts,
    hundred_thresholds,
)
from mambaad.metrics.arrays import BoolArray, FloatArray, UndefinedMetricError
from mambaad.metrics.regions import region_weights
from mambaad.metrics.report import SORTED_METRICS, Outcome, Protocol, outcome
from mambaad.metrics.summary import STRICT_LIMIT

_BYTES = 256  # of free memory asked per pixel; about 35 to 140 are needed
_BUCKETS = 1 << 16
_ROW = 1024


def pixel_metrics(
    maps: FloatArray,
    masks: BoolArray,
    protocol: Protocol,
    limit: float,
    *,
    device: torch.device,
    room: int | None = None,
) -> Mapping[str, Outcome]:
    """``SORTED_METRICS`` on a device; a ``metrics.PixelMetrics`` once ``device`` is bound.

    Args:
        maps: (N, H, W), finite, float32 or float64.
        masks: (N, H, W).
        protocol: ``exact`` or ``ader``.
        limit: Largest false positive rate of AUPRO, in (0, 1].
        device: Where to sort.
        room: Pixels to sort at once; None takes what fits a CUDA device, and all elsewhere. Scores
            that agree in their upper 16 bits stay together even if there are more of them.

    Returns:
        The six metrics, or why one is undefined.
    """
    positives = int(np.count_nonzero(masks))
    negatives = masks.size - positives
    if not positives or not negatives:
        only = "anomalous" if positives else "normal"
        return dict.fromkeys(SORTED_METRICS, f"one class only: every pixel is {only}")
    weights, regions = region_weights(masks)
    if room is None:
        room = _room(device) if device.type == "cuda" else maps.size
    with torch.inference_mode():
        pixels = _Pixels(maps, masks, weights, device, room)
        tally = _Tally(positives, negatives, regions, limit)
        ader = _ader_tally(maps, device) if protocol == "ader" else None
        for low, high in pixels.bands():
            band = _sort_band(*pixels.band(low, high))
            tally.add(band)
            if isinstance(ader, _AderTally):
                ader.add(band)
    outcomes = tally.outcomes()
    if isinstance(ader, _AderTally):
        outcomes |= ader.outcomes(tally)
    elif ader is not None:
        outcomes |= dict.fromkeys(("pixel_F1max", "pixel_AUPRO"), ader)
    return outcomes


def _ader_tally(maps: FloatArray, device: torch.device) -> _AderTally | str:
    try:
        return _AderTally(maps.min(), maps.max(), device)
    except UndefinedMetricError as error:
        return str(error)


def _room(device: torch.device) -> int:
    free, _ = torch.cuda.mem_get_info(device)
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return max(1, free // _BYTES)


@dataclass(frozen=True)
class _Pixels:
    """Where pixels are taken from: arrays of the host, uploaded some pictures at a time."""

    maps: FloatArray
    masks: BoolArray
    weights: NDArray[np.float64]
    device: torch.device
    room: int

    def pieces(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Scores and masks, (n,), and the weights of the mask's pixels, of consecutive pictures."""
        count, height, width = self.maps.shape
        fits = self.maps.size <= self.room
        step = count if fits else max(1, self.room // (2 * height * width))
        begin = 0
        for start in range(0, count, step):
            mask = self.masks[start : start + step]
            end = begin + int(np.count_nonzero(mask))
            yield (
                self._upload(self.maps[start : start + step]),
                self._upload(mask),
                self._upload(self.weights[begin:end]),
            )
            begin = end

    def bands(self) -> list[tuple[int, int]]:
        """Ranges of buckets, highest first, that hold ``room`` pixels at most, or one bucket."""
        if self.maps.size <= self.room:
            return [(0, _BUCKETS)]
        counts = torch.zeros(_BUCKETS, dtype=torch.int64, device=self.device)
        for scores, _, _ in self.pieces():
            counts += torch.bincount(_buckets(scores), minlength=_BUCKETS)
        bands = []
        high, held = _BUCKETS, 0
        for bucket, here in reversed(list(enumerate(counts.tolist()))):
            if held and held + here > self.room:
                bands.append((bucket + 1, high))
                high, held = bucket + 1, 0
            held += here
        return [*bands, (0, high)]

    def band(self, low: int, high: int) -> tuple[Tensor, Tensor, Tensor]:
        """Scores of anomalous pixels, their weights, and scores of normal pixels in some buckets.

        Args:
            low: The first bucket.
            high: One after the last.
        """
        parts: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])
        for scores, mask, weights in self.pieces():
            positives, negatives = scores[mask], scores[~mask]
            if high - low < _BUCKETS:
                positives, weights = _within(positives, low, high, positives, weights)
                (negatives,) = _within(negatives, low, high, negatives)
            for held, part in zip(parts, (positives, weights, negatives), strict=True):
                held.append(part)
        positives, weights, negatives = (torch.cat(held) for held in parts)
        return positives, weights, negatives

    def _upload(self, part: FloatArray | BoolArray) -> Tensor:
        # torch takes no read-only array without a warning, so that one is copied
        return torch.from_numpy(np.require(part.ravel(), requirements="W")).to(self.device)


def _buckets(scores: Tensor) -> Tensor:
    """The upper 16 bits of each score as a whole number, 0 to 65535, that ascends with it."""
    bits, shift = (torch.int32, 16) if scores.dtype == torch.float32 else (torch.int64, 48)
    # adding 0 turns -0.0, which has other bits, into the equal 0.0
    top = ((scores + 0.0).view(bits) >> shift).to(torch.int32)
    return torch.where(top < 0, top ^ 0x7FFF, top) + 0x8000


def _within(scores: Tensor, low: int, high: int, *values: Tensor) -> list[Tensor]:
    bucket = _buckets(scores)
    inside = (bucket >= low) & (bucket < high)
    return [value[inside] for value in values]


@dataclass(frozen=True)
class _Band:
    """The sorted pixels of one band."""

    positives: Tensor
    """Scores in regions, ascending."""

    found: Tensor
    """float64, one longer: sums of the weights of the highest 0, 1, 2 ... of them."""

    negatives: Tensor
    """Scores of all other pixels, ascending."""


def _sort_band(positives: Tensor, weights: Tensor, negatives: Tensor) -> _Band:
    positives, order = positives.sort()
    found = F.pad(_running_sum(weights[order].flip(0)), (1, 0))
    return _Band(positives, found, negatives.sort().values)


def _running_sum(values: Tensor) -> Tensor:
    """``values.cumsum(0)`` in rows: a single long one is summed in no fixed order on CUDA."""
    rows = -(-len(values) // _ROW)
    table = F.pad(values, (0, max(2, rows) * _ROW - len(values))).view(-1, _ROW).cumsum(1)
    if rows > 1:
        table[1:] += _running_sum(table[:-1, -1].contiguous())[:, None]
    return table.flatten()[: len(values)]


def _count_above(ascending: Tensor, thresholds: Tensor) -> Tensor:
    return len(ascending) - torch.searchsorted(ascending, thresholds, right=True)


@dataclass
class _Tally:
    """The metrics' sums over the bands so far."""

    positives: int
    negatives: int
    regions: int
    limit: float

    tp: int = 0
    """Anomalous pixels in the bands so far."""
    fp: int = 0
    """Normal pixels in the bands so far."""
    corner: int = 0
    """Normal pixels at or above the lowest score of an anomalous pixel so far."""
    found: float = 0.0
    """Sum of the weights so far."""

    pairs: int = 0
    """Twice the pairs with the positive above the negative; once for a tie."""
    precision: float = 0.0
    f1: float = 0.0
    area: float = 0.0
    """Twice the area under the regions' curve, in normal pixels times regions."""
    strict_area: float = 0.0
    """The same up to a false positive rate of ``STRICT_LIMIT``."""

    def add(self, band: _Band) -> None:
        """Add a band whose scores are all under those of the bands before."""
        if len(band.positives):
            self._add_crossings(band)
        self.tp += len(band.positives)
        self.fp += len(band.negatives)

    def _add_crossings(self, band: _Band) -> None:
        scores = band.positives
        first = torch.ones(1, dtype=torch.bool, device=scores.device)
        starts = torch.cat((first, scores[1:] != scores[:-1])).nonzero().flatten().flip(0)
        levels = scores[starts]
        here = len(scores) - starts  # of this band, at or above each level
        above = self.fp + _count_above(band.negatives, levels)
        at = self.fp + len(band.negatives) - torch.searchsorted(band.negatives, levels)
        new = here.diff(prepend=here.new_zeros(1))
        pairs = (new * (2 * self.negatives - above - at)).sum()
        true = (self.tp + here).double()  # whole numbers would be divided in float32
        precision = (new * (true / (true + at))).sum()
        f1 = (2 * true / (true + at + self.positives)).max()
        found = self.found + band.found[here]
        areas = [self._area(above, at, found, limit) for limit in (self.limit, STRICT_LIMIT)]
        sums = torch.stack((precision, f1, found[-1], *areas)).tolist()
        self.pairs += int(pairs)
        self.corner = int(at[-1])
        self.precision += sums[0]
        self.f1 = max(self.f1, sums[1])
        self.found = sums[2]
        self.area += sums[3]
        self.strict_area += sums[4]

    def _area(self, above: Tensor, at: Tensor, found: Tensor, limit: float) -> Tensor:
        # from one level to the next the curve runs level up to `above`, then rises up to `at`
        allowed = limit * self.negatives
        before = F.pad(found[:-1], (1, 0), value=self.found)
        left = F.pad(at[:-1], (1, 0), value=self.corner).double().clamp(max=allowed)
        middle = above.double().clamp(max=allowed)
        width = at.double().clamp(max=allowed) - middle
        rise = (found - before) * width / (at - above).clamp(min=1)
        return (2 * before * (middle - left) + width * (2 * before + rise)).sum()

    def outcomes(self) -> dict[str, Outcome]:
        """The metrics, after the last band."""
        return {
            "pixel_AUROC": self.pairs / (2 * self.positives * self.negatives),
            "pixel_AP": self.precision / self.positives,
            "pixel_F1max": self.f1,
            "pixel_AUPRO": self._aupro(self.area, self.limit),
            "pixel_IoUmax": self.f1 / (2 - self.f1),
            "pixel_AUPRO05": self._aupro(self.strict_area, STRICT_LIMIT),
        }

    def _aupro(self, area: float, limit: float) -> float:
        allowed = limit * self.negatives
        area += 2 * self.found * (allowed - min(self.corner, allowed))
        return area / (2 * allowed * self.regions)


class _AderTally:
    """Counts over the bands so far at the thresholds of the protocol ``ader``."""

    def __init__(self, low: np.floating[Any], high: np.floating[Any], device: torch.device) -> None:
        """Make thresholds for scores from ``low`` to ``high``, both in the maps' type.

        Raises:
            UndefinedMetricError: If the two are equal.
        """
        check_range(low, high)
        thresholds = hundred_thresholds(low, high)
        # dividing by a number of the host, CUDA would multiply with its inverse
        self._low, self._range = (
            torch.from_numpy(np.array(value)).to(device) for value in (low, high - low)
        )
        self._steps = _at_or_under(SCALED_THRESHOLDS, low.dtype, device)
        self._levels = _at_or_under(thresholds, low.dtype, device)
        self._true_scaled = np.zeros(len(SCALED_THRESHOLDS), np.int64)
        self._false_scaled = np.zeros(len(SCALED_THRESHOLDS), np.int64)
        self._false = np.zeros(len(thresholds), np.int64)
        self._found = np.zeros(len(thresholds))

    def add(self, band: _Band) -> None:
        """Add a band."""
        self._true_scaled += _count_above(self._scaled(band.positives), self._steps).cpu().numpy()
        self._false_scaled += _count_above(self._scaled(band.negatives), self._steps).cpu().numpy()
        self._false += _count_above(band.negatives, self._levels).cpu().numpy()
        self._found += band.found[_count_above(band.positives, self._levels)].cpu().numpy()

    def _scaled(self, scores: Tensor) -> Tensor:
        return (scores - self._low) / self._range

    def outcomes(self, tally: _Tally) -> dict[str, Outcome]:
        """F1-max and AUPRO, after the last band."""
        rate, pro = self._false / tally.negatives, self._found / tally.regions
        return {
            "pixel_F1max": f1_max_of_counts(self._true_scaled, self._false_scaled, tally.positives),
            "pixel_AUPRO": outcome(lambda: aupro_of_points(rate, pro, tally.limit)),
        }


def _at_or_under(
    thresholds: NDArray[np.float64], kind: np.dtype[np.floating[Any]], device: torch.device
) -> Tensor:
    """The nearest numbers of the maps' type that are not above: the same scores exceed them."""
    near = thresholds.astype(kind)
    near = np.where(near > thresholds, np.nextafter(near, kind.type(-np.inf)), near)
    return torch.from_numpy(near).to(device)
