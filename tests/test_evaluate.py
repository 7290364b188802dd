"""Evaluation: labels, masks, examples and decisions of a method with known maps."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from helpers import Brightness
from PIL import Image
from torch import Tensor

from mambaad import device_metrics, inference, metrics
from mambaad import evaluate as module
from mambaad.calibrate import calibrate
from mambaad.data import Dataset, Sample, read_dataset
from mambaad.errors import ConfigError, DatasetError, ImageError
from mambaad.evaluate import evaluate, exactness_of, pixel_metrics_for
from mambaad.grouping import read_masks
from mambaad.inference import Scorer
from mambaad.metrics import PixelSummary
from mambaad.results import save_evaluation
from mambaad.tiling import Tiling

SIZE = (32, 32)
CPU = torch.device("cpu")


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """Two good pictures (10 and 40 of 255) and three bad ones with a bright square each."""
    samples = []
    values = {"g0": 10, "g1": 40, "b0": 200, "b1": 30, "b2": 90}
    for name, value in values.items():
        defect = "good" if name.startswith("g") else "hole"
        array, mask = np.zeros((32, 32, 3), np.uint8), np.zeros((32, 32), np.uint8)
        array[4:12, 4:12] = value
        mask[4:12, 4:12] = 255
        path, mask_path = tmp_path / f"{name}.png", tmp_path / f"{name}_mask.png"
        Image.fromarray(array).save(path)
        Image.fromarray(mask).save(mask_path)
        bad = defect != "good"
        samples.append(Sample(path, "c", "test", defect, mask_path if bad else None))
    return Dataset(tmp_path, "mvtec", tuple(samples))


def test_known_maps_give_known_metrics(dataset: Dataset) -> None:
    calibration = calibrate([0.2], ["c"], "training pictures")
    found = evaluate(Brightness(), dataset, SIZE, device=CPU, calibration=calibration)
    result = found.categories["c"]
    assert result.scores.tolist() == pytest.approx(
        [v / 255 for v in (10, 40, 200, 30, 90)], abs=1e-6
    )
    assert result.labels.tolist() == [0, 0, 1, 1, 1]
    assert result.report.image_AUROC == pytest.approx(5 / 6)  # one of six pairs is the wrong way
    # of good and bad pixels: the first good square is below all, the second above one bad square
    dark = 5 * 32 * 32 - 5 * 64
    pairs = 192 * (dark + 128)
    assert result.report.pixel_AUROC == pytest.approx(1 - 64 * 64 / pairs)
    assert (result.false_alarms, result.misses) == (0, 1)
    assert found.images == 5
    assert found.mean.image_AUROC == result.report.image_AUROC


def test_examples_are_best_median_worst_and_false_alarm(dataset: Dataset) -> None:
    result = evaluate(Brightness(), dataset, SIZE, device=CPU).categories["c"]
    assert [(e.kind, e.path.stem) for e in result.examples] == [
        ("best", "b0"), ("median", "b2"), ("worst", "b1"), ("false alarm", "g1"),
    ]  # fmt: skip
    assert result.examples[0].picture.shape == (32, 32, 3)
    assert result.examples[0].mask is not None
    assert result.examples[0].mask.sum() == 64
    assert result.threshold is None
    assert (result.false_alarms, result.misses) == (None, None)


def test_labels_come_from_the_masks_under_ader(dataset: Dataset, tmp_path: Path) -> None:
    Image.fromarray(np.zeros((32, 32), np.uint8)).save(tmp_path / "b1_mask.png")  # nothing marked
    exact = evaluate(Brightness(), dataset, SIZE, device=CPU).categories["c"].report
    ader = evaluate(Brightness(), dataset, SIZE, device=CPU, protocol="ader").categories["c"].report
    assert (exact.anomalous_images, ader.anomalous_images) == (3, 2)
    assert ader.image_AUROC == 1.0


def test_without_masks_pixel_metrics_are_undefined_not_zero(dataset: Dataset) -> None:
    bare = Dataset(dataset.root, "folder", tuple(
        Sample(s.image, s.category, s.split, s.defect) for s in dataset
    ))  # fmt: skip
    assert read_masks(bare.samples, SIZE) is None
    report = evaluate(Brightness(), bare, SIZE, device=CPU).categories["c"].report
    assert report.image_AUROC == pytest.approx(5 / 6)
    assert math.isnan(report.pixel_AUROC)
    assert "no masks" in report.reasons["pixel_AUROC"]


def test_good_pictures_only_are_undefined_with_a_reason(dataset: Dataset) -> None:
    good = Dataset(dataset.root, "mvtec", dataset.samples[:2])
    report = evaluate(Brightness(), good, SIZE, device=CPU).categories["c"].report
    assert math.isnan(report.image_AUROC)
    assert report.reasons["image_AUROC"]


def test_no_test_pictures_are_refused(dataset: Dataset) -> None:
    none = Dataset(dataset.root, "mvtec", (Sample(dataset.samples[0].image, "c", "train"),))
    with pytest.raises(DatasetError, match="no test pictures"):
        evaluate(Brightness(), none, SIZE, device=CPU)


def test_progress_counts_all_pictures(tiny_data: Path) -> None:
    calls: list[tuple[int, int]] = []
    evaluate(
        Brightness(), read_dataset(tiny_data), (64, 64), device=CPU,
        progress=lambda d, n: calls.append((d, n)),
    )  # fmt: skip
    assert calls[-1] == (12, 12)
    assert [d for d, _ in calls] == sorted(d for d, _ in calls)


def test_categories_do_not_mix(tiny_data: Path) -> None:
    # six pictures each: a batch holds pictures of both
    together = evaluate(Brightness(), read_dataset(tiny_data), (64, 64), device=CPU)
    assert list(together.categories) == ["metal", "wood"]
    for name, result in together.categories.items():
        alone = evaluate(
            Brightness(), read_dataset(tiny_data, categories=[name]), (64, 64), device=CPU
        ).categories[name]
        assert result.report == alone.report
        assert result.paths == alone.paths
        assert result.scores.tolist() == alone.scores.tolist()


def test_metrics_on_the_device_are_the_same(
    tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = partial(device_metrics.pixel_metrics, device=CPU, room=5000)
    expected = evaluate(Brightness(), read_dataset(tiny_data), (64, 64), device=CPU)
    monkeypatch.setattr(module, "pixel_metrics_for", lambda _: here)
    found = evaluate(Brightness(), read_dataset(tiny_data), (64, 64), device=CPU)
    for name, report in expected.reports.items():
        for value in metrics.FIELDS:
            got = getattr(found.reports[name], value)
            assert got == pytest.approx(getattr(report, value), abs=1e-12, nan_ok=True)


def test_streaming_gives_the_same_and_says_so(tiny_data: Path, tmp_path: Path) -> None:
    data, size = read_dataset(tiny_data), (64, 64)
    calibration = calibrate([0.4], ["metal"], "training pictures")
    run = partial(evaluate, Brightness(), data, size, device=CPU, calibration=calibration)
    expected, found = run(), run(metrics="streaming")
    assert list(found.categories) == ["metal", "wood"]
    for name, result in found.categories.items():
        exact = expected.categories[name]
        assert result.report.method == "streaming"
        for value in metrics.FIELDS:
            got = getattr(result.report, value)
            assert got == pytest.approx(getattr(exact.report, value), abs=1e-4, nan_ok=True)
        assert result.scores.tolist() == exact.scores.tolist()
        assert [(e.kind, e.path) for e in result.examples] == [
            (e.kind, e.path) for e in exact.examples
        ]
        for one, other in zip(result.examples, exact.examples, strict=True):
            assert np.allclose(one.map, other.map, atol=1e-6)
            assert (one.mask is None) == (other.mask is None)
        assert_same_pixels(result.pixels, exact.pixels)
    assert found.pooled is not None
    assert found.pooled.pixels == 12 * 64 * 64
    assert expected.pooled is None
    save_evaluation(tmp_path, found, {})
    values = json.loads((tmp_path / "evaluation.json").read_text())
    assert list(values["pixels"]) == ["metal", "wood", "mean", "pooled"]
    assert values["mean"]["method"] == "streaming"
    assert (
        "from bins, within 1e-4 of exact: metal, wood" in (tmp_path / "evaluation.md").read_text()
    )


def assert_same_pixels(found: PixelSummary | None, expected: PixelSummary | None) -> None:
    assert found is not None
    assert expected is not None
    assert (found.method, expected.method) == ("streaming", "exact")
    for name in metrics.SUMMARY_FIELDS:
        wanted = pytest.approx(getattr(expected, name), abs=1e-4, nan_ok=True)
        assert getattr(found, name) == wanted, name
    assert found.reasons == expected.reasons
    assert (found.threshold, found.pixels) == (expected.threshold, expected.pixels)


@pytest.mark.parametrize("protocol", ["exact", "ader"])
def test_the_exact_way_has_all_pixel_metrics(dataset: Dataset, protocol: Any) -> None:
    calibration = calibrate([0.2], ["c"], "training pictures")
    found = evaluate(
        Brightness(), dataset, SIZE, device=CPU, calibration=calibration, protocol=protocol
    )
    result = found.categories["c"]
    assert result.pixels is not None
    masks = np.zeros((5, *SIZE), np.bool_)
    masks[2:, 4:12, 4:12] = True
    values = np.array([10, 40, 200, 30, 90], np.float32) / 255
    maps = np.zeros(masks.shape, np.float32)
    maps[:, 4:12, 4:12] = values[:, None, None]
    expected = metrics.summarise(maps, masks, threshold=result.threshold)
    for name in metrics.MORE_PIXEL_METRICS:
        assert getattr(result.pixels, name) == pytest.approx(getattr(expected, name), abs=1e-12)
        assert found.extras["c"][name] == getattr(result.pixels, name)
    for name in metrics.PIXEL_METRICS:
        assert getattr(result.pixels, name) == getattr(result.report, name)
    assert result.pixels.pixel_SegF1 == pytest.approx(2 * 128 / (128 + 192))
    assert "sample_AUROC" not in result.extras


def test_all_pixels_together_in_a_mixed_test(
    tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = read_dataset(tiny_data).samples
    some = [s for s in samples if s.split == "test"]
    dropped = next(s for s in some if s.category == "wood" and not s.is_anomalous)
    data = Dataset(tiny_data, "mvtec", tuple(s for s in some if s is not dropped))
    calibration = calibrate([0.3, 0.5], ["metal", "wood"], "training pictures")
    run = partial(evaluate, Brightness(), data, (64, 64), device=CPU, calibration=calibration)
    streamed = run(metrics="streaming")
    monkeypatch.setattr(module, "EXACT_PIXELS", 5 * 64 * 64)
    mixed = run()
    assert [r.report.method for r in mixed.categories.values()] == ["streaming", "exact"]
    assert_same_pixels(streamed.categories["wood"].pixels, mixed.categories["wood"].pixels)
    assert mixed.pooled == streamed.pooled
    assert mixed.pooled is not None
    assert mixed.pooled.threshold is None
    true = false = positives = 0
    for name in mixed.categories:
        tests = [s for s in data.samples if s.category == name]
        found = [Scorer(Brightness(), CPU)(_picture(s.image))[0][0] for s in tests]
        masks = np.array(read_masks(tests, (64, 64)))
        above = np.array(found) > cast(float, mixed.categories[name].threshold)
        true, false = true + int((above & masks).sum()), false + int((above & ~masks).sum())
        positives += int(masks.sum())
    assert mixed.pooled.pixel_SegF1 == 2 * true / (true + false + positives)
    assert "pixel_SegF1" not in mixed.pooled.reasons


def _picture(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image.convert("RGB"))[None]


@pytest.mark.parametrize("way", ["exact", "streaming"])
def test_objects_of_one_kind_have_no_auroc(dataset: Dataset, way: Any) -> None:
    """Each object has a good view and a bad one: all objects are bad."""
    views = [replace(s, group=g) for s, g in zip(dataset.samples[:4], "abab", strict=True)]
    found = evaluate(
        Brightness(), Dataset(dataset.root, "mvtec", tuple(views)), SIZE, device=CPU, metrics=way
    )
    assert found.categories["c"].sample_auroc is None
    assert "one class only" in str(found.extras["c"]["sample_AUROC"])


@pytest.mark.parametrize("way", ["exact", "streaming"])
@pytest.mark.parametrize("batch", [1, 4, 8])
def test_the_scores_are_the_scorers(
    tiny_data: Path, monkeypatch: pytest.MonkeyPatch, way: Any, batch: int
) -> None:
    """Whatever it says: they are not computed from the maps once more. Batches of 4 and 8 hold
    pictures of both categories, six each."""
    numbers = iter(range(100))

    def numbered(maps: Tensor, _: float) -> Tensor:
        return torch.tensor([next(numbers) for _ in maps], dtype=torch.float32)

    monkeypatch.setattr(inference, "device_scores", numbered)
    monkeypatch.setattr(inference, "batch_size_for", lambda *_: batch)
    data = read_dataset(tiny_data)
    found = evaluate(Brightness(), data, (64, 64), device=CPU, metrics=way)
    scores = [result.scores.tolist() for result in found.categories.values()]
    assert scores == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]]
    examples = sum(len(r.examples) for r in found.categories.values())
    assert next(numbers) == 12 + (examples if way == "streaming" else 0)
    for result in found.categories.values():
        assert {e.path: e.score for e in result.examples}.items() <= dict(
            zip(result.paths, result.scores.tolist(), strict=True)
        ).items()


def test_tiled_pictures_are_scored_by_their_blended_maps(dataset: Dataset) -> None:
    class Rising(Brightness):
        """Higher towards the right of a tile, so that neighbours differ where they overlap."""

        def anomaly_maps(self, images: Tensor) -> Tensor:
            return super().anomaly_maps(images) * torch.arange(1.0, images.shape[3] + 1)

    tiling = Tiling(SIZE, (32, 16), 0.5)
    for way in ("exact", "streaming"):
        result = evaluate(
            Rising(), dataset, SIZE, device=CPU, tiling=tiling, metrics=cast(Any, way)
        ).categories["c"]
        assert len(result.examples) == 4
        for example in result.examples:
            whole = Scorer(Rising(), CPU, tiling=tiling)(example.picture[None])[0][0]
            assert np.array_equal(example.map, whole)
            assert example.score == whole.max()
            tiles = [example.picture[None, :, x : x + 16] for x in tiling.columns]
            assert example.score < max(Scorer(Rising(), CPU)(tile)[1][0] for tile in tiles)


def test_one_scorer_does_for_all_categories(
    tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU each would capture graphs of its own."""
    made: list[object] = []

    class Counted(Scorer):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            made.append(self)
            super().__init__(*arguments, **options)

    monkeypatch.setattr(module, "Scorer", Counted)
    monkeypatch.setattr(inference, "Scorer", Counted)
    data = read_dataset(tiny_data)
    found = evaluate(Brightness(), data, (64, 64), device=CPU, metrics="streaming")
    assert [len(result.examples) > 0 for result in found.categories.values()] == [True, True]
    assert len(made) == 1


def test_streaming_without_masks_has_image_metrics(dataset: Dataset) -> None:
    bare = Dataset(dataset.root, "folder", tuple(
        Sample(s.image, s.category, s.split, s.defect) for s in dataset
    ))  # fmt: skip
    found = evaluate(Brightness(), bare, SIZE, device=CPU, metrics="streaming")
    report = found.categories["c"].report
    assert report.image_AUROC == pytest.approx(5 / 6)
    assert report.reasons["pixel_AUROC"] == "no masks for 3 of 5 pictures"
    assert found.pooled is None
    assert len(found.categories["c"].examples) == 4


def test_streaming_is_chosen_by_size(monkeypatch: pytest.MonkeyPatch, dataset: Dataset) -> None:
    assert exactness_of(10**8, "exact", "auto") == "exact"
    assert exactness_of(10**8 + 1, "exact", "auto") == "streaming"
    assert exactness_of(10**9, "exact", "exact") == "exact"
    assert exactness_of(10**9, "ader", "auto") == "exact"
    with pytest.raises(ConfigError, match="ader needs all scores at once"):
        exactness_of(1, "ader", "streaming")
    with pytest.raises(ConfigError, match=r"metrics must be one of .* got 'fast'"):
        exactness_of(1, "exact", "fast")  # type: ignore[arg-type]
    monkeypatch.setattr(module, "EXACT_PIXELS", 5 * 32 * 32 - 1)
    found = evaluate(Brightness(), dataset, SIZE, device=CPU)
    assert found.categories["c"].report.method == "streaming"


def test_metrics_are_computed_where_it_is_faster() -> None:
    chosen = pixel_metrics_for(torch.device("cuda"))
    assert isinstance(chosen, partial)
    assert chosen.func is device_metrics.pixel_metrics
    assert chosen.keywords == {"device": torch.device("cuda")}
    assert pixel_metrics_for(CPU) is metrics.pixel_metrics


def test_the_precision_is_handed_on(dataset: Dataset) -> None:
    asked: list[bool] = []

    class Asked(Brightness):
        def anomaly_maps(self, images: Tensor) -> Tensor:
            asked.append(torch.is_autocast_enabled("cpu"))
            return super().anomaly_maps(images)

    for precision in ("float32", "bf16"):
        evaluate(Asked(), dataset, SIZE, device=CPU, precision=precision)
    assert asked == [False, True]


def test_an_unreadable_mask_or_picture_is_named(dataset: Dataset) -> None:
    (dataset.root / "b2_mask.png").write_bytes(b"no picture")
    with pytest.raises(ImageError, match="b2_mask"):
        evaluate(Brightness(), dataset, SIZE, device=CPU)
    (dataset.root / "g1.png").write_bytes(b"no picture")
    with pytest.raises(ImageError, match="g1"):
        evaluate(Brightness(), dataset, SIZE, device=CPU)
