"""The verbs of the command line on published data sets: listing them, and making COCO-AD.

``mambaad.cli`` takes them in. Heavy imports are inside, as there.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mambaad.errors import ConfigError

if TYPE_CHECKING:
    from mambaad.data.catalogue import Counts, PublishedSet

COCO_AD = "coco-ad"


def datasets(
    name: Annotated[str | None, typer.Argument(help="Say all about this one.")] = None,
) -> None:
    """List the published data sets: classes, pictures, licence, where to get them, layout."""
    from rich.table import Table

    from mambaad.data.catalogue import PUBLISHED, published
    from mambaad.display import show

    if name is not None:
        print(*_about(published(name)), sep="\n")
        return
    table = Table()
    for column in ("name", "classes", "train", "test", "layout", "licence", "source"):
        is_number = column in ("classes", "train", "test")
        table.add_column(column, justify="right" if is_number else "left")
    for known in PUBLISHED.values():
        counts = (str(len(known.categories)), *_numbers(known.total))
        table.add_row(known.name, *counts, known.layout, known.licence, known.source)
    show(table)
    print("mambaad datasets NAME: the files and folders that are expected, pictures by class")
    print("mambaad check DATA --expect NAME: whether a copy is whole")


def prepare(
    what: Annotated[str, typer.Argument(help=f"The data set to make: {COCO_AD}.")],
    source: Annotated[Path, typer.Argument(help="Folder of COCO 2017.")],
    out: Annotated[Path | None, typer.Option(help="Folder to write to; SOURCE.")] = None,
) -> None:
    """Make a data set of another one: the records and masks of COCO-AD's four splits."""
    if what != COCO_AD:
        raise ConfigError(f"what to prepare must be {COCO_AD!r}, got {what!r}")
    from mambaad.data.coco import prepare_coco_ad
    from mambaad.display import progress_bar

    with progress_bar("masks") as progress:
        written = prepare_coco_ad(source, out, progress=progress)
    print("wrote", *written, sep="\n  ")
    print(f"next: mambaad check {written[0].parent} --layout coco-ad-0 --expect coco-ad-0")


def _about(known: PublishedSet) -> Iterator[str]:
    from mambaad.data.layouts import LAYOUTS

    train, test = _numbers(known.total)
    yield f"{known.title}: {len(known.categories)} classes, {train} training, {test} test pictures"
    yield f"licence: {known.licence}"
    yield f"source:  {known.source}"
    yield f"layout:  {known.layout}"
    yield from (f"    {line}" for line in LAYOUTS[known.layout].tree)
    if known.remark:
        yield f"note:    {known.remark}"
    yield "classes:"
    for name, counts in known.categories.items():
        train, test = _numbers(counts)
        yield f"    {name}" + (f": {train} training, {test} test pictures" if counts else "")


def _numbers(counts: Counts | None) -> tuple[str, str]:
    return ("–", "–") if counts is None else (str(counts.train), str(counts.test))
