"""What is measured beside a report: values, reasons and means."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mambaad.metrics import (
    EXTRA_FIELDS,
    MORE_PIXEL_METRICS,
    extras_of,
    mean_extras,
    summarise,
    value_of,
)


def test_a_summary_gives_values_and_reasons() -> None:
    maps = np.arange(32.0).reshape(2, 4, 4)
    summary = summarise(maps, maps > 29)
    found = extras_of(summary, 0.5)
    assert list(found) == list(EXTRA_FIELDS)
    assert found["pixel_IoUmax"] == summary.pixel_IoUmax == 1.0
    assert found["pixel_SegF1"] == "no threshold"
    assert found["sample_AUROC"] == 0.5
    assert math.isnan(value_of(found, "pixel_SegF1"))
    assert value_of(found, "sample_AUROC") == 0.5


def test_without_masks_or_samples() -> None:
    found = extras_of("no masks")
    assert found == dict.fromkeys(MORE_PIXEL_METRICS, "no masks")
    assert math.isnan(value_of(found, "sample_AUROC"))


def test_means_say_what_they_leave_out() -> None:
    pixels = dict.fromkeys(MORE_PIXEL_METRICS, 0.5)
    extras = {
        "a": {**pixels, "pixel_SegF1": "no threshold"},
        "b": {**pixels, "pixel_SegF1": "no threshold", "sample_AUROC": 0.75},
        "c": {**pixels, "pixel_SegF1": "no threshold", "pixel_AUPIMO": "no normal pictures"},
    }
    means, reasons = mean_extras(extras)
    assert [value_of(means, name) for name in EXTRA_FIELDS] == [
        0.5, 0.5, pytest.approx(math.nan, nan_ok=True), 0.5, 0.75,
    ]  # fmt: skip
    assert reasons == {
        "pixel_SegF1": "undefined in all categories (3)",
        "pixel_AUPIMO": "mean of 2 of 3 categories; undefined in c",
    }  # the AUROC of samples applies to b alone
    assert mean_extras({"a": pixels}) == (pixels, {})
