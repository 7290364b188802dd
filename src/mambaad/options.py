"""Options that several verbs of the command line share, and the reading of their values.

Nothing heavy is imported before a value is read, so that ``mambaad --help`` answers at once. The
defaults that the help names are those of the settings' classes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mambaad.config import DataConfig, ModelConfig, TrainConfig
from mambaad.errors import ConfigError

BUILTIN_WEIGHTS = Path(__file__).with_name("model") / "builtin_encoder.safetensors"
"""``mambaad.model.builtin.FILE``, which cannot be imported without torch."""


def own_encoders() -> str:
    """For help texts: the encoders beside timm's that this installation has."""
    if not BUILTIN_WEIGHTS.is_file():
        return "or filterbank"
    return "or builtin or filterbank, which need no download"


def _default(value: object) -> str:
    """How a help text says what holds where neither an option nor a file or preset does."""
    return f"Default: {value}."


Data = Annotated[Path, typer.Argument(help="Folder of the data set.")]
Run = Annotated[Path, typer.Argument(help="Run folder.")]
Categories = Annotated[
    list[str] | None, typer.Option("--category", help="Only this category; may be repeated.")
]
LayoutName = Annotated[str, typer.Option(help="auto, or one of 'mambaad datasets'.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Precision = Annotated[
    str | None,
    typer.Option(
        help="float32, bf16, or auto: bf16 on a GPU that has it, else float32. Left out: as RUN "
        "was trained on a GPU, float32 on a CPU."
    ),
]
ImageSize = Annotated[
    str | None, typer.Option(help="Height x width to work at, such as 256 or 256x320.")
]
TrainSize = Annotated[
    str | None,
    typer.Option(
        "--image-size",
        help="Height x width to work at, such as 256 or 256x320. "
        + _default("x".join(map(str, DataConfig.image_size))),
    ),
]
Encoder = Annotated[
    str | None,
    typer.Option(help=f"timm name, {own_encoders()}. {_default(ModelConfig.encoder)}"),
]
Epochs = Annotated[
    int | None,
    typer.Option(help=f"Passes over the training pictures. {_default(TrainConfig.epochs)}"),
]
BatchSize = Annotated[
    int | None, typer.Option(help=f"Pictures in a step. {_default(TrainConfig.batch_size)}")
]
Tile = Annotated[
    str | None,
    typer.Option(
        help="Cut pictures of --image-size into overlapping tiles of this size, such as 256; see "
        "data.tile_overlap."
    ),
]
Preset = Annotated[
    str | None,
    typer.Option(
        help="The published recipe for mvtec-ad, visa, real-iad, mvtec-3d, uni-medical or coco-ad. "
        "It and --variant win over --config; --recipe and single settings over all."
    ),
]
Recipe = Annotated[
    str | None,
    typer.Option(
        help="paper, as published, or plus, for better maps of the same network; see train.recipe."
    ),
]
Variant = Annotated[
    str | None, typer.Option(help="Another network than the published: fast, distinct or strong.")
]
EncoderWeights = Annotated[
    Path | None, typer.Option(help="File of the encoder's weights (safetensors or torch).")
]
CacheName = Annotated[str | None, typer.Option(help="auto, features, pictures, disk or none.")]
JsonOut = Annotated[Path | None, typer.Option("--json", help="Also write what was found here.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", help="One setting, such as model.depths=[2,2,2,2]; may be repeated."),
]


def parse_size(text: str) -> list[int]:
    """``256`` or ``256x320`` (height x width) as two numbers.

    >>> parse_size("256x320")
    [256, 320]

    Raises:
        ConfigError: If it is neither.
    """
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(p.strip().isdecimal() for p in parts):
        raise ConfigError(f"a size is a number or HEIGHTxWIDTH, got {text!r}")
    sizes = [int(p) for p in parts]
    return sizes if len(sizes) == 2 else sizes * 2
