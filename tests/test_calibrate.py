"""Thresholds from good scores."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mambaad.calibrate import (
    calibrate,
    highest_note,
    joined,
    kept_beside,
    load_calibration,
    manual,
    precision_note,
    save_calibration,
    set_by_hand,
    thresholds_for,
    with_kept,
    with_origin,
)
from mambaad.errors import CheckpointError, ConfigError


def test_the_threshold_is_the_next_higher_score() -> None:
    scores = np.arange(1, 201) / 100  # 0.99 of 199 steps is 197.01, so the 199th score
    found = calibrate(scores, ["a"] * 200, "training pictures")
    assert found.threshold("a") == pytest.approx(1.99)


def test_few_scores_give_the_highest_and_overall_is_the_highest_category() -> None:
    found = calibrate([0.1, 0.3, 0.2, 0.9], ["a", "a", "a", "b"], "held-out training pictures")
    assert found.threshold("a") == 0.3
    assert found.threshold("b") == 0.9
    assert found.threshold(None) == found.threshold("unknown") == 0.9
    assert found.categories["a"].pictures == 3
    assert found.categories["a"].mean == pytest.approx(0.2)


def test_too_few_pictures_for_a_quantile_are_told() -> None:
    def note(quantile: float, **counts: int) -> str | None:
        names = [name for name, count in counts.items() for _ in range(count)]
        scores = np.random.default_rng(0).random(len(names))
        return highest_note(calibrate(scores.tolist(), names, "training pictures", quantile))

    assert note(0.99, nut=10) == (
        "nut (10 pictures): the threshold is their highest score; the 0.99 quantile needs more "
        "pictures"
    )
    assert note(0.99, bolt=100, nut=101) is not None
    assert note(0.99, nut=101) is note(0.8, nut=10) is note(1, nut=10) is None
    line = note(0.9, a=1, b=2, c=3, d=4, e=5, f=20)
    assert line is not None
    assert line.startswith("a (1 picture), b (2 pictures), c (3 pictures) and 2 more: the thresh")


@pytest.mark.parametrize("count", [1, 10, 100, 101, 500])
@pytest.mark.parametrize("quantile", [0.5, 0.8, 0.99, 1])
def test_what_was_calibrated_was_not_set_by_hand(count: int, quantile: float) -> None:
    for seed in range(20):
        scores = np.random.default_rng(seed).lognormal(size=count).tolist()
        found = calibrate(scores, ["a"] * count, "training pictures", quantile).categories["a"]
        assert not set_by_hand(found, quantile)
        assert set_by_hand(replace(found, threshold=found.maximum * 1.001), quantile)
        assert set_by_hand(replace(found, threshold=-1000.0), quantile)
        if sorted(scores).index(found.threshold) == count - 1:
            assert set_by_hand(replace(found, threshold=found.threshold * 0.999), quantile)


def test_the_least_threshold_that_scores_allow_was_not_set_by_hand() -> None:
    scores = [0.3] * 90 + [0.7] * 10  # all that are not above it are as high as it is
    found = calibrate(scores, ["a"] * 100, "training pictures", 0.8).categories["a"]
    assert found.threshold == 0.3
    assert not set_by_hand(calibrate([0.3] * 7, ["a"] * 7, "given", 0.5).categories["a"], 0.5)
    assert set_by_hand(replace(found, threshold=0.2), 0.8)
    assert not set_by_hand(replace(found, pictures=0), 0.8)


def test_it_comes_back_from_its_file_and_can_be_edited(tmp_path: Path) -> None:
    saved = calibrate([0.1, 0.2], ["a", "b"], "training pictures")
    save_calibration(tmp_path, saved)
    assert load_calibration(tmp_path) == saved
    values = json.loads((tmp_path / "calibration.json").read_text())
    values["categories"]["a"]["threshold"] = 0.7
    (tmp_path / "calibration.json").write_text(json.dumps(values))
    edited = load_calibration(tmp_path)
    assert edited is not None
    assert edited.threshold("a") == 0.7


@pytest.mark.parametrize("text", ["", "[]", '{"source": 1}', "{not json"])
def test_a_damaged_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "calibration.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"calibration\.json is not a calibration file"):
        load_calibration(tmp_path)


def test_a_threshold_that_is_no_number_is_refused(tmp_path: Path) -> None:
    save_calibration(tmp_path, calibrate([0.1], ["a"], "training pictures"))
    path = tmp_path / "calibration.json"
    path.write_text(path.read_text().replace('"threshold": 0.1', '"threshold": NaN'))
    with pytest.raises(CheckpointError, match="finite"):
        load_calibration(tmp_path)


def test_no_file_is_no_calibration(tmp_path: Path) -> None:
    assert load_calibration(tmp_path) is None


def test_a_given_threshold_holds_for_every_category() -> None:
    known = calibrate([0.1, 0.2], ["a", "b"], "training pictures")
    given = manual(0.5, known)
    assert [given.threshold(c) for c in ("a", "b", None)] == [0.5, 0.5, 0.5]
    with pytest.raises(ConfigError, match="finite"):
        manual(float("nan"))


def test_no_scores_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        calibrate([], [], "training pictures")


def test_the_precision_is_kept_and_a_difference_is_told_in_a_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    saved = calibrate([0.1], ["a"], "training pictures", precision="bf16")
    save_calibration(tmp_path, saved)
    assert thresholds_for(tmp_path, "bf16") == saved
    assert not caplog.messages
    assert thresholds_for(tmp_path, "float32") == saved
    (line,) = caplog.messages
    assert line.startswith("the thresholds were set in bf16, and this runs in float32: ")
    assert "\n" not in line
    unknown = calibrate([0.1], ["a"], "training pictures")
    for calibration in (None, unknown, manual(0.5, saved)):
        assert precision_note(calibration, "float32") is None


def test_files_without_a_precision_are_read_and_a_wrong_one_is_refused(tmp_path: Path) -> None:
    save_calibration(tmp_path, calibrate([0.1], ["a"], "training pictures", precision="float32"))
    path = tmp_path / "calibration.json"
    values = json.loads(path.read_text())
    assert values.pop("precision") == "float32"
    path.write_text(json.dumps(values))
    older = load_calibration(tmp_path)
    assert older is not None
    assert older.precision is None
    path.write_text(json.dumps({**values, "precision": "int8"}))
    with pytest.raises(CheckpointError, match=r"precision must be one of .* or null, got 'int8'"):
        load_calibration(tmp_path)


def test_other_thresholds_are_kept_with_their_origin(tmp_path: Path) -> None:
    old = calibrate([0.1, 0.5], ["a", "b"], "training pictures", 0.9)
    new = calibrate([0.2, 0.4], ["a", "a"], "good pictures given afterwards", 1)
    both = with_kept(new, kept_beside(old, {"a"}, "float32"))
    assert [both.threshold(c) for c in ("a", "b", None)] == [0.4, 0.5, 0.5]
    assert both.kept == ("b",)
    assert both.source == "good pictures given afterwards, or kept from before"
    a, b = both.categories["a"], both.categories["b"]
    assert (a.source, a.quantile) == ("good pictures given afterwards", 1)
    assert (b.source, b.quantile) == ("training pictures", 0.9)
    assert (both.overall.pictures, both.overall.maximum) == (3, 0.5)
    assert both.overall.mean == pytest.approx((0.2 + 0.4 + 0.5) / 3)
    save_calibration(tmp_path, both)
    assert load_calibration(tmp_path) == both
    third = calibrate([0.3], ["b"], "held-out training pictures")
    again = with_kept(third, kept_beside(both, {"b"}, "float32"))
    assert again.kept == ("a",)
    assert again.categories["a"] == a
    assert [again.threshold(c) for c in ("a", "b", None)] == [0.4, 0.3, 0.4]


def test_joined_thresholds_keep_the_origin_that_they_have() -> None:
    old = calibrate([0.1], ["a"], "training pictures", 0.9)
    own = replace(old.categories["a"], source="given")
    assert with_origin(own, old) == replace(own, quantile=0.9)
    new = calibrate([0.3, 0.4], ["a", "b"], "held-out training pictures", precision="bf16")
    others = {"a": with_origin(own, old), "c": with_origin(own, old)}
    both = joined(new, others, "both")
    assert list(both.categories) == ["a", "b", "c"]
    assert both.categories["a"] == with_origin(new.categories["a"], new)
    assert both.categories["c"] == others["c"]
    assert (both.source, both.quantile, both.precision) == ("both", 0.99, "bf16")
    assert (both.overall.threshold, both.overall.pictures) == (0.4, 3)


def test_a_file_where_nothing_is_kept_says_all_in_one_place(tmp_path: Path) -> None:
    old = calibrate([0.1], ["a"], "training pictures")
    new = calibrate([0.2, 0.3], ["a", "b"], "training pictures")
    for known in (None, old):
        assert with_kept(new, kept_beside(known, {"a", "b"}, "float32")) == new
    save_calibration(tmp_path, new)
    values = json.loads((tmp_path / "calibration.json").read_text())
    assert list(values) == ["source", "quantile", "overall", "categories", "precision"]
    assert list(values["categories"]["a"]) == ["threshold", "pictures", "mean", "maximum"]


def test_kept_thresholds_are_of_the_same_precision(caplog: pytest.LogCaptureFixture) -> None:
    old = calibrate([0.1, 0.5], ["a", "b"], "training pictures", precision="bf16")
    new = calibrate([0.2], ["a"], "training pictures", precision="float32")
    with pytest.raises(
        ConfigError, match=r"\['b'\] were set in bf16.*pictures of all: \['a', 'b'\]"
    ):
        kept_beside(old, {"a"}, "float32")
    assert not caplog.messages
    unknown = kept_beside(calibrate([0.1, 0.5], ["a", "b"], "training pictures"), {"a"}, "float32")
    assert with_kept(new, unknown).precision is None
    (line,) = caplog.messages
    assert "does not say in which precision the thresholds of ['b'] were set" in line
    same = kept_beside(old, {"a"}, "bf16")
    assert with_kept(calibrate([0.2], ["a"], "given", precision="bf16"), same).precision == "bf16"


def test_products_without_a_threshold_are_told(caplog: pytest.LogCaptureFixture) -> None:
    assert kept_beside(None, {"a"}, "float32", ["a", "b"]) is None
    assert caplog.messages == ["['b'] have no threshold: the overall one, the highest, serves them"]
