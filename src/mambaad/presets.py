"""Named settings: the published recipe for each of the paper's six benchmarks, ``mambaad train
--preset NAME``, and other networks than the published one, ``--variant NAME``.

The recipe is that of the paper's configuration files (arXiv 2404.06564). The epochs are not theirs
(500 in the text, 1000 in the files) but those at which the authors' later benchmark, ADer, which
trains for 100 and for 300, comes nearest to the paper's metrics (mAD in percent):

    set           100 epochs   300 epochs   paper
    MVTec AD         85.4         86.0       86.0
    VisA             79.0         77.0       78.7
    Real-IAD         72.9          –         72.7
    MVTec 3D-AD      77.4         77.8        –
    Uni-Medical      75.0         73.7        –
    COCO-AD          47.1          –          –

On VisA and Uni-Medical longer training makes it worse. Precision is not part of a preset.

A variant sets the network only, so it goes with any preset and recipe:

    fast        the built-in encoder, which needs no download, two directions and one block a stage:
                256 x 256 in float32 on two CPU cores takes 59 ms where the published network takes
                324 (medians)
    distinct    eight Hilbert paths that all differ, where the published eight are six
    strong      the published decoder under a DINOv2 transformer (``mambaad.model.tokens``): 59
                million parameters, 38 thousand million multiply-adds, and 7 in the scan
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from mambaad.config import Config, read_config
from mambaad.errors import ConfigError
from mambaad.recipes import PAPER

RECIPE: Mapping[str, Any] = MappingProxyType(
    {
        "model.encoder": "resnet34",
        "model.depths": (3, 4, 6, 3),
        "model.scan": "hilbert",
        "model.directions": 8,
        "model.kernels": (5, 7),
        "model.pointwise": True,
        "model.residual": True,
        "model.branches": "both",
        "model.drop_path": 0.2,
        "data.image_size": (256, 256),
        "data.holdout": 0.0,
        "train.batch_size": 16,
        "train.learning_rate": 0.005,
        "train.weight_decay": 1e-4,
        "train.loss_weight": 5.0,
        "train.clip_norm": 5.0,
        "train.decay_at": 0.8,
        "train.decay_factor": 0.1,
    }
)
"""What all presets share. All good training pictures are trained on, as the protocols say."""

EPOCHS: Mapping[str, int] = MappingProxyType(
    {
        "mvtec-ad": 300,
        "visa": 100,
        "real-iad": 100,
        "mvtec-3d": 300,
        "uni-medical": 100,
        "coco-ad": 100,
    }
)
"""Passes over the training pictures, by preset, in the order of ``config.PresetName``."""


VARIANTS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "fast": {
            "model.encoder": "builtin",
            "model.depths": (1, 1, 1, 1),
            "model.scan": "hilbert",
            "model.directions": 2,
        },
        "distinct": {"model.scan": "hilbert", "model.directions": "distinct"},
        "strong": {"model.encoder": "vit_small_patch14_reg4_dinov2"},
    }
)
"""The settings of each variant; the others stay as they are: published, or a file's or preset's."""


def variant_settings(name: str) -> dict[str, Any]:
    """A variant as ``{"model.directions": 2, ...}``.

    Raises:
        ConfigError: If there is no such variant.
    """
    if name not in VARIANTS:
        raise ConfigError(f"variant must be one of {list(VARIANTS)}, got {name!r}")
    return dict(VARIANTS[name])


def preset_settings(name: str) -> dict[str, Any]:
    """A preset as ``{"train.epochs": 300, ...}``, its own name among it.

    Raises:
        ConfigError: If there is no such preset.
    """
    if name not in EPOCHS:
        raise ConfigError(f"preset must be one of {list(EPOCHS)}, got {name!r}")
    return {**RECIPE, "train.epochs": EPOCHS[name], "train.preset": name}


def configure(
    file: Path | None = None,
    settings: Mapping[str, Any] | None = None,
    preset: str | None = None,
    variant: str | None = None,
) -> Config:
    """Settings upon those of a variant, of a preset, of a file, upon the defaults.

    So what is named here wins over a file, which may be a run's and hold every setting. Only a
    preset that the file itself names goes under what else the file sets. A preset is of the
    published recipe: beside another recipe, named in the settings or in the file, it leaves alone
    what recipes set.

    Args:
        file: TOML file of settings.
        settings: ``{"train.epochs": 30, ...}``, of which ``train.recipe`` goes under the others.
        preset: Name of a preset; None takes ``train.preset`` of the settings, if it is there.
        variant: Name of a variant; None leaves the network as it is.

    Raises:
        ConfigError: If a name is unknown, a value does not fit, or the file cannot be read.
    """
    config = Config()
    if file is not None:
        config = read_config(file)
        if config.train.preset is not None:
            config = read_config(file, Config().override(preset_settings(config.train.preset)))
    chosen = dict(settings or {})
    named: dict[str, Any] = {}
    name = chosen.get("train.preset") if preset is None else preset
    if name is not None:
        named = preset_settings(str(name))
        chosen["train.preset"] = name
        if chosen.get("train.recipe", config.train.recipe) != "paper":
            named = {key: value for key, value in named.items() if key not in PAPER}
    if variant is not None:
        named |= variant_settings(variant)
    if isinstance(chosen.get("model.scan"), Mapping):
        named.pop("model.directions", None)  # a hybrid scan has its own counts
    # in one step: some values fit only together, such as image_size and tile
    return config.override({**named, **chosen})
