"""The verbs ``extend`` and ``remember``: mistakes are one line, and nothing is left behind."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mambaad.checkpoint import load_config
from mambaad.cli import main
from mambaad.data.synthetic import synthesize


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as exit_info:
        main([str(a) for a in arguments])
    return int(exit_info.value.code or 0)


@pytest.fixture
def new_data(tmp_path: Path) -> Path:
    folder = tmp_path / "new"
    synthesize(folder, seed=5, size=64, train=5, good=2, defective=2, categories=("fabric",))
    return folder


def test_a_bad_picture_leaves_nothing_behind(
    tiny_run: Path, new_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, junk = tmp_path / "out", new_data / "fabric" / "train" / "good" / "zz.jpg"
    junk.write_bytes(b"no picture")
    assert run("extend", tiny_run, new_data, "--out", out, "--epochs", 1) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert f"cannot read {junk}" in error
    assert not out.exists()
    junk.unlink()
    again = ("extend", tiny_run, new_data, "--out", out, "--epochs", 3, "--set", "train.epochs=2")
    assert run(*again) == 0
    assert load_config(out).train.epochs == 3  # the flag wins, as in train


@pytest.mark.parametrize("setting", ["train.recipe=plus", "train.preset=visa"])
def test_a_recipe_is_refused(
    tiny_run: Path, new_data: Path, tmp_path: Path, setting: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run("extend", tiny_run, new_data, "--out", out, "--set", setting) == 2
    error = capsys.readouterr().err
    assert "sets the network too" in error
    assert error.count("\n") == 1
    assert not out.exists()


def test_old_data_of_other_products_is_refused(
    tiny_run: Path, new_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, out = Path(shutil.copytree(tiny_run, tmp_path / "base")), tmp_path / "out"
    third = tmp_path / "third"
    synthesize(third, seed=6, size=64, train=5, good=1, defective=1, categories=("board",))
    assert run("remember", base, "--pictures", 1) == 0
    memory = {f.name: f.read_bytes() for f in (base / "replay").iterdir()}
    capsys.readouterr()
    for command in (("remember", base), ("extend", base, new_data, "--out", out)):
        assert run(*command, "--old-data", third) == 2
        error = capsys.readouterr().err
        assert error == (
            f"error: metal, wood would be forgotten: {base} knows metal, wood, and {third} has "
            "good training pictures of board; give the folder with all of them as --old-data\n"
        )
    assert {f.name: f.read_bytes() for f in (base / "replay").iterdir()} == memory
    assert not out.exists()
