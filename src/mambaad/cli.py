"""The command line: each verb parses, calls one function and prints.

Heavy imports are inside the commands, so that ``mambaad --help`` answers at once. Our own errors
are one line on standard error and status 2; bugs keep their traceback.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from mambaad.errors import ConfigError, MambaADError, memory_note
from mambaad.interrupt import ending_as_ctrl_c
from mambaad.options import (
    BatchSize,
    CacheName,
    Categories,
    Device,
    Encoder,
    EncoderWeights,
    Epochs,
    ImageSize,
    JsonOut,
    LayoutName,
    Precision,
    Preset,
    Recipe,
    Run,
    Settings,
    Tile,
    TrainSize,
    Variant,
    parse_size,
)
from mambaad.tools import check, convert, demo, scans, synthesize
from mambaad.tools_data import datasets, prepare
from mambaad.tools_extend import extend, remember
from mambaad.tools_stress import stress
from mambaad.tools_studies import ablate, table
from mambaad.tools_tune import tune

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of writing, which name no file."""

app = typer.Typer(
    help="Find defects in pictures of many products, learned from good pictures only.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    add_completion=False,
)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 2 a mistake that the message explains, 130 stopped."""
    # Idle threads soon sleep instead of spinning on: two thread pools (torch's and numba's) take
    # turns, and beside other work a spinning one starves the other. Read when torch is loaded.
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # for odd file names
            stream.reconfigure(errors="backslashreplace")
    try:
        with ending_as_ctrl_c():
            app(arguments, prog_name="mambaad")
    except MambaADError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except (MemoryError, RuntimeError) as error:
        note = memory_note(error)
        if note is None:
            raise
        print(f"error: {note}", file=sys.stderr)
        raise SystemExit(2) from None
    except OSError as error:
        if error.filename is None and error.errno not in FULL:
            raise
        where = "" if error.filename is None else f": {error.filename}"
        print(f"error: {error.strerror}{where}", file=sys.stderr)
        raise SystemExit(2) from None


def _version(wanted: bool) -> None:
    if wanted:
        from mambaad import __version__

        print(f"mambaad {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def train(
    data: Annotated[Path | None, typer.Argument(help="Folder of the data set.")] = None,
    out: Annotated[Path, typer.Option(help="Run folder to make.")] = Path("runs/mambaad"),
    config: Annotated[Path | None, typer.Option(help="TOML file of settings.")] = None,
    preset: Preset = None,
    variant: Variant = None,
    recipe: Recipe = None,
    settings: Settings = None,
    encoder: Encoder = None,
    encoder_weights: EncoderWeights = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    image_size: TrainSize = None,
    category: Categories = None,
    layout: Annotated[str | None, typer.Option(help="auto, or one of 'mambaad datasets'.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of weights and order.")] = None,
    precision: Annotated[str | None, typer.Option(help="auto, float32 or bf16.")] = None,
    cache: CacheName = None,
    tile: Tile = None,
    device: Device = "auto",
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")] = False,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Also log there.")] = False,
) -> None:
    """Train on the good pictures of DATA.

    The defaults hold where neither --config, --preset, --variant nor --set says something else.
    """
    from mambaad.checkpoint import load_provenance

    flags = {
        "data.root": None if data is None else str(data),
        "data.layout": layout,
        "data.categories": category or None,
        "data.image_size": None if image_size is None else parse_size(image_size),
        "data.cache": cache,
        "data.tile": None if tile is None else parse_size(tile),
        "model.encoder": encoder,
        "train.recipe": recipe,
        "train.epochs": epochs,
        "train.batch_size": batch_size,
        "train.seed": seed,
        "train.precision": precision,
    }
    named = preset, variant
    chosen = _train_config(out, config, named, settings or [], flags, encoder_weights, resume)
    options = {"encoder_weights": encoder_weights, "resume": resume, "device": device}
    _train_and_show(chosen, out, {**options, "tensorboard": tensorboard})
    tests = load_provenance(out).get("test_pictures") != 0
    following = f"test {out}" if tests else f"predict {out} PICTURES"
    print(f"trained: {out}\nnext: mambaad {following}")


def _train_and_show(config: Any, out: Path, options: dict[str, Any]) -> None:
    from mambaad.display import TrainDisplay
    from mambaad.train import train as run_training

    with TrainDisplay() as display:
        try:
            run_training(config, out, observer=display, **options)
        except KeyboardInterrupt:
            saved = (out / "state.safetensors").is_file()
            hint = f"continue with: mambaad train --out {out} --resume" if saved else "stopped"
            display.message(hint)
            raise typer.Exit(130) from None


def _train_config(
    out: Path,
    file: Path | None,
    named: tuple[str | None, str | None],
    settings: list[str],
    flags: dict[str, Any],
    weights: Path | None,
    resume: bool,
) -> Any:
    from mambaad.checkpoint import load_config
    from mambaad.config import parse_setting
    from mambaad.presets import configure

    flags = {name: value for name, value in flags.items() if value is not None}
    if resume:
        root = flags.pop("data.root", None)
        if flags or settings or file or any(named) or weights:
            raise ConfigError("--resume takes its settings from the run; give only --out and DATA")
        config = load_config(out)
        if (
            root is not None
            and Path(root).expanduser().resolve() != Path(config.data.root).resolve()
        ):
            raise ConfigError(f"the run in {out} is of {config.data.root}, not of {root}")
        return config
    config = configure(file, {**dict(parse_setting(s) for s in settings), **flags}, *named)
    if not config.data.root:
        raise ConfigError("which pictures? Give the folder of a data set: mambaad train DATA")
    return config.located()


@app.command("test")
def evaluate_command(
    run: Run,
    data: Annotated[
        Path | None, typer.Argument(help="Another data set than the run's own.")
    ] = None,
    protocol: Annotated[str, typer.Option(help="exact, or ader for the paper's tables.")] = "exact",
    metrics: Annotated[
        str,
        typer.Option(
            help="exact; streaming: in little memory, within 1e-4, and of all categories together "
            "too; or auto: by size."
        ),
    ] = "auto",
    pro_limit: Annotated[float, typer.Option(help="Highest false positive rate of AUPRO.")] = 0.3,
    category: Categories = None,
    layout: Annotated[str | None, typer.Option(help="auto, or one of 'mambaad datasets'.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the results; RUN, or RUN/test-NAME for another data set."),
    ] = None,
    device: Device = "auto",
    precision: Precision = None,
) -> None:
    """Evaluate RUN on the test pictures and write its report."""
    from mambaad.display import metrics_table, progress_bar, show
    from mambaad.testing import run_test

    with progress_bar("testing") as progress:
        evaluation, files = run_test(
            run,
            data,
            protocol=protocol,
            metrics=metrics,
            pro_limit=pro_limit,
            categories=category or (),
            layout=layout,
            out=out,
            device=device,
            precision=precision,
            progress=progress,
        )
    show(metrics_table(evaluation))
    if out is None and files[-1].parent != run:
        print(f"{data} is not the run's own data set: its results are apart, the run's own stay")
    print("wrote", *files, sep="\n  ")


@app.command(
    epilog="Exit status: 0 all done; 2 a mistake, or pictures that could not be read (the others "
    "are done and written); 130 stopped."
)
def predict(
    run: Run,
    paths: Annotated[list[Path], typer.Argument(help="Pictures, or folders of them.")],
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("predictions"),
    category: Annotated[str | None, typer.Option(help="Category whose threshold to use.")] = None,
    threshold: Annotated[float | None, typer.Option(help="Threshold instead of the run's.")] = None,
    heatmaps: Annotated[bool, typer.Option(help="Draw heat maps.")] = True,
    maps: Annotated[bool, typer.Option("--maps", help="Also write raw maps (.npy).")] = False,
    device: Device = "auto",
    precision: Precision = None,
) -> None:
    """Score pictures: a table, a JSON line each, and heat maps.

    A defective picture's box is left, top, right, bottom (exclusive) in its pixels: the smallest
    box around the region above the threshold that holds the highest anomaly. A good picture has
    none. Where RUN has no thresholds nothing is decided, and the box is of the hottest region.
    """
    with _saying_stopped():
        from mambaad.calibrate import manual
        from mambaad.display import PredictDisplay, progress_bar
        from mambaad.predict import Detector, find_pictures, predict_files

        files = find_pictures(paths, leave_out=out)
        detector = Detector.load(run, device=device, precision=precision)
        display = PredictDisplay(run, detector.categories, detector.lacking)
        if threshold is not None:
            detector.calibration = manual(threshold, detector.calibration, category)
            display = PredictDisplay(run)  # the same for every category
        results = predict_files(
            detector, files, out, category=category, heatmaps=heatmaps, maps=maps
        )
        with closing(results), progress_bar("predicting") as progress:
            for number, result in enumerate(results, 1):
                display.add(result)
                progress(number, len(files))
    display.finish(out)
    if display.failed:
        raise typer.Exit(2)


@contextmanager
def _saying_stopped() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        raise


@app.command()
def calibrate(
    run: Run,
    data: Annotated[Path, typer.Argument(help="Data set with good pictures, best unseen ones.")],
    category: Annotated[
        str | None,
        typer.Option(help="RUN's product that the pictures are of; DATA must be one category."),
    ] = None,
    quantile: Annotated[
        float,
        typer.Option(
            help="Share of the good scores at or below the threshold, which is one of them: the "
            "next higher where the share falls between two."
        ),
    ] = 0.99,
    layout: LayoutName = "auto",
    device: Device = "auto",
    precision: Precision = None,
) -> None:
    """Set RUN's thresholds anew, on the good pictures of DATA; other products keep theirs."""
    from mambaad.display import counted, progress_bar
    from mambaad.testing import calibrate_run

    with progress_bar("calibrating") as progress:
        found = calibrate_run(
            run,
            data,
            category=category,
            quantile=quantile,
            layout=layout,
            device=device,
            precision=precision,
            progress=progress,
        )
    for name, threshold in found.categories.items():
        origin = f"from {counted(threshold.pictures, 'picture')}"
        how = "kept" if name in found.kept else "set anew"
        print(f"{name}: threshold {threshold.threshold:.4f} {origin}, {how}")
    print(f"wrote {run / 'calibration.json'}")


@app.command()
def profile(
    run: Annotated[
        Path | None,
        typer.Argument(
            help="Run folder, or TOML file of settings for random weights. "
            "Left out: the published settings, random weights."
        ),
    ] = None,
    settings: Settings = None,
    image_size: ImageSize = None,
    batch_size: Annotated[int, typer.Option(help="Pictures in a batch.")] = 1,
    device: Device = "auto",
    precision: Annotated[str, typer.Option(help="auto, float32 or bf16.")] = "auto",
    json_out: JsonOut = None,
) -> None:
    """Say where RUN's parameters, multiply-adds, time and memory are, part by part.

    Times are medians of repeated runs on random pictures, after a warm-up: of the parts eagerly, of
    the whole as predictions run, on a GPU by a CUDA graph. The time of a stage's scans is that of
    one block's scan, run alone on random pixels, times the blocks.
    """
    from mambaad.config import parse_setting
    from mambaad.display import progress_bar, show
    from mambaad.files import write_json
    from mambaad.profile import profile_notes, profile_table, run_profile

    chosen = dict(parse_setting(s) for s in settings or [])
    if image_size is not None:
        chosen["data.image_size"] = parse_size(image_size)
    with progress_bar("profiling") as progress:
        found = run_profile(
            run,
            chosen,
            batch_size=batch_size,
            device=device,
            precision=precision,
            progress=progress,
        )
    show(profile_table(found))
    print(*profile_notes(found), sep="\n")
    if json_out is not None:
        write_json(json_out, found.to_mapping())


for verb in (
    check, synthesize, demo, scans, convert, stress, datasets, prepare, ablate, table, tune,
    extend, remember,
):  # fmt: skip
    app.command()(verb)


if __name__ == "__main__":
    main()
