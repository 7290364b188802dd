"""Old pictures: whose they must be, and that what a run keeps stays until the new are in place."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from mambaad.checkpoint import (
    PROVENANCE,
    load_config,
    load_provenance,
    save_config,
    save_provenance,
)
from mambaad.config import Config
from mambaad.errors import CheckpointError, DatasetError
from mambaad.kept_pictures import FOLDER, LIST, find_pictures, remember
from mambaad.train import train


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


@pytest.fixture
def data(tiny_data: Path, tmp_path: Path) -> Path:
    """A copy of the runs' data set that tests may change."""
    return Path(shutil.copytree(tiny_data, tmp_path / "data"))


def test_a_product_without_pictures_is_named(run: Path, data: Path) -> None:
    shutil.rmtree(data / "wood" / "train")  # its test pictures are not enough
    expected = f"wood would be forgotten: {run} knows metal, wood, and {data} has good training "
    with pytest.raises(DatasetError, match=f"^{re.escape(expected)}pictures of metal; give the"):
        find_pictures(run, data)
    shutil.copytree(data / "metal", data / "plastic")
    shutil.rmtree(data / "metal")
    with pytest.raises(DatasetError, match=r"^metal, wood would be forgotten"):
        remember(run, old_data=data)
    assert not (run / FOLDER).exists()


def test_a_category_that_a_run_chose_and_lost_is_named(
    tiny_config: Config, data: Path, tmp_path: Path
) -> None:
    chosen = tiny_config.override({"data.categories": ["metal", "wood"]})
    save_config(tmp_path / "run", chosen)
    shutil.rmtree(data / "wood")
    with pytest.raises(DatasetError, match=r"^wood would be forgotten: .* pictures of metal; give"):
        find_pictures(tmp_path / "run", data)


def test_a_data_set_in_its_place_that_lost_a_product(run: Path, data: Path) -> None:
    settings = load_config(run).override({"data.root": str(data)})
    save_config(run, settings)
    remember(run, count=2)
    shutil.rmtree(data / "wood")
    found = find_pictures(run)  # the memory has all
    assert (found.where, found.categories) == ("kept pictures", ("metal", "wood"))
    with pytest.raises(CheckpointError, match="or some product of it"):
        remember(run)
    shutil.rmtree(run / FOLDER)
    with pytest.raises(DatasetError, match=r"^wood would be forgotten"):
        find_pictures(run)


def test_a_memory_that_lacks_a_product_is_refused(run: Path, tmp_path: Path) -> None:
    remember(run, count=2)
    settings = load_config(run).override({"data.root": str(tmp_path / "gone")})
    save_config(run, settings)
    assert find_pictures(run).categories == ("metal", "wood")
    listed = run / FOLDER / LIST
    listed.write_text(listed.read_text().replace("wood", "board"))
    with pytest.raises(DatasetError, match=r"^wood would be forgotten: .* of board, metal; give"):
        find_pictures(run)


def test_strangers_are_left_out_and_said(
    run: Path, data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = find_pictures(run, data)
    shutil.copytree(data / "wood", data / "board")
    assert not caplog.messages
    assert find_pictures(run, data) == before
    assert caplog.messages == [
        f"board of {data} left out of the old pictures: {run} knows only metal, wood"
    ]


def test_a_product_of_test_pictures_only_is_not_missed(run: Path, data: Path) -> None:
    record = load_provenance(run)
    save_provenance(run, {**record, "categories": ["board", "metal", "wood"]})
    shutil.copytree(data / "wood" / "test", data / "board" / "test")
    found = find_pictures(run, data)
    assert found.categories == ("metal", "wood")
    assert "board" in {s.category for s in found.test}


def test_a_run_without_a_record_knows_the_products_of_its_thresholds(run: Path, data: Path) -> None:
    (run / PROVENANCE).unlink()
    shutil.copytree(data / "wood", data / "board")  # a converted run may have been given a part
    assert find_pictures(run, data).categories == ("board", "metal", "wood")
    shutil.rmtree(data / "wood")
    with pytest.raises(DatasetError, match=r"^wood would be forgotten"):
        find_pictures(run, data)


def test_the_one_product_of_a_renamed_folder_is_known(
    tiny_config: Config, data: Path, tmp_path: Path
) -> None:
    nuts, run = tmp_path / "nuts", tmp_path / "run"
    shutil.copytree(data / "metal" / "train" / "good", nuts)
    config = tiny_config.override(
        {"data.root": str(nuts), "data.categories": ["nuts"], "data.holdout": 0.5}
    )
    train(config, run, device="cpu")
    before = find_pictures(run)
    assert before.categories == ("nuts",)
    moved = nuts.rename(tmp_path / "archive")
    found = find_pictures(run, moved)
    for part in ("learned", "held_out"):  # the same as before, by the same name
        assert [(s.category, s.image.name) for s in getattr(found, part)] == [
            (s.category, s.image.name) for s in getattr(before, part)
        ]
    next(moved.iterdir()).unlink()  # it may be anything now
    with pytest.raises(DatasetError, match="or rename that of archive if this is the same product"):
        find_pictures(run, moved)
    assert find_pictures(run, moved.rename(nuts)).categories == ("nuts",)
