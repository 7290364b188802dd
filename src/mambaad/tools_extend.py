"""The verbs ``extend`` and ``remember``. Heavy imports are inside, as in ``mambaad.tools``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from mambaad.errors import ConfigError
from mambaad.options import Categories, Device, LayoutName, Run, Settings

OldData = Annotated[
    Path | None,
    typer.Option("--old-data", help="Where the data set of RUN is now, if it has moved."),
]

Replay = Annotated[
    str,
    typer.Option(
        help="Old pictures to learn from again: all, or so many of each product, which is "
        "quicker and forgets more."
    ),
]


def extend(
    run: Annotated[Path | None, typer.Argument(help="Trained run; it is left as it is.")] = None,
    data: Annotated[Path | None, typer.Argument(help="Data set of the new product.")] = None,
    out: Annotated[Path, typer.Option(help="Run folder to make.")] = Path("runs/extended"),
    replay: Replay = "all",
    epochs: Annotated[
        int | None, typer.Option(help="Passes over the pictures; a fifth of RUN's.")
    ] = None,
    thresholds: Annotated[
        str, typer.Option(help="Of the old products: anew, or keep those of RUN.")
    ] = "anew",
    old_data: OldData = None,
    category: Categories = None,
    layout: LayoutName = "auto",
    settings: Settings = None,
    device: Device = "auto",
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")] = False,
) -> None:
    """Add the product in DATA to a trained RUN, and keep its old ones.

    Pictures of the old products are learned from again beside the new ones: those of RUN's data
    set, or what 'mambaad remember' has kept. 'mambaad test' on RUN and on --out has the metrics
    before and after.
    """
    given = (replay, epochs, thresholds, old_data, category, layout, settings)
    if resume and (run or data or given != ("all", None, "anew", None, None, "auto", None)):
        raise ConfigError("--resume takes its settings from the run; give only --out")
    if not resume and (run is None or data is None):
        raise ConfigError("extend what by what? Give both: mambaad extend RUN DATA")
    from mambaad.config import parse_setting
    from mambaad.devices import pick_device
    from mambaad.display import progress_bar
    from mambaad.extend import begin, unfinished
    from mambaad.extend_settings import Plan, Thresholds

    if run is not None and data is not None:
        plan = Plan(
            run,
            data,
            categories=tuple(category or ()),
            layout=layout,
            replay=_count(replay),
            old_data=old_data,
            thresholds=cast(Thresholds, thresholds),
            epochs=epochs,
            settings=dict(parse_setting(s) for s in settings or []),
        )
        pick_device(device)  # refused before anything is written
        with progress_bar("reading") as progress:
            begun = begin(plan, out, progress)
        print(*_summary(begun, out), sep="\n")
    record = unfinished(out)  # refused before the display opens
    _train(out, device)
    following = f"test {out}" if _has_tests(record) else f"predict {out} PICTURES"
    print(f"extended: {out}\nnext: mambaad {following}")


def _train(out: Path, device: str) -> None:
    """Train what ``begin`` has written; an interruption ends with status 130."""
    from mambaad.display import TrainDisplay
    from mambaad.extend import resume

    with TrainDisplay() as display:
        try:
            resume(out, device=device, observer=display)
        except KeyboardInterrupt:
            display.message(f"continue with: mambaad extend --out {out} --resume")
            raise typer.Exit(130) from None


def remember(
    run: Run,
    pictures: Annotated[int, typer.Option(help="Pictures to keep of each product.")] = 50,
    old_data: OldData = None,
) -> None:
    """Keep some prepared pictures in RUN, so that it can be extended without its data set."""
    from mambaad.display import progress_bar
    from mambaad.extend import moved_list
    from mambaad.kept_pictures import remember as keep

    place = old_data or moved_list(run)
    with progress_bar("keeping") as progress:
        folder, count, size = keep(run, count=pictures, old_data=place, progress=progress)
    print(f"wrote {folder}: {count} pictures, {size / 1e6:.1f} MB")


def _summary(record: Mapping[str, Any], out: Path) -> list[str]:
    """What a user should know of an extension before it starts; ``record`` is from ``begin``."""
    from mambaad.kept_pictures import untested_line

    old, new, fewer = record["old"], record["new"], record["fewer"]
    lines = [
        f"new: {', '.join(f'{name} ({count} pictures)' for name, count in new.items())}",
        f"replayed: {sum(old.values())} of {record['old_pictures']} pictures of {len(old)} old "
        f"products, from {record['replayed_from']}",
    ]
    if fewer:
        numbers = [f"{name} ({was}, now {now})" for name, (was, now) in fewer.items()]
        lines.append(
            f"warning: the thresholds of {', '.join(numbers)} will come from fewer pictures than "
            "before; --thresholds keep leaves them as they are"
        )
    if not _has_tests(record):
        lines.append(
            "no test pictures of any product: test them with "
            f"'mambaad test {out} DATA', DATA being a data set that has some"
        )
    elif record["untested"]:
        lines.append(untested_line(record["untested"], out))
    return lines


def _has_tests(record: Mapping[str, Any]) -> bool:
    """Whether some product of an extension has test pictures in its data set."""
    return bool({*record["old"], *record["new"]} - set(record["untested"]))


def _count(text: str) -> int | None:
    """A number of pictures; None for ``all``.

    Raises:
        ConfigError: If it is neither.
    """
    if text == "all":
        return None
    if not text.isdecimal():
        raise ConfigError(f"--replay must be a number of pictures or all, got {text!r}")
    return int(text)
