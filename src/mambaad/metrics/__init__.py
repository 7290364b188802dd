"""How good scores and score maps are. numpy, scipy and numba only: no torch is needed here.

``score`` gives one category's ``Report``, ``mean_report`` their mean, ``to_markdown``, ``to_csv``
and ``to_json_mapping`` a table of them. Every report says its protocol, ``exact`` or ``ader``.

``summarise`` gives eight pixel metrics exactly, ``score_with_summary`` them with the report, and
``streaming.PixelBins`` the same in one pass and constant memory (imported from there, because it
loads numba); ``sample_auroc`` joins views. What is not in a report is a table's ``Extras``.
"""

from mambaad.metrics.extras import EXTRA_FIELDS, Extras, extras_of, mean_extras, value_of
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
    score_with_summary,
)
from mambaad.metrics.summary import (
    MORE_PIXEL_METRICS,
    SUMMARY_FIELDS,
    Exactness,
    PixelSummary,
    summarise,
)
from mambaad.metrics.tables import to_csv, to_json_mapping, to_markdown
from mambaad.metrics.views import by_sample, sample_auroc

__all__ = [
    "EXTRA_FIELDS",
    "FIELDS",
    "METRICS",
    "MORE_PIXEL_METRICS",
    "PIXEL_METRICS",
    "SUMMARY_FIELDS",
    "Exactness",
    "Extras",
    "PixelMetrics",
    "PixelSummary",
    "Protocol",
    "Report",
    "aupro",
    "auroc",
    "average_precision",
    "by_sample",
    "extras_of",
    "f1_max",
    "mean_extras",
    "mean_report",
    "outcomes_of",
    "pixel_metrics",
    "report_of",
    "sample_auroc",
    "score",
    "score_with_summary",
    "summarise",
    "to_csv",
    "to_json_mapping",
    "to_markdown",
    "value_of",
]
