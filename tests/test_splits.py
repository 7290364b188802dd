"""Which pictures are learned from, which are held out, and which leave the test."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from mambaad.checkpoint import PROVENANCE
from mambaad.config import Config
from mambaad.data import fingerprint, read_dataset
from mambaad.errors import CheckpointError, DatasetError
from mambaad.splits import leave_learned_out, read_pictures, split_holdout
from mambaad.testing import run_test
from mambaad.train import train


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
    (run / PROVENANCE).write_text("{}")
    with pytest.raises(CheckpointError, match=r"learned from test pictures.*train it anew"):
        leave_learned_out(run, config, dataset)
