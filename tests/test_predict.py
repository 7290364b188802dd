"""The detector: files, arrays and lists in; scores, decisions and boxes out."""

from __future__ import annotations

import csv
import json
import os
import shutil
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import mambaad
from mambaad import reading
from mambaad.data import load_picture
from mambaad.errors import CheckpointError, ConfigError, DatasetError, ImageError
from mambaad.predict import COLUMNS, FIELDS, Detector, Prediction, find_pictures, predict_files


@pytest.fixture(scope="module")
def detector(tiny_run: Path) -> Detector:
    return mambaad.load(tiny_run, device="cpu")


def prediction(
    anomaly_map: np.ndarray, threshold: float | None, size: tuple[int, int]
) -> Prediction:
    return Prediction(
        None,
        None,
        float(np.float32(anomaly_map.max())),
        threshold,
        anomaly_map.astype(np.float32),
        size,
    )


def test_the_box_is_the_hottest_region_in_the_pictures_pixels() -> None:
    heat = np.zeros((8, 8))
    heat[1:3, 4:7] = 0.6
    heat[2, 4] = 0.9  # the peak, in the same region
    heat[6, 0] = 0.7  # another region
    found = prediction(heat, 0.5, (80, 160))
    assert found.pred_label is True
    assert found.box == (80, 10, 140, 30)
    assert found.pred_mask is not None
    assert found.pred_mask.sum() == 7


def test_a_good_picture_has_no_box() -> None:
    heat = np.zeros((4, 4))
    heat[0, 0], heat[0, 1], heat[0, 2] = 0.4, 0.21, 0.19
    found = prediction(heat, 0.5, (4, 4))
    assert found.pred_label is False
    assert found.box is None
    row = found.as_dict()
    assert tuple(row) == FIELDS
    assert {row[f"box_{side}"] for side in ("left", "top", "right", "bottom")} == {None}


def test_a_picture_that_nothing_is_decided_of_has_the_box_of_its_hottest_region() -> None:
    heat = np.zeros((4, 4))
    heat[0, 0], heat[0, 1], heat[0, 2] = 0.4, 0.21, 0.19
    assert prediction(heat, None, (4, 4)).box == (0, 0, 2, 1)


def test_a_picture_that_is_called_good_has_no_defective_pixel() -> None:
    """Its score may be a mean of pixels, some of them above the threshold."""
    found = replace(prediction(np.eye(4), 0.5, (4, 4)), pred_score=0.4)
    assert found.pred_label is False
    assert found.pred_mask is not None
    assert not found.pred_mask.any()


def test_a_threshold_between_two_float32_numbers() -> None:
    found = prediction(np.full((2, 2), 0.3) - [[0, 1], [1, 1]], 0.3, (2, 2))
    assert found.pred_score > 0.3  # float32's 0.3 is
    assert found.pred_label is True
    assert found.pred_mask is not None
    assert found.pred_mask.sum() == 1
    assert found.box == (0, 0, 1, 1)


def test_without_threshold_there_is_no_decision() -> None:
    found = prediction(np.ones((4, 4)), None, (4, 4))
    assert found.pred_label is None
    assert found.pred_mask is None
    assert found.as_dict()["pred_label"] is None
    assert tuple(found.as_dict()) == FIELDS


def test_a_flat_map_of_zeros_has_the_whole_picture() -> None:
    assert prediction(np.zeros((4, 4)), None, (10, 20)).box == (0, 0, 20, 10)


def test_file_array_and_list_agree(detector: Detector, tiny_data: Path) -> None:
    path = tiny_data / "metal" / "test" / "good" / "000.png"
    by_file = detector.predict(path)
    by_array = detector.predict(load_picture(path), category="metal")
    by_list = detector.predict([str(path), load_picture(path)])
    assert by_file.category == "metal"
    assert by_file.pred_score == by_array.pred_score
    assert by_list[0].pred_score == pytest.approx(by_file.pred_score, rel=1e-5)
    assert by_file.threshold == by_array.threshold
    assert by_list[1].category is None
    assert detector.calibration is not None
    assert by_list[1].threshold == detector.calibration.overall.threshold
    assert by_file.anomaly_map.shape == (64, 64)


def test_batches_do_not_change_scores(detector: Detector, tiny_data: Path) -> None:
    paths = sorted((tiny_data / "wood").rglob("test/*/*.png"))
    together = detector.predict(paths * 3)
    single = [detector.predict(p) for p in paths]
    for a, b in zip(together, single * 3, strict=True):
        assert a.pred_score == pytest.approx(b.pred_score, rel=1e-5)


def test_pictures_of_any_kind_and_size_are_taken(detector: Detector) -> None:
    rng = np.random.default_rng(0)
    grey16 = rng.integers(0, 65535, (50, 90), dtype=np.uint16)
    for array in (
        grey16,
        rng.random((33, 70, 3)),
        rng.integers(0, 255, (200, 10, 4), dtype=np.uint8),
    ):
        found = detector.predict(array)
        assert found.picture_size == array.shape[:2]
        assert 0 <= found.pred_score < 2 / 3


def test_an_unknown_category_is_refused(detector: Detector, tiny_data: Path) -> None:
    with pytest.raises(ConfigError, match=r"no category 'x'; it has \['metal', 'wood'\]"):
        detector.predict(tiny_data / "metal" / "test" / "good" / "000.png", category="x")


def of_wood_only(run: Path, copy: Path) -> Path:
    """A copy of a run of metal and wood whose calibration.json has lost metal."""
    shutil.copytree(run, copy)
    values = json.loads((copy / "calibration.json").read_text())
    del values["categories"]["metal"]
    values["overall"]["threshold"] = 0.5  # by hand, too
    (copy / "calibration.json").write_text(json.dumps(values))
    return copy


def test_a_product_without_threshold_is_not_judged_as_another(
    tiny_run: Path, tiny_data: Path, tmp_path: Path
) -> None:
    """Nor as one that a folder further up is named after."""
    detector = mambaad.load(of_wood_only(tiny_run, tmp_path / "run"), device="cpu")
    assert (detector.categories, detector.lacking) == (("wood",), ("metal",))
    shutil.copytree(tiny_data / "metal", tmp_path / "wood" / "metal")
    picture = Path("metal", "test", "good", "000.png")
    for path in (tiny_data / picture, tmp_path / "wood" / picture):
        found = detector.predict(path)
        assert (found.category, found.threshold) == (None, 0.5)
    assert detector.predict(tiny_data / "wood" / "test" / "good" / "000.png").category == "wood"
    with pytest.raises(ConfigError, match="no threshold for 'metal': 'mambaad calibrate' makes it"):
        detector.predict(tiny_data / picture, category="metal")


@pytest.mark.parametrize("names", [["wood"], [], None])
def test_a_run_of_one_product_takes_every_picture_for_it(
    tiny_run: Path, tiny_data: Path, tmp_path: Path, names: list[str] | None
) -> None:
    """So does a run without a record, or whose record names none, as that of a converted one."""
    run = of_wood_only(tiny_run, tmp_path / "run")
    record = json.loads((run / "provenance.json").read_text())
    (run / "provenance.json").write_text(json.dumps({**record, "categories": names or []}))
    if names is None:
        (run / "provenance.json").unlink()
    found = mambaad.load(run, device="cpu").predict(tiny_data / "metal/test/good/000.png")
    assert found.category == "wood"
    assert found.threshold != 0.5


def test_a_record_whose_products_are_no_names_is_refused(tiny_run: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_run, tmp_path / "run")
    (tmp_path / "run" / "provenance.json").write_text('{"categories": "wood"}')
    with pytest.raises(CheckpointError, match="categories must be a list of names, got 'wood'"):
        mambaad.load(tmp_path / "run", device="cpu")


def test_the_model_gives_teacher_and_student(detector: Detector) -> None:
    teacher, student = detector.model(torch.zeros(2, 3, 64, 96))
    assert [tuple(t.shape) for t in teacher] == [(2, 32, 16, 24), (2, 64, 8, 12), (2, 128, 4, 6)]
    assert [t.shape for t in teacher] == [s.shape for s in student]


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"not a run folder: there is no config\.toml"):
        mambaad.load(tmp_path)


def test_pictures_are_found_once_each_with_unique_names(tmp_path: Path) -> None:
    for name in ("a/x.png", "b/x.png", "a/x.jpg", "a/notes.txt", ".hidden.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = find_pictures([tmp_path / "a", tmp_path / "b", tmp_path / "a" / "x.png"])
    assert [str(name) for _, name in found] == ["x", "x_2", "x_3", "x_4"]
    assert [str(n) for _, n in find_pictures([tmp_path])] == ["a/x", "a/x_2", "b/x"]
    with pytest.raises(DatasetError, match="no such file or folder"):
        find_pictures([tmp_path / "c"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="no pictures in"):
        find_pictures([tmp_path / "empty"])


def test_files_are_scored_and_written(detector: Detector, tiny_data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    good = tiny_data / "metal" / "test" / "good" / "000.png"
    with Image.open(good) as picture:
        picture.resize((90, 70)).save(folder / "a.png")
    (folder / "broken.png").write_bytes(b"no picture")
    out = tmp_path / "out"
    results = list(
        predict_files(detector, find_pictures([folder]), out, category="metal", maps=True)
    )
    assert isinstance(results[0], Prediction)
    assert isinstance(results[1], ImageError)
    assert "broken.png" in str(results[1])
    rows = list(csv.DictReader((out / "predictions.csv").read_text().splitlines()))
    lines = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert len(rows) == len(lines) == 2
    assert tuple(rows[0]) == tuple(lines[0]) == COLUMNS
    assert float(rows[0]["pred_score"]) == lines[0]["pred_score"] == results[0].pred_score
    assert (rows[0]["width"], rows[0]["height"]) == ("90", "70")
    with Image.open(out / "heatmaps" / "a.jpg") as heatmap:
        assert heatmap.size == (90, 70)
    assert np.array_equal(np.load(out / "maps" / "a.npy"), results[0].anomaly_map)
    assert (rows[0]["heatmap"], rows[0]["error"]) == ("heatmaps/a.jpg", "")
    broken = {"image_path": str(folder / "broken.png"), "error": "it is not a picture, or its "}
    broken["error"] += "beginning is damaged"
    assert lines[1] == {**dict.fromkeys(COLUMNS), **broken}
    assert rows[1] == {**dict.fromkeys(COLUMNS, ""), **broken}


def table(out: Path) -> list[dict[str, str]]:
    with (out / "predictions.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def run_files(detector: Detector, out: Path, *paths: Path, heatmaps: bool = True) -> None:
    list(predict_files(detector, find_pictures(paths), out, heatmaps=heatmaps))


def files_in(out: Path) -> set[str]:
    return {p.relative_to(out).as_posix() for p in out.rglob("*") if p.parent != out}


@pytest.fixture
def colliding(tiny_data: Path, tmp_path: Path) -> Path:
    """Two pictures whose heat maps would have one name, and one in a folder."""
    folder = tmp_path / "in"
    (folder / "deep").mkdir(parents=True)
    for number, name in enumerate(("i16.png", "i16.tif", "deep/b.png")):
        with Image.open(tiny_data / "metal" / "test" / "good" / f"00{number}.png") as picture:
            picture.save(folder / name)
    return folder


def test_the_table_says_which_heatmap_is_whose(
    detector: Detector, colliding: Path, tmp_path: Path
) -> None:
    run_files(detector, tmp_path / "out", colliding)
    rows = {row["image_path"]: row["heatmap"] for row in table(tmp_path / "out")}
    assert rows == {
        str(colliding / "i16.png"): "heatmaps/i16.jpg",
        str(colliding / "i16.tif"): "heatmaps/i16_2.jpg",
        str(colliding / "deep" / "b.png"): "heatmaps/deep/b.jpg",
    }
    assert files_in(tmp_path / "out") == {*rows.values(), "heatmaps/deep"}
    run_files(detector, tmp_path / "none", colliding, heatmaps=False)
    assert [row["heatmap"] for row in table(tmp_path / "none")] == [""] * 3


def test_heatmaps_of_an_earlier_call_are_removed(
    detector: Detector, colliding: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run_files(detector, out, colliding)
    (out / "heatmaps" / "mine.jpg").write_bytes(b"not listed")
    run_files(detector, out, colliding / "i16.tif")
    assert files_in(out) == {"heatmaps/i16.jpg", "heatmaps/mine.jpg"}
    (colliding / "i16.tif").write_bytes(b"broken now")
    run_files(detector, out, colliding / "i16.tif")
    assert files_in(out) == {"heatmaps/mine.jpg"}
    (out / "heatmaps" / "mine.jpg").unlink()
    run_files(detector, out, colliding / "deep")
    run_files(detector, out, colliding / "deep", heatmaps=False)
    assert files_in(out) == set()


def test_an_interrupted_call_removes_nothing(
    detector: Detector, colliding: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run_files(detector, out, colliding)
    before = files_in(out)
    running = predict_files(detector, find_pictures([colliding / "deep"]), out, heatmaps=False)
    next(running)
    running.close()
    assert files_in(out) == before


def test_only_what_an_earlier_call_wrote_is_removed(
    detector: Detector, colliding: Path, tmp_path: Path
) -> None:
    """Whatever the old table says: it may have been edited, or be somebody else's."""
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    (out / "heatmaps").mkdir(parents=True)
    elsewhere.mkdir()
    listed = ["x.jpg", "heatmaps/x.png", "heatmaps/../x.jpg", "heatmaps/link/x.jpg", "../x.jpg"]
    for place in (out / "x.jpg", out / "heatmaps/x.png", elsewhere / "x.jpg", tmp_path / "x.jpg"):
        place.touch()
    (out / "heatmaps" / "link").symlink_to(elsewhere)
    (out / "heatmaps" / "x.jpg").symlink_to("x.png")
    listed += ["heatmaps/x.jpg", str(tmp_path / "x.jpg"), ".", "heatmaps", "heatmaps/gone.jpg"]
    before = files_in(tmp_path)
    for header in (COLUMNS, ("heatmap",)):
        (out / "heatmaps" / "other.jpg").touch()
        rows = [dict.fromkeys(header, "") | {"heatmap": name} for name in listed]
        with (out / "predictions.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, header)
            writer.writeheader()
            writer.writerows([*rows, {"heatmap": "heatmaps/other.jpg"}])
        run_files(detector, out, colliding / "deep", heatmaps=False)
        # it is ours only under our own header
        assert (out / "heatmaps" / "other.jpg").exists() == (header != COLUMNS)
    new = {f"out/{n}" for n in ("heatmaps/other.jpg", "predictions.csv", "predictions.jsonl")}
    assert files_in(tmp_path) == before | new
    (out / "predictions.csv").write_bytes(b"\xff\xfe no text")
    run_files(detector, out, colliding / "deep", heatmaps=False)
    assert (out / "heatmaps" / "other.jpg").exists()


@pytest.mark.parametrize("place", ["heatmaps/i16.jpg", "maps/i16.npy", "heatmaps/deep/b.jpg"])
@pytest.mark.parametrize("kind", ["file", "link", "folder"])
def test_no_file_of_somebody_elses_is_written_over(
    detector: Detector,
    colliding: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    kind: str,
) -> None:
    out = tmp_path / "out"
    (out / place).parent.mkdir(parents=True)
    if kind == "file":
        (out / place).write_bytes(b"mine")
    elif kind == "link":
        (out / place).symlink_to("nowhere")
    else:
        (out / place).mkdir()
    monkeypatch.setattr(detector, "scored", None)  # nothing is scored
    what = "raw map" if place.startswith("maps") else "heat map"
    message = rf"out/{place} is not a {what} of an earlier call.*choose another --out$"
    with pytest.raises(ConfigError, match=message):
        list(predict_files(detector, find_pictures([colliding]), out, maps=True))
    monkeypatch.undo()
    assert [path.name for path in out.iterdir()] == [place.split("/")[0]]
    assert kind != "file" or (out / place).read_bytes() == b"mine"
    assert kind != "link" or (out / place).is_symlink()
    # where it is not in the way it stays, and later calls do not remove it
    flags = {"heatmaps": what == "raw map", "maps": what == "heat map"}
    for _ in range(2):
        list(predict_files(detector, find_pictures([colliding]), out, **flags))
    assert os.path.lexists(out / place)


def test_what_earlier_calls_wrote_is_written_over(
    detector: Detector, colliding: Path, tmp_path: Path
) -> None:
    """Also of a call that was killed, and so left no table, and of one that marked nothing."""
    out, files = tmp_path / "out", find_pictures([colliding])
    for _ in range(2):
        list(predict_files(detector, files, out, maps=True))
    expected = np.load(out / "maps" / "i16.npy")
    for path in out.glob("predictions.*"):
        path.unlink()
    list(predict_files(detector, files, out, maps=True))
    assert np.array_equal(np.load(out / "maps" / "i16.npy"), expected)
    Image.new("RGB", (8, 8)).save(out / "heatmaps" / "i16.jpg")
    run_files(detector, out, colliding)
    with Image.open(out / "heatmaps" / "i16.jpg") as heatmap:
        assert heatmap.size != (8, 8)


def test_a_pil_picture_is_taken_as_its_file_is(detector: Detector, tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    grey16 = Image.fromarray(rng.integers(0, 65535, (50, 90), dtype=np.uint16))
    turned = Image.Exif()
    turned[0x0112] = 6
    grey16.save(tmp_path / "grey16.png", exif=turned)
    colour = Image.fromarray(rng.integers(0, 255, (40, 60, 3), dtype=np.uint8))
    colour.convert("P").save(tmp_path / "palette.png")
    paths = [tmp_path / "grey16.png", tmp_path / "palette.png"]
    by_file = [detector.predict(path) for path in paths]
    assert by_file[0].picture_size == (90, 50)
    opened = [Image.open(path) for path in paths]
    for image, expected in zip(opened, by_file, strict=True):
        found = detector.predict(image)
        assert found.image_path is None
        assert found.picture_size == expected.picture_size
        assert np.array_equal(found.anomaly_map, expected.anomaly_map)
    mixed = detector.predict([*opened, paths[0], np.asarray(colour), opened[0]])
    assert [p.image_path for p in mixed] == [None, None, paths[0], None, None]
    for found, expected in zip(mixed, [*by_file, by_file[0]], strict=False):
        assert found.pred_score == pytest.approx(expected.pred_score, rel=1e-5)


def test_what_is_no_picture_is_told_what_is(detector: Detector, tiny_data: Path) -> None:
    path = tiny_data / "metal" / "test" / "good" / "000.png"
    accepted = "a file's path, a NumPy array or a PIL picture, several a list of these; got "
    for source, kind in ((torch.zeros(8, 8, 3), "Tensor"), (None, "NoneType"), (iter([path]), "")):
        with pytest.raises(TypeError, match=accepted + kind):
            detector.predict(source)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match=accepted + "int"):
        detector.predict([path, 3])
    with pytest.raises(
        ImageError, match=r"good: it is a folder; .* mambaad\.predict\.predict_files"
    ):
        detector.predict(path.parent)


def test_an_interrupted_prediction_leaves_no_half_table(
    detector: Detector, tiny_data: Path, tmp_path: Path
) -> None:
    files = find_pictures([tiny_data / "metal" / "test"])
    before = threading.active_count()
    running = predict_files(detector, files, tmp_path, heatmaps=False)
    next(running)
    running.close()
    assert [path.name for path in tmp_path.iterdir()] == ["predictions.partial.csv"]
    assert threading.active_count() == before


def test_an_interrupted_prediction_leaves_no_half_heatmap(
    detector: Detector, tiny_data: Path, tmp_path: Path
) -> None:
    files = find_pictures([tiny_data / "metal" / "test"])
    running = predict_files(detector, files, tmp_path)
    next(running)
    running.close()
    heatmaps = [path for path in (tmp_path / "heatmaps").rglob("*") if path.is_file()]
    assert 1 <= len(heatmaps) <= len(files)
    assert all(path.name[0] != "." and path.suffix == ".jpg" for path in heatmaps)


def test_a_stopped_prediction_keeps_its_rows(
    detector: Detector,
    colliding: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Whether Ctrl-C comes while it scores, or to the caller, who closes it."""
    out, files = tmp_path / "out", find_pictures([colliding])
    partial, scored = out / "predictions.partial.csv", detector._prediction
    numbers = iter(range(9))

    def interrupted(*arguments: Any) -> Prediction:
        if next(numbers) == 2:
            raise KeyboardInterrupt
        return scored(*arguments)

    monkeypatch.setattr(detector, "_prediction", interrupted)
    found = []
    with pytest.raises(KeyboardInterrupt):
        found += predict_files(detector, files, out)
    monkeypatch.undo()
    rows = list(csv.DictReader(partial.read_text().splitlines()))
    assert 1 <= len(rows) <= 2
    assert tuple(rows[0]) == COLUMNS
    assert [row["image_path"] for row in rows] == [str(path) for path, _ in files[: len(rows)]]
    (line,) = caplog.messages
    assert line == f"done: {len(rows)} of 3; their rows are in {partial}"
    assert not (out / "predictions.csv").exists()
    running = predict_files(detector, files, out)
    next(running), next(running)
    running.close()
    assert len(partial.read_text().splitlines()) == 1 + 2
    # the next whole call knows them all, and leaves no heat map of theirs
    run_files(detector, out, colliding / "deep")
    assert {path.name for path in out.iterdir()} == {
        "predictions.csv", "predictions.jsonl", "heatmaps",
    }  # fmt: skip
    assert not (out / "heatmaps" / "deep" / "b.jpg").exists()
    assert not (out / "heatmaps" / "i16.jpg").exists()
    caplog.clear()
    running = predict_files(detector, files, tmp_path / "none")
    running.close()  # before its first row
    assert not (tmp_path / "none").exists()
    assert not caplog.messages


def test_names_that_are_no_utf8_are_escaped(
    detector: Detector, tiny_data: Path, tmp_path: Path
) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    picture = (tiny_data / "metal" / "test" / "good" / "000.png").read_bytes()
    for name, content in ((b"Gr\xf6\xdfe.png", picture), (b"z\xe4h.png", b"no picture")):
        (folder / os.fsdecode(name)).write_bytes(content)
    results = list(predict_files(detector, find_pictures([folder]), out, maps=True))
    assert isinstance(results[0], Prediction)
    assert results[0].image_path == folder / os.fsdecode(b"Gr\xf6\xdfe.png")
    rows = table(out)
    lines = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    for row in (rows[0], lines[0]):
        assert row["image_path"] == str(folder / r"Gr\udcf6\udcdfe.png")
        assert row["heatmap"] == r"heatmaps/Gr\udcf6\udcdfe.jpg"
        assert (out / row["heatmap"]).is_file()
    assert (out / "maps" / r"Gr\udcf6\udcdfe.npy").is_file()
    assert lines[1]["image_path"] == str(folder / r"z\udce4h.png")
    assert lines[1]["error"] == rows[1]["error"] != ""
    run_files(detector, out, folder, heatmaps=False)
    assert files_in(out) == {"maps/Gr\\udcf6\\udcdfe.npy"}


def test_pictures_of_other_kinds_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a.gif", "b/c.PPM", "notes.txt", "masks/m.pgm", ".gif", ".x/d.gif"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    note = "2 files with other endings (.gif, .ppm) are left out"
    with pytest.raises(DatasetError) as error:
        find_pictures([tmp_path])
    assert ".jfif, .jpeg, .jpg, .png, " in str(error.value)
    assert str(error.value).endswith(f"; {note}")
    assert not caplog.messages
    (tmp_path / "b" / "x.jfif").touch()
    assert [name for _, name in find_pictures([tmp_path, tmp_path / "b"])] == [
        Path("b/x"), Path("x"),
    ]  # fmt: skip
    assert caplog.messages == [f"note: {note}"]


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_results_keep_the_order_of_the_files(
    tiny_run: Path,
    tiny_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    batch_size: int,
) -> None:
    """Errors in their places, at the beginning, between and at the end, whatever the batches."""
    detector = mambaad.load(tiny_run, device="cpu")
    detector.batch_size = batch_size
    if batch_size == 64:
        monkeypatch.setattr(reading, "HELD_BYTES", 100_000)  # less than four pictures
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    good = sorted(tiny_data.rglob("test/*/*.png"))
    paths = [broken, broken, *good[:5], broken, *good[5:], good[0], broken]
    files = [(path, Path(f"{number}")) for number, path in enumerate(paths)]
    results = list(predict_files(detector, files, tmp_path / "out", heatmaps=batch_size == 64))
    for path, result in zip(paths, results, strict=True):
        assert isinstance(result, ImageError if path == broken else Prediction)
        if isinstance(result, Prediction):
            alone = detector.predict(path)
            assert result.image_path == path
            assert result.pred_score == pytest.approx(alone.pred_score, rel=1e-5)
            assert result.anomaly_map.base is None  # the batch is not kept
    rows = list(csv.DictReader((tmp_path / "out" / "predictions.csv").read_text().splitlines()))
    assert [row["image_path"] for row in rows] == [str(p) for p in paths]
    assert [bool(row["error"]) for row in rows] == [p == broken for p in paths]
    assert [bool(row["pred_score"]) for row in rows] == [p != broken for p in paths]


def test_nothing_but_errors(detector: Detector, tmp_path: Path) -> None:
    files = [(tmp_path / f"{n}.png", Path(str(n))) for n in range(3)]
    results = list(predict_files(detector, files, tmp_path / "out"))
    assert [type(r) for r in results] == [ImageError] * 3
    errors = [(row["image_path"], row["error"]) for row in table(tmp_path / "out")]
    assert errors == [(str(path), "no such file or directory") for path, _ in files]
    assert detector.predict([]) == []


def test_precision_is_the_runs_on_a_gpu_only(tiny_run: Path) -> None:
    config = mambaad.load(tiny_run, device="cpu").config
    rough = Detector(
        config.override({"train.precision": "bf16"}),
        mambaad.build(config.model),
        None,
        torch.device("cpu"),
    )
    assert rough.scorer.precision == "float32"
    assert mambaad.load(tiny_run, device="cpu", precision="bf16").scorer.precision == "bf16"
    with pytest.raises(ConfigError, match="precision must be auto, float32 or bf16, got 'half'"):
        Detector.load(tiny_run, device="cpu", precision="half")


def test_thresholds_of_another_precision_are_told_once(
    tiny_run: Path, tiny_data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tiny_data / "metal" / "test" / "good" / "000.png"
    narrow = mambaad.load(tiny_run, device="cpu", precision="bf16")
    assert narrow.calibration is not None
    narrow.calibration = replace(narrow.calibration, precision="bf16")
    narrow.predict(path)
    assert not caplog.messages
    narrow.calibration = replace(narrow.calibration, precision="float32")
    for _ in range(2):
        narrow.predict(path)
    (line,) = caplog.messages
    assert "set in float32, and this runs in bf16" in line
