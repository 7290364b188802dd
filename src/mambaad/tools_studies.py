"""The verbs ``ablate`` and ``table``. Heavy imports are inside, as in ``mambaad.tools``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mambaad.errors import ConfigError, TrainingError
from mambaad.options import (
    Categories,
    Data,
    Device,
    Epochs,
    Preset,
    Settings,
    TrainSize,
    parse_size,
)

Seeds = Annotated[
    list[int] | None, typer.Option(help="Seed of a run; may be repeated. Left out: 42.")
]
Weights = Annotated[
    list[str] | None,
    typer.Option(
        help="File of the encoder's weights, or ENCODER=FILE where rows differ in it; may be "
        "repeated."
    ),
]

WIDE = 260
"""Characters of a line where the output is no terminal: no cell of a table is cut."""


def ablate(
    table: Annotated[
        str, typer.Argument(help="incremental, branches, backbone, depth, scan or lss.")
    ],
    data: Data,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the runs and results; runs/ablate-TABLE.")
    ] = None,
    row: Annotated[list[str] | None, typer.Option(help="Only this row; may be repeated.")] = None,
    seed: Seeds = None,
    preset: Preset = None,
    settings: Settings = None,
    encoder_weights: Weights = None,
    epochs: Epochs = None,
    image_size: TrainSize = None,
    category: Categories = None,
    protocol: Annotated[str, typer.Option(help="exact, or ader for the paper's tables.")] = "exact",
    device: Device = "auto",
    gpus: Annotated[
        str | None, typer.Option(help="Run side by side on these: all, or numbers such as 0,1.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what is to do.")] = False,
) -> None:
    """Run a TABLE of the paper's ablations on DATA; the same command again continues it.

    Each row with each seed is a run folder in --out. The results of all that are there stand
    beside the paper's: results.md, .csv and .tex.
    """
    from mambaad import ablate as study
    from mambaad.grids import grid

    study.check_protocol(protocol)
    chosen = grid(table)
    flags = {
        "data.root": str(data.expanduser().absolute()),
        "data.categories": category or None,
        "data.image_size": None if image_size is None else parse_size(image_size),
        "train.epochs": epochs,
    }
    base = _shared(preset, settings or [], flags)
    folder = out or Path("runs") / f"ablate-{table}"
    jobs = study.plan(base, chosen.select(row or []), seed or [base.train.seed], folder)
    files = study.weights_by_encoder(encoder_weights or [])
    states = [study.state_of(job, protocol) for job in jobs]
    study.check_weights(jobs, files)
    left = [job for job, state in zip(jobs, states, strict=True) if state != "done"]
    cost = _cost(base) if dry_run or left else ""
    print(*(f"{job}: {state}" for job, state in zip(jobs, states, strict=True)), sep="\n")
    if dry_run:
        print(cost)
        return
    failed = _run(left, protocol, files, device, gpus)
    found, remarks = study.gather(chosen, base, jobs, folder, protocol, files)
    sheet = study.results(chosen, found, protocol, remarks)
    _show(sheet)
    print("wrote", *study.write_results(folder, sheet), sep="\n  ")
    if failed:
        job, why = next(iter(failed.items()))
        raise TrainingError(f"{len(failed)} of {len(jobs)} runs failed, the first, {job}: {why}")


def _shared(preset: str | None, settings: list[str], flags: dict[str, Any]) -> Any:
    """The settings that all rows share."""
    from mambaad.config import parse_setting
    from mambaad.presets import configure

    given = {name: value for name, value in flags.items() if value is not None}
    return configure(None, {**dict(parse_setting(s) for s in settings), **given}, preset)


def _cost(base: Any) -> str:
    """What a row trains on and how long, after a look at the data set; a lost one is said here."""
    from mambaad.display import counted
    from mambaad.splits import read_pictures

    chosen, _, about = read_pictures(base)
    pictures = counted(len(chosen), "training picture")
    categories = counted(len(about["categories"]), "category", "categories")
    return f"each row: {counted(base.train.epochs, 'epoch')} of {pictures} in {categories}"


def _run(
    jobs: list[Any], protocol: str, files: dict[str, Path], device: str, gpus: str | None
) -> dict[str, str]:
    from mambaad import ablate as study
    from mambaad.display import TrainDisplay
    from mambaad.parallel import Processes, in_turn, side_by_side, visible_gpus

    processes = Processes()

    def here(job: study.Job) -> None:
        with TrainDisplay() as display:
            file = study.weights_of(job, files)
            study.run_here(job, protocol, weights=file, device=device, observer=display)

    def on(job: study.Job, gpu: str) -> None:
        verbs = study.commands(job, protocol, study.weights_of(job, files))
        processes.run([[*v, "--device", "cuda"] for v in verbs], gpu, job.run / study.LOG)

    try:
        if gpus is None:
            return in_turn(jobs, here, print)
        if device != "auto":
            raise ConfigError("--gpus and --device cannot both say where to run; give one of them")
        return side_by_side(jobs, visible_gpus(gpus), on, processes.stop, print)
    except KeyboardInterrupt:
        print("stopped; the same command continues")
        raise typer.Exit(130) from None


def table(
    runs: Annotated[list[Path], typer.Argument(help="Tested run folders.")],
    by: Annotated[
        str,
        typer.Option(
            help="Rows: the mean over categories, each category, or all: both, with columns of "
            "IoU-max, AUPRO to 0.05, SegF1, AUPIMO and sample AUROC."
        ),
    ] = "mean",
    form: Annotated[
        str | None,
        typer.Option("--format", help="Print it as markdown, csv or latex, not as a table."),
    ] = None,
    out: Annotated[
        list[Path] | None, typer.Option(help="Write it here too: .md, .csv or .tex; repeatable.")
    ] = None,
) -> None:
    """Compare tested RUNs; those that differ in the seed only are one row, with its deviation."""
    from typing import cast, get_args

    from mambaad.compare import By, comparison, read_result
    from mambaad.files import write_text
    from mambaad.sheets import SUFFIXES, WRITERS

    if by not in get_args(By):
        raise ConfigError(f"--by must be one of {list(get_args(By))}, got {by!r}")
    if form is not None and form not in WRITERS:
        raise ConfigError(f"--format must be one of {list(WRITERS)}, got {form!r}")
    for file in out or []:
        if file.suffix not in SUFFIXES:
            raise ConfigError(f"--out must end in one of {list(SUFFIXES)}, got {file}")
    sheet = comparison([read_result(run) for run in runs], cast(By, by))
    if form is None:
        _show(sheet)
    else:
        print(WRITERS[form](sheet), end="")
    for file in out or []:
        write_text(file, WRITERS[SUFFIXES[file.suffix]](sheet))


def _show(sheet: Any) -> None:
    """A sheet as a table, its notes under it."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from mambaad.sheets import to_text

    found = Table()
    for column in sheet.columns:
        found.add_column(column.name, justify="left" if column.text else "right")
    for row in to_text(sheet):
        found.add_row(*(escape(cell) for cell in row))
    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, WIDE)
    console.print(found)
    print(*sheet.notes, sep="\n")
