"""What to extend, by what and how, and the settings that follow (``mambaad.extend`` does it)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mambaad.checks import check_choice
from mambaad.config import Config
from mambaad.errors import CheckpointError, ConfigError
from mambaad.kept_pictures import LIST
from mambaad.splits import EXTENSION

Thresholds = Literal["anew", "keep"]

BUNDLES = ("train.recipe", "train.preset")
"""Names of many settings at once, some of them the network's."""

EPOCH_SHARE = 0.2
"""Epochs of an extension where none are given, as a share of the old run's."""


@dataclass(frozen=True)
class Plan:
    """What to extend, by what, and how."""

    run: Path
    """The trained run. It is only read."""

    data: Path
    """The new product's data set; it may have several."""

    categories: tuple[str, ...] = ()
    """Which of them; empty: all."""

    layout: str = "auto"
    """How that data set is laid out."""

    replay: int | None = None
    """Pictures of each old product that are learned from again; None: all. With few of them, a
    lower ``train.learning_rate`` forgets less."""

    old_data: Path | None = None
    """Where the old run's data set is now; None: where it was."""

    thresholds: Thresholds = "anew"
    """Of the old products: set anew on the extended network's scores, or as the old run has
    them. The new product's are always new."""

    epochs: int | None = None
    """Passes over the pictures, whatever ``settings`` say; None: ``EPOCH_SHARE`` of the old run's,
    at least one, if they say nothing."""

    settings: Mapping[str, Any] | None = None
    """Other settings of the training: ``train.…`` and ``data.cache``; not ``BUNDLES``."""

    def __post_init__(self) -> None:
        check_choice("thresholds", self.thresholds, Thresholds)
        if self.replay is not None and self.replay < 1:
            raise ConfigError(f"replay must be at least 1 picture a product, got {self.replay}")
        for name in self.settings or {}:
            if name in BUNDLES:
                raise ConfigError(
                    f"{name} sets the network too, and that of an extension is the old run's: set "
                    "what you want of the training singly, such as train.loss or "
                    "train.learning_rate"
                )
            if not name.startswith("train.") and name != "data.cache":
                raise ConfigError(
                    f"network and pictures of an extension are the old run's; {name} cannot be "
                    "set, only train.… and data.cache"
                )


def new_data(plan: Plan, base: Config) -> Config:
    """The old run's settings, with the new product's data set.

    As much of it is held out as of the data set that the first run of all was trained on.
    """
    return base.override(
        {
            "data.root": str(plan.data.expanduser().absolute()),
            "data.layout": plan.layout,
            "data.categories": plan.categories,
            "data.holdout": holdout_of(plan.run, base),
        }
    )


def settings_of(plan: Plan, base: Config, out: Path) -> Config:
    """The old run's, with the list as its data set; that names held-out pictures elsewhere."""
    chosen = {"train.epochs": max(1, math.ceil(EPOCH_SHARE * base.train.epochs))}
    chosen |= plan.settings or {}
    if plan.epochs is not None:
        chosen["train.epochs"] = plan.epochs
    return base.override(
        {
            **chosen,
            "data.root": str((out / LIST).absolute()),
            "data.layout": "csv",
            "data.categories": (),
            "data.holdout": 0.0,
        }
    )


def holdout_of(run: Path, config: Config) -> Any:
    """The ``data.holdout`` for a product that is added to a run.

    An extended run's own is 0, since its list has no held-out pictures; its record has the share.
    One that was made before records had it gets the default.

    Raises:
        CheckpointError: See ``read_extension``.
    """
    if not (run / EXTENSION).is_file():
        return config.data.holdout
    return read_extension(run).get("holdout", Config().data.holdout)


def read_extension(run: Path) -> dict[str, Any]:
    """What ``extension.json`` holds.

    Raises:
        CheckpointError: If there is none in the folder, or it is damaged.
    """
    path = run / EXTENSION
    if not path.is_file():
        raise CheckpointError(f"{run} cannot be resumed: there is no {EXTENSION} in it")
    try:
        record = dict(json.loads(path.read_text(encoding="utf-8")))
        return {**record, "finished": bool(record["finished"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error
