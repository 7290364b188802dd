"""The verbs of the command line beside those on a run: data sets, demonstration, drawings, weights.

``mambaad.cli`` takes them in. Heavy imports are inside, as there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mambaad.errors import ConfigError
from mambaad.options import Categories, Data, ImageSize, JsonOut, LayoutName, parse_size


def check(
    data: Data,
    layout: LayoutName = "auto",
    category: Categories = None,
    image_size: ImageSize = None,
    expect: Annotated[
        str | None,
        typer.Option(help="Published set that DATA should be, such as mvtec-ad: compare counts."),
    ] = None,
    json_out: JsonOut = None,
) -> None:
    """Say what DATA holds and what is wrong with it; status 2 if training would fail.

    With --expect, status 2 also if something differs from the published data set. What is known of
    that set, and so was compared, is said.
    """
    from mambaad.config import DataConfig
    from mambaad.data import check_dataset
    from mambaad.display import progress_bar, show_check
    from mambaad.files import write_json

    size = parse_size(image_size or "256")
    settings = DataConfig.from_mapping({"image_size": size, "layout": layout})
    with progress_bar("checking") as progress:
        result = check_dataset(
            data,
            layout,
            category or (),
            image_size=settings.image_size,
            expect=expect,
            progress=progress,
        )
    show_check(result)
    for line in result.differences:
        print(f"differs from {expect}: {line}")
    if result.agreement:
        print(result.agreement)
    if json_out is not None:
        write_json(json_out, result.to_mapping())
    if not result.ok or result.differences:
        raise typer.Exit(2)


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
        "encoder: builtin, which is part of the package, so that nothing is downloaded; it "
        "imitates ResNet-18, and a pretrained network finds more\n"
        f"took {result.seconds:.0f} s; report: {result.report}"
    )


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
