"""Old pictures that a run keeps: what is there stays until the new ones are in its place."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mambaad.kept_pictures import FOLDER, remember


def pictures(run: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in (run / FOLDER).iterdir()}


@pytest.fixture
def run(tiny_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_run, tmp_path / "run"))


def test_kept_pictures_are_replaced_and_nothing_else_is_left(run: Path) -> None:
    remember(run, count=2)
    others = sorted(file.name for file in run.iterdir())
    _, total, _ = remember(run, count=1)
    assert total == 2
    assert sorted(pictures(run)) == ["000001.png", "000002.png", "samples.csv"]
    assert sorted(file.name for file in run.iterdir()) == others


@pytest.mark.parametrize("error", [OSError("disk"), KeyboardInterrupt()])
@pytest.mark.parametrize("failing", [1, 2])
def test_old_ones_are_back_if_the_new_cannot_be_put_in_place(
    run: Path, monkeypatch: pytest.MonkeyPatch, failing: int, error: BaseException
) -> None:
    remember(run, count=2)
    before, others = pictures(run), sorted(file.name for file in run.iterdir())
    rename, folders = Path.replace, []

    def fail_once(self: Path, target: Path) -> Path:
        if self.is_dir():
            folders.append(self)
            if len(folders) == failing:
                raise error
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", fail_once)
    with pytest.raises(type(error)):
        remember(run, count=1)
    assert pictures(run) == before
    assert sorted(file.name for file in run.iterdir()) == others
