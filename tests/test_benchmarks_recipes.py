"""The ablation of recipes runs on the CPU at a tiny size, and continues where it was."""

from __future__ import annotations

import csv
import importlib
import io
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stdout, suppress
from pathlib import Path
from types import ModuleType

import pytest

import mambaad.cli
from mambaad.config import Config
from mambaad.recipes import PAPER, PLUS

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(FOLDER)
    names = ("end_to_end", "machine", "network", "timing", "recipes")
    before = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    yield importlib.import_module("recipes")
    for name in names:
        sys.modules.pop(name, None)
    sys.modules.update(before)


def test_rows_differ_from_their_recipe_in_one_part(script: ModuleType) -> None:
    rows = {row.name: Config().override(row.settings) for row in script.all_rows()}
    assert len(set(map(str, rows.values()))) == len(rows)
    assert sorted(set(PAPER) - {n for part in script.PARTS.values() for n in part}) == [
        "train.clip_norm", "train.decay_at", "train.weight_decay",
    ]  # fmt: skip
    changed = [name for name in PAPER if PAPER[name] != PLUS[name]]
    for name in changed:  # every difference is added by one row and removed by another
        table, _, key = name.partition(".")
        for sign, own, others in (("paper+", PLUS, PAPER), ("plus-", PAPER, PLUS)):
            values = {
                row: getattr(getattr(config, table), key)
                for row, config in rows.items()
                if row.startswith(sign)
            }
            assert list(values.values()).count(own[name]) == 1
            assert list(values.values()).count(others[name]) == len(values) - 1


def test_it_runs_continues_and_tells(
    script: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    tiny_data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    calls: list[str] = []

    def call(arguments: Sequence[str], environment: Mapping[str, str]) -> float:
        """The command line in this process, which starts more quickly."""
        assert environment
        calls.append(arguments[0])
        with redirect_stdout(io.StringIO()), suppress(SystemExit):
            mambaad.cli.main(list(arguments))
        return 1.0

    monkeypatch.setattr(script.end_to_end, "call", call)
    settings = ["model.depths=[1, 1, 1, 1]", "model.directions=2", "data.image_size=64"]
    words = [
        *(str(tiny_data), "--encoder", "filterbank", "--device", "cpu", "--epochs", "1"),
        *("--seeds", "1", "2", "--out", str(tmp_path), "--precision", "float32"),
        *(word for setting in settings for word in ("--set", setting)),
    ]
    script.main([*words, "--only", "paper", "paper+loss"])
    assert calls == ["train", "test"] * 4
    shown = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[0] for line in shown[2:]] == ["| paper", "| paper+loss"]
    assert (tmp_path / "recipes.md").read_text().splitlines() == shown
    with (tmp_path / "runs.csv").open(newline="") as file:
        runs = list(csv.DictReader(file))
    assert [(run["row"], run["seed"]) for run in runs] == [
        ("paper", "1"), ("paper", "2"), ("paper+loss", "1"), ("paper+loss", "2"),
    ]  # fmt: skip
    means = [
        sum(float(run["mAD mean"]) for run in runs if run["row"] == row) / 2
        for row in ("paper", "paper+loss")
    ]
    cells = dict(zip(shown[0].split(" | "), shown[3].split(" | "), strict=True))
    assert float(cells["gain"]) == pytest.approx(means[1] - means[0], abs=0.06)
    assert float(cells["mean"].split(" ± ")[0]) == pytest.approx(means[1], abs=0.06)

    script.main([*words, "--only", "paper"])
    assert len(calls) == 8  # nothing was left to do
    script.main([*words, "--only", "plus", "--list"])
    assert "plus, seed 1: to train" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        script.main([*words, "--only", "best"])
    assert "no row ['best']" in capsys.readouterr().err
