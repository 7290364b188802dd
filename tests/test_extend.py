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

from mambaad.calibrate import load_calibration, save_calibration
from mambaad.checkpoint import load_config, load_model, load_tensors
from mambaad.cli import main
from mambaad.data import load_picture, read_dataset
from mambaad.data.synthetic import synthesize
from mambaad.errors import CheckpointError
from mambaad.extend import begin, resume
from mambaad.extend_settings import Plan
from mambaad.kept_pictures import HELD_OUT, LIST, draw, find_pictures, write_list
from mambaad.splits import read_pictures

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
    assert f"next: mambaad test {out}\n" in shown.out
    told = " ".join(shown.err.split())
    assert (
        "warning: only 2 steps in all, fewer than 100; fewer than 20 good pictures of fabric (5): "
        "expect poor results; give more good pictures, more epochs (--epochs 50) or a smaller "
        "batch (--set train.batch_size=NUMBER)"
    ) in told
    assert (
        "9 learned from, 6 held out; thresholds from held-out training pictures, or training "
        "pictures of categories with few: false alarms on new pictures are likely"
    ) in told
    assert "fewer pictures than before" not in shown.out
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
    assert (record["old"], record["new"]) == ({"metal": 2, "wood": 2}, {"fabric": 5})
    assert record["run_provenance"]["training_pictures"] == 6
    assert read(out / "provenance.json")["training_pictures"] == 9
    assert run("test", out) == 0
    assert list(read(out / "evaluation.json")["categories"]) == ["fabric", "metal", "wood"]  # type: ignore[call-overload]
    # it can be extended in its turn, and then holds all
    assert len(find_pictures(out).held_out) == 6
    assert run("extend", "--out", out, "--resume") == 2
    assert "its extension is complete" in capsys.readouterr().err


def test_the_training_goes_on_from_the_old_weights_and_can_be_resumed(
    old: tuple[Path, Path], new_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, _ = old
    before = load_calibration(base)
    assert before is not None
    source = "good pictures given afterwards"
    save_calibration(base, replace(before, source=source, quantile=0.9))
    first, second = tmp_path / "first", tmp_path / "second"
    options = ("--epochs", 1, "--set", "train.learning_rate=1e-9", "--thresholds", "keep")
    assert run("extend", base, new_data, "--out", first, *options) == 0
    settings = {"train.learning_rate": 1e-9}
    begin(Plan(base, new_data, thresholds="keep", epochs=1, settings=settings), second)
    state, note = load_tensors(second / "state.safetensors")
    assert note["step"] == 0
    extension = read(second / "extension.json")
    assert extension["kept_thresholds"]["precision"] == "float32"  # type: ignore[index]
    extension["kept_thresholds"]["precision"] = "bf16"  # type: ignore[index]
    (second / "extension.json").write_text(json.dumps(extension))
    capsys.readouterr()
    assert run("extend", "--out", second, "--resume") == 0
    told = " ".join(capsys.readouterr().err.split())
    assert "the old thresholds were set in bf16, the new product's in float32" in told
    assert "11 learned from, 0 held out; new thresholds from training pictures: false" in told
    assert read(second / "calibration.json")["precision"] is None
    weights, _ = load_tensors(base / "model.safetensors")
    ends = [load_tensors(folder / "model.safetensors")[0] for folder in (first, second)]
    for name, value in weights.items():
        assert torch.equal(state[f"model.{name}"], value)
        assert torch.equal(ends[0][name], ends[1][name])
        if "running" not in name and "num_batches" not in name:
            torch.testing.assert_close(ends[0][name], value, rtol=0, atol=1e-6)
    kept = load_calibration(first)
    assert kept is not None
    for name, threshold in before.categories.items():  # a later calibration must not guess it
        assert kept.categories[name] == replace(threshold, source=source, quantile=0.9)
    fabric = kept.categories["fabric"]
    assert (fabric.source, fabric.quantile, fabric.pictures) == ("training pictures", 0.99, 5)
    assert kept.threshold() == max(t.threshold for t in kept.categories.values())
    assert (kept.precision, kept.kept) == ("float32", ("metal", "wood"))
    assert kept.source == "training pictures, or kept from before"
    assert (first / "metrics.jsonl").read_text().count("\n") == 2  # 11 pictures, four at a time


def test_thresholds_from_fewer_pictures_are_told(
    tiny_run: Path, new_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    extend = ("extend", tiny_run, new_data, "--replay", 2, "--epochs", 1)
    assert run(*extend, "--out", out) == 0
    line = (
        "warning: the thresholds of metal (6, now 2), wood (6, now 2) will come from fewer "
        "pictures than before; --thresholds keep leaves them as they are"
    )
    shown = capsys.readouterr()
    assert line in shown.out.splitlines()
    assert "9 learned from, 0 held out; thresholds from training" in " ".join(shown.err.split())
    found = load_calibration(out)
    assert found is not None
    assert found.categories["metal"].pictures == 2
    keep = Plan(tiny_run, new_data, replay=2, thresholds="keep")
    assert begin(keep, tmp_path / "kept")["fewer"] == {}


def test_an_extended_run_can_be_moved(
    old: tuple[Path, Path], new_data: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    base, _ = old
    first, second = tmp_path / "first", tmp_path / "second"
    assert run("extend", base, new_data, "--out", first, "--epochs", 1) == 0
    capsys.readouterr()
    moved = first.rename(tmp_path / "moved")
    assert run("test", moved) == 0
    assert "its results are apart" not in capsys.readouterr().out
    assert list(read(moved / "evaluation.json")["categories"]) == ["fabric", "metal", "wood"]  # type: ignore[call-overload]
    assert not (first / LIST).exists()
    assert run("test", moved, moved / LIST) == 0  # its own, too
    assert "its results are apart" not in capsys.readouterr().out
    assert run("calibrate", moved, new_data) == 0
    assert "has learned from 5 of these 5 pictures" in caplog.messages[0]
    assert run("remember", moved, "--pictures", 1) == 0
    more = tmp_path / "more"
    synthesize(more, seed=6, size=64, train=5, good=1, defective=1, categories=("board",))
    # another extended run lies now where this one was
    assert run("extend", base, more, "--out", first, "--epochs", 1) == 0
    record = begin(Plan(moved, more), second)
    assert record["replayed_from"] == "data set"
    assert set(record["old"]) == {"fabric", "metal", "wood"}
    shutil.rmtree(first)
    (moved / LIST).write_text((moved / LIST).read_text().replace(str(tmp_path), "/gone"))
    record = begin(Plan(moved, more), tmp_path / "third")
    assert (record["replayed_from"], record["old"]["fabric"]) == ("kept pictures", 1)


def test_a_moved_extension_can_be_resumed(
    old: tuple[Path, Path], new_data: Path, tmp_path: Path
) -> None:
    base, data = old
    assert run("remember", base) == 0
    data.rename(tmp_path / "gone")  # so some pictures are in the run folder
    begin(Plan(base, new_data, epochs=1), tmp_path / "out")
    begin(Plan(base, new_data, epochs=1), tmp_path / "stays")
    moved = (tmp_path / "out").rename(tmp_path / "moved")
    assert run("extend", "--out", moved, "--resume") == 0
    assert run("extend", "--out", tmp_path / "stays", "--resume") == 0
    assert load_config(moved).data.root == str(moved / LIST)
    assert read(moved / "extension.json")["finished"] is True
    ends = [load_tensors(f / "model.safetensors")[0] for f in (moved, tmp_path / "stays")]
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())
    assert load_calibration(moved) == load_calibration(tmp_path / "stays")


def test_what_to_do_next_works_without_test_pictures(
    old: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, data = old
    good, out = tmp_path / "good" / "fabric" / "train" / "good", tmp_path / "out"
    synthesize(tmp_path / "all", seed=5, size=64, train=5, good=1, categories=("fabric",))
    shutil.copytree(tmp_path / "all" / "fabric" / "train" / "good", good)
    assert run("remember", base) == 0
    data.rename(tmp_path / "gone")
    capsys.readouterr()
    assert run("extend", base, tmp_path / "good", "--out", out, "--epochs", 1) == 0
    shown = capsys.readouterr().out
    assert f"next: mambaad predict {out} PICTURES\n" in shown
    assert (
        f"no test pictures of any product: test them with 'mambaad test {out} DATA', DATA being "
        "a data set that has some"
    ) in shown
    assert run("predict", out, good, "--out", tmp_path / "predictions") == 0
    assert run("test", out) == 2
    assert run("test", out, tmp_path / "all") == 0


def test_no_picture_of_the_list_is_held_out_again(tiny_run: Path, tmp_path: Path) -> None:
    base, data = tmp_path / "base", tmp_path / "data"
    shutil.copytree(tiny_run, base)
    settings = base / "config.toml"
    settings.write_text(settings.read_text().replace('holdout = "auto"', "holdout = 0.5"))
    synthesize(data, seed=5, size=64, train=12, good=1, defective=1, categories=("fabric",))
    record = begin(Plan(base, data), tmp_path / "out")
    assert (record["new"], record["old"]) == ({"fabric": 6}, {"metal": 3, "wood": 3})
    learned, held_out, _ = read_pictures(load_config(tmp_path / "out"))
    assert (len(learned), held_out) == (12, [])


@pytest.mark.parametrize("text", ["[]", '{"encoder_wei'])
def test_a_damaged_record_is_refused_and_left_as_it_is(
    tiny_run: Path, new_data: Path, tmp_path: Path, text: str
) -> None:
    base, out = tmp_path / "base", tmp_path / "out"
    shutil.copytree(tiny_run, base)
    record = base / "provenance.json"
    record.write_text(text)
    with pytest.raises(CheckpointError, match=r"cannot read .*provenance\.json"):
        begin(Plan(base, new_data), out)
    assert not out.exists()
    record_of = {"old": {}, "new": {"metal": 6, "wood": 6}, "kept_thresholds": None}
    unfinished = json.dumps({**record_of, "finished": False})
    (base / "extension.json").write_text(unfinished)  # it is trained, and not finished
    with pytest.raises(CheckpointError, match=r"cannot read .*provenance\.json"):
        resume(base, device="cpu")
    assert (record.read_text(), (base / "extension.json").read_text()) == (text, unfinished)
    record.unlink()  # a run without one is finished
    resume(base, device="cpu")
    assert list(read(record)) == ["extension"]


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
        ("extend", tiny_run, new_data, "--epochs", "0", *out): "epochs must be",
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
