"""The verb ``stress`` of the command line. Heavy imports are inside, as in ``mambaad.tools``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mambaad.options import Categories, Device, Precision, Run


def stress(
    run: Run,
    data: Annotated[
        Path | None, typer.Argument(help="Another data set than the run's own.")
    ] = None,
    corruption: Annotated[
        list[str] | None,
        typer.Option(
            help="Only this kind: brightness, contrast, blur, noise, shift, rotation or jpeg; "
            "may be repeated."
        ),
    ] = None,
    category: Categories = None,
    layout: Annotated[str | None, typer.Option(help="auto, or one of 'mambaad datasets'.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of noise and directions.")] = 0,
    out: Annotated[
        Path | None, typer.Option(help="Folder of results; RUN, or RUN/test-NAME.")
    ] = None,
    device: Device = "auto",
    precision: Precision = None,
) -> None:
    """Count RUN's false alarms and misses on darkened, blurred, noisy or moved test pictures."""
    from mambaad.display import progress_bar, show
    from mambaad.stress import card_table, run_stress

    with progress_bar("stressing") as progress:
        card, files = run_stress(
            run,
            data,
            kinds=corruption or (),
            categories=category or (),
            layout=layout,
            seed=seed,
            out=out,
            device=device,
            precision=precision,
            progress=progress,
        )
    show(card_table(card))
    print("wrote", *files, sep="\n  ")
