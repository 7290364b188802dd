"""Tiles from the training to the prediction: ``data.tile`` reaches every verb."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from training import StopAt

from mambaad.batches import Batches
from mambaad.calibrate import load_calibration
from mambaad.config import Config
from mambaad.data import PictureStore, load_picture, read_dataset
from mambaad.data.tiles import TileStore
from mambaad.model import MambaAD
from mambaad.predict import Detector
from mambaad.stress import run_stress
from mambaad.testing import calibrate_run, run_test
from mambaad.train import Observer, prepare_batches, train

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def config(tiny_config: Config) -> Config:
    """Six tiles a picture, of a size that is no multiple of 32."""
    return tiny_config.override(
        {"data.image_size": [40, 70], "data.tile": 32, "train.epochs": 1, "train.batch_size": 24}
    )


@pytest.fixture(scope="module")
def run(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiled") / "run"
    train(config.override({"data.cache": "pictures"}), folder, device="cpu")
    return folder


@pytest.mark.parametrize("cache", ["none", "disk"])
def test_every_cache_trains_alike_and_a_run_is_resumed(
    config: Config, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    again = config.override({"data.cache": cache})
    with pytest.raises(KeyboardInterrupt):
        train(again, tmp_path / "run", device="cpu", observer=StopAt(1))
    rest = StopAt()
    train(again, tmp_path / "run", device="cpu", resume=True, observer=rest)
    assert [s.number for s in rest.steps] == [2, 3]  # 12 pictures of 6 tiles, 24 in a step
    a, b = (load_file(r / "model.safetensors") for r in (run, tmp_path / "run"))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert load_calibration(run) == load_calibration(tmp_path / "run")


def test_every_tile_is_seen_once_an_epoch(config: Config) -> None:
    samples = read_dataset(config.data.root).select(split="train").samples

    class Nothing(MambaAD):
        def __init__(self) -> None:
            torch.nn.Module.__init__(self)

        def encode(self, images: Tensor) -> list[Tensor]:
            assert images.shape[2:] == (32, 32)
            return [images[:, :1, ::8, ::8]]

    data = prepare_batches(samples, config, Nothing(), 24, CPU, Observer())
    assert isinstance(data, Batches)
    assert isinstance(data.store, TileStore)
    assert len(data.store) == 72
    assert sorted(data.order(0).ravel().tolist()) == list(range(72))
    assert data.features is not None
    assert data.features[np.arange(72)][0].shape == (72, 1, 4, 4)


def test_test_predict_calibrate_and_stress_agree(run: Path, tiny_data: Path) -> None:
    evaluation, _ = run_test(run, out=run.parent / "test", device="cpu")
    detector = Detector.load(run, device="cpu")
    for category, result in evaluation.categories.items():
        predictions = detector.predict(list(result.paths))
        scores = [p.pred_score for p in predictions]
        np.testing.assert_allclose(scores, result.scores, rtol=1e-5)
        assert predictions[0].anomaly_map.shape == (40, 70)
        assert scores == [float(p.anomaly_map.max()) for p in predictions]
        assert result.threshold == detector.calibration.threshold(category)  # type: ignore[union-attr]
    card, _ = run_stress(run, kinds=["none"], out=run.parent / "card", device="cpu")
    outcomes = next(iter(card.rows.values()))
    for category, result in evaluation.categories.items():
        assert outcomes[category].image_AUROC == pytest.approx(result.report.image_AUROC)
        assert outcomes[category].pixel_AUROC == pytest.approx(result.report.pixel_AUROC, abs=1e-6)
        assert outcomes[category].misses * 3 == result.misses
    before = load_calibration(run)
    after = calibrate_run(run, tiny_data, device="cpu")
    assert before is not None
    for name, threshold in after.categories.items():  # the same pictures as in the training
        assert threshold.threshold == pytest.approx(before.categories[name].threshold, rel=1e-5)


def test_the_map_is_made_of_the_networks_maps_of_tiles(run: Path, tiny_data: Path) -> None:
    detector = Detector.load(run, device="cpu")
    path = next((tiny_data / "wood" / "test" / "good").iterdir())
    prepared = load_picture(path, (40, 70))
    found = detector.predict(path).anomaly_map
    tiling = detector.config.data.tiling
    assert tiling is not None
    assert tiling.corners == ((0, 0), (0, 19), (0, 38), (8, 0), (8, 19), (8, 38))
    tiles = PictureStore([path], (40, 70))
    with torch.no_grad():
        images = torch.from_numpy(TileStore(tiles, tiling)[[0, 5]])
        maps, _ = type(detector.scorer)(detector.model, CPU).on_device(images)
    # the corners of the picture lie in one tile only
    np.testing.assert_allclose(found[:8, :19], maps[0, :8, :19], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found[32:, 51:], maps[1, 24:, 13:], rtol=1e-4, atol=1e-6)
    assert prepared.shape == (40, 70, 3)
