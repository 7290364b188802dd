"""What the command line shows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from training import Marks

from mambaad.display import (
    PredictDisplay,
    TrainDisplay,
    counted,
    metrics_table,
    progress_bar,
    show,
)
from mambaad.errors import ImageError, TrainingError
from mambaad.evaluate import CategoryResult, Evaluation
from mambaad.metrics import score, summarise
from mambaad.predict import Prediction
from mambaad.steps import LaterStep, Ring, Step


def step(number: int, epoch: int) -> Step:
    return Step(number, epoch, 1.5, {"stride4": 0.5, "stride8": 0.25, "stride16": 0.75}, 2.0, 0.005)


def test_training_prints_a_line_an_epoch_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with TrainDisplay() as display:
        display.progress("encoding", 1, 1)
        display.begin(0, 4, 16)
        for number, epoch in ((1, 1), (2, 1), (3, 2), (4, 2)):
            display.step(step(number, epoch))
    lines = [line for line in capsys.readouterr().err.splitlines() if "images/s" in line]
    shown = [line for line in lines if line.startswith("step ")]
    assert [line.split()[1] for line in shown] == ["2/4", "4/4"]
    assert "epoch 1  loss 1.500 (0.500 0.250 0.750)" in shown[0]


def test_training_shows_the_latest_known_step_and_waits_for_none(
    capsys: pytest.CaptureFixture[str],
) -> None:
    marks = Marks()
    ring = Ring(lambda n, _: TrainingError(f"step {n}"), make_event=marks.make)
    with TrainDisplay() as display:
        display.begin(0, 4, 16)
        for number, epoch in ((1, 1), (2, 1), (3, 2), (4, 2)):
            values = torch.tensor([float(number), 2.0, 0.5])
            display.step(LaterStep(epoch, 0.1, ring.push(number, values, ("stride4",))))
            marks.reach(number - 1)
        assert marks.waits == []
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("step ")]
    assert [line.split()[1] for line in lines] == ["2/4", "3/4"]
    assert "loss 2.000 (0.500)" in lines[0]


def result(threshold: float | None, masks: bool) -> CategoryResult:
    maps = np.zeros((3, 4, 4), np.float32)
    maps[:, 0, 0] = (0.1, 0.4, 0.2)
    truth = np.zeros((3, 4, 4), bool)
    truth[1:, 0, 0] = True
    labels = np.array([0, 1, 1])
    report = score(maps, truth if masks else None, labels)
    scores = maps.max((1, 2))
    return CategoryResult("nut", report, (), labels, ("good", "a", "a"), scores, threshold, ())


def test_the_table_shows_percent_decisions_and_what_is_undefined(
    capsys: pytest.CaptureFixture[str],
) -> None:
    evaluation = Evaluation("exact", {"nut": result(0.3, masks=False)}, 1.0, 3)
    show(metrics_table(evaluation))
    shown = capsys.readouterr().out
    assert "100.0" in shown
    assert "–" in shown
    assert "no masks" in shown
    assert "0 of 1" in shown  # false alarms
    assert "1 of 2" in shown  # misses
    assert "mean" not in shown  # of a single category


def test_further_metrics_stand_under_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    plain = result(0.3, masks=True)
    maps = np.zeros((3, 4, 4), np.float32)
    maps[:, 0, 0] = (0.1, 0.4, 0.2)
    truth = np.zeros((3, 4, 4), bool)
    truth[1:, 0, 0] = True
    bolt, nut = (
        replace(plain, category=c, groups=g, pixels=summarise(maps, truth, threshold=t))
        for c, g, t in (("bolt", ("a", "b", "b"), 0.3), ("nut", ("a", "a", "a"), 0.15))
    )
    show(metrics_table(Evaluation("exact", {"bolt": bolt}, 1.0, 3)))
    shown = capsys.readouterr().out
    assert "pixel_IoUmax 100.0, pixel_AUPRO05 100.0, pixel_SegF1 66.7, pixel_AUPIMO 100.0" in shown
    assert "sample AUROC: bolt 100.0; mean 100.0" in shown
    assert "mean: pixel" not in shown
    show(metrics_table(Evaluation("exact", {"bolt": bolt, "nut": nut}, 1.0, 6)))
    shown = capsys.readouterr().out
    assert "mean: pixel_IoUmax 100.0, pixel_AUPRO05 100.0, pixel_SegF1 83.3" in shown
    assert "sample AUROC: bolt 100.0; mean 100.0" in shown  # all views of nut are of one object


def test_without_thresholds_nothing_is_counted(capsys: pytest.CaptureFixture[str]) -> None:
    both = {"bolt": result(None, masks=True), "nut": result(None, masks=True)}
    show(metrics_table(Evaluation("ader", both, 1.0, 6)))
    shown = capsys.readouterr().out
    assert " of 1" not in shown
    assert "mean" in shown
    assert "protocol ader" in shown


def test_predictions_are_counted_and_errors_kept(capsys: pytest.CaptureFixture[str]) -> None:
    display = PredictDisplay(Path("run"))
    for value in (0.1, 0.9):
        heat = np.full((2, 2), value, np.float32)
        display.add(Prediction(None, None, value, 0.5, heat, (2, 2)))
    display.add(ImageError("cannot read x.png"))
    display.finish(Path("found"))
    output = capsys.readouterr()
    assert "2 pictures, 1 defective, 1 could not be read; wrote found" in output.out
    assert output.out.index("0.9000") < output.out.index("0.1000")
    good = next(line for line in output.out.splitlines() if "0.1000" in line)
    assert "0,0,2,2" not in good
    assert "0,0,2,2" in output.out
    assert "note:" not in output.out
    assert "error: cannot read x.png" in output.err


def of_category(category: str | None) -> Prediction:
    return Prediction(None, category, 0.4, 0.5, np.full((2, 2), 0.4, np.float32), (2, 2))


@pytest.mark.parametrize(
    ("known", "lacking", "found", "note"),
    [
        (("metal", "wood"), (), (None, "wood", None), True),
        (("metal", "wood"), (), ("metal", "wood"), False),
        (("metal",), ("wood",), (None, "metal", None), True),
        (("metal",), ("wood",), ("metal", "metal"), False),
        ((), ("metal", "wood"), (None, None, "x"), True),
        (("metal",), (), (None,), False),
        ((), ("metal",), (None,), False),
        ((), (), (None,), False),
    ],
)
def test_pictures_of_no_known_category_are_told(
    known: tuple[str, ...],
    lacking: tuple[str, ...],
    found: tuple[str | None, ...],
    note: bool,
    capsys: pytest.CaptureFixture[str],
) -> None:
    display = PredictDisplay(Path("run"), known, lacking)
    for category in found:
        display.add(of_category(category))
    display.finish(Path("found"))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]
    assert len(lines) == note + (note and bool(lacking))
    if note:
        decided = "is not known, so the overall threshold of calibration.json decided"
        hint = f"; name it with --category ({', '.join(known)})" if known else ""
        assert lines[0] == f"note: the category of 2 of 3 pictures {decided}{hint}"
    if note and lacking:
        missing = f"note: calibration.json has no threshold for {', '.join(lacking)}: "
        assert lines[1] == f"{missing}'mambaad calibrate run DATA' makes it"


def test_a_run_without_thresholds_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    display = PredictDisplay(Path("run"), (), ("metal", "wood"))
    for _ in range(2):
        display.add(Prediction(None, None, 0.1, None, np.zeros((2, 2), np.float32), (2, 2)))
    display.finish(Path("found"))
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "note: " in line]
    assert line.startswith("note: no thresholds in run, so nothing is decided: ")
    assert line.endswith("'mambaad calibrate run DATA' makes them, or give --threshold")


def test_without_predictions_there_is_no_table(capsys: pytest.CaptureFixture[str]) -> None:
    display = PredictDisplay(Path("run"))
    display.add(ImageError("cannot read x.png"))
    display.finish(Path("found"))
    assert capsys.readouterr().out == "0 pictures, 1 could not be read; wrote found\n"


def test_a_bar_is_drawn_from_the_first_call_on(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("checking"):
        pass
    with pytest.raises(TrainingError), TrainDisplay():
        raise TrainingError("before anything was to draw")
    assert capsys.readouterr().err == ""
    with progress_bar("checking") as progress:
        progress(1, 3)
        progress(3, 3)
    shown = capsys.readouterr().err
    assert shown.count("checking") == 1
    assert "3/3" in shown


def test_one_picture_is_no_pictures(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert [counted(n, "row") for n in (0, 1, 2)] == ["0 rows", "1 row", "2 rows"]
    assert counted(2, "category", "categories") == "2 categories"
    display = PredictDisplay(Path("run"))
    display.add(Prediction(None, None, 0.1, None, np.zeros((2, 2), np.float32), (2, 2)))
    display.finish(tmp_path)
    assert f"1 picture; wrote {tmp_path}" in " ".join(capsys.readouterr().out.split())
