"""The verb ``tune`` of the command line. Heavy imports are inside, as in ``mambaad.tools``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mambaad.options import Device, ImageSize, JsonOut, Settings, parse_size


def tune(
    run: Annotated[
        Path | None,
        typer.Argument(
            help="Run folder, or TOML file of settings. Left out: the published settings."
        ),
    ] = None,
    settings: Settings = None,
    image_size: ImageSize = None,
    batch_size: Annotated[
        list[int] | None,
        typer.Option(
            help="Pictures in a batch; may be repeated. Left out: 1 and that of the training."
        ),
    ] = None,
    device: Device = "auto",
    precision: Annotated[str, typer.Option(help="auto, float32 or bf16.")] = "auto",
    json_out: JsonOut = None,
) -> None:
    """Measure how RUN's scans are best cut up on this GPU, and save it for later commands.

    Takes some minutes, most of them to compile. Nothing is tuned unless asked by this command.
    Later results differ from earlier ones by rounding; they stay the same from run to run.
    """
    from mambaad.config import parse_setting
    from mambaad.display import progress_bar, show
    from mambaad.files import write_json
    from mambaad.tune import run_tune, tune_notes, tune_table

    chosen = dict(parse_setting(s) for s in settings or [])
    if image_size is not None:
        chosen["data.image_size"] = parse_size(image_size)
    with progress_bar("tuning") as progress:
        rows = run_tune(
            run,
            chosen,
            batch_sizes=batch_size or (),
            device=device,
            precision=precision,
            progress=progress,
        )
    show(tune_table(rows))
    print(*tune_notes(rows), sep="\n")
    if json_out is not None:
        write_json(json_out, {"scans": [row.to_mapping() for row in rows]})
