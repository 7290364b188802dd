"""Named recipes: what they set, and what wins over them."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from mambaad.config import Config, read_config
from mambaad.errors import ConfigError
from mambaad.presets import configure
from mambaad.recipes import PAPER, PLUS, RECIPES, RecipeName, recipe_settings


def values(config: Config, names: object) -> dict[str, object]:
    tables = {"model": config.model, "train": config.train}
    found = {}
    for name in names:  # type: ignore[attr-defined]
        table, _, key = name.partition(".")
        found[name] = getattr(tables[table], key)
    return found


def test_paper_is_the_default() -> None:
    assert values(Config(), PAPER) == dict(PAPER)
    assert Config().train.recipe == "paper"
    assert Config().override({"train.recipe": "paper"}) == Config()
    assert list(RECIPES) == list(get_args(RecipeName))


def test_plus_sets_all_and_paper_undoes_it() -> None:
    config = Config().override({"train.recipe": "plus"})
    assert config.train.recipe == "plus"
    assert values(config, PLUS) == dict(PLUS)
    assert PLUS.keys() == PAPER.keys()
    assert config.override({"train.recipe": "paper"}) == Config()
    assert Config.from_mapping(config.to_mapping()) == config


def test_what_is_set_beside_it_wins(tmp_path: Path) -> None:
    config = Config().override({"train.loss": "mse", "train.recipe": "plus"})
    assert (config.train.loss, config.train.schedule) == ("mse", PLUS["train.schedule"])
    file = tmp_path / "settings.toml"
    file.write_text('[train]\nrecipe = "plus"\nlearning_rate = 0.25\n')
    for found in (read_config(file), configure(file), configure(file, preset="visa")):
        assert found.train.learning_rate == 0.25
        assert found.train.optimizer == PLUS["train.optimizer"]
        assert found.model.score_top == PLUS["model.score_top"]
    assert read_config(file).override({"train.epochs": 3}).train.learning_rate == 0.25


def test_it_goes_with_a_preset() -> None:
    config = configure(settings={"train.recipe": "plus"}, preset="visa")
    assert (config.train.preset, config.train.epochs) == ("visa", 100)
    assert values(config, PLUS) == dict(PLUS)


@pytest.mark.parametrize("name", ["best", 3, None])
def test_an_unknown_recipe(name: object) -> None:
    with pytest.raises(ConfigError, match=r"recipe must be one of \['paper', 'plus'\], got"):
        recipe_settings(name)
    with pytest.raises(ConfigError, match="recipe must be one of"):
        Config.from_mapping({"train": {"recipe": name}})
