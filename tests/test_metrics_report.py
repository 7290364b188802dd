"""``score`` and ``mean_report``: published values, what is undefined and why, what is refused."""

from __future__ import annotations

import ast
import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import ArrayLike, NDArray

import mambaad.metrics
from mambaad.metrics import (
    FIELDS,
    MORE_PIXEL_METRICS,
    Protocol,
    Report,
    mean_report,
    score,
    score_with_summary,
    summarise,
)
from mambaad.metrics.report import IMAGE_METRICS, PIXEL_METRICS

# 24 maps of 64 x 64 in three categories. `ader`: what the published evaluator returned for them;
# `exact`: from scikit-learn and an exact AUPRO that agrees with anomalib 2.7's to 3e-8.
PARITY_DATA = Path(__file__).parent / "data" / "metrics_parity.npz"
PARITY: dict[tuple[Protocol, str], tuple[float, ...]] = {
    ("exact", "easy"): (
        *(1.0, 1.0, 1.0),
        *(0.9884939785531994, 0.7886903266940748, 0.7559808612440191, 0.9434299981347479),
    ),
    ("exact", "hard"): (
        *(0.5333333333333333, 0.7783333333333333, 0.7692307692307693),
        *(0.6909165295383448, 0.02564973494145429, 0.07901234567901234, 0.33686669037104705),
    ),
    ("exact", "outlier"): (
        *(0.4666666666666667, 0.6295238095238095, 0.8333333333333334),
        *(0.946025551553007, 0.3473332428067818, 0.4257703081232493, 0.8431944588093948),
    ),
    ("ader", "easy"): (
        *(1.0, 1.0, 1.0),
        *(0.9884939785531994, 0.7886903266940747, 0.7469879468409347, 0.9414912570322955),
    ),
    ("ader", "hard"): (
        *(0.5333333333333334, 0.7783333333333333, 0.7692307692307693),
        *(0.6909165295383446, 0.02564973494145429, 0.06539509080533705, 0.31244881070468467),
    ),
    ("ader", "outlier"): (
        *(0.4666666666666667, 0.6295238095238094, 0.8333333333333333),
        *(0.946025551553007, 0.34733324280678174, 0.012675885366516227, 0.11946658371446506),
    ),
}


def example() -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Four pictures, the last two with a defect."""
    maps = np.random.default_rng(0).standard_normal((4, 6, 6)).astype(np.float32)
    masks = np.zeros((4, 6, 6), np.uint8)
    masks[2, :2, :2] = masks[3, 4:, 3:] = 255
    return maps + (masks > 0), masks


def values(report: Report) -> list[float]:
    return [getattr(report, name) for name in FIELDS]


@pytest.mark.parametrize(("protocol", "category"), PARITY)
def test_published_values(protocol: Protocol, category: str) -> None:
    data = np.load(PARITY_DATA)
    chosen = data["category"] == category
    report = score(data["maps"][chosen], data["masks"][chosen], protocol=protocol)
    expected = PARITY[protocol, category]
    assert values(report) == pytest.approx([*expected, sum(expected) / 7], abs=1e-9)
    assert (report.protocol, report.images, report.anomalous_images) == (protocol, 8, 5)
    assert report.reasons == {}


def test_by_hand() -> None:
    maps = np.array([[[0.0, 1.0]], [[4.0, 2.0]], [[0.0, 3.0]]])
    masks = np.array([[[0, 0]], [[1, 0]], [[0, 0]]])
    report = score(maps, masks)
    assert values(report) == [1.0] * 8
    assert (report.images, report.anomalous_images, report.pro_limit) == (3, 1, 0.3)
    # the defect is where the score is 2: normal pixels have 4, 3, 1, 0 and 0
    worse = score(maps, np.array([[[0, 0]], [[0, 1]], [[0, 0]]]), scores=[3, 2, 1], pro_limit=1.0)
    assert worse.image_AUROC == 0.5
    assert worse.image_AP == 0.5
    assert worse.image_F1max == pytest.approx(2 / 3)
    assert worse.pixel_AUROC == worse.pixel_AUPRO == pytest.approx(3 / 5)
    assert worse.pixel_AP == pytest.approx(1 / 3)
    assert worse.pixel_F1max == pytest.approx(2 / 4)
    assert worse.pro_limit == 1.0


@settings(deadline=None, max_examples=50)
@given(hnp.arrays(np.float64, (4, 3, 3), elements=st.integers(0, 6).map(float)))
def test_only_the_order_of_scores_matters(maps: NDArray[np.float64]) -> None:
    masks = np.zeros((4, 3, 3), np.bool_)
    masks[1, 0, 0] = masks[2, 1:, 1:] = True
    assert values(score(np.exp(maps) - 2, masks)) == values(score(maps, masks))


def test_float64_maps_are_ranked_in_float64() -> None:
    maps = 1.0 + np.array([[[0.0, 1e-12]], [[2e-12, 3e-12]]])
    assert score(maps, np.array([[[0, 0]], [[1, 1]]])).mAD == 1.0


@pytest.mark.parametrize("protocol", ["exact", "ader"])
def test_masks_of_any_whole_type_are_the_same(protocol: Protocol) -> None:
    maps, masks = example()
    same: list[ArrayLike] = [masks > 0, masks.astype(np.int64), list(masks)]
    expected = values(score(maps, masks, protocol=protocol))
    assert all(values(score(maps, m, protocol=protocol)) == expected for m in same)


def test_labels_and_scores_may_be_given() -> None:
    maps, masks = example()
    report = score(maps, masks, labels=[0, 1, 1, 1], scores=[0.5, 0.4, 0.6, 0.7])
    assert report.image_AUROC == pytest.approx(2 / 3)
    assert report.anomalous_images == 3
    assert report.pixel_AUROC == score(maps, masks).pixel_AUROC


def test_ader_labels_pictures_by_their_masks() -> None:
    maps, masks = example()
    report = score(maps, masks, labels=[1, 1, 1, 1], protocol="ader")
    assert report.anomalous_images == 2
    assert report == score(maps, masks, protocol="ader")


def undefined(report: Report) -> set[str]:
    names = {name for name in FIELDS if math.isnan(getattr(report, name))}
    assert names == set(report.reasons)
    return names


def test_without_masks_only_image_metrics_are_defined() -> None:
    maps, masks = example()
    report = score(maps, None, labels=[0, 0, 1, 1])
    assert undefined(report) == {*PIXEL_METRICS, "mAD"}
    assert report.reasons["pixel_AUPRO"] == "no masks"
    assert report.reasons["mAD"] == f"undefined: {', '.join(PIXEL_METRICS)}"
    some = score(maps, [*masks[:3], None], labels=[0, 0, 1, 1])
    assert some.reasons["pixel_AP"] == "no masks for 1 of 4 pictures"
    assert some.image_AUROC == report.image_AUROC


@pytest.mark.parametrize(
    ("protocol", "reason"),
    [("exact", "no labels and no masks"), ("ader", "ader labels pictures by masks: no masks")],
)
def test_without_labels_nothing_is_defined(protocol: Protocol, reason: str) -> None:
    report = score(example()[0], None, protocol=protocol)
    assert undefined(report) == set(FIELDS)
    assert report.reasons["image_AP"] == reason
    assert report.anomalous_images is None


@pytest.mark.parametrize("protocol", ["exact", "ader"])
def test_one_class_is_undefined_and_not_zero(protocol: Protocol) -> None:
    maps, masks = example()
    report = score(maps, np.zeros_like(masks), protocol=protocol)
    assert undefined(report) == set(FIELDS)
    assert report.reasons["image_AUROC"] == "one class only: none of 4 is anomalous"
    assert report.reasons["pixel_AUROC"] == "one class only: every pixel is normal"
    anomalous = score(maps[2:], masks[2:], protocol=protocol)
    assert undefined(anomalous) == {*IMAGE_METRICS, "mAD"}
    assert undefined(score(maps, masks, labels=[1] * 4)) == {*IMAGE_METRICS, "mAD"}


def test_constant_maps_are_chance_in_exact_and_undefined_in_ader() -> None:
    maps, masks = np.zeros((4, 6, 6)), example()[1]
    assert score(maps, masks).pixel_AUROC == 0.5
    assert score(maps, masks).pixel_AUPRO == pytest.approx(0.15)
    report = score(maps, masks, protocol="ader")
    assert undefined(report) == {"pixel_F1max", "pixel_AUPRO", "mAD"}
    assert "all scores are equal" in report.reasons["pixel_F1max"]


def test_bad_input_is_named() -> None:
    maps, masks = example()
    broken = maps.copy()
    broken[1, 0, 0] = np.nan
    with pytest.raises(ValueError, match="picture 1 holds NaN"):
        score(broken, masks)
    with pytest.raises(ValueError, match=r"maps' shape \(4, 6, 6\), got \(3, 6, 6\)"):
        score(maps, masks[:3])
    with pytest.raises(ValueError, match=r"labels must have shape \(4,\), got \(3,\)"):
        score(maps, masks, labels=[0, 1, 1])
    with pytest.raises(ValueError, match="number 2 is inf"):
        score(maps, masks, scores=[0, 0, np.inf, 0])
    with pytest.raises(ValueError, match=r"one of \['exact', 'ader'\], got 'sklearn'"):
        score(maps, masks, protocol="sklearn")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="limit of AUPRO"):
        score(maps, masks, pro_limit=30)


def test_inputs_are_left_as_they_were() -> None:
    maps, masks = example()
    before = maps.copy(), masks.copy()
    score(maps, masks)
    assert np.array_equal(maps, before[0])
    assert np.array_equal(masks, before[1])


def test_mapping_is_json_with_null_for_undefined() -> None:
    report = score(example()[0], None, labels=[0, 0, 1, 1])
    mapping = json.loads(json.dumps(report.to_mapping(), allow_nan=False))
    assert mapping["image_AUROC"] == report.image_AUROC
    assert mapping["pixel_AUPRO"] is None
    assert mapping["reasons"]["pixel_AUPRO"] == "no masks"
    facts = {k: mapping[k] for k in ("protocol", "pro_limit", "images", "anomalous_images")}
    assert facts == {"protocol": "exact", "pro_limit": 0.3, "images": 4, "anomalous_images": 2}


def test_report_can_be_a_key() -> None:
    report = score(*example())
    assert {report: 1}[replace(report)] == 1


def constant(value: float, **changes: object) -> Report:
    numbers = dict.fromkeys(FIELDS, value)
    report = Report(
        **numbers, protocol="exact", pro_limit=0.3, images=3, anomalous_images=1, reasons={}
    )
    return replace(report, **changes)  # type: ignore[arg-type]


def test_mean_is_unweighted() -> None:
    mean = mean_report({"a": constant(0.5, images=1000), "b": constant(1.0)})
    assert values(mean) == [0.75] * 8
    assert (mean.images, mean.anomalous_images, mean.reasons) == (1003, 2, {})


def test_mean_leaves_out_what_is_undefined_and_says_so() -> None:
    hole = constant(1.0, pixel_AP=math.nan, anomalous_images=None)
    mean = mean_report({"a": constant(0.2), "b": hole, "c": constant(0.4)})
    assert mean.pixel_AP == pytest.approx(0.3)
    assert mean.reasons == {"pixel_AP": "mean of 2 of 3 categories; undefined in b"}
    assert mean.anomalous_images is None
    alone = mean_report({"b": hole})
    assert undefined(alone) == {"pixel_AP"}
    assert alone.reasons["pixel_AP"] == "undefined in all categories (1)"


def test_mean_mixes_no_protocols() -> None:
    with pytest.raises(ValueError, match="one protocol and pro_limit"):
        mean_report({"a": constant(0.5), "b": constant(0.5, protocol="ader")})
    with pytest.raises(ValueError, match="one protocol and pro_limit"):
        mean_report({"a": constant(0.5), "b": constant(0.5, pro_limit=0.05)})
    with pytest.raises(ValueError, match="at least one category"):
        mean_report({})


def test_metrics_import_neither_torch_nor_the_rest_of_the_package() -> None:
    sources = sorted(Path(mambaad.metrics.__file__).parent.glob("*.py"))
    imported = set()
    for source in sources:
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(str(node.module))
    outside = {n for n in imported if n.split(".")[0] not in sys.stdlib_module_names}
    allowed = (
        "numpy",
        "scipy",
        "numba",
        "mambaad.metrics",
        "mambaad.threads",
    )  # which imports none
    assert len(sources) > 1
    assert outside >= {"numpy", "scipy"}
    assert [name for name in outside if not name.startswith(allowed)] == []


@pytest.mark.parametrize("protocol", ["exact", "ader"])
def test_the_summary_has_the_reports_numbers_and_more(protocol: Protocol) -> None:
    draw = np.random.default_rng(0)
    maps = draw.standard_normal((4, 9, 9)).astype(np.float32)
    masks = np.zeros(maps.shape, np.bool_)
    masks[:2, 2:5, 3:6] = True
    maps += masks
    report, found = score_with_summary(maps, masks, protocol=protocol, threshold=1.0)
    assert report == score(maps, masks, protocol=protocol)
    assert found is not None
    assert [getattr(found, n) for n in PIXEL_METRICS] == [getattr(report, n) for n in PIXEL_METRICS]
    expected = summarise(maps, masks, threshold=1.0)
    for name in MORE_PIXEL_METRICS:  # alike under both protocols
        assert getattr(found, name) == pytest.approx(getattr(expected, name), abs=1e-12)
    assert score_with_summary(maps, None, [0, 0, 1, 1])[1] is None
