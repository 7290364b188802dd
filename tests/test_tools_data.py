from __future__ import annotations

import json
from pathlib import Path

import pytest
from trees import paint

from mambaad.cli import main
from mambaad.data.catalogue import PUBLISHED


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as exit_info:
        main([str(a) for a in arguments])
    return int(exit_info.value.code or 0)


def test_datasets_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("datasets") == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in PUBLISHED)


def test_all_about_a_data_set(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("datasets", "visa") == 0
    shown = capsys.readouterr().out
    for text in (
        "CC BY 4.0",
        "split_csv/1cls.csv",
        "8659 training",
        "candle: 900 training",
        "spot",
    ):
        assert text in shown
    assert run("datasets", "mvtec-ad-2") == 0
    assert "    walnuts\n" in capsys.readouterr().out
    assert run("datasets", "imagenet") == 2


def test_a_copy_is_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"toothbrush/train/good/{i:03}.png" for i in range(60) if i != 7]
    names += [f"toothbrush/test/good/{i:03}.png" for i in range(12)]
    names += [f"toothbrush/test/defective/{i:03}.png" for i in range(30)]
    names += [f"toothbrush/ground_truth/defective/{i:03}_mask.png" for i in range(30)]
    paint(tmp_path, *names)
    out = tmp_path / "found.json"
    command = ("check", tmp_path, "--expect", "mvtec-ad", "--category", "toothbrush")
    assert run(*command, "--image-size", 32, "--json", out) == 2
    line = "toothbrush: 59 training pictures instead of 60"
    hint = "not there: toothbrush/train/good/007.png"
    assert f"differs from mvtec-ad: {line}; {hint}" in capsys.readouterr().out
    found = json.loads(out.read_text())
    assert (found["expected"], found["differences"]) == ("mvtec-ad", [f"{line}; {hint}"])

    paint(tmp_path, "toothbrush/train/good/007.png")
    assert run(*command, "--image-size", 32) == 0
    line = "as published: mvtec-ad: the numbers of pictures of 1 of 15 categories\n"
    assert line in capsys.readouterr().out

    assert run("check", tmp_path, "--expect", "mvtec-ad", "--image-size", 32) == 2
    assert "differs from mvtec-ad: bottle: missing (209 + 83" in capsys.readouterr().out


def test_a_copy_is_not_certified_by_names_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = tmp_path / "ad2", tmp_path / "found.json"
    for name in PUBLISHED["mvtec-ad-2"].categories:
        paint(root, f"{name}/train/good/000.png", f"{name}/test_public/good/000.png")
    assert run("check", root, "--expect", "mvtec-ad-2", "--image-size", 32, "--json", out) == 0
    shown = capsys.readouterr().out
    assert "as published" not in shown
    assert "\nmvtec-ad-2: the names of 8 of 8 categories agree; how many pictures they " in shown
    found = json.loads(out.read_text())
    assert (found["differences"], found["compared"]) == ([], [])
    assert found["agreement"] in shown


def test_real_iads_masks_are_told_of(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("real-iad", "real-iad-single"):
        assert run("datasets", name) == 0
        assert "every value above 0 counts, they are a little wider" in capsys.readouterr().out


def test_mistakes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("prepare", "lvis", tmp_path) == 2
    assert run("check", tmp_path, "--expect", "lvis") == 2
    errors = capsys.readouterr().err.splitlines()
    lines = [line for line in errors if line.startswith("error: ")]
    assert [line for line in lines if "coco-ad" in line] == lines
    assert len(lines) == 2
