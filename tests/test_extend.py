"""A product added to a run: what is kept, what is recorded, that it can be resumed, mistakes."""

from __future__ import annotations

import csv
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mambaad.checkpoint import load_config, load_model, load_tensors
from mambaad.cli import main
from mambaad.data import load_picture, read_dataset
from mambaad.data.synthetic import synthesize
from mambaad.extend import Plan, begin
from mambaad.kept_pictures import HELD_OUT, LIST, draw, find_pictures, write_list

SMALL = (
    "--encoder", "filterbank", "--epochs", "2", "--image-size", "64", "--batch-size", "4",
    "--set", "model.depths=[1,1,1,1]", "--set", "model.directions=2",
)  # fmt: skip


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as exit_info:
        main([str(a) for a in arguments])
    return int(exit_info.value.code or 0)


def read(path: Path) -> dict[str, object]:
    return dict(json.loads(path.read_text(encoding="utf-8")))


@pytest.fixture(scope="module")
def new_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("new") / "data"
    synthesize(folder, seed=5, size=64, train=5, good=2, defective=2, categories=("fabric",))
    return folder


@pytest.fixture
def old(tiny_data: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A run with held-out pictures and a data set of its own, which tests may move."""
    data, folder = tmp_path / "old data", tmp_path / "old"
    shutil.copytree(tiny_data, data)
    held = ("--set", "data.holdout=0.5", "--seed", "3")
    assert run("train", data, "--out", folder, *SMALL, *held) == 0
    return folder, data


def test_old_and_new_products_are_in_one_run(
    old: tuple[Path, Path], new_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, _ = old
    before = (base / "model.safetensors").read_bytes()
    out = tmp_path / "out"
    extend = ("extend", base, new_data, "--out", out, "--replay", 2, "--epochs", 1)
    assert run(*extend, "--set", "train.learning_rate=0.001") == 0
    shown = capsys.readouterr()
    assert f"next: mambaad test {out}" in shown.out
    assert "replayed: 4 of 6 pictures of 2 old products, from data set" in shown.out
    assert "no test pictures" not in shown.out
    assert (base / "model.safetensors").read_bytes() == before
    config, _ = load_model(out)
    assert (config.train.epochs, config.train.learning_rate) == (1, 0.001)
    assert config.model == load_config(base).model
    listed = read_dataset(out / LIST, "csv")
    counts = {c: len(listed.select(split="train", categories=[c])) for c in listed.categories}
    assert counts == {"metal": 2, "wood": 2, "fabric": 5}  # too few to hold any of fabric out
    assert len(listed.select(split="test")) == 12 + 4
    # neither training saw what the thresholds come from
    apart = {s.image for s in read_dataset(out / HELD_OUT, "csv")}
    learned = {s.image.resolve() for s in find_pictures(base).learned}
    assert len(apart) == 6
    assert not apart & ({s.image for s in listed} | learned)
    calibration = read(out / "calibration.json")
    assert {n: v["pictures"] for n, v in calibration["categories"].items()} == {  # type: ignore[attr-defined]
        "fabric": 5, "metal": 3, "wood": 3,
    }  # fmt: skip
    record = read(out / "provenance.json")["extension"]
    assert record == read(out / "extension.json")
    assert (record["old"], record["new"]) == ({"metal": 2, "wood": 2}, {"fabric": 5})  # type: ignore[index]
    assert record["run_provenance"]["training_pictures"] == 6  # type: ignore[index]
    assert run("test", out) == 0
    assert list(read(out / "evaluation.json")["categories"]) == ["fabric", "metal", "wood"]  # type: ignore[call-overload]
    # it can be extended in its turn, and then holds all
    assert len(find_pictures(out).held_out) == 6
    assert run("extend", "--out", out, "--resume") == 2
    assert "its extension is complete" in capsys.readouterr().err


def test_the_training_goes_on_from_the_old_weights_and_can_be_resumed(
    old: tuple[Path, Path], new_data: Path, tmp_path: Path
) -> None:
    base, _ = old
    first, second = tmp_path / "first", tmp_path / "second"
    options = ("--epochs", 1, "--set", "train.learning_rate=1e-9", "--thresholds", "keep")
    assert run("extend", base, new_data, "--out", first, *options) == 0
    settings = {"train.learning_rate": 1e-9}
    begin(Plan(base, new_data, thresholds="keep", epochs=1, settings=settings), second)
    state, note = load_tensors(second / "state.safetensors")
    assert note["step"] == 0
    assert run("extend", "--out", second, "--resume") == 0
    weights, _ = load_tensors(base / "model.safetensors")
    ends = [load_tensors(folder / "model.safetensors")[0] for folder in (first, second)]
    for name, value in weights.items():
        assert torch.equal(state[f"model.{name}"], value)
        assert torch.equal(ends[0][name], ends[1][name])
        if "running" not in name and "num_batches" not in name:
            torch.testing.assert_close(ends[0][name], value, rtol=0, atol=1e-6)
    kept = read(first / "calibration.json")
    own = read(base / "calibration.json")["categories"]
    assert {n: kept["categories"][n] for n in ("metal", "wood")} == own  # type: ignore[index]
    highest = max(v["threshold"] for v in kept["categories"].values())  # type: ignore[attr-defined]
    assert kept["overall"]["threshold"] == highest  # type: ignore[index]
    assert "kept" in str(kept["source"])
    assert (first / "metrics.jsonl").read_text().count("\n") == 2  # 11 pictures, four at a time


def test_kept_pictures_stand_in_for_a_lost_data_set(
    old: tuple[Path, Path], new_data: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    base, data = old
    assert run("remember", base, "--pictures", 2) == 0
    assert f"wrote {base / 'replay'}: 8 pictures, " in capsys.readouterr().out
    originals = {s.image for s in find_pictures(base).learned}
    chosen = draw(find_pictures(base).learned, 2, 3)
    kept = read_dataset(base / "replay" / LIST, "csv").samples
    for sample, source in zip(kept, chosen, strict=True):
        assert source.image in originals
        assert (load_picture(sample.image, (64, 64)) == load_picture(source.image, (64, 64))).all()
    moved = data.rename(tmp_path / "moved")
    out = tmp_path / "out"
    assert run("extend", base, new_data, "--out", out, "--epochs", 1) == 0
    untested = f"no test pictures of metal, wood: 'mambaad test {out}' leaves them out; "
    assert untested in capsys.readouterr().out
    shutil.rmtree(base)  # the extended run has what it needs
    rows = list(csv.DictReader((out / LIST).read_text().splitlines()))
    assert [r["image_path"][:13] for r in rows if r["category"] == "metal"] == 2 * ["old_pictures/"]
    caplog.clear()
    assert run("test", out) == 0
    (line,) = caplog.messages
    assert line.startswith(untested)
    assert line.count("\n") == 0
    assert list(read(out / "evaluation.json")["categories"]) == ["fabric"]  # type: ignore[call-overload]
    assert set(read(out / "calibration.json")["categories"]) == {"fabric", "metal", "wood"}  # type: ignore[call-overload]
    assert moved.is_dir()


def test_a_data_set_that_moved_can_be_named(
    old: tuple[Path, Path], new_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, data = old
    moved = data.rename(tmp_path / "moved")
    assert run("extend", base, new_data, "--out", tmp_path / "none") == 2
    error = capsys.readouterr().err
    assert "the old products would be forgotten" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "none").exists()
    assert run("remember", base, "--old-data", moved, "--pictures", 1) == 0
    assert len(find_pictures(base, moved).test) == 12
    assert len(find_pictures(base).test) == 0


def test_mistakes_are_one_line(
    tiny_run: Path, tiny_data: Path, new_data: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out = ("--out", tmp_path / "out")
    mistakes = {
        ("extend", tiny_run): "give both: mambaad extend RUN DATA",
        ("extend", tiny_run, "--resume"): "give only --out",
        ("extend", "--resume", *out): "there is no extension.json in it",
        ("extend", tiny_run, tiny_data, *out): "knows ['metal', 'wood'] already",
        ("extend", tiny_run, new_data, "--replay", "few", *out): "must be a number of pictures",
        ("extend", tiny_run, new_data, "--replay", "0", *out): "must be at least 1 picture",
        ("extend", tiny_run, new_data, "--thresholds", "old", *out): "thresholds must be one of",
        ("extend", tiny_run, new_data, "--set", "model.directions=4", *out): "cannot be set",
        ("extend", tiny_run, new_data, "--out", tiny_run): "holds a run already",
        ("extend", tmp_path, new_data, *out): "is not a run folder",
        ("extend", tiny_run, tmp_path / "gone", *out): "gone",
        ("remember", tiny_run, "--pictures", "0"): "must be at least 1, got 0",
    }
    for arguments, expected in mistakes.items():
        assert run(*arguments) == 2
        *bars, error = capsys.readouterr().err.splitlines()
        assert error.startswith("error: ")
        assert expected.lower() in error.lower()
        assert not bars or arguments[0] == "remember"
        assert not (tmp_path / "out").exists()


def test_names_that_are_no_utf8_are_listed_by_links(tiny_data: Path, tmp_path: Path) -> None:
    samples = read_dataset(tiny_data).select(categories=["metal"]).samples
    odd = tmp_path / os.fsdecode(b"Gr\xf6\xdfe")
    odd.mkdir()
    moved = tuple(
        replace(
            s,
            image=Path(shutil.copy(s.image, odd / f"{number}.png")),
            mask=s.mask and Path(shutil.copy(s.mask, odd / f"{number}_mask.png")),
        )
        for number, s in enumerate(samples)
    )
    for _ in range(2):  # it may be written anew
        write_list(tmp_path / "out" / LIST, moved)
    listed = read_dataset(tmp_path / "out" / LIST, "csv").samples
    assert {s.image.resolve() for s in listed} == {s.image.resolve() for s in moved}
    assert sum(s.mask is not None for s in listed) == sum(s.mask is not None for s in moved) > 0
    assert all(s.mask.resolve().stem == f"{s.image.resolve().stem}_mask" for s in listed if s.mask)
    assert {s.image.parent.name for s in listed} == {"renamed"}


def test_more_pictures_of_a_seed_include_the_fewer(tiny_data: Path) -> None:
    samples = read_dataset(tiny_data).select(split="train").samples
    few, more, all_of_them = (draw(samples, count, 7) for count in (2, 4, None))
    assert [len(x) for x in (few, more, all_of_them)] == [4, 8, 12]
    assert set(few) < set(more) < set(all_of_them)
    assert all_of_them == list(samples)
    assert few != draw(samples, 2, 8)
