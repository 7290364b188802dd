"""Tables: the text itself, so that a change of convention shows."""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import replace

import pytest

from mambaad.metrics import FIELDS, Report, to_csv, to_json_mapping, to_markdown

BOTTLE = Report(
    *(1.0, 0.98765, 0.5, 0.25, 0.125, 1 / 3, 0.0, 0.1 + 0.2),
    protocol="exact",
    pro_limit=0.3,
    images=10,
    anomalous_images=4,
)
CABLE = replace(
    BOTTLE,
    image_AUROC=0.0,
    pixel_AUPRO=math.nan,
    mAD=math.nan,
    images=5,
    reasons={"pixel_AUPRO": "no masks", "mAD": "undefined: pixel_AUPRO"},
)

MARKDOWN = """\
Protocol `exact`, AUPRO up to a false positive rate of 0.3, in percent; 15 pictures, 8 anomalous.

| category | image_AUROC | image_AP | image_F1max | pixel_AUROC | pixel_AP | pixel_F1max \
| pixel_AUPRO | mAD |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
| bottle | 100.0 | 98.8 | 50.0 | 25.0 | 12.5 | 33.3 | 0.0 | 30.0 |
| a\\|b | 0.0 | 98.8 | 50.0 | 25.0 | 12.5 | 33.3 | – | – |
| mean | 50.0 | 98.8 | 50.0 | 25.0 | 12.5 | 33.3 | 0.0 | 30.0 |

- a\\|b: pixel_AUPRO: no masks
- mean: pixel_AUPRO, mAD: mean of 1 of 2 categories; undefined in a|b
"""


def test_markdown() -> None:
    assert to_markdown({"bottle": BOTTLE, "a|b": CABLE}) == MARKDOWN


def test_markdown_without_undefined_values_has_no_notes() -> None:
    text = to_markdown({"bottle": replace(BOTTLE, protocol="ader", anomalous_images=None)})
    assert text.startswith("Protocol `ader`")
    assert "10 pictures.\n" in text
    assert text.splitlines()[-1].startswith("| mean | 100.0 |")


def test_csv_reads_back_to_the_same_numbers() -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv({"bottle": BOTTLE, "cable, thin": CABLE}))))
    assert [row["category"] for row in rows] == ["bottle", "cable, thin", "mean"]
    assert [float(rows[0][name]) for name in FIELDS] == [getattr(BOTTLE, name) for name in FIELDS]
    assert rows[1]["pixel_AUPRO"] == rows[1]["mAD"] == ""
    assert rows[2]["image_AUROC"] == "0.5"
    assert {row["protocol"] for row in rows} == {"exact"}
    assert [row["images"] for row in rows] == ["10", "5", "15"]


def test_json_has_null_for_undefined() -> None:
    mapping = json.loads(
        json.dumps(to_json_mapping({"bottle": BOTTLE, "cable": CABLE}), allow_nan=False)
    )
    assert mapping["protocol"] == "exact"
    assert mapping["pro_limit"] == 0.3
    assert list(mapping["categories"]) == ["bottle", "cable"]
    assert mapping["categories"]["cable"] == CABLE.to_mapping()
    assert mapping["categories"]["cable"]["mAD"] is None
    assert mapping["mean"]["image_AUROC"] == 0.5


def test_nothing_to_show_is_refused() -> None:
    for table in (to_markdown, to_csv, to_json_mapping):
        with pytest.raises(ValueError, match="at least one category"):
            table({})
