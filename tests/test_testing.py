"""Testing a run: which data, which categories, where the files go."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from mambaad.calibrate import load_calibration, save_calibration
from mambaad.checkpoint import load_config
from mambaad.data import read_dataset
from mambaad.data.synthetic import synthesize
from mambaad.errors import CheckpointError, ConfigError, DatasetError
from mambaad.splits import split_holdout
from mambaad.testing import calibrate_run, run_test


def test_results_can_go_to_another_folder(tiny_run: Path, tmp_path: Path) -> None:
    before = sorted(p.name for p in tiny_run.iterdir())
    evaluation, files = run_test(tiny_run, device="cpu", out=tmp_path)
    assert list(evaluation.categories) == ["metal", "wood"]
    assert [f.name for f in files] == [
        "evaluation.json", "evaluation.csv", "evaluation.md", "scores.csv", "report.html",
    ]  # fmt: skip
    assert all(f.parent == tmp_path and f.is_file() for f in files)
    assert sorted(p.name for p in tiny_run.iterdir()) == before
    about = json.loads((tmp_path / "evaluation.json").read_text())["about"]
    assert about["seed"] == 3
    assert len(about["data_fingerprint"]) == 64


def test_categories_can_be_chosen(tiny_run: Path, tiny_data: Path, tmp_path: Path) -> None:
    evaluation, _ = run_test(tiny_run, tiny_data, categories=["wood"], out=tmp_path, device="cpu")
    assert list(evaluation.categories) == ["wood"]
    with pytest.raises(DatasetError, match="tin"):
        run_test(tiny_run, categories=["tin"], out=tmp_path, device="cpu")


def test_another_data_set_leaves_the_results_of_the_runs_own(
    tiny_run: Path, tiny_data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run, other = tmp_path / "run", tmp_path / "other.v2"
    shutil.copytree(tiny_run, run)
    _, files = run_test(run, device="cpu")
    assert {f.parent for f in files} == {run}
    own = {f: f.read_bytes() for f in files}
    shutil.copytree(tiny_data / "wood", other / "oak")
    assert not caplog.messages
    evaluation, files = run_test(run, other, device="cpu")
    assert [f.name for f in files] == [f.name for f in own]
    assert {f.parent for f in files} == {run / "test-other.v2"}
    assert {f: f.read_bytes() for f in own} == own
    (line,) = caplog.messages
    assert "does not know the categories oak: judged with its overall threshold" in line
    assert evaluation.categories["oak"].threshold == load_calibration(run).overall.threshold  # type: ignore[union-attr]
    _, files = run_test(run, other, out=tmp_path / "out", device="cpu")
    assert {f.parent for f in files} == {tmp_path / "out"}


def test_products_without_test_pictures_are_told(
    run: Path, tiny_data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = tmp_path / "data"
    shutil.copytree(tiny_data, data)
    shutil.rmtree(data / "wood" / "test")
    point_to(run, data)
    line = (
        f"no test pictures of wood: 'mambaad test {run}' leaves them out; test them with "
        f"'mambaad test {run} DATA', DATA being a data set that has some"
    )
    evaluation, _ = run_test(run, device="cpu")
    assert list(evaluation.categories) == ["metal"]
    assert caplog.messages == [line]
    caplog.clear()
    (run / "calibration.json").unlink()
    run_test(run, device="cpu")
    none = f"no thresholds in {run}: 'mambaad calibrate {run} DATA' makes them"
    assert caplog.messages == [line, none]  # by the run's record
    caplog.clear()
    run_test(run, categories=["metal"], device="cpu")
    run_test(run, data, device="cpu")
    assert caplog.messages == [none, none]
    caplog.clear()
    shutil.rmtree(data / "metal" / "test")
    with pytest.raises(DatasetError, match="no test pictures"):
        run_test(run, device="cpu")
    assert line[:20] not in " ".join(caplog.messages)  # nothing is left out of what cannot be


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_damaged_record_is_told_before_the_test(
    run: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setattr("mambaad.testing.evaluate", lambda *_, **__: pytest.fail("evaluated"))
    (run / "provenance.json").write_text(text)
    for data in (None, tiny_data):
        with pytest.raises(CheckpointError, match=r"cannot read .*provenance\.json"):
            run_test(run, data, device="cpu")


def test_evaluating_twice_gives_the_same_numbers(tiny_run: Path, tmp_path: Path) -> None:
    first, _ = run_test(tiny_run, out=tmp_path / "a", device="cpu")
    second, _ = run_test(tiny_run, out=tmp_path / "b", device="cpu")
    assert first.mean == second.mean


def test_arguments_are_checked_first(tiny_run: Path) -> None:
    with pytest.raises(ConfigError, match="protocol must be one of"):
        run_test(tiny_run, protocol="best")
    with pytest.raises(ConfigError, match="pro_limit"):
        run_test(tiny_run, pro_limit=0)


def test_a_run_can_be_calibrated_afterwards(
    tiny_run: Path, tiny_data: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(tiny_run, copy)
    (copy / "calibration.json").unlink()
    found = calibrate_run(copy, tiny_data, quantile=0.5, device="cpu")
    assert {n: t.pictures for n, t in found.categories.items()} == {"metal": 6, "wood": 6}
    assert load_calibration(copy) == found
    assert found.precision == "float32"
    highest = calibrate_run(copy, tiny_data, quantile=1, device="cpu")
    assert highest.threshold("metal") == highest.categories["metal"].maximum
    assert highest.threshold("metal") > found.threshold("metal")


def test_the_precision_is_chosen_and_recorded(
    tiny_run: Path, tiny_data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(tiny_run, copy)
    narrow = calibrate_run(copy, tiny_data, quantile=1, device="cpu", precision="bf16")
    assert narrow.precision == "bf16"
    wide = calibrate_run(copy, tiny_data, quantile=1, device="cpu", precision="float32")
    change = narrow.overall.threshold / wide.overall.threshold - 1
    assert 0 < abs(change) < 0.02
    assert "all thresholds are set in float32 now, before in bf16" in caplog.messages
    caplog.clear()
    run_test(copy, categories=["wood"], device="cpu")
    assert not caplog.messages
    _, files = run_test(copy, categories=["wood"], device="cpu", precision="bf16")
    assert json.loads(files[0].read_text())["about"]["precision"] == "bf16"
    (line,) = caplog.messages
    assert "set in float32, and this runs in bf16" in line
    with pytest.raises(ConfigError, match="precision must be auto, float32 or bf16, got 'half'"):
        run_test(copy, device="cpu", precision="half")


@pytest.fixture
def run(tiny_run: Path, tmp_path: Path) -> Path:
    """A copy of ``tiny_run``, which knows metal and wood."""
    return Path(shutil.copytree(tiny_run, tmp_path / "run"))


@pytest.fixture
def metal_run(run: Path) -> Path:
    """A run that knows metal only."""
    know(run, ["metal"])
    before = load_calibration(run)
    assert before is not None
    save_calibration(run, replace(before, categories={"metal": before.categories["metal"]}))
    return run


def know(run: Path, categories: Sequence[str], **more: object) -> None:
    file = run / "provenance.json"
    values = {**json.loads(file.read_text()), "categories": categories, **more}
    file.write_text(json.dumps(values))


def new_pictures(folder: Path, *categories: str) -> Path:
    """Pictures of other defects and noise than ``tiny_data`` has, 4 training ones each."""
    synthesize(folder, size=64, train=4, good=1, defective=1, categories=categories, seed=8)
    return folder


def good_pictures(folder: Path, source: Path) -> Path:
    """A folder that holds nothing but new good pictures of metal."""
    found = new_pictures(source, "metal") / "metal" / "train" / "good"
    return Path(shutil.copytree(found, folder))


def test_only_the_products_given_get_new_thresholds(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = load_calibration(run)
    assert before is not None
    found = calibrate_run(run, new_pictures(tmp_path / "new", "metal"), quantile=0.5, device="cpu")
    assert load_calibration(run) == found
    wood, metal = found.categories["wood"], found.categories["metal"]
    assert found.kept == ("wood",)
    assert wood.threshold == before.threshold("wood")
    assert (wood.source, wood.quantile) == ("training pictures", 0.99)
    assert (metal.source, metal.quantile) == ("good pictures given afterwards", 0.5)
    assert metal.pictures == 4
    assert metal.threshold != before.threshold("metal")
    assert found.threshold() == max(metal.threshold, wood.threshold)
    assert found.overall.pictures == 4 + 6
    assert not caplog.messages


def test_too_few_pictures_for_the_quantile_are_told(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    calibrate_run(run, new_pictures(tmp_path / "new", "metal"), device="cpu")
    assert caplog.messages == [  # and nothing of wood, whose threshold is kept
        "metal (4 pictures): the threshold is their highest score; the 0.99 quantile needs more "
        "pictures"
    ]


def test_thresholds_of_two_precisions_are_not_mixed(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    metal, text = new_pictures(tmp_path / "new", "metal"), (run / "calibration.json").read_text()
    with pytest.raises(ConfigError, match=r"\['wood'\] were set in float32.*--precision float32"):
        calibrate_run(run, metal, device="cpu", precision="bf16")
    assert (run / "calibration.json").read_text() == text
    both = new_pictures(tmp_path / "both", "metal", "wood")
    found = calibrate_run(run, both, quantile=0.5, device="cpu", precision="bf16")
    assert (found.precision, found.kept) == ("bf16", ())
    assert caplog.messages == ["all thresholds are set in bf16 now, before in float32"]


def test_a_run_of_one_product_takes_a_folder_of_any_name(
    metal_run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    more = good_pictures(tmp_path / "more", tmp_path / "new")
    found = calibrate_run(metal_run, more, quantile=0.5, device="cpu")
    assert list(found.categories) == ["metal"]
    (line,) = caplog.messages
    assert line == "the pictures of 'more' are taken as the run's product 'metal'"
    found = calibrate_run(metal_run, tmp_path / "new", quantile=0.5, device="cpu")
    assert (found.overall.pictures, len(caplog.messages)) == (4, 1)
    with pytest.raises(ConfigError, match=r"has \['wood'\], and .* knows only \['metal'\]"):
        calibrate_run(metal_run, new_pictures(tmp_path / "two", "metal", "wood"), device="cpu")


def test_thresholds_of_what_is_no_product_are_dropped(
    metal_run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old = load_calibration(metal_run)
    assert old is not None
    save_calibration(metal_run, replace(old, categories={"more": old.categories["metal"]}))
    new = new_pictures(tmp_path / "new", "metal")
    found = calibrate_run(metal_run, new, quantile=0.5, device="cpu")
    assert list(found.categories) == ["metal"]
    assert caplog.messages == ["the thresholds of ['more'] are dropped: no products of this run"]


def test_an_unknown_category_is_refused_or_named(run: Path, tmp_path: Path) -> None:
    more = good_pictures(tmp_path / "more", tmp_path / "new")
    unknown = r"has \['more'\], and .* knows only \['metal', 'wood'\]: .*--category NAME"
    with pytest.raises(ConfigError, match=unknown):
        calibrate_run(run, more, device="cpu")
    with pytest.raises(ConfigError, match=r"no product 'tin'; it has \['metal', 'wood'\]"):
        calibrate_run(run, more, category="tin", device="cpu")
    two = new_pictures(tmp_path / "two", "metal", "wood")
    with pytest.raises(ConfigError, match=r"has several: \['metal', 'wood'\]; give the folder"):
        calibrate_run(run, two, category="metal", device="cpu")
    found = calibrate_run(run, more, category="metal", device="cpu")
    assert {n: t.pictures for n, t in found.categories.items()} == {"metal": 4, "wood": 6}
    assert found.kept == ("wood",)


def test_a_run_that_does_not_say_its_products_takes_all_names(run: Path, tmp_path: Path) -> None:
    (run / "provenance.json").unlink()
    found = calibrate_run(run, good_pictures(tmp_path / "more", tmp_path / "new"), device="cpu")
    assert list(found.categories) == ["metal", "more", "wood"]
    for text in ("{", '{"categories": 3}', '{"categories": "metal"}', "[1]", "[]"):
        (run / "provenance.json").write_text(text)
        with pytest.raises(CheckpointError, match=r"cannot read .*provenance\.json"):
            calibrate_run(run, tmp_path / "more", device="cpu")


@pytest.mark.parametrize("place", ["root", "link", "copied", "moved", "changed"])
def test_pictures_that_the_run_has_learned_from_are_told(
    run: Path, tiny_data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, place: str
) -> None:
    data = tmp_path / "data"
    if place == "root":
        data = tiny_data
    elif place == "link":
        data.symlink_to(tiny_data)
    elif place == "copied":
        shutil.copytree(tiny_data / "metal", data / "metal")
    else:
        shutil.copytree(tiny_data, data)
    if place == "moved":
        point_to(run, tmp_path / "gone")
    if place == "changed":  # the record is of another state of it
        point_to(run, data)
        know(run, ["metal", "wood"], data_fingerprint="0")
    count = 6 if place == "copied" else 12
    found = calibrate_run(run, data, quantile=0.5, device="cpu")
    (line,) = caplog.messages
    assert line.startswith(f"the run has learned from {count} of these {count} pictures")
    assert "\n" not in line
    assert found.source.startswith("training pictures")


def point_to(run: Path, root: Path) -> None:
    file = run / "config.toml"
    own = load_config(run).data.root
    file.write_text(file.read_text().replace(own, str(root)))


def test_some_learned_pictures_are_counted(
    run: Path, tiny_data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = new_pictures(tmp_path / "new", "metal", "wood")
    learned = sorted((tiny_data / "metal" / "train" / "good").iterdir())[0]
    shutil.copy(learned, data / "metal" / "train" / "good" / learned.name)
    found = calibrate_run(run, data, device="cpu")
    assert caplog.messages[0].startswith("the run has learned from 1 of these 8 pictures")
    assert found.source == "good pictures, some of them training pictures"


def test_held_out_pictures_were_not_learned_from(
    run: Path, tiny_data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = run / "config.toml"
    file.write_text(file.read_text().replace('holdout = "auto"', "holdout = 0.5"))
    config = load_config(run)
    assert config.data.holdout == 0.5
    _, held_out = split_holdout(read_dataset(tiny_data), config)
    for sample in held_out:
        place = tmp_path / "held" / sample.image.relative_to(tiny_data)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(sample.image, place)
    found = calibrate_run(run, tmp_path / "held", quantile=0.5, device="cpu")
    assert {n: t.pictures for n, t in found.categories.items()} == {"metal": 3, "wood": 3}
    assert found.source == "held-out training pictures"
    assert not caplog.messages
