"""Profiling a run: the parts and their sums, the forms of RUN, and what is refused."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch
from rich.console import Console

from mambaad.cli import main
from mambaad.config import Config, ModelConfig
from mambaad.counting import count_parts, sum_counts
from mambaad.errors import CheckpointError, ConfigError
from mambaad.inference import Scorer
from mambaad.measure import WARM_UP
from mambaad.model import MambaAD, build
from mambaad.profile import (
    Cost,
    Profile,
    _way,
    predict,
    profile_notes,
    profile_table,
    run_profile,
)

PARTS = ["encoder", "neck", "decoder 2x2", "decoder 4x4", "decoder 8x8", "decoder 16x16", "maps"]


def command(*arguments: object) -> int:
    with pytest.raises(SystemExit) as exit_info:
        main(["profile", *map(str, arguments)])
    return int(exit_info.value.code or 0)


def profile_of(costs: tuple[Cost, ...]) -> Profile:
    config = Config().override({"model.encoder": "filterbank", "data.image_size": 64})
    with torch.device("meta"):
        counts = count_parts(build(config.model), 64, 64)
    about = {"device": "a chip", "repeats": 5}
    times = (1.5, 2.0, 2.5)
    return Profile(about, config, 4, "bf16", tuple(counts), costs, times, "a graph")


def test_a_run_from_the_command_line(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(p.name for p in tiny_run.iterdir())
    file = tmp_path / "deep" / "profile.json"
    assert command(tiny_run, "--batch-size", 2, "--device", "cpu", "--json", file) == 0
    shown = capsys.readouterr().out
    assert all(part in shown for part in [*PARTS, "in all"])
    assert "the whole ran as a float32 copy with folded norms, the parts above" in shown
    found = json.loads(file.read_text())
    assert list(found["parts"]) == PARTS
    assert (found["batch_size"], found["precision"], found["image_size"]) == (
        2,
        "float32",
        [64] * 2,
    )
    assert found["model"]["depths"] == [1, 1, 1, 1]
    assert sorted(p.name for p in tiny_run.iterdir()) == before
    parts = list(found["parts"].values())
    for name in ("trainable", "frozen", "ms", "scan_ms"):
        assert found["all"][name] == pytest.approx(sum(p[name] for p in parts))
    for name in ("multiply_adds", "multiply_adds_with_scan"):
        assert found["parts"]["maps"][name] is None
        assert found["all"][name] == sum(p[name] for p in parts[:-1])
    assert sum(p["share"] for p in parts) == pytest.approx(1)
    assert all(p["ms"] > 0 for p in parts)
    weights = 4 * (found["all"]["trainable"] + found["all"]["frozen"])
    assert all(weights < p["peak_bytes"] < 3 * weights for p in parts)
    assert found["all"]["peak_bytes"] == max(p["peak_bytes"] for p in parts)
    assert len({p["peak_bytes"] for p in parts}) > 3
    assert [p["scan_ms"] > 0 for p in parts] == [False, False, True, True, True, True, False]
    whole = found["prediction"]
    assert 0 < whole["lower_quartile"] <= whole["ms"] <= whole["upper_quartile"]
    assert whole["pictures_per_second"] == pytest.approx(2000 / whole["ms"])
    assert f"{whole['ms']:.2f} ms a batch" in shown


def test_settings_without_a_run(tiny_run: Path, tmp_path: Path) -> None:
    small = {"model.encoder": "filterbank", "model.depths": [1, 1, 1, 1], "model.directions": 2}
    chosen = {**small, "data.image_size": [64, 64]}
    alone = run_profile(None, chosen, device="cpu", repeats=2)
    file = tmp_path / "settings.toml"
    file.write_text('[model]\nencoder = "filterbank"\ndepths = [1, 1, 1, 1]\ndirections = 4\n')
    from_file = run_profile(
        file, {"model.directions": 2, "data.image_size": 64}, device="cpu", repeats=2
    )
    from_run = run_profile(tiny_run, {"data.image_size": [32, 64]}, device="cpu", repeats=2)
    assert alone.counts == from_file.counts
    assert alone.config.model == from_run.config.model
    assert from_run.counts[2].part == "decoder 1x2"
    halves = sum_counts(from_run.counts).products, sum_counts(alone.counts).products
    assert 2 * halves[0] == halves[1]


def test_a_slow_part_is_seen_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    from mambaad.model.neck import HalfFPN

    forward = HalfFPN.forward

    def slow(self: HalfFPN, maps: list[torch.Tensor]) -> torch.Tensor:
        time.sleep(0.1)
        return forward(self, maps)

    monkeypatch.setattr(HalfFPN, "forward", slow)
    chosen = {"model.encoder": "filterbank", "model.depths": [1, 1, 1, 1], "data.image_size": 32}
    seen: list[tuple[int, int]] = []
    found = run_profile(None, chosen, device="cpu", repeats=2, progress=lambda *n: seen.append(n))
    costs = {cost.part: cost.ms for cost in found.costs}
    assert max(costs, key=lambda part: costs[part]) == "neck"
    assert costs["neck"] >= 100
    assert found.whole_ms[0] >= 100
    assert seen == [(n, 5) for n in range(1, 6)]


def test_a_network_without_scans() -> None:
    chosen = {"model.encoder": "filterbank", "model.branches": "local", "data.image_size": 32}
    found = run_profile(None, chosen, device="cpu", precision="bf16", repeats=2)
    assert sum_counts(found.counts).scan_products == 0
    assert [cost.scan_ms for cost in found.costs] == [0.0] * 7
    assert found.precision == "bf16"


def test_narrow_precision_reaches_the_network_and_the_scan(monkeypatch: pytest.MonkeyPatch) -> None:
    import mambaad.profile

    model = build(ModelConfig("filterbank", (1, 1, 1, 1), directions=2)).eval()
    kinds: list[torch.dtype] = []
    model.neck.register_forward_hook(lambda _m, _i, out: kinds.append(out.dtype))
    images = torch.randn(2, 3, 32, 64)
    with torch.inference_mode():
        scores = predict(model, images, "bf16")
        wide = predict(model, images, "float32")
    assert kinds == [torch.bfloat16, torch.float32]
    assert scores.shape == wide.shape == (2,)
    maps = model.anomaly_maps(images)
    assert wide.tolist() == pytest.approx(maps.flatten(1).max(1).values.tolist(), rel=1e-5)
    scans: list[tuple[torch.dtype, tuple[int, ...]]] = []
    original = mambaad.profile.cross_scan

    def watched(x: torch.Tensor, *rest: torch.Tensor, **more: str) -> torch.Tensor:
        scans.append((x.dtype, tuple(x.shape)))
        return original(x, *rest, **more)

    monkeypatch.setattr(mambaad.profile, "cross_scan", watched)
    chosen = {"model.encoder": "filterbank", "model.depths": [1, 1, 1, 1], "data.image_size": 32}
    run_profile(None, chosen, batch_size=3, device="cpu", precision="bf16", repeats=2)
    widths, lengths = (512, 256, 128, 64), (1, 4, 16, 64)
    assert list(dict.fromkeys(scans)) == [
        (torch.bfloat16, (3, n, w)) for n, w in zip(lengths, widths, strict=True)
    ]


def test_the_table_adds_up() -> None:
    names = [*(f"decoder {n}x{n}" for n in (2, 4, 8, 16)), "maps"]
    costs = (Cost("encoder", 6.0, 0.0, 3 << 20), Cost("neck", 2.0, 0.0, 5 << 20))
    costs += tuple(Cost(n, 2.0, 1.0 * (n != "maps"), 4 << 20) for n in names)
    found = profile_of(costs[:2] + costs[2:])
    console = Console(width=160)
    with console.capture() as capture:
        console.print(profile_table(found))
    rows = {
        cells[0]: cells[1:]
        for line in capture.get().splitlines()
        if len(cells := [c.strip() for c in line.strip("│ ").split("│")]) == 10
    }
    assert rows["encoder"][4:] == ["6.00", "33.3", "–", "–", "3"]
    assert rows["decoder 2x2"][4:] == ["2.00", "11.1", "1.00", "5.6", "4"]
    assert rows["maps"] == ["0.000", "0.000", "–", "–", "2.00", "11.1", "–", "–", "4"]
    assert rows["in all"][4:] == ["18.00", "100.0", "4.00", "22.2", "5"]
    total = sum_counts(found.counts)
    assert rows["in all"][0] == f"{total.trainable / 1e6:.3f}"
    assert rows["in all"][2:4] == [
        f"{total.products / 1e9:.3f}",
        f"{(total.products + total.scan_products) / 1e9:.3f}",
    ]
    notes = "\n".join(profile_notes(found))
    assert "device: a chip" in notes
    assert "2.00 ms a batch (1.50 to 2.50, quartiles of 5 runs), 2000.0 images/s" in notes
    assert "the whole ran as a graph, the parts above one by one and eagerly: 18.00 ms" in notes
    assert "in all, 9.0 times as long" in notes
    assert "peak memory of the parts: 5 MiB" in notes


def test_the_whole_is_timed_as_predictions_run(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    original = Scorer.on_device

    def watched(self: Scorer, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        calls.append(self.precision)
        return original(self, images)

    monkeypatch.setattr(Scorer, "on_device", watched)
    chosen = {"model.encoder": "filterbank", "model.branches": "local", "data.image_size": 32}
    run_profile(None, chosen, device="cpu", precision="bf16", repeats=2)
    assert calls == ["bf16"] * (WARM_UP + 2)


def test_how_the_whole_runs_is_said() -> None:
    assert _way(torch.device("cpu"), "bf16") == "the network as it is"
    assert _way(torch.device("cpu"), "float32") == "a float32 copy with folded norms"
    assert _way(torch.device("cuda"), "float32") == "a CUDA graph of the network"
    assert _way(torch.device("cuda"), "bf16") == "a CUDA graph of a bf16 copy with folded norms"


def test_mistakes_are_one_line_and_status_2(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.toml"
    broken.write_text("[model\n")
    mistakes = {
        (tmp_path / "nothing",): "is not a run folder",
        (tmp_path,): "is not a run folder",
        (broken,): "is not a TOML file",
        (tiny_run, "--batch-size", 0): "the batch size must be at least 1, got 0",
        (tiny_run, "--precision", "int8"): "precision must be auto, float32 or bf16, got 'int8'",
        (tiny_run, "--device", "tpu7"): "device must be auto, cpu, cuda or cuda:N; got 'tpu7'",
        (tiny_run, "--image-size", 100): "image_size must be one or two multiples of 32",
        (tiny_run, "--set", "model.directions=4"): "model.directions cannot be another",
        ("--set", "model.depth=3"): "unknown setting 'model.depth'",
        ("--set", "model.encoder=nosuchnet"): "is neither a timm model nor builtin nor filterbank",
    }
    for arguments, message in mistakes.items():
        assert command(*arguments) == 2, arguments
        shown = capsys.readouterr().err
        error = shown[shown.index("error: ") :]
        assert message in error, (arguments, error)
        assert error.count("\n") == 1, error


def test_too_large_a_batch_is_explained(monkeypatch: pytest.MonkeyPatch, tiny_run: Path) -> None:
    def full(*_: object) -> None:
        raise torch.cuda.OutOfMemoryError("no room")

    monkeypatch.setattr(MambaAD, "anomaly_maps", full)
    with pytest.raises(ConfigError, match=r"batch of 9 at 64x64 does not fit .* smaller"):
        run_profile(tiny_run, batch_size=9, device="cpu")


def test_an_unfinished_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('[model]\nencoder = "filterbank"\n')
    with pytest.raises(CheckpointError, match=r"has no model\.safetensors"):
        run_profile(tmp_path, device="cpu")
