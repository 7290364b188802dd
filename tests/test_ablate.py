"""Ablations: what is planned, what is left to do, and the table that comes out."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
from training import StopAt

from mambaad import checkpoint
from mambaad.ablate import (
    Job,
    check_protocol,
    commands,
    plan,
    results,
    run_here,
    state_of,
    weights_by_encoder,
    weights_of,
    write_results,
)
from mambaad.config import Config
from mambaad.errors import CheckpointError, ConfigError
from mambaad.grids import Grid, Published, Row
from mambaad.sheets import to_text

TWO = Published((50.0, 60.0, 70.0, 80.0, 90.0, 10.0, 20.0), 54.286, 1.5, 2.5)
GRID = Grid(
    "two rows",
    "Table 0",
    (Row("sweep", {"model.scan": "sweep"}, TWO), Row("zigzag", {"model.scan": "zigzag"})),
)


@pytest.fixture
def jobs(tiny_config: Config, tmp_path: Path) -> list[Job]:
    return plan(tiny_config, GRID.rows, [3, 4], tmp_path / "out")


@pytest.fixture
def done(tiny_config: Config, tiny_run: Path, tmp_path: Path) -> Job:
    """A trained job, not tested yet: a copy of the run of all tests."""
    (job,) = plan(tiny_config, [Row("base", {})], [3], tmp_path / "out")
    shutil.copytree(tiny_run, job.run)
    return job


def test_every_row_and_seed_has_a_folder(jobs: list[Job], tmp_path: Path) -> None:
    assert [str(job) for job in jobs] == [
        "sweep, seed 3", "zigzag, seed 3", "sweep, seed 4", "zigzag, seed 4",
    ]  # fmt: skip
    assert jobs[1].run == tmp_path / "out" / "zigzag" / "seed-3"
    assert (jobs[3].config.model.scan, jobs[3].config.train.seed) == ("zigzag", 4)
    assert len(plan(jobs[0].config, GRID.rows, [1, 1], tmp_path)) == 2
    assert [state_of(job, "exact") for job in jobs] == ["to train"] * 4


def test_a_run_that_was_stopped_goes_on_and_is_tested_once(jobs: list[Job]) -> None:
    job = jobs[0]
    with pytest.raises(KeyboardInterrupt):
        run_here(job, "exact", device="cpu", observer=StopAt(1))
    assert state_of(job, "exact") == "to resume"
    assert commands(job, "exact") == [
        ["train", "--out", str(job.run), "--resume"],
        ["test", str(job.run), "--protocol", "exact"],
    ]
    rest = StopAt()
    run_here(job, "exact", device="cpu", observer=rest)
    assert [step.number for step in rest.steps] == [2, 3]
    assert state_of(job, "exact") == "done"
    assert commands(job, "exact") == []
    again = StopAt()
    before = {p: p.stat().st_mtime_ns for p in job.run.iterdir()}
    run_here(job, "exact", device="cpu", observer=again)
    assert again.steps == []
    assert before == {p: p.stat().st_mtime_ns for p in job.run.iterdir()}
    assert state_of(job, "ader") == "to test"


def test_a_new_run_as_commands(jobs: list[Job], tmp_path: Path) -> None:
    job = jobs[2]
    assert commands(job, "ader", tmp_path / "w.pth") == [
        [
            "train", "--config", str(job.run / "config.toml"), "--out", str(job.run),
            "--encoder-weights", str(tmp_path / "w.pth"),
        ],
        ["test", str(job.run), "--protocol", "ader"],
    ]  # fmt: skip
    assert checkpoint.load_config(job.run) == job.config
    assert state_of(job, "ader") == "to train"


def test_a_folder_of_other_settings_is_refused(done: Job, tiny_config: Config) -> None:
    assert state_of(done, "exact") == "to test"
    (other,) = plan(
        tiny_config.override({"train.epochs": 9}), [Row("base", {})], [3], done.run.parents[1]
    )
    with pytest.raises(ConfigError, match=r"has train\.epochs = 1, not 9: choose another --out"):
        state_of(other, "exact")


def test_results_stand_beside_the_papers(done: Job, jobs: list[Job], tmp_path: Path) -> None:
    run_here(done, "exact", device="cpu")
    base = Row("base", {}, TWO)
    own = [Job(base, 3, done.run, done.config), Job(base, 4, tmp_path / "later", done.config)]
    sheet = results(GRID, [*own, jobs[1]], "exact")
    rows = to_text(sheet)
    mean = json.loads((done.run / "evaluation.json").read_text())["mean"]
    assert [row[:3] for row in rows] == [
        ["base", "here", "1 of 2"], ["base", "paper", ""], ["zigzag", "here", "0 of 1"],
    ]  # fmt: skip
    assert rows[0][13] == f"{100 * mean['mAD']:.1f}"
    assert rows[1][3:] == [
        "1.5",
        "2.5",
        "–",
        "50.0",
        "60.0",
        "70.0",
        "80.0",
        "90.0",
        "10.0",
        "20.0",
        "54.3",
        "–",
        "–",
    ]
    assert rows[2][6:] == ["–"] * 10
    assert rows[0][3] == rows[2][3] != "–"  # sizes need no run
    assert [n.partition(",")[0] for n in sheet.notes] == [
        "two rows", "protocol exact", "paper: arXiv 2404.06564",
    ]  # fmt: skip
    files = write_results(tmp_path, sheet)
    assert [file.name for file in files] == ["results.md", "results.csv", "results.tex"]
    table = list(csv.DictReader(files[1].read_text().splitlines()))
    assert float(table[0]["mAD"]) == mean["mAD"]
    assert float(table[1]["image_F1max"]) == 0.7
    # another protocol's numbers are not mixed in
    assert to_text(results(GRID, own, "ader"))[0][2] == "0 of 2"


def test_weights_by_encoder(jobs: list[Job], tmp_path: Path) -> None:
    one, other = tmp_path / "one.pth", tmp_path / "other.pth"
    one.touch()
    other.touch()
    weights = weights_by_encoder([str(one), f"filterbank={other}"])
    assert weights_of(jobs[0], weights) == other
    assert weights_of(jobs[0], weights_by_encoder([str(one)])) == one
    assert weights_of(jobs[0], weights_by_encoder([f"resnet18={one}"])) is None
    with pytest.raises(CheckpointError, match="no weights at"):
        weights_by_encoder([f"resnet18={tmp_path / 'none.pth'}"])


def test_protocols_are_checked_first() -> None:
    check_protocol("ader")
    with pytest.raises(ConfigError, match="protocol must be one of"):
        check_protocol("best")
