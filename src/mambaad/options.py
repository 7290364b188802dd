"""Options that several verbs of the command line share, and the reading of their values.

Nothing heavy is imported before a value is read, so that ``mambaad --help`` answers at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mambaad.errors import ConfigError

Data = Annotated[Path, typer.Argument(help="Folder of the data set.")]
Run = Annotated[Path, typer.Argument(help="Run folder.")]
Categories = Annotated[
    list[str] | None, typer.Option("--category", help="Only this category; may be repeated.")
]
LayoutName = Annotated[str, typer.Option(help="Layout of the folder: auto, mvtec or folder.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
ImageSize = Annotated[
    str | None, typer.Option(help="Height x width to work at, such as 256 or 256x320.")
]
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
