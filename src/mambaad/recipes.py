"""Named recipes: the settings that ``train.recipe`` puts in where nothing else is set.

``paper`` is the published recipe (He et al., MambaAD, arXiv 2404.06564, and its code). ``plus``
has the same network; its predictions cost one more comparison of the finest maps. What it changes
is in the table below. Both set every key, so that naming a recipe undoes what another had put in.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

from mambaad.errors import ConfigError

RecipeName = Literal["paper", "plus"]

PAPER: Mapping[str, Any] = MappingProxyType(
    {
        "model.neck_dropout": 0.0,
        "model.neck_noise": 0.0,
        "model.neck_masking": 0.0,
        "model.recentre": False,
        "model.damping": 0.0,
        "model.fine_pooling": 1,
        "model.map_weights": (1.0, 1.0, 1.0),
        "model.score_top": 0.0,
        "train.learning_rate": 0.005,
        "train.weight_decay": 1e-4,
        "train.decay_states": True,
        "train.loss": "mse",
        "train.loss_weight": 5.0,
        "train.scale_weights": (1.0, 1.0, 1.0),
        "train.mining": "none",
        "train.mining_share": 0.9,
        "train.mining_ramp": 0.1,
        "train.optimizer": "adamw",
        "train.clip_norm": 5.0,
        "train.schedule": "step",
        "train.warmup": 0.0,
        "train.decay_at": 0.8,
        "train.decay_factor": 0.1,
        "train.ema_decay": 0.0,
    }
)
"""The defaults, which are as published."""

PLUS: Mapping[str, Any] = MappingProxyType(
    {
        **PAPER,
        "model.neck_masking": 0.3,
        "model.recentre": True,
        "model.damping": 0.5,
        "model.fine_pooling": 3,
        "model.map_weights": (1.2, 0.5, 1.2),
        "model.score_top": 0.01,
        "train.learning_rate": 0.002,
        "train.decay_states": False,
        "train.loss": "cosine",
        "train.mining": "hardest",
        "train.optimizer": "stable-adamw",
        "train.schedule": "cosine",
        "train.warmup": 0.05,
        "train.decay_factor": 0.01,
        "train.ema_decay": 0.99,
    }
)
"""Better with the same network."""

RECIPES: Mapping[str, Mapping[str, Any]] = MappingProxyType({"paper": PAPER, "plus": PLUS})


def recipe_settings(name: object) -> dict[str, Any]:
    """A recipe as ``{"train.loss": "mse", ...}``, its own name among it.

    Raises:
        ConfigError: If there is no such recipe.
    """
    if not isinstance(name, str) or name not in RECIPES:
        raise ConfigError(f"recipe must be one of {list(RECIPES)}, got {name!r}")
    return {**RECIPES[name], "train.recipe": name}


def fill_in(document: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Put the recipe that a parsed TOML document names under what it sets itself."""
    tables = {name: dict(table) for name, table in document.items()}
    if "recipe" not in tables.get("train", {}):
        return tables
    for setting, value in recipe_settings(tables["train"]["recipe"]).items():
        table, _, key = setting.partition(".")
        tables.setdefault(table, {}).setdefault(key, value)
    return tables
