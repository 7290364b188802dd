"""Which pictures are learned from, which are held out, and which leave the test."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from mambaad.calibrate import Source
from mambaad.checkpoint import PROVENANCE
from mambaad.config import Config
from mambaad.data import Dataset, Sample, fingerprint, load_picture, read_dataset
from mambaad.data.check import FEW_PICTURES
from mambaad.errors import CheckpointError, DatasetError
from mambaad.splits import (
    EXTENSION,
    FEW_STEPS,
    HELD_OUT,
    few_warning,
    learned_line,
    leave_learned_out,
    own_list,
    read_aside,
    read_pictures,
    results_folder,
    split_holdout,
)
from mambaad.testing import run_test
from mambaad.train import Observer, train


class Told(Observer):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def message(self, text: str) -> None:
        self.lines.append(text)


def test_holdout_is_drawn_by_category_and_seed(tiny_config: Config, tiny_data: Path) -> None:
    dataset = read_dataset(tiny_data)
    many = replace(dataset, samples=dataset.samples * 6)  # 36 training pictures a category
    none = split_holdout(many, tiny_config)
    assert (len(none[0]), len(none[1])) == (72, 0)  # the MVTec layout holds none out by itself
    config = tiny_config.override({"data.holdout": 0.25})
    chosen, held_out = split_holdout(many, config)
    assert [s.category for s in held_out] == ["metal"] * 9 + ["wood"] * 9
    assert len(chosen) == 54
    assert split_holdout(many, config) == (chosen, held_out)
    other = config.override({"train.seed": 1})
    assert split_holdout(many, other)[1] != held_out
    few = replace(dataset, samples=dataset.samples * 4, layout="folder")
    assert split_holdout(few, tiny_config)[1] == []  # a tenth of 24 would be two
    folder = replace(many, layout="folder")
    assert len(split_holdout(folder, tiny_config)[1]) == 8  # a tenth of 36, twice


def test_each_category_holds_out_others(tiny_config: Config, tiny_data: Path) -> None:
    names, count = ("bolt", "nut"), 40
    samples = [Sample(Path(f"{i:02}.png"), name, "train") for name in names for i in range(count)]
    dataset = replace(read_dataset(tiny_data), samples=tuple(samples))
    _, held_out = split_holdout(dataset, tiny_config.override({"data.holdout": 0.25}))
    first, second = ({s.image for s in held_out if s.category == name} for name in names)
    assert len(first) == len(second) == 10
    assert first != second


def test_the_record_says_what_was_learned_from(tiny_config: Config, tiny_data: Path) -> None:
    chosen, held_out, about = read_pictures(tiny_config)
    assert (len(chosen), held_out) == (12, [])
    assert about == {
        "data_fingerprint": fingerprint(read_dataset(tiny_data)),
        "layout": "mvtec",
        "notes": [],
        "categories": ["metal", "wood"],
        "training_pictures": 12,
        "held_out_pictures": 0,
        "test_pictures": 12,
        "contamination": [],
        "preset": None,
    }


def test_contamination_comes_before_the_holdout(tiny_config: Config) -> None:
    mixed = tiny_config.override({"data.contamination": 0.3, "train.preset": "visa"})
    chosen, _, about = read_pictures(mixed)
    defective = [s for s in chosen if s.is_anomalous]
    assert (len(chosen), len(defective)) == (12, 4)
    assert about["preset"] == "visa"
    assert about["data_fingerprint"] == read_pictures(tiny_config)[2]["data_fingerprint"]
    assert len(about["contamination"]) == 4
    assert about["notes"][-1].startswith("4 of ")
    assert "data.contamination 0.3" in about["notes"][-1]
    too_much = tiny_config.override({"data.contamination": 0.5})
    with pytest.raises(DatasetError, match="needs 3 defective test pictures"):
        read_pictures(too_much)


def test_a_contaminated_run_names_what_leaves_its_test(
    tiny_config: Config, tiny_data: Path, tmp_path: Path
) -> None:
    config = tiny_config.override({"data.contamination": 0.2})
    run, dataset = tmp_path / "run", read_dataset(tiny_data)
    train(config, run, device="cpu")
    named = json.loads((run / PROVENANCE).read_text())["contamination"]
    assert len(named) == 2
    left = leave_learned_out(run, config, dataset)
    gone = {s.image.relative_to(tiny_data).as_posix() for s in set(dataset) - set(left)}
    assert gone == set(named)
    assert all(name.split("/")[1] == "test" for name in named)
    learned = {s.image for s in read_pictures(config)[0]}
    assert not learned & {s.image for s in left.select(split="test")}
    assert leave_learned_out(tmp_path, tiny_config, dataset) is dataset
    evaluation, _ = run_test(run, device="cpu")
    tested = [path for result in evaluation.categories.values() for path in result.paths]
    assert sorted(tested) == sorted(s.image for s in left.select(split="test"))
    for record in ("{}", '{"contamination": "all"}', None):
        (run / PROVENANCE).unlink() if record is None else (run / PROVENANCE).write_text(record)
        with pytest.raises(CheckpointError, match=r"learned from test pictures.*train it anew"):
            leave_learned_out(run, config, dataset)
    (run / PROVENANCE).write_text("[]")
    with pytest.raises(CheckpointError, match=r"cannot read .*provenance\.json"):
        leave_learned_out(run, config, dataset)


def test_little_to_learn_from_is_told() -> None:
    def pictures(category: str, count: int) -> list[Sample]:
        return [Sample(Path(f"{category}{i}.png"), category, "train") for i in range(count)]

    enough = pictures("nut", FEW_PICTURES)
    assert few_warning(enough, FEW_STEPS, 100) is None
    line = few_warning(enough, 30, 30)
    assert line == (
        "warning: only 30 steps in all, fewer than 100: expect poor results; give more good "
        "pictures, more epochs (--epochs 100) or a smaller batch (--batch-size)"
    )
    line = few_warning(enough, 30, 30, batch="--set x")
    assert line is not None
    assert line.endswith("or a smaller batch (--set x)")
    assert "(--epochs 16)" in str(few_warning(enough, FEW_STEPS - 1, 15))
    line = few_warning([*pictures("bolt", 1), *enough], FEW_STEPS, 500)
    assert line == (
        "warning: fewer than 20 good pictures of bolt (1): expect poor results; give more good "
        "pictures"
    )
    five = [s for name in "abcde" for s in pictures(name, FEW_PICTURES - 1)]
    line = few_warning(five, 1, 1)
    assert line is not None
    assert "only 1 steps in all, fewer than 100; fewer than 20" in line
    assert "of a (19), b (19), c (19) and 2 more: expect" in line


def test_the_list_of_an_extended_run_moves_with_it(tmp_path: Path) -> None:
    listed = Config().override({"data.root": "/gone/samples.csv", "data.layout": "csv"})
    (tmp_path / "samples.csv").touch()
    assert own_list(tmp_path, listed) == listed  # not an extended run
    (tmp_path / EXTENSION).touch()
    assert own_list(tmp_path, listed).data.root == str(tmp_path / "samples.csv")
    other = listed.override({"data.root": "/gone/parts.csv"})
    assert own_list(tmp_path, other) == other
    (tmp_path / "samples.csv").unlink()
    assert own_list(tmp_path, listed) == listed


def test_where_thresholds_come_from_is_told() -> None:
    run = Path("runs/x")
    line = learned_line(54, 6, "held-out training pictures", run)
    assert line == "54 learned from, 6 held out; thresholds from held-out training pictures"
    for source in get_args(Source)[1:3]:
        line = learned_line(12, 0, source, run)
        assert line.startswith(f"12 learned from, 0 held out; thresholds from {source}: false ")
        assert "'mambaad calibrate runs/x NEW_GOOD'" in line
    assert get_args(Source)[0] == HELD_OUT
    line = learned_line(5, 6, HELD_OUT, run, which="new thresholds")
    assert line.endswith("; new thresholds from held-out training pictures")


def test_training_tells_both(tiny_config: Config, tmp_path: Path) -> None:
    seen = Told()
    train(tiny_config, tmp_path / "run", device="cpu", observer=seen)
    assert seen.lines[0].startswith("encoder weights")
    assert seen.lines[1].startswith("warning: only 3 steps in all, fewer than 100; fewer than 20")
    assert "metal (6), wood (6)" in seen.lines[1]
    assert seen.lines[-1].startswith("12 learned from, 0 held out; thresholds from training pict")
    assert sum(line.startswith("warning") for line in seen.lines) == 1


def test_results_of_another_data_set_go_apart(
    tiny_config: Config, tiny_run: Path, tiny_data: Path, tmp_path: Path
) -> None:
    dataset, known = read_dataset(tiny_data), tiny_config

    def folder(data: Path | None, found: Dataset = dataset, config: Config = known) -> Path:
        return results_folder(tiny_run, config, data, found, None)

    assert results_folder(tiny_run, known, Path("x"), dataset, tmp_path) == tmp_path
    assert folder(None) == tiny_run
    assert folder(tiny_data / ".." / tiny_data.name) == tiny_run
    copy = tmp_path / "moved"
    shutil.copytree(tiny_data, copy)
    assert folder(copy, read_dataset(copy)) == tiny_run  # known by its fingerprint
    next((copy / "wood" / "test" / "good").iterdir()).unlink()
    assert folder(copy, read_dataset(copy)) == tiny_run / "test-moved"
    wood = known.override({"data.categories": ["wood"]})
    assert folder(tiny_data, dataset, wood) == tiny_run / "test-data"  # more than it was made for
    only = dataset.select(categories=["wood"])
    assert folder(tiny_data, only, wood) == tiny_run
    listed = tmp_path / "parts.csv"
    listed.touch()
    assert folder(listed, only) == tiny_run / "test-parts"


def test_whose_pictures_they_are_needs_a_whole_record(
    tiny_config: Config, tiny_data: Path, tmp_path: Path
) -> None:
    dataset, config = read_dataset(tiny_data), tiny_config.override({"data.root": "/gone"})

    def folder() -> Path:
        return results_folder(tmp_path, config, tiny_data, dataset, None)

    assert folder() == tmp_path / "test-data"  # without a record
    (tmp_path / PROVENANCE).write_text('{"data_fingerprint": null}')
    assert folder() == tmp_path / "test-data"
    for damaged in ("[]", '{"data_fing'):
        (tmp_path / PROVENANCE).write_text(damaged)
        with pytest.raises(CheckpointError, match=r"cannot read .*provenance\.json"):
            folder()


@pytest.mark.parametrize(("cache", "again"), [("none", 3), ("auto", 0), ("pictures", 0)])
def test_held_out_pictures_are_read_at_once_and_kept_where_a_cache_is_wanted(
    tiny_config: Config, monkeypatch: pytest.MonkeyPatch, cache: str, again: int
) -> None:
    config = tiny_config.override({"data.cache": cache})
    samples, read = read_pictures(config)[0][:3], []

    def load(path: Path, size: tuple[int, int]) -> np.ndarray:
        read.append(path)
        return load_picture(path, size)

    monkeypatch.setattr("mambaad.data.cache.load_picture", load)
    store = read_aside(samples, config)
    assert sorted(read) == sorted(s.image for s in samples)
    for i, sample in enumerate(samples):
        assert (store[[i]][0] == load_picture(sample.image, (64, 64))).all()
    assert len(read) == 3 + again
    assert len(read_aside([], config)) == 0
