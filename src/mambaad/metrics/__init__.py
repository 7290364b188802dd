"""How good scores and score maps are. numpy, scipy and numba only: no torch is needed here.

``score`` gives one category's ``Report``, ``mean_report`` their mean, ``to_markdown``, ``to_csv``
and ``to_json_mapping`` a table of them. Every report says its protocol, ``exact`` or ``ader``.

``summarise`` gives eight pixel metrics exactly, ``streaming.PixelBins`` the same in one pass and
constant memory (imported from there, because it loads numba); ``sample_auroc`` joins views.
"""

from mambaad.metrics.ranking import auroc, average_precision, f1_max
from mambaad.metrics.regions import aupro
from mambaad.metrics.report import (
    FIELDS,
    METRICS,
    PIXEL_METRICS,
    PixelMetrics,
    Protocol,
    Report,
    mean_report,
    outcomes_of,
    pixel_metrics,
    report_of,
    score,
)
from mambaad.metrics.summary import SUMMARY_FIELDS, Exactness, PixelSummary, summarise
from mambaad.metrics.tables import to_csv, to_json_mapping, to_markdown
from mambaad.metrics.views import by_sample, sample_auroc

__all__ = [
    "FIELDS",
    "METRICS",
    "PIXEL_METRICS",
    "SUMMARY_FIELDS",
    "Exactness",
    "PixelMetrics",
    "PixelSummary",
    "Protocol",
    "Report",
    "aupro",
    "auroc",
    "average_precision",
    "by_sample",
    "f1_max",
    "mean_report",
    "outcomes_of",
    "pixel_metrics",
    "report_of",
    "sample_auroc",
    "score",
    "summarise",
    "to_csv",
    "to_json_mapping",
    "to_markdown",
]
