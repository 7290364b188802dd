"""Tables: the text itself, so that a change of convention shows."""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import replace

import pytest

from mambaad.metrics import (
    EXTRA_FIELDS,
    FIELDS,
    MORE_PIXEL_METRICS,
    Report,
    to_csv,
    to_json_mapping,
    to_markdown,
)

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


def test_extras_follow_the_last_column() -> None:
    pixels = dict.fromkeys(MORE_PIXEL_METRICS, 0.25)
    extras = {
        "bottle": {**pixels, "pixel_SegF1": 0.125, "sample_AUROC": 0.75},
        "a|b": {**pixels, "pixel_AUPIMO": "no normal pictures"},
    }
    reports = {"bottle": BOTTLE, "a|b": CABLE}
    before, after = (table.splitlines() for table in (MARKDOWN, to_markdown(reports, extras)))
    more = [" | ".join(EXTRA_FIELDS), " | ".join(["---:"] * 5)]
    more += ["25.0 | 25.0 | 12.5 | 25.0 | 75.0", "25.0 | 25.0 | 25.0 | – | –"]
    more += ["25.0 | 25.0 | 18.8 | 25.0 | 75.0"]
    assert after[2:7] == [
        f"{line} {cells} |" for line, cells in zip(before[2:7], more, strict=True)
    ]
    assert "- a\\|b: pixel_AUPIMO: no normal pictures" in after
    assert after[-1] == (
        "- mean: pixel_AUPRO, mAD, pixel_AUPIMO: mean of 1 of 2 categories; undefined in a|b"
    )
    rows = [list(csv.reader(io.StringIO(to_csv(reports, e)))) for e in (None, extras)]
    assert [row[:-5] for row in rows[1]] == rows[0]
    assert [row[-5:] for row in rows[1]] == [
        list(EXTRA_FIELDS),
        ["0.25", "0.25", "0.125", "0.25", "0.75"],
        ["0.25", "0.25", "0.25", "", ""],
        ["0.25", "0.25", "0.1875", "0.25", "0.75"],
    ]


def test_what_applies_to_no_category_has_no_column_to_read() -> None:
    extras = {"bottle": dict.fromkeys(MORE_PIXEL_METRICS, "no masks")}
    report = replace(BOTTLE, protocol="ader")
    text = to_markdown({"bottle": report}, extras)
    assert "sample_AUROC" not in text
    assert "- bottle: " + ", ".join(MORE_PIXEL_METRICS) + ": no masks" in text
    assert text.endswith("- the columns after mAD are defined alike under both protocols\n")
    assert "sample_AUROC" in to_csv({"bottle": report}, extras)


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
