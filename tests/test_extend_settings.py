"""What an extension may set, and what follows from the old run's settings."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from mambaad.checkpoint import load_config
from mambaad.data import read_dataset
from mambaad.data.synthetic import synthesize
from mambaad.errors import CheckpointError, ConfigError
from mambaad.extend import begin, resume
from mambaad.extend_settings import Plan, holdout_of, settings_of
from mambaad.kept_pictures import HELD_OUT
from mambaad.splits import EXTENSION


@pytest.mark.parametrize("setting", ["train.recipe", "train.preset"])
def test_what_sets_the_network_too_is_refused(tiny_run: Path, setting: str) -> None:
    with pytest.raises(ConfigError, match=f"{setting} sets the network too.*singly, such as"):
        Plan(tiny_run, tiny_run, settings={setting: "plus"})


def test_parts_of_a_recipe_leave_the_network_as_it_is(tiny_run: Path, tmp_path: Path) -> None:
    base = load_config(tiny_run)
    plan = Plan(tiny_run, tmp_path, settings={"train.loss": "cosine"})
    config = settings_of(plan, base, tmp_path)
    assert (config.train.loss, config.model) == ("cosine", base.model)


@pytest.mark.parametrize(
    ("epochs", "settings", "expected"),
    [
        (3, {"train.epochs": 2}, 3),
        (3, None, 3),
        (None, {"train.epochs": 2}, 2),
        (None, {"train.seed": 4}, 20),
    ],
)
def test_the_epochs_given_come_first(
    tiny_run: Path,
    tmp_path: Path,
    epochs: int | None,
    settings: dict[str, int] | None,
    expected: int,
) -> None:
    base = load_config(tiny_run).override({"train.epochs": 100})
    plan = Plan(tiny_run, tmp_path, epochs=epochs, settings=settings)
    assert settings_of(plan, base, tmp_path).train.epochs == expected


def test_a_second_extension_holds_out_as_much_as_the_first(tiny_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    settings = run / "config.toml"
    settings.write_text(settings.read_text().replace('holdout = "auto"', "holdout = 0.5"))
    for number, name in enumerate(("fabric", "board", "nut")):
        data, out = tmp_path / name, tmp_path / str(number)
        synthesize(data, seed=5, size=64, train=6, good=1, defective=1, categories=("fabric",))
        (data / "fabric").rename(data / name)
        begin(Plan(run, data, epochs=1), out)
        held_out = [s.category for s in read_dataset(out / HELD_OUT, "csv")]
        assert held_out.count(name) == 3
        resume(out, device="cpu")
        run = out
    assert json.loads((run / EXTENSION).read_text())["holdout"] == 0.5


def test_the_share_of_older_records_is_the_default(tiny_run: Path, tmp_path: Path) -> None:
    base = load_config(tiny_run).override({"data.holdout": 0.0})
    assert holdout_of(tmp_path, base) == 0.0  # no extension
    (tmp_path / EXTENSION).write_text('{"finished": true}')
    assert holdout_of(tmp_path, base) == "auto"
    (tmp_path / EXTENSION).write_text("[]")
    with pytest.raises(CheckpointError, match=re.escape(f"cannot read {tmp_path / EXTENSION}")):
        holdout_of(tmp_path, base)
