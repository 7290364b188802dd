"""The command line: each verb parses, calls one function and prints.

Heavy imports are inside the commands, so that ``mambaad --help`` answers at once. Our own errors
are one line on standard error and status 2; bugs keep their traceback.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from mambaad.errors import ConfigError, MambaADError

app = typer.Typer(
    help="Find defects in pictures of many products, learned from good pictures only.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    add_completion=False,
)

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


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 2 a mistake that the message explains, 130 stopped."""
    # Idle threads soon sleep instead of spinning on: two thread pools (torch's and numba's) take
    # turns, and beside other work a spinning one starves the other. Read when torch is loaded.
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    try:
        app(arguments, prog_name="mambaad")
    except MambaADError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except OSError as error:
        if error.filename is None:
            raise
        print(f"error: {error.strerror}: {error.filename}", file=sys.stderr)
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
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="One setting, such as model.depths=[2,2,2,2]; may be repeated."),
    ] = None,
    encoder: Annotated[str | None, typer.Option(help="timm name, or filterbank.")] = None,
    encoder_weights: Annotated[
        Path | None, typer.Option(help="File of the encoder's weights (safetensors or torch).")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training pictures.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Pictures in a step.")] = None,
    image_size: ImageSize = None,
    category: Categories = None,
    layout: Annotated[str | None, typer.Option(help="auto, mvtec or folder.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of weights and order.")] = None,
    precision: Annotated[str | None, typer.Option(help="float32 or bf16.")] = None,
    cache: Annotated[
        str | None, typer.Option(help="auto, features, pictures, disk or none.")
    ] = None,
    device: Device = "auto",
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")] = False,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Also log there.")] = False,
) -> None:
    """Train on the good pictures of DATA."""
    flags = {
        "data.root": None if data is None else str(data),
        "data.layout": layout,
        "data.categories": category or None,
        "data.image_size": None if image_size is None else parse_size(image_size),
        "data.cache": cache,
        "model.encoder": encoder,
        "train.epochs": epochs,
        "train.batch_size": batch_size,
        "train.seed": seed,
        "train.precision": precision,
    }
    chosen = _train_config(out, config, settings or [], flags, encoder_weights, resume)
    from mambaad.display import TrainDisplay
    from mambaad.train import train as run_training

    with TrainDisplay() as display:
        try:
            run_training(
                chosen,
                out,
                encoder_weights=encoder_weights,
                resume=resume,
                device=device,
                tensorboard=tensorboard,
                observer=display,
            )
        except KeyboardInterrupt:
            saved = (out / "state.safetensors").is_file()
            hint = f"continue with: mambaad train --out {out} --resume" if saved else "stopped"
            display.message(hint)
            raise typer.Exit(130) from None
    print(f"trained: {out}\nnext: mambaad test {out}")


def _train_config(
    out: Path,
    file: Path | None,
    settings: list[str],
    flags: dict[str, Any],
    weights: Path | None,
    resume: bool,
) -> Any:
    from mambaad.checkpoint import load_config
    from mambaad.config import Config, parse_setting, read_config

    flags = {name: value for name, value in flags.items() if value is not None}
    if resume:
        root = flags.pop("data.root", None)
        if flags or settings or file or weights:
            raise ConfigError("--resume takes its settings from the run; give only --out and DATA")
        config = load_config(out)
        if (
            root is not None
            and Path(root).expanduser().resolve() != Path(config.data.root).resolve()
        ):
            raise ConfigError(f"the run in {out} is of {config.data.root}, not of {root}")
        return config
    config = read_config(file) if file is not None else Config()
    config = config.override({**dict(parse_setting(s) for s in settings), **flags})
    if not config.data.root:
        raise ConfigError("which pictures? Give the folder of a data set: mambaad train DATA")
    return config.override({"data.root": str(Path(config.data.root).expanduser().absolute())})


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


@app.command("test")
def evaluate_command(
    run: Run,
    data: Annotated[
        Path | None, typer.Argument(help="Another data set than the run's own.")
    ] = None,
    protocol: Annotated[str, typer.Option(help="exact, or ader for the paper's tables.")] = "exact",
    pro_limit: Annotated[float, typer.Option(help="Highest false positive rate of AUPRO.")] = 0.3,
    category: Categories = None,
    layout: Annotated[str | None, typer.Option(help="auto, mvtec or folder.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the results; the run.")] = None,
    device: Device = "auto",
) -> None:
    """Evaluate RUN on the test pictures and write its report."""
    from mambaad.display import metrics_table, progress_bar, show
    from mambaad.testing import run_test

    with progress_bar("testing") as progress:
        evaluation, files = run_test(
            run,
            data,
            protocol=protocol,
            pro_limit=pro_limit,
            categories=category or (),
            layout=layout,
            out=out,
            device=device,
            progress=progress,
        )
    show(metrics_table(evaluation))
    print("wrote", *files, sep="\n  ")


@app.command()
def predict(
    run: Run,
    paths: Annotated[list[Path], typer.Argument(help="Pictures, or folders of them.")],
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("predictions"),
    category: Annotated[str | None, typer.Option(help="Category whose threshold to use.")] = None,
    threshold: Annotated[float | None, typer.Option(help="Threshold instead of the run's.")] = None,
    heatmaps: Annotated[bool, typer.Option(help="Draw heat maps.")] = True,
    maps: Annotated[bool, typer.Option("--maps", help="Also write raw maps (.npy).")] = False,
    device: Device = "auto",
) -> None:
    """Score pictures: a table, a JSON line each, and heat maps."""
    from mambaad.calibrate import manual
    from mambaad.display import PredictDisplay, progress_bar
    from mambaad.predict import Detector, find_pictures, predict_files

    files = find_pictures(paths, leave_out=out)
    detector = Detector.load(run, device=device)
    if threshold is not None:
        detector.calibration = manual(threshold, detector.calibration, category)
    display = PredictDisplay()
    results = predict_files(detector, files, out, category=category, heatmaps=heatmaps, maps=maps)
    with progress_bar("predicting") as progress:
        for number, result in enumerate(results, 1):
            display.add(result)
            progress(number, len(files))
    display.finish(out)
    if display.failed:
        raise typer.Exit(2)


@app.command()
def calibrate(
    run: Run,
    data: Annotated[Path, typer.Argument(help="Data set with good pictures, best unseen ones.")],
    quantile: Annotated[
        float, typer.Option(help="Share of the good scores at or below the threshold.")
    ] = 0.99,
    layout: LayoutName = "auto",
    device: Device = "auto",
) -> None:
    """Set RUN's thresholds anew, on the good pictures of DATA."""
    from mambaad.display import progress_bar
    from mambaad.testing import calibrate_run

    with progress_bar("calibrating") as progress:
        found = calibrate_run(
            run, data, quantile=quantile, layout=layout, device=device, progress=progress
        )
    for name, threshold in found.categories.items():
        print(f"{name}: threshold {threshold.threshold:.4f} from {threshold.pictures} pictures")
    print(f"wrote {run / 'calibration.json'}")


@app.command()
def check(
    data: Data,
    layout: LayoutName = "auto",
    category: Categories = None,
    image_size: ImageSize = None,
    json_out: Annotated[
        Path | None, typer.Option("--json", help="Also write what was found here.")
    ] = None,
) -> None:
    """Say what DATA holds and what is wrong with it; status 2 if training would fail."""
    from mambaad.config import DataConfig
    from mambaad.data import check_dataset
    from mambaad.display import progress_bar, show_check
    from mambaad.files import write_json

    size = parse_size(image_size or "256")
    settings = DataConfig.from_mapping({"image_size": size, "layout": layout})
    with progress_bar("checking") as progress:
        result = check_dataset(
            data, layout, category or (), image_size=settings.image_size, progress=progress
        )
    show_check(result)
    if json_out is not None:
        write_json(json_out, result.to_mapping())
    if not result.ok:
        raise typer.Exit(2)


@app.command()
def synthesize(
    folder: Annotated[Path, typer.Argument(help="Folder to make.")],
    seed: Annotated[int, typer.Option(help="Same seed, same pictures.")] = 0,
    size: Annotated[int, typer.Option(help="Side of the pictures.")] = 256,
    train_count: Annotated[int, typer.Option("--train", help="Training pictures a category.")] = 60,
    good: Annotated[int, typer.Option(help="Good test pictures a category.")] = 20,
    defective: Annotated[int, typer.Option(help="Defective pictures a category.")] = 20,
    category: Categories = None,
) -> None:
    """Write the built-in benchmark, in the layout of MVTec AD."""
    from mambaad.data.synthetic import CATEGORIES
    from mambaad.data.synthetic import synthesize as write
    from mambaad.display import progress_bar

    with progress_bar("drawing") as progress:
        write(
            folder,
            seed=seed,
            size=size,
            train=train_count,
            good=good,
            defective=defective,
            categories=tuple(category or CATEGORIES),
            progress=progress,
        )
    print(f"wrote {folder}")


@app.command()
def demo(
    folder: Annotated[Path, typer.Argument(help="Folder to make.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(help="Seed of pictures and training.")] = 0,
) -> None:
    """Train on the built-in benchmark, evaluate and write a report; no download, some 2 minutes."""
    from mambaad.demo import run_demo
    from mambaad.display import TrainDisplay, metrics_table, show

    with TrainDisplay() as display:
        result = run_demo(folder, seed=seed, observer=display)
    show(metrics_table(result.trained))
    before, after = result.untrained.mean, result.trained.mean
    print(
        f"mean mAD {100 * after.mAD:.1f}, image AUROC {100 * after.image_AUROC:.1f}, "
        f"pixel AUROC {100 * after.pixel_AUROC:.1f}\n"
        f"the same network untrained: mean mAD {100 * before.mAD:.1f}, "
        f"image AUROC {100 * before.image_AUROC:.1f}, pixel AUROC {100 * before.pixel_AUROC:.1f}\n"
        "encoder: filterbank, fixed filters computed by a formula and not learned, so that nothing "
        "is downloaded; a pretrained one finds more\n"
        f"took {result.seconds:.0f} s; report: {result.report}"
    )


@app.command()
def scans(
    out: Annotated[Path, typer.Option(help="PNG to write.")] = Path("scans.png"),
    method: Annotated[
        str, typer.Option(help="sweep, scan, zorder, zigzag or hilbert.")
    ] = "hilbert",
    size: Annotated[
        str, typer.Option(help="Height x width of the map, such as 16 or 12x20.")
    ] = "16",
    directions: Annotated[str, typer.Option(help="2, 4, 8 or distinct.")] = "8",
) -> None:
    """Draw the paths of a scan method in all directions (the paper's Figure 3)."""
    from mambaad.config import ModelConfig
    from mambaad.drawing import draw_scans
    from mambaad.files import replacing

    count = int(directions) if directions.isdecimal() else directions
    checked = ModelConfig.from_mapping({"scan": method, "directions": count})
    height, width = parse_size(size)
    if min(height, width) < 1 or max(height, width) > 1024:
        raise ConfigError(f"--size must be in 1..1024, got {size!r}")
    picture = draw_scans(method, checked.directions, height, width)
    with replacing(out) as temporary:
        picture.save(temporary, format="PNG")
    print(f"wrote {out}")


@app.command()
def convert(
    checkpoint: Annotated[Path, typer.Argument(help="Published checkpoint (.pth).")],
    out: Annotated[Path, typer.Option(help="Run folder to make.")],
    scan: Annotated[
        str | None, typer.Option(help="Scan method, if the file should not decide.")
    ] = None,
) -> None:
    """Make a run folder of a published MambaAD checkpoint."""
    from mambaad.convert import convert_file

    config, left_out = convert_file(checkpoint, out, scan)
    model = config.model
    print(
        f"encoder {model.encoder}, depths {list(model.depths)}, scan {model.scan}, "
        f"{model.directions} directions"
    )
    if left_out:
        print(f"left out, not part of the network ({len(left_out)}):", *left_out, sep="\n  ")
    print(f"wrote {out}; it has no thresholds: make them with mambaad calibrate {out} DATA")


if __name__ == "__main__":
    main()
