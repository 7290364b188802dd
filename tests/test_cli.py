"""The command line from end to end, as a person would use it."""

from __future__ import annotations

import csv
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mambaad.cli import main
from mambaad.config import ModelConfig

VERBS = (
    "train", "test", "predict", "calibrate", "profile",
    "check", "datasets", "prepare", "synthesize", "demo", "scans", "convert", "stress",
    "ablate", "table", "tune", "extend", "remember",
)  # fmt: skip


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as exit_info:
        main([str(a) for a in arguments])
    return int(exit_info.value.code or 0)


def python(code: str) -> str:
    command = [sys.executable, "-X", "importtime", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def test_help_does_not_import_torch() -> None:
    call = "import sys\ntry:\n from mambaad.cli import main; main(['--help'])\n"
    shown = "except SystemExit: pass\nprint('torch' in sys.modules, 'numpy' in sys.modules)"
    output = python(call + shown)
    assert "False False" in output
    assert all(verb in output for verb in VERBS)


def test_importing_the_package_does_not_import_torch() -> None:
    output = python("import sys, mambaad; print(mambaad.__version__, 'torch' in sys.modules)")
    assert "False" in output.splitlines()[0]


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(verb, "--help") == 0
    assert "Usage: mambaad " + verb in capsys.readouterr().out


def test_python_m_mambaad_works() -> None:
    command = [sys.executable, "-m", "mambaad", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("mambaad 0.")


def test_from_pictures_to_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = tmp_path / "data", tmp_path / "run"
    sizes = ["--size", 64, "--train", 5, "--good", 2, "--defective", 2]
    assert run("synthesize", data, *sizes, "--category", "metal", "--category", "fabric") == 0
    assert run("check", data, "--json", tmp_path / "check.json") == 0
    assert "training can start" in capsys.readouterr().out
    assert json.loads((tmp_path / "check.json").read_text())["ok"] is True
    settings = ["--set", "model.depths=[1,1,1,1]", "--set", "model.directions=2"]
    options = ["--encoder", "filterbank", "--epochs", 2, "--image-size", 64, "--batch-size", 4]
    assert run("train", data, "--out", out, *options, *settings) == 0
    assert f"next: mambaad test {out}" in capsys.readouterr().out
    assert run("test", out) == 0
    shown = capsys.readouterr().out
    assert "metal" in shown
    assert "mean" in shown
    assert "image_AUROC" in shown
    for name in ("report.html", "evaluation.json", "evaluation.csv", "evaluation.md", "scores.csv"):
        assert (out / name).is_file()
    assert (
        run("test", out, "--protocol", "ader", "--category", "metal", "--out", tmp_path / "t") == 0
    )
    values = json.loads((tmp_path / "t" / "evaluation.json").read_text())
    assert (values["protocol"], list(values["categories"])) == ("ader", ["metal"])
    capsys.readouterr()
    assert run("predict", out, data / "metal" / "test", "--out", tmp_path / "p", "--maps") == 0
    assert "4 pictures" in capsys.readouterr().out
    rows = list(csv.DictReader((tmp_path / "p" / "predictions.csv").read_text().splitlines()))
    assert {r["category"] for r in rows} == {"metal"}
    assert len(list((tmp_path / "p" / "heatmaps").rglob("*.jpg"))) == 4
    assert len(list((tmp_path / "p" / "maps").rglob("*.npy"))) == 4


def test_a_threshold_can_be_given(tiny_run: Path, tiny_data: Path, tmp_path: Path) -> None:
    pictures = tiny_data / "metal" / "test" / "good"
    for threshold, label in ((0, "1"), (0.66, "0")):
        out = tmp_path / label
        assert run("predict", tiny_run, pictures, "--out", out, "--threshold", threshold) == 0
        rows = list(csv.DictReader((out / "predictions.csv").read_text().splitlines()))
        assert {(r["pred_label"], float(r["threshold"])) for r in rows} == {(label, threshold)}
    assert run("predict", tiny_run, pictures, "--out", tmp_path / "n", "--no-heatmaps") == 0
    assert not (tmp_path / "n" / "heatmaps").exists()


def test_predict_says_when_the_category_is_not_known(
    tiny_run: Path, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(tiny_data / "metal" / "test" / "good" / "000.png", tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no picture")
    flags = ["--out", tmp_path / "out", "--no-heatmaps"]
    for extra, told in (((), True), (("--category", "metal"), False), (("--threshold", 1), False)):
        assert run("predict", tiny_run, tmp_path / "a.png", *flags, *extra) == 0
        shown = capsys.readouterr().out
        assert ("name it with --category (metal, wood)" in shown) == told
    assert run("predict", tiny_run, tiny_data / "metal" / "test", *flags) == 0
    assert "note:" not in capsys.readouterr().out
    assert run("predict", tiny_run, tmp_path / "b.png", *flags) == 2
    assert "pred_score" not in capsys.readouterr().out
    (row,) = csv.DictReader((tmp_path / "out" / "predictions.csv").read_text().splitlines())
    assert (row["image_path"], row["pred_score"]) == (str(tmp_path / "b.png"), "")
    assert "not a picture" in row["error"]


def test_predict_says_when_a_product_has_no_threshold(
    tiny_run: Path, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was judged as the only product that had one."""
    own, out = tmp_path / "run", tmp_path / "out"
    shutil.copytree(tiny_run, own)
    values = json.loads((own / "calibration.json").read_text())
    del values["categories"]["metal"]
    values["categories"]["wood"]["threshold"] = 9.0  # by hand: the overall one is not the highest
    (own / "calibration.json").write_text(json.dumps(values))
    flags = ["--out", out, "--no-heatmaps"]
    pictures = tiny_data / "metal" / "test"
    assert run("predict", own, pictures, *flags) == 0
    shown = capsys.readouterr().out
    assert "6 of 6 pictures is not known, so the overall threshold of calibration.json dec" in shown
    assert "highest," not in shown
    assert f"no threshold for metal: 'mambaad calibrate {own} DATA' makes it" in shown
    rows = list(csv.DictReader((out / "predictions.csv").read_text().splitlines()))
    overall = values["overall"]["threshold"]
    assert {(row["category"], float(row["threshold"])) for row in rows} == {("", overall)}
    good = [row for row in rows if row["pred_label"] == "0"]
    assert all((row["box_left"] == "") == (row in good) for row in rows)
    assert run("predict", own, pictures, *flags, "--threshold", "0.1") == 0
    assert "note:" not in capsys.readouterr().out
    (own / "calibration.json").unlink()
    assert run("predict", own, pictures, *flags) == 0
    assert f"note: no thresholds in {own}, so nothing is decided" in capsys.readouterr().out
    assert run("predict", own, pictures, *flags, "--threshold", "0.1") == 0
    assert "note:" not in capsys.readouterr().out


def test_predict_writes_over_no_file_of_ones_own(
    tiny_run: Path, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "heatmaps" / "a.jpg"
    mine.parent.mkdir()
    for path in (mine, tmp_path / "a.png"):
        shutil.copy(tiny_data / "metal" / "test" / "good" / "000.png", path)
    before = mine.read_bytes()
    for _ in range(2):
        assert run("predict", tiny_run, tmp_path / "a.png", "--out", tmp_path) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"error: {mine} is not a heat map of an earlier call")
        assert mine.read_bytes() == before
    assert not (tmp_path / "predictions.csv").exists()


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("done", [0, 2])
def test_ctrl_c_ends_predict_with_a_word(
    tiny_run: Path,
    tiny_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    done: int,
) -> None:
    from mambaad.display import PredictDisplay
    from mambaad.predict import Detector

    def interrupt(*_: object, **__: object) -> None:
        signal.raise_signal(signal.SIGINT)

    if done:
        added, numbers = PredictDisplay.add, iter(range(9))

        def add(*arguments: Any) -> None:
            added(*arguments)
            if next(numbers) == done - 1:
                interrupt()

        monkeypatch.setattr(PredictDisplay, "add", add)
    else:
        monkeypatch.setattr(Detector, "load", interrupt)
    assert run("predict", tiny_run, tiny_data / "metal" / "test", "--out", tmp_path / "p") == 130
    assert capsys.readouterr().err.splitlines()[-1] == "stopped"
    partial = tmp_path / "p" / "predictions.partial.csv"
    if done:
        assert caplog.messages == [f"done: 2 of 6; their rows are in {partial}"]
    assert partial.exists() == bool(done)


def test_predict_tells_its_exit_statuses(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("predict", "--help") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "Exit status: 0 all done; 2 a mistake, or pictures that could not be read" in shown
    assert "130 stopped." in shown
    assert "A good picture has none." in shown


def test_ones_own_folder_with_odd_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    good, bad = tmp_path / "parts" / "good", tmp_path / "parts" / "scratched"
    good.mkdir(parents=True)
    bad.mkdir()
    for i in range(6):
        Image.fromarray(rng.integers(0, 255, (70, 60, 3), dtype=np.uint8)).save(good / f"{i}.png")
    Image.fromarray(rng.integers(0, 255, (70, 60), dtype=np.uint8)).save(good / "grey.png")
    Image.fromarray(rng.integers(0, 65535, (70, 60), dtype=np.uint16)).save(good / "deep.png")
    Image.fromarray(rng.integers(0, 255, (70, 60, 3), dtype=np.uint8)).save(bad / "0.png")
    (good / "broken.png").write_bytes(b"\x89PNG but not really")
    assert run("check", tmp_path / "parts") == 2
    assert "broken.png" in capsys.readouterr().out
    common = [
        "--encoder",
        "filterbank",
        "--epochs",
        1,
        "--image-size",
        "64x32",
        "--out",
        tmp_path / "run",
    ]
    small = ["--set", "model.depths=[1,1,1,1]", "--set", "model.directions=2"]
    assert run("train", tmp_path / "parts", *common, *small) == 2
    errors = capsys.readouterr().err
    assert "broken.png" in errors
    assert "Traceback" not in errors
    (good / "broken.png").unlink()
    assert run("check", tmp_path / "parts") == 0
    assert run("train", tmp_path / "parts", *common, *small) == 0
    assert f"next: mambaad test {tmp_path / 'run'}\n" in capsys.readouterr().out
    assert run("test", tmp_path / "run") == 0
    assert "no masks" in capsys.readouterr().out
    shutil.rmtree(bad)  # nothing to test with
    common[-1] = tmp_path / "good"
    assert run("train", tmp_path / "parts", *common, *small) == 0
    assert f"next: mambaad predict {tmp_path / 'good'} PICTURES\n" in capsys.readouterr().out
    assert run("predict", tmp_path / "good", good) == 0


def test_mistakes_are_one_line_and_status_2(
    tiny_run: Path, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mistakes = {
        ("train",): "which pictures?",
        ("train", tiny_data, "--out", tiny_run): "holds a run already",
        (
            "train",
            tiny_data,
            "--image-size",
            "100",
        ): "image_size must be one or two multiples of 32",
        ("train", tiny_data, "--image-size", "x"): "a size is a number",
        ("train", tiny_data, "--set", "model.depht=3"): "did you mean 'model.depths'?",
        ("train", tiny_data, "--set", "depths"): "table.setting=value",
        ("train", tiny_data, "--category", "tin"): "tin",
        ("train", tmp_path / "nothing"): "nothing",
        ("train", tiny_data, "--config", tmp_path / "no.toml"): "cannot read the settings file",
        ("train", "--resume", "--epochs", "3", "--out", tiny_run): "--resume takes its settings",
        ("train", "--resume", "--out", tiny_run): "training is complete",
        ("test", tmp_path): "not a run folder",
        ("test", tiny_run, "--protocol", "best"): "protocol must be one of",
        ("test", tiny_run, "--pro-limit", "2"): "pro_limit must be a number in (0, 1]",
        ("predict", tiny_run, tmp_path / "no.png"): "no such file or folder",
        ("predict", tiny_run, tiny_data, "--category", "tin"): "no category 'tin'",
        ("check", tmp_path / "nothing"): "nothing",
        ("synthesize", tiny_data): "not empty",
        ("calibrate", tiny_run, tiny_data, "--quantile", "2"): "quantile must be in (0, 1]",
        ("scans", "--size", "0"): "--size must be in 1..1024",
        (
            "train",
            tiny_data,
            "--set",
            "data.categories=[1.5]",
        ): "must be a list of names",
        ("scans", "--method", "spiral"): "scan must be one of",
        ("scans", "--directions", "3"): "directions must be 2, 4, 8 or 'distinct'",
        ("convert", tmp_path / "no.pth", "--out", tmp_path / "r"): "cannot read weights",
        ("demo", tiny_data): "not empty",
    }
    for arguments, message in mistakes.items():
        assert run(*arguments) == 2, arguments
        shown = capsys.readouterr().err
        assert message in shown, (arguments, shown)
        error = shown[shown.index("error: ") :]
        assert error.count("\n") == 1, error


def test_settings_come_from_a_file_and_flags_win(tiny_data: Path, tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(
        '[model]\nencoder = "filterbank"\ndepths = [1, 1, 1, 1]\ndirections = 2\n'
        f'[data]\nroot = "{tiny_data}"\nimage_size = 64\n[train]\nepochs = 5\nbatch_size = 4\n'
    )
    assert run("train", "--config", file, "--epochs", 1, "--out", tmp_path / "run") == 0
    saved = (tmp_path / "run" / "config.toml").read_text()
    assert "epochs = 1" in saved
    assert "batch_size = 4" in saved
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 3


def test_ctrl_c_says_how_to_go_on(
    tiny_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from mambaad.display import TrainDisplay

    out = tmp_path / "run"
    small = ["--set", "model.depths=[1,1,1,1]", "--set", "model.directions=2", "--batch-size", 4]
    with monkeypatch.context() as patch:

        def interrupt(*_: object) -> None:
            signal.raise_signal(signal.SIGINT)

        patch.setattr(TrainDisplay, "step", interrupt)
        options = ["--encoder", "filterbank", "--epochs", 1, "--image-size", 64]
        assert run("train", tiny_data, "--out", out, *options, *small) == 130
    shown = capsys.readouterr().err
    assert f"mambaad train --out {out} --resume" in shown
    assert run("test", out) == 2
    assert "resume it" in capsys.readouterr().err
    assert run("train", "--out", out, "--resume") == 0
    assert run("test", out) == 0


def test_a_request_to_end_stops_a_verb_like_ctrl_c(
    tiny_run: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What service managers send; nothing half is left."""
    from mambaad.predict import Detector

    scored, out = Detector._prediction, tmp_path / "found"

    def end(*arguments: Any) -> Any:
        signal.raise_signal(signal.SIGTERM)
        return scored(*arguments)

    monkeypatch.setattr(Detector, "_prediction", end)
    assert run("predict", tiny_run, tiny_data / "metal" / "test", "--out", out) == 130
    left = {path.name for path in out.iterdir()}
    assert left <= {"heatmaps", "predictions.partial.csv"}


def test_scans_are_drawn(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "scans.png"
    assert (
        run(
            "scans",
            "--method",
            "zorder",
            "--size",
            "8x12",
            "--directions",
            "distinct",
            "--out",
            out,
        )
        == 0
    )
    with Image.open(out) as picture:
        assert picture.format == "PNG"


def test_a_published_checkpoint_is_converted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch
    from helpers import published_state

    state = published_state(ModelConfig("resnet18", (1, 1, 1, 1), directions=2))
    torch.save({"net": {**state, "net_s.mystery": torch.zeros(2)}}, tmp_path / "x.pth")
    assert run("convert", tmp_path / "x.pth", "--out", tmp_path / "run", "--scan", "zigzag") == 0
    shown = capsys.readouterr().out
    assert "resnet18" in shown
    assert "scan zigzag" in shown
    assert "net_s.mystery" in shown
    assert run("convert", tmp_path / "x.pth", "--out", tmp_path / "run") == 2
    picture = tmp_path / "x.png"
    Image.new("RGB", (40, 40)).save(picture)
    assert run("predict", tmp_path / "run", picture, "--out", tmp_path / "p") == 0
    assert "1 picture;" in capsys.readouterr().out
    assert run("test", tmp_path / "run") == 2
    assert "knows no data set" in capsys.readouterr().err


def test_the_run_moves_with_its_folder(tiny_run: Path, tiny_data: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    shutil.copytree(tiny_run, moved)
    assert run("test", moved, tiny_data) == 0
    assert (moved / "report.html").is_file()
    assert not (tiny_run / "report.html").exists()


def test_calibrate_says_what_is_new_and_what_is_kept(
    tiny_run: Path, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own, more = tmp_path / "run", tmp_path / "more"
    shutil.copytree(tiny_run, own)
    shutil.copytree(tiny_data / "metal" / "test" / "good", more)
    assert run("calibrate", own, more) == 2
    error = capsys.readouterr().err
    assert "knows only ['metal', 'wood']: give pictures of one product" in error
    assert error[error.index("error: ") :].count("\n") == 1
    assert run("calibrate", own, more, "--category", "metal") == 0
    metal, wood, wrote = capsys.readouterr().out.splitlines()
    assert metal.startswith("metal: threshold ")
    assert metal.endswith(" from 3 pictures, set anew")
    assert wood.endswith(" from 6 pictures, kept")
    assert wrote == f"wrote {own / 'calibration.json'}"
