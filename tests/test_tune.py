"""Tuning with made-up times: what is tried, what is refused and what is saved."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import forget_tilings
from interpreter import interpreted_device

from mambaad.errors import BackendError, CheckpointError, ConfigError
from mambaad.scan import tuning
from mambaad.scan.tuning import H200, GpuClass, Size, Tiling

DEVICE = interpreted_device()

from mambaad import tune  # noqa: E402 - Triton reads where to run when it is imported
from mambaad.cli import main  # noqa: E402
from mambaad.config import Config  # noqa: E402
from mambaad.tune import Scan, cuts, run_tune, scans_of, tune_scan, variants  # noqa: E402

ORDERS = torch.stack([torch.arange(32), torch.arange(31, -1, -1)]).int()
TINY = Scan(Size(1, 2, 32, 2), 8, 1, ORDERS)
OLD = Tiling(16, 4, 2, 1)


class Timer:
    """Takes down which tilings it is asked to time; one of them is fast."""

    def __init__(self, fast: Tiling | None = None, ms: float = 0.5) -> None:
        self.fast, self.ms = fast, ms
        self.seen: list[Tiling] = []

    def __call__(self, _: Callable[[], object]) -> float:
        self.seen.append(tuning.current(TINY.size))
        return self.ms if self.seen[-1] == self.fast else 1.0


@pytest.fixture
def quick(
    monkeypatch: pytest.MonkeyPatch,
    gpus: list[GpuClass],  # noqa: ARG001 - for what it sets up
) -> list[Tiling]:
    """Instead of the kernels, calls whose result tells nothing; the tilings called."""
    called: list[Tiling] = []

    def call_of(_: object) -> Callable[[], Any]:
        def call() -> tuple[torch.Tensor, ...]:
            called.append(tuning.current(TINY.size))
            return tuple(torch.ones(2) for _ in tune.NAMES)

        return call

    monkeypatch.setattr(tune, "_call_of", call_of)
    monkeypatch.setattr(tune, "_compile", lambda *_: None)
    return called


def tuned(timer: Timer, dtype: torch.dtype = torch.float32) -> tune.Tuned:
    return tune_scan(TINY, DEVICE, dtype, timer)


@pytest.mark.usefixtures("gpus")
def test_the_kernels_agree_and_the_fastest_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fastest is in the second round, as the one beside it has won the first."""
    monkeypatch.setattr(tune, "CHUNKS", (4, 8))
    size = Size(1, 1, 8, 2)
    times = {Tiling(4, 4, 2, 2): 0.7, Tiling(4, 2, 2, 2): 0.5}
    seen: list[Tiling] = []

    def measure(_: Callable[[], object]) -> float:
        seen.append(tuning.current(size))
        return times.get(seen[-1], 1.0)

    scan = Scan(size, 8, 1, torch.arange(8).flip(0)[None].int())
    found = tune_scan(scan, DEVICE, torch.float32, measure)
    assert seen[0] == OLD
    assert len(seen) == len(set(seen))
    assert set(seen) == {OLD, *times, Tiling(4, 4, 2, 1), Tiling(8, 4, 2, 1)}
    assert (found.old, found.old_ms) == ((OLD, "rule"), 1.0)
    assert (found.new, found.new_ms, found.changed) == (Tiling(4, 2, 2, 2), 0.5, True)


@pytest.mark.parametrize(("ms", "changed"), [(0.985, False), (0.975, True)])
def test_noise_changes_nothing(ms: float, changed: bool, quick: list[Tiling]) -> None:
    found = tuned(Timer(fast=Tiling(32, 4, 2, 1), ms=ms))
    assert found.changed is changed
    assert found.new_ms == (ms if changed else 1.0)
    assert set(quick) >= set(cuts(TINY.size))


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("name", tune.NAMES)
@pytest.mark.parametrize("value", [1.01, float("nan")])
def test_wrong_results_are_refused(
    name: str, value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In 16 bits too: gradients that are not rounded to them must agree as in float32."""

    def call() -> tuple[torch.Tensor, ...]:
        wrong = tuning.current(TINY.size).chunk == 32
        return tuple(torch.full((2,), value if wrong and n == name else 1.0) for n in tune.NAMES)

    monkeypatch.setattr(tune, "_call_of", lambda _: call)
    with pytest.raises(BackendError, match=f"cut up as 32/4/2 1x1 is wrong: {name} is off by"):
        tuned(Timer(), torch.bfloat16)


@pytest.mark.usefixtures("quick")
def test_differences_of_rounding_are_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    def call() -> tuple[torch.Tensor, ...]:
        off = 1 + 1e-5 * (tuning.current(TINY.size).chunk == 32)
        return tuple(torch.full((2,), off) for _ in tune.NAMES)

    monkeypatch.setattr(tune, "_call_of", lambda _: call)
    assert not tuned(Timer()).changed


@pytest.mark.usefixtures("quick")
def test_a_candidate_that_does_not_fit_into_memory_is_passed_over() -> None:
    timer = Timer(fast=Tiling(32, 4, 2, 1))

    def measure(call: Callable[[], object]) -> float:
        if tuning.current(TINY.size).chunk == 16 and timer.seen:
            raise torch.cuda.OutOfMemoryError
        return timer(call)

    assert tune_scan(TINY, DEVICE, torch.float32, measure).new == timer.fast


@pytest.mark.usefixtures("quick")
def test_a_scan_that_does_not_fit_into_memory(tiny_config: Config) -> None:
    def measure(_: Callable[[], object]) -> float:
        raise torch.cuda.OutOfMemoryError

    with pytest.raises(ConfigError, match=r"does not fit into the memory of .*--batch-size"):
        run_tune(None, network(tiny_config), timer=measure, device=str(DEVICE))


def test_candidates() -> None:
    long, short = Size(1, 8, 4096, 128), Size(16, 8, 64, 1024)
    found = cuts(long)
    assert {t.chunk for t in found} == {16, 32, 64}
    assert {t.segments for t in found} == {1, 2, 4, 8, 16, 32}
    assert {t.segments for t in cuts(short)} == {1}  # enough warps without
    for size in (long, short, TINY.size, Size(1, 1, 1, 1)):
        tilings = [v for t in cuts(size) for v in (t, *variants(t, size))]
        assert tilings
        assert all(t.fits(size.length) for t in tilings)
    found = {(t.unroll, t.pieces) for t in variants(Tiling(16, 4, 2, 8), long)}
    assert found == {(2, 1), (4, 1), (4, 2), (4, 4)}


def test_warps_are_varied_where_states_are_short(monkeypatch: pytest.MonkeyPatch) -> None:
    size = Size(1, 8, 4096, 128)
    assert {t.warps for t in variants(Tiling(16, 4, 2, 8), size)} == {8}
    monkeypatch.setattr(tuning, "short_states", lambda: True)
    assert {t.warps for t in variants(Tiling(16, 4, 2, 8), size)} == {8, 12, 16}


def network(config: Config) -> dict[str, Any]:
    return {
        "model.encoder": config.model.encoder,
        "model.depths": [1, 1, 1, 1],
        "model.directions": 2,
        "data.image_size": [32, 64],
    }


def test_the_scans_of_a_network(tiny_config: Config) -> None:
    scans = scans_of(tiny_config.override({"data.image_size": [32, 64]}), [1, 4])
    lengths = [scan.size.length for scan in scans]
    assert lengths == [2, 2, 8, 8, 32, 32, 128, 128]
    assert [scan.size.batch for scan in scans] == [1, 4] * 4
    for scan in scans:
        assert scan.orders.shape == scan.size[1:3]
        assert (scan.orders.dtype, scan.states) == (torch.int32, 16)
        assert torch.equal(scan.orders.sort().values[0], torch.arange(scan.size.length).int())
    only_local = tiny_config.override({"model.branches": "local"})
    assert scans_of(only_local, [1]) == []


def test_the_published_stages_are_those_that_are_shipped() -> None:
    sizes = {scan.size for scan in scans_of(Config(), [1, 16, 64])}
    assert sizes == set(tuning.SHIPPED[H200])


@pytest.mark.usefixtures("quick")
def test_winners_are_saved(tiny_config: Config, tmp_path: Path) -> None:
    def measure(_: Callable[[], object]) -> float:
        return 0.5 if tuning.current(TINY.size) == Tiling(32, 4, 2, 1) else 1.0

    done: list[tuple[int, int]] = []
    rows = run_tune(
        None,
        network(tiny_config),
        batch_sizes=[3],
        device=str(DEVICE),
        precision="float32",
        timer=measure,
        progress=lambda *n: done.append(n),
    )
    assert done == [(n, 4) for n in range(5)]
    assert [row.size.length for row in rows] == [2, 8, 32, 128]
    assert [row.changed for row in rows] == [False, False, True, True]
    (saved,) = json.loads((tmp_path / "mambaad" / "scan.json").read_text()).values()
    assert list(saved) == [str(row.size) for row in rows[2:]]
    assert all(row["dtype"] == "torch.float32" and row["ms"] == 0.5 for row in saved.values())
    forget_tilings()
    for row in rows:
        assert tuning.find(row.size) == ((row.new, "saved") if row.changed else row.old)
    assert f"wrote {tmp_path / 'mambaad' / 'scan.json'}" in tune.tune_notes(rows)
    table = tune.tune_table(rows)
    assert list(table.columns[7].cells) == ["–", "–", "32/4/2 1x1", "32/4/2 1x1"]
    assert list(table.columns[9].cells) == ["–", "–", "50.0", "50.0"]


@pytest.mark.usefixtures("quick")
def test_nothing_faster_saves_nothing(tiny_config: Config, tmp_path: Path) -> None:
    rows = run_tune(None, network(tiny_config), timer=Timer(), device=str(DEVICE))
    assert sorted({row.size.batch for row in rows}) == [1, 16]
    assert list(tmp_path.iterdir()) == []
    assert tune.tune_notes(rows)[-1].endswith("nothing was saved")


def test_what_is_refused(
    gpus: list[GpuClass],
    tmp_path: Path,
) -> None:
    with pytest.raises(BackendError, match="tuning needs a CUDA GPU, got device cpu"):
        run_tune(device="cpu")
    with pytest.raises(ConfigError, match="batch size must be at least 1, got 0"):
        run_tune(batch_sizes=[4, 0], device=str(DEVICE), timer=Timer())
    with pytest.raises(CheckpointError, match="is not a run folder"):
        run_tune(tmp_path, device=str(DEVICE), timer=Timer())
    gpus.append(GpuClass(8, 9, 24))
    with pytest.raises(BackendError, match="one kind of GPU, got sm90x132, sm89x24; show one"):
        run_tune(device=str(DEVICE), timer=Timer())


@pytest.mark.usefixtures("quick")
def test_from_the_command_line(
    tiny_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(tune, "pick_device", lambda _: DEVICE)
    monkeypatch.setattr(
        tune, "run_tune", lambda *a, **more: run_tune(*a, **{**more, "timer": Timer()})
    )
    file = tmp_path / "tuned.json"
    options = ["--image-size", "32", "--batch-size", "1", "--batch-size", "2", "--json", str(file)]
    with pytest.raises(SystemExit) as exit_info:
        main(["tune", str(tiny_run), *options])
    assert exit_info.value.code == 0
    shown = capsys.readouterr().out
    assert "nothing was saved" in shown
    assert "scans, forward and backward" in shown
    rows = json.loads(file.read_text())["scans"]
    assert [(row["batch"], row["length"]) for row in rows] == [
        (batch, length) for length in (1, 4, 16, 64) for batch in (1, 2)
    ]
    assert {row["source"] for row in rows} == {"rule"}


def test_the_command_line_without_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(["tune", "--device", "cpu"])
    assert exit_info.value.code == 2
    shown = capsys.readouterr().err.splitlines()
    assert shown[-1] == "error: tuning needs a CUDA GPU, got device cpu"
