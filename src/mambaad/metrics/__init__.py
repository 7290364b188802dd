"""How good scores and score maps are. numpy and scipy only: no torch is needed here.

``score`` gives one category's ``Report``, ``mean_report`` their mean, ``to_markdown``, ``to_csv``
and ``to_json_mapping`` a table of them. Every report says its protocol, ``exact`` or ``ader``.
"""

from mambaad.metrics.ranking import auroc, average_precision, f1_max
from mambaad.metrics.regions import aupro
from mambaad.metrics.report import (
    FIELDS,
    METRICS,
    PixelMetrics,
    Protocol,
    Report,
    mean_report,
    pixel_metrics,
    score,
)
from mambaad.metrics.tables import to_csv, to_json_mapping, to_markdown

__all__ = [
    "FIELDS",
    "METRICS",
    "PixelMetrics",
    "Protocol",
    "Report",
    "aupro",
    "auroc",
    "average_precision",
    "f1_max",
    "mean_report",
    "pixel_metrics",
    "score",
    "to_csv",
    "to_json_mapping",
    "to_markdown",
]
