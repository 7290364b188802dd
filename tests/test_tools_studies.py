"""``mambaad ablate`` and ``mambaad table`` from end to end; presets and contamination too."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from mambaad.cli import main

SMALL = (
    "--set", "model.encoder=filterbank", "--set", "model.depths=[1,1,1,1]",
    "--set", "train.batch_size=6", "--epochs", "1", "--image-size", "64",
)  # fmt: skip


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as exit_info:
        main([str(a) for a in arguments])
    return int(exit_info.value.code or 0)


def test_a_table_is_run_continued_and_compared(
    tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    ablate = ("ablate", "incremental", tiny_data, "--out", out, "--category", "metal", *SMALL)
    rows = ("--row", "mamba", "--row", "lss")
    assert run(*ablate, *rows, "--dry-run") == 0
    assert capsys.readouterr().out == (
        "mamba, seed 42: to train\nlss, seed 42: to train\n"
        "each row: 1 epoch of 6 training pictures in 1 category\n"
    )
    assert not out.exists()
    assert run(*ablate, "--row", "mamba") == 0
    capsys.readouterr()
    assert run(*ablate, *rows) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("mamba, seed 42: done\nlss, seed 42: to train\nlss, seed 42: begins\n")
    assert "Table 2" in shown
    found = list(csv.DictReader((out / "results.csv").read_text().splitlines()))
    assert [(r["row"], r["from"]) for r in found] == [
        ("mamba", "here"), ("mamba", "paper"), ("lss", "here"), ("lss", "paper"),
    ]  # fmt: skip
    assert (found[1]["mAD"], found[3]["mAD"]) == ("0.821", "0.849")
    assert run(*ablate, "--row", "mamba") == 0  # no row that was made earlier is lost
    assert list(csv.DictReader((out / "results.csv").read_text().splitlines())) == found
    capsys.readouterr()
    runs = [out / name / "seed-42" for name in ("mamba", "lss")]
    for folder, row in zip(runs, found[::2], strict=True):
        mean = json.loads((folder / "evaluation.json").read_text())["mean"]
        assert float(row["mAD"]) == mean["mAD"]
    assert run("table", *runs, "--format", "markdown", "--out", tmp_path / "t.csv") == 0
    assert "| branches=global | 1 |" in capsys.readouterr().out
    values = list(csv.DictReader((tmp_path / "t.csv").read_text().splitlines()))
    assert [v["run"] for v in values] == ["branches=global", "branches=both"]
    assert [v["mAD"] for v in values] == [r["mAD"] for r in found[::2]]
    assert run("table", runs[0], "--by", "all") == 0
    assert "metal" in capsys.readouterr().out


def test_rows_that_fail_are_said_and_the_others_are_done(
    tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.pth"
    bad.write_bytes(b"no weights")
    ablate = ("ablate", "branches", tiny_data, "--out", tmp_path / "out", "--category", "metal")
    options = ("--row", "local", *SMALL, "--set", "model.encoder=resnet18")
    assert run(*ablate, *options, "--encoder-weights", bad) == 2
    shown = capsys.readouterr()
    assert "local, seed 42: failed: " in shown.out
    assert "error: 1 of 1 runs failed, the first, local, seed 42: " in shown.err
    assert "0 of 1" in (tmp_path / "out" / "results.md").read_text()


def test_mistakes_are_one_line(
    tiny_data: Path, tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mistakes = {
        ("ablate", "losses", tiny_data): "the table must be one of ['incremental'",
        ("ablate", "scan", tiny_data, "--row", "spiral"): "no row ['spiral'] in this table",
        ("ablate", "scan", tiny_data, "--protocol", "best"): "protocol must be one of",
        ("ablate", "scan", tiny_data, "--preset", "cifar"): "preset must be one of",
        ("ablate", "scan", tiny_data, "--gpus", "x"): "--gpus is all, or different numbers",
        ("ablate", "scan", tiny_data, "--gpus", "0", "--device", "cpu"): "cannot both say",
        ("ablate", "scan", tiny_data, "--encoder-weights", "no.pth"): "no weights at no.pth",
        ("ablate", "scan", tmp_path / "no"): "no: it does not exist",
        ("ablate", "scan", tmp_path / "no", "--dry-run"): "no: it does not exist",
        ("table", tmp_path): "is not a run folder",
        ("table", tiny_run): "has not been tested: mambaad test",
        ("table", tiny_run, "--by", "class"): "--by must be one of",
        ("table", tiny_run, "--format", "html"): "--format must be one of",
        ("table", tiny_run, "--out", "x.html"): "--out must end in one of",
        ("train", tiny_data, "--preset", "cifar"): "preset must be one of",
        ("train", "--resume", "--preset", "visa", "--out", tiny_run): "--resume takes its settings",
        ("train", tiny_data, "--set", "data.contamination=0.9"): "contamination must be a number",
        ("train", tiny_data, "--set", "data.contamination=0.05"): "less than one training picture",
    }
    for arguments, message in mistakes.items():
        assert run(*arguments) == 2, arguments
        shown = capsys.readouterr().err
        assert message in shown, (arguments, shown)
        assert shown[shown.index("error: ") :].count("\n") == 1, shown


def test_a_preset_and_contamination_are_recorded(tiny_data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    options = (*SMALL, "--set", "model.directions=2", "--set", "data.contamination=0.2")
    assert run("train", tiny_data, "--preset", "visa", "--out", out, *options) == 0
    saved = (out / "config.toml").read_text()
    assert 'preset = "visa"' in saved
    assert "contamination = 0.2" in saved
    assert "epochs = 1" in saved
    record = json.loads((out / "provenance.json").read_text())
    assert record["preset"] == "visa"
    assert [name.split("/")[:2] for name in record["contamination"]] == [
        ["metal", "test"], ["wood", "test"],
    ]  # fmt: skip
    assert (record["training_pictures"], record["held_out_pictures"]) == (12, 0)
