"""Ablations: what is planned, what is left to do, and the table that comes out."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from training import StopAt

from mambaad import checkpoint
from mambaad.ablate import (
    Job,
    check_protocol,
    check_weights,
    commands,
    gather,
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
from mambaad.model.encoder import file_source
from mambaad.sheets import to_text
from mambaad.testing import run_test

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


@pytest.mark.parametrize("other", [{"pro_limit": 0.05}, {"categories": ["metal"]}])
def test_another_test_is_not_taken_for_the_tables(done: Job, other: dict[str, Any]) -> None:
    run_test(done.run, device="cpu", **other)
    assert state_of(done, "exact") == "to test"
    assert to_text(results(GRID, [done], "exact"))[0][2] == "0 of 1"
    run_here(done, "exact", device="cpu")
    assert state_of(done, "exact") == "done"
    found = json.loads((done.run / "evaluation.json").read_text())
    assert (found["pro_limit"], list(found["categories"])) == (0.3, ["metal", "wood"])


def test_a_data_set_that_has_changed_since_is_tested_once(
    done: Job, tiny_config: Config, tmp_path: Path
) -> None:
    moved = tmp_path / "data"
    shutil.copytree(tiny_config.data.root, moved)
    config = done.config.override({"data.root": str(moved)})
    checkpoint.save_config(done.run, config)
    next((moved / "wood" / "test" / "good").iterdir()).unlink()
    job = Job(done.row, done.seed, done.run, config)
    run_here(job, "exact", device="cpu")
    assert state_of(job, "exact") == "done"


def copies(source: Job, base: Config, out: Path, weights: dict[tuple[str, int], str]) -> None:
    """Folders like a tested one for rows and seeds, with these records of their weights."""
    for (row, seed), text in weights.items():
        (job,) = plan(base, GRID.select([row]), [seed], out)
        shutil.copytree(source.run, job.run)
        checkpoint.save_config(job.run, job.config)
        record = checkpoint.load_provenance(job.run)
        checkpoint.save_provenance(job.run, {**record, "encoder_weights": text})


def test_the_table_is_of_all_that_is_there(
    done: Job, jobs: list[Job], tiny_config: Config, tmp_path: Path
) -> None:
    run_here(done, "exact", device="cpu")
    out, text = tmp_path / "out", "filterbank: fixed filters"
    copies(done, tiny_config, out, {("sweep", 7): text, ("zigzag", 3): text, ("zigzag", 5): text})
    copies(done, tiny_config.override({"train.epochs": 9}), out, {("sweep", 8): text})
    copies(done, tiny_config, out, {("zigzag", 6): "file other.pth", ("zigzag", 9): text})
    shutil.copytree(out / "zigzag" / "seed-5", out / "zigzag" / "seed-05")  # not of a table
    (out / "zigzag" / "seed-9" / "evaluation.json").write_text("{")
    found, remarks = gather(GRID, tiny_config, [jobs[1]], out, "exact")
    assert [str(job) for job in found] == ["sweep, seed 7", "zigzag, seed 3", "zigzag, seed 5"]
    assert remarks[0] == (
        f"not in this table: {out / 'sweep' / 'seed-8'} has train.epochs = 9, not 1"
    )
    assert "evaluation.json is not what mambaad test writes" in remarks[1]
    assert remarks[2:] == [
        f"not in this table: {out / 'zigzag' / 'seed-6'} has encoder weights of file other.pth, "
        f"not of {text}"
    ]
    sheet = results(GRID, found, "exact", remarks)
    assert [row[:3] for row in to_text(sheet)] == [
        ["sweep", "here", "1"], ["sweep", "paper", ""], ["zigzag", "here", "2"],
    ]  # fmt: skip
    assert set(remarks) < set(sheet.notes)
    assert gather(GRID, tiny_config, [jobs[1]], out, "ader")[0] == [jobs[1]]


def test_runs_of_other_weights_are_refused(
    done: Job, jobs: list[Job], tiny_config: Config, tmp_path: Path
) -> None:
    one, other = tmp_path / "one.pth", tmp_path / "other.pth"
    one.write_bytes(b"1")
    other.write_bytes(b"2")
    given, out = {"": one}, tmp_path / "out"
    check_weights(jobs, given)
    copies(done, tiny_config, out, {("sweep", 3): file_source(one)})
    check_weights(jobs, given)
    check_weights(jobs[:1], {})  # nothing is to train
    with pytest.raises(
        ConfigError, match=r"has encoder weights of file one\.pth .*, not of file o"
    ):
        check_weights(jobs, {"filterbank": other})
    one.rename(other)
    check_weights(jobs, {"": other})
    other.write_bytes(b"3")
    with pytest.raises(ConfigError, match=r"choose another --out, or give the weights that it"):
        check_weights(jobs, {"": other})
    with pytest.raises(ConfigError, match=r"give it with --encoder-weights for zigzag, seed 3 too"):
        check_weights(jobs, {})
    copies(done, tiny_config, out, {("zigzag", 3): "file other.pth"})  # of before: a name alone
    check_weights(jobs[1:2], {"": other})


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
