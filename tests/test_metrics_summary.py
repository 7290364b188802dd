"""The eight pixel metrics: the same as the single functions, and what is undefined."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from mambaad.metrics import aupro, auroc, average_precision, f1_max, pixel_metrics
from mambaad.metrics.summary import SUMMARY_FIELDS, completed, summarise


def example() -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(0)
    maps = draw.integers(0, 40, (4, 12, 12)).astype(np.float32)
    masks = np.zeros(maps.shape, np.bool_)
    masks[0, 2:6, 3:5] = masks[1, 7:9, 1:9] = True
    maps[masks] += 12
    return maps, masks


def test_equal_to_the_single_functions() -> None:
    maps, masks = example()
    found = summarise(maps, masks, pro_limit=0.2, threshold=30.0)
    labels, scores = masks.ravel(), maps.ravel()
    assert found.pixel_AUROC == auroc(labels, scores)
    assert found.pixel_AP == pytest.approx(average_precision(labels, scores), abs=1e-12)
    assert found.pixel_F1max == f1_max(labels, scores)
    assert found.pixel_AUPRO == aupro(maps, masks, 0.2)
    assert found.pixel_AUPRO05 == aupro(maps, masks, 0.05)
    unions = [(masks & (maps >= t)).sum() / (masks | (maps >= t)).sum() for t in np.unique(maps)]
    assert found.pixel_IoUmax == pytest.approx(max(unions))
    above = maps > 30
    f1 = 2 * (above & masks).sum() / (above.sum() + masks.sum())
    assert found.pixel_SegF1 == pytest.approx(f1)
    assert 0 <= found.pixel_AUPIMO <= 1
    assert (found.method, found.pixels, found.reasons) == ("exact", 576, {})


def test_what_was_sorted_is_completed() -> None:
    maps, masks = example()
    expected = summarise(maps, masks, pro_limit=0.2, threshold=30.0)
    sorted_ones = pixel_metrics(maps, masks, "exact", 0.2)
    found = completed(sorted_ones, maps, masks, pro_limit=0.2, threshold=30.0)
    for name in SUMMARY_FIELDS:
        assert getattr(found, name) == pytest.approx(getattr(expected, name), abs=1e-12)
    same = {name: getattr(expected, name) for name in SUMMARY_FIELDS}
    assert replace(found, **same) == expected
    for part, level in ((maps[:2], None), (maps * 0, 1.0)):
        truth = masks[:2] if level is None else masks & False
        wanted = summarise(part, truth, threshold=level)
        sorted_ones = pixel_metrics(part, truth, "exact", 0.3)
        found = completed(sorted_ones, part, truth, pro_limit=0.3, threshold=level)
        assert found.reasons == {n: wanted.reasons[n] for n in found.reasons}
        assert set(found.reasons) == set(wanted.reasons)


def test_aupimo_looks_at_normal_pictures_only() -> None:
    maps, masks = example()
    before = summarise(maps, masks).pixel_AUPIMO
    louder = maps.copy()
    louder[0][~masks[0]] += 100  # false alarms in a defective picture
    assert summarise(louder, masks).pixel_AUPIMO == before
    louder[3, 0, 0] = 1000  # one in a normal picture, and there are but 288 pixels of those
    assert summarise(louder, masks).pixel_AUPIMO == 0.0


def test_what_is_undefined_says_why() -> None:
    maps, masks = example()
    found = summarise(maps[:2], masks[:2])
    assert found.reasons == {
        "pixel_SegF1": "no threshold",
        "pixel_AUPIMO": "no normal pictures",
    }
    assert math.isnan(found.pixel_AUPIMO)
    mapping = json.loads(json.dumps(found.to_mapping(), allow_nan=False))
    assert mapping["pixel_AUPIMO"] is None
    nothing = summarise(maps[2:], masks[2:])
    assert set(nothing.reasons) == set(SUMMARY_FIELDS)
    assert nothing.reasons["pixel_AP"] == "one class only: every pixel is normal"


def test_a_threshold_between_two_float32_splits_as_in_float64() -> None:
    maps = np.array([[[0.1, 0.2]]], np.float32)
    masks = np.array([[[True, False]]])
    level = float(maps[0, 0, 0])
    assert summarise(maps, masks, threshold=level).pixel_SegF1 == 0.0  # not above itself
    just_under = np.nextafter(level, 0)
    assert summarise(maps, masks, threshold=just_under).pixel_SegF1 == pytest.approx(2 / 3)
