"""What a detector says of one picture: score, decision, and where."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Box = tuple[int, int, int, int]

FIELDS = (
    "image_path", "category", "pred_score", "threshold", "pred_label",
    "box_left", "box_top", "box_right", "box_bottom", "width", "height",
)  # fmt: skip
"""What ``Prediction.as_dict`` has."""

COLUMNS = (*FIELDS, "heatmap", "error")
"""Columns of ``predictions.csv``: also where the heat map is, as seen from the table's folder, and
why a picture could not be read."""


@dataclass(frozen=True)
class Prediction:
    """What a detector says of one picture; ``box`` is where it is defective."""

    image_path: Path | None
    """Its file; None for a picture in memory."""

    category: str | None
    """The category whose threshold was used, if it is known."""

    pred_score: float
    """The maximum of the anomaly map, or the mean of its highest pixels where ``score_top``
    says so (``plus``); higher is more unusual."""

    threshold: float | None
    """Scores above it are defective; None if the run has no calibration."""

    anomaly_map: NDArray[np.float32]
    """(H, W) at the network's size."""

    picture_size: tuple[int, int]
    """Height and width of the picture itself."""

    @property
    def pred_label(self) -> bool | None:
        """True if defective; None without a threshold."""
        return None if self.threshold is None else self.pred_score > self.threshold

    @property
    def pred_mask(self) -> NDArray[np.bool_] | None:
        """(H, W) at the network's size: pixels above the threshold, none in a picture that is not
        defective; None without a threshold."""
        if self.threshold is None:
            return None
        return self._above(self.threshold if self.pred_label else math.inf)

    @property
    def box(self) -> Box | None:
        """Where it is defective, in its own pixels: left, top, right, bottom (exclusive).

        The smallest box around one region: the connected pixels above the threshold that hold the
        map's maximum (``pred_mask`` has the others, too). None if the picture is not defective.
        Without a threshold nothing is decided; then it is the hottest region: what lies above the
        middle between the map's median and its score.
        """
        if self.pred_label is False:
            return None
        from scipy import ndimage  # 0.1 s, and training needs none of it

        middle = (float(np.median(self.anomaly_map)) + self.pred_score) / 2
        level = middle if self.threshold is None else self.threshold
        regions, _ = ndimage.label(self._above(level), np.ones((3, 3)))
        peak = np.unravel_index(int(self.anomaly_map.argmax()), self.anomaly_map.shape)
        if regions[peak] == 0:  # a flat map
            return 0, 0, self.picture_size[1], self.picture_size[0]
        rows, columns = ndimage.find_objects((regions == regions[peak]).astype(np.int8))[0]
        y, x = (p / m for p, m in zip(self.picture_size, self.anomaly_map.shape, strict=True))
        return (
            int(columns.start * x),
            int(rows.start * y),
            int(np.ceil(columns.stop * x)),
            int(np.ceil(rows.stop * y)),
        )

    def _above(self, level: float) -> NDArray[np.bool_]:
        """In float64, as scores are compared: NumPy would round the level to float32."""
        return self.anomaly_map > np.float64(level)

    def as_dict(self) -> dict[str, Any]:
        """The prediction without its map, as JSON can hold it; the keys are ``FIELDS``.

        Without a ``box`` its four values are None.
        """
        label = self.pred_label
        values = (
            None if self.image_path is None else str(self.image_path), self.category,
            self.pred_score, self.threshold, None if label is None else int(label),
            *(self.box or (None,) * 4), self.picture_size[1], self.picture_size[0],
        )  # fmt: skip
        return dict(zip(FIELDS, values, strict=True))
