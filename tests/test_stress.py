"""The robustness card: rates, masks that move along, and files that say the same every time."""

from __future__ import annotations

import csv
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from mambaad.calibrate import Calibration, Threshold
from mambaad.checkpoint import load_config, save_config
from mambaad.corruptions import Corruption, corruptions
from mambaad.data import Dataset, PictureStore, Sample, read_dataset
from mambaad.errors import CheckpointError, ConfigError, DatasetError
from mambaad.metrics.streaming import PixelBins
from mambaad.stress import Card, CorruptedStore, Outcome, card_table, run_stress, save_card, stress
from mambaad.tiling import Tiling

CPU = torch.device("cpu")
CLEAN = Corruption("none", 0.0)


class Red:
    """Anomaly = the red channel, 0..1."""

    def anomaly_maps(self, images: Tensor) -> Tensor:
        return images[:, 0] * 0.229 + 0.485


def calibration(threshold: float) -> Calibration:
    level = Threshold(threshold, 1, 0.0, 0.0)
    return Calibration("given", 0.99, level, {"one": level})


@pytest.fixture
def data(tmp_path: Path) -> Dataset:
    """Grey pictures of level 100; the defect is a bright red square, once in a corner."""
    samples = []
    for number, corner in enumerate([None, None, (12, 20), (0, 0)]):
        picture = np.full((40, 60, 3), 100, np.uint8)
        mask = np.zeros((40, 60), np.uint8)
        if corner is not None:
            y, x = corner
            picture[y : y + 3, x : x + 3, 0] = 180
            mask[y : y + 3, x : x + 3] = 255
        image, drawn = tmp_path / f"{number}.png", tmp_path / f"{number}_mask.png"
        Image.fromarray(picture).save(image)
        Image.fromarray(mask).save(drawn)
        defect = "good" if corner is None else "spot"
        samples.append(Sample(image, "one", "test", defect, None if corner is None else drawn))
    return Dataset(tmp_path, "mvtec", tuple(samples))


def card_of(data: Dataset, threshold: float, *kinds: str, seed: int = 0) -> Card:
    return stress(Red(), data, (40, 60), calibration(threshold), device=CPU, kinds=kinds, seed=seed)


def test_light_gives_false_alarms_and_darkness_misses(data: Dataset) -> None:
    """Good pictures lie at 100, defects at 180, the threshold at 128 of 255."""
    card = card_of(data, 128 / 255, "brightness")
    rows = {c.strength: outcomes["one"] for c, outcomes in card.rows.items()}
    assert rows[0.0] == Outcome(0.0, 0.0, 1.0, 1.0)
    assert rows[-0.2] == Outcome(0.0, 0.0, 1.0, 1.0)  # 144
    assert rows[-0.4] == Outcome(0.0, 1.0, 1.0, 1.0)  # 108: the ranking stays, the threshold not
    assert rows[0.2] == Outcome(0.0, 0.0, 1.0, 1.0)  # 120
    assert rows[0.4] == Outcome(1.0, 0.0, 1.0, 1.0)  # 140


def test_masks_move_along_and_a_defect_out_of_sight_is_left_out(data: Dataset) -> None:
    card = card_of(data, 0.5, "shift", "rotation")
    for corruption, outcomes in card.rows.items():
        found = outcomes["one"]
        if corruption.kind == "shift":  # whole pixels: the mask still fits its defect exactly
            assert found == Outcome(0.0, 0.0, 1.0, 1.0), corruption
        else:
            assert found.pixel_AUROC > 0.9
    still = [s for s in data if not s.is_anomalous or s.image.name == "2.png"]
    kept = Dataset(data.root, data.layout, tuple(still))
    shift = Corruption("shift", 0.1)
    rows = [card_of(kept, 0.5, "shift", seed=s).rows[shift]["one"] for s in range(3)]
    assert rows == [Outcome(0.0, 0.0, 1.0, 1.0)] * 3


def test_the_corner_defect_leaves_for_some_seeds(data: Dataset) -> None:
    bad = data.samples[3]
    corrupted = []
    for seed in range(12):
        card = card_of(Dataset(data.root, data.layout, (bad,)), 0.5, "shift", seed=seed)
        corrupted.append(card.rows[Corruption("shift", 0.1)]["one"].misses)
    assert any(math.isnan(m) for m in corrupted)  # gone: counted neither as found nor as missed
    assert all(math.isnan(m) or m == 0.0 for m in corrupted)


def test_the_pixels_of_a_picture_left_out_do_not_count(data: Dataset) -> None:
    good, bad = data.samples[0], data.samples[3]
    with Image.open(bad.image) as opened:
        picture = np.array(opened)
    picture[18:22, 28:32, 0] = 250  # redder than the defect, and not marked
    Image.fromarray(picture).save(bad.image)
    shift, found = Corruption("shift", 0.1), set()
    for seed in range(12):
        rows = [
            card_of(Dataset(data.root, data.layout, samples), 0.5, "shift", seed=seed).rows[shift]
            for samples in ((bad,), (good, data.samples[2], bad))
        ]
        is_left_out = math.isnan(rows[0]["one"].misses)
        found.add((is_left_out, rows[1]["one"].pixel_AUROC == 1.0))
    assert found == {(True, True), (False, False)}


def test_without_masks_or_with_one_class_numbers_are_undefined(data: Dataset) -> None:
    bare = tuple(Sample(s.image, s.category, s.split, s.defect) for s in data)
    found = card_of(Dataset(data.root, "mvtec", bare), 0.5, "none").rows[CLEAN]["one"]
    assert found.image_AUROC == 1.0
    assert math.isnan(found.pixel_AUROC)
    some = Dataset(data.root, "mvtec", (*data.samples[:3], bare[3]))  # as mambaad test has it
    card = card_of(some, 0.5, "none", "shift")
    assert all(math.isnan(outcomes["one"].pixel_AUROC) for outcomes in card.rows.values())
    assert card.rows[CLEAN]["one"].image_AUROC == 1.0
    found = card_of(Dataset(data.root, "mvtec", bare[:2]), 0.5, "none").rows[CLEAN]["one"]
    assert found.false_alarms == 0.0
    assert math.isnan(found.misses)
    assert math.isnan(found.image_AUROC)
    with pytest.raises(DatasetError, match="no test pictures"):
        card_of(Dataset(data.root, "mvtec", ()), 0.5)


def test_many_pixels_are_counted_and_not_kept(
    data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = card_of(data, 0.5, "noise", "shift")
    counted: list[int] = []
    update = PixelBins.update

    def count(bins: PixelBins, maps: np.ndarray, masks: np.ndarray) -> None:
        counted.append(len(maps))
        update(bins, maps, masks)

    monkeypatch.setattr(PixelBins, "update", count)
    monkeypatch.setattr("mambaad.stress.EXACT_PIXELS", 4 * 40 * 60 - 1)
    card = card_of(data, 0.5, "noise", "shift")
    assert sum(counted) > 3 * len(card.rows)
    for corruption, outcomes in card.rows.items():
        one, other = outcomes["one"], kept.rows[corruption]["one"]
        assert one.pixel_AUROC == pytest.approx(other.pixel_AUROC, abs=1e-4)
        assert (one.false_alarms, one.misses) == (other.false_alarms, other.misses)


def test_tiles_give_the_same_card(data: Dataset) -> None:
    tiling = Tiling((40, 60), (32, 32), 0.25)
    plain = card_of(data, 0.5, "noise", "jpeg")
    tiled = stress(
        Red(), data, (40, 60), calibration(0.5), device=CPU, kinds=("noise", "jpeg"), tiling=tiling
    )
    assert tiled == plain


def test_a_corrupted_store_draws_for_every_picture_alone(data: Dataset) -> None:
    paths = [s.image for s in data]
    store = CorruptedStore(PictureStore(paths, (40, 60)), Corruption("noise", 8.0), [5, 6, 7, 8])
    assert len(store) == 4
    assert store.path(2) == paths[2]
    both = store[[0, 1]]
    assert np.array_equal(store[np.array([1])][0], both[1])
    assert not np.array_equal(both[0], both[1])  # the pictures are equal, their noise is not


def test_means_leave_out_what_is_undefined(tmp_path: Path) -> None:
    nan = math.nan
    outcomes = {"a": Outcome(0.5, nan, 1.0, nan), "b": Outcome(0.0, 0.25, 0.5, nan)}
    card = Card(3, {CLEAN: outcomes})
    mean = card.mean(CLEAN)
    assert (mean.false_alarms, mean.misses, mean.image_AUROC) == (0.25, 0.25, 0.75)
    assert math.isnan(mean.pixel_AUROC)
    table = card_table(card)
    cells = [next(iter(column.cells)) for column in table.columns]
    assert cells == ["none", "25.0", "25.0", "75.0", "–", "50.0", "–", "a"]
    json_file, csv_file = save_card(tmp_path, card, {"run": "x"})
    rows = list(csv.DictReader(csv_file.read_text().splitlines()))
    assert [r["category"] for r in rows] == ["a", "b", "mean"]
    assert (rows[0]["misses"], rows[1]["misses"]) == ("", "0.25")
    saved = json.loads(json_file.read_text())
    assert saved["seed"] == 3
    assert saved["about"] == {"run": "x"}
    assert saved["rows"][0]["pixel_AUROC"] is None


def test_of_a_run(tiny_run: Path, tiny_data: Path, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    card, files = run_stress(
        tiny_run, kinds=["noise"], out=tmp_path / "a", device="cpu", seed=4,
        progress=lambda d, n: calls.append((d, n)),
    )  # fmt: skip
    assert list(card.rows) == corruptions(["noise"])
    assert calls[-1] == (48, 48)  # 2 categories of 6 test pictures, none and three strengths
    assert [d for d, _ in calls] == sorted(d for d, _ in calls)
    again, same = run_stress(
        tiny_run, tiny_data, kinds=["noise"], categories=["wood"], out=tmp_path / "b", seed=4,
        device="cpu",
    )  # fmt: skip
    for corruption, outcomes in again.rows.items():
        assert outcomes == {"wood": card.rows[corruption]["wood"]}
    assert [f.name for f in files] == [f.name for f in same] == ["stress.json", "stress.csv"]
    wood = [line for line in files[1].read_text().splitlines() if ",wood," in line]
    assert wood == [line for line in same[1].read_text().splitlines() if ",wood," in line]
    images = [s for s in read_dataset(tiny_data) if s.split == "test"]
    assert len(images) == 12
    _, narrow = run_stress(
        tiny_run, kinds=["noise"], categories=["wood"], out=tmp_path / "c", seed=4, device="cpu",
        precision="bf16",
    )  # fmt: skip
    about = [json.loads(f.read_text())["about"]["precision"] for f in (files[0], narrow[0])]
    assert about == ["float32", "bf16"]
    assert narrow[1].read_text() != same[1].read_text()


def test_another_data_set_leaves_the_card_of_the_runs_own(
    tiny_run: Path, tiny_data: Path, tmp_path: Path
) -> None:
    copy, other = tmp_path / "run", tmp_path / "other"
    shutil.copytree(tiny_run, copy)
    shutil.copytree(tiny_data / "wood", other / "wood")
    options = {"kinds": ["none"], "device": "cpu"}
    _, files = run_stress(copy, other, **options)  # type: ignore[arg-type]
    assert [f.parent for f in files] == [copy / "test-other"] * 2
    _, files = run_stress(copy, tiny_data, **options)  # type: ignore[arg-type]
    assert [f.parent for f in files] == [copy] * 2


def test_what_cannot_be_stressed_is_told(tiny_run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="kind of corruption"):
        run_stress(tiny_run, kinds=["fog"])
    bare = tmp_path / "run"
    bare.mkdir()
    for file in tiny_run.iterdir():
        if file.is_file() and file.name != "calibration.json":
            (bare / file.name).write_bytes(file.read_bytes())
    with pytest.raises(CheckpointError, match=r"has no thresholds.*mambaad calibrate"):
        run_stress(bare, device="cpu")


def test_a_data_set_that_has_moved(tiny_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    moved = load_config(run).override({"data.root": str(tmp_path / "gone")})
    save_config(run, moved)
    with pytest.raises(DatasetError, match=r"no longer at .*; give its place: mambaad stress"):
        run_stress(run, device="cpu")
