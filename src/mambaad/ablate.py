"""The paper's ablations, run: each row of a grid with each seed is a run folder of its own.

    OUT/ROW/seed-N      the run, as ``mambaad train`` and ``mambaad test`` leave it
    OUT/results.md      the table, also as .csv and .tex; made anew from the run folders

What is found in the folders decides what is still to do: a tested run is left alone, a trained one
is tested, an interrupted one is resumed. A test in another way, or of some of the pictures, is none
here. So the same command continues whatever stopped it, and the table is of all that the folders
hold of the same shared settings, whatever was asked for last. On several GPUs each run is a process
of its own that sees one of them (``CUDA_VISIBLE_DEVICES``).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch

from mambaad import checkpoint
from mambaad.compare import (
    EVALUATION,
    METRIC_COLUMNS,
    SEEDS,
    RunResult,
    metric_cells,
    notes,
    read_result,
    same_weights,
    weights_of_run,
)
from mambaad.config import Config
from mambaad.counting import count_parts, sum_counts
from mambaad.errors import CheckpointError, ConfigError
from mambaad.files import write_text
from mambaad.grids import Grid, Row
from mambaad.metrics import Protocol
from mambaad.model import build
from mambaad.model.encoder import file_source
from mambaad.sheets import Cell, Column, Sheet, single, spread, to_csv, to_latex, to_markdown
from mambaad.testing import run_test
from mambaad.train import Observer, train

State = Literal["to train", "to resume", "to test", "done"]

LOG = "log.txt"
"""In a run folder: what its process wrote, where there was one."""

PRO_LIMIT = 0.3
"""Largest false positive rate of AUPRO in the tests, that of ``mambaad test`` and of the paper."""

_COLUMNS = (
    Column("row", text=True),
    Column("from", text=True),
    SEEDS,
    Column("M parameters", seeds=False),
    Column("G multiply-adds", seeds=False),
    Column("G with scan", seeds=False),
    *METRIC_COLUMNS,
    Column("training s", digits=0),
    Column("test s"),
)


@dataclass(frozen=True)
class Job:
    """One row with one seed."""

    row: Row
    seed: int
    run: Path
    config: Config

    def __str__(self) -> str:
        return f"{self.row.name}, seed {self.seed}"


def plan(base: Config, rows: Sequence[Row], seeds: Sequence[int], out: Path) -> list[Job]:
    """The runs of a table, all rows with the first seed, then all with the next.

    Args:
        base: What the rows share; a row's own settings are put upon it.
        rows: In the table's order.
        seeds: Of weights and order.
        out: Folder of the table.

    Raises:
        ConfigError: If a row's settings do not go with the shared ones.
    """
    return [
        Job(
            row,
            seed,
            out / row.name / f"seed-{seed}",
            base.override(row.settings).override({"train.seed": seed}),
        )
        for seed in dict.fromkeys(seeds)
        for row in rows
    ]


def check_protocol(protocol: str) -> None:
    """Refuse a protocol of evaluation that there is none of, before anything runs.

    Raises:
        ConfigError: With those that there are.
    """
    if protocol not in get_args(Protocol):
        raise ConfigError(f"protocol must be one of {list(get_args(Protocol))}, got {protocol!r}")


def state_of(job: Job, protocol: str) -> State:
    """What a job's folder says is to do.

    Raises:
        ConfigError: If the folder holds a run of other settings.
        CheckpointError: If its files are damaged.
    """
    if not _is_begun(job.run):
        return "to train"
    other = _other_setting(job)
    if other is not None:
        raise ConfigError(
            f"{other}: choose another --out, or give the options that it was begun with"
        )
    if (job.run / checkpoint.STATE).is_file():
        return "to resume"
    return "to test" if _test_of(job, protocol) is None else "done"


def _is_begun(run: Path) -> bool:
    return any((run / name).is_file() for name in (checkpoint.STATE, checkpoint.MODEL))


def _other_setting(job: Job) -> str | None:
    """The first setting of the run in a job's folder that is not the job's, as half a sentence."""
    there, here = checkpoint.load_config(job.run).to_mapping(), job.config.to_mapping()
    for table, values in here.items():
        for name in sorted({*values, *there[table]}):
            old, new = there[table].get(name), values.get(name)
            if old != new:
                return f"{job.run} has {table}.{name} = {old}, not {new}"
    return None


def _test_of(job: Job, protocol: str) -> RunResult | None:
    """A job's test, if there is one in this way and of all its test pictures."""
    if not (job.run / EVALUATION).is_file():
        return None
    found = read_result(job.run)
    way = (found.protocol, found.pro_limit) == (protocol, PRO_LIMIT)
    return found if way and found.whole else None


def check_weights(jobs: Sequence[Job], weights: Mapping[str, Path]) -> None:
    """Refuse to go on where runs of one encoder would have different weights of it.

    Args:
        jobs: What is asked for.
        weights: See ``weights_by_encoder``.

    Raises:
        ConfigError: If a run has other weights than the file given, or there are runs with a file's
            weights, others are to train, and no file is given.
        CheckpointError: If a run's record is damaged.
    """
    given = _given(jobs, weights)
    for job in jobs:
        encoder, found = job.config.model.encoder, _weights_there(job)
        if encoder in given and not same_weights(found, given[encoder]):
            raise ConfigError(
                f"{job.run} has encoder weights of {found}, not of {given[encoder]}: choose "
                "another --out, or give the weights that it was begun with"
            )
        if encoder not in given and found.startswith("file "):
            same = (other for other in jobs if other.config.model.encoder == encoder)
            new = next((other for other in same if not _is_begun(other.run)), None)
            if new is not None:
                raise ConfigError(
                    f"{job.run} has encoder weights of {found}: give it with --encoder-weights "
                    f"for {new} too, or choose another --out"
                )


def _given(jobs: Sequence[Job], weights: Mapping[str, Path]) -> dict[str, str]:
    """What the record of a run with the file given says, for each encoder that one is given for."""
    files = {job.config.model.encoder: weights_of(job, weights) for job in jobs}
    return {name: file_source(file) for name, file in files.items() if file is not None}


def _weights_there(job: Job) -> str:
    """Which weights the run in a job's folder has; empty if there is none, or it does not say."""
    return weights_of_run(checkpoint.load_provenance(job.run)) if _is_begun(job.run) else ""


def gather(
    grid: Grid,
    base: Config,
    jobs: Sequence[Job],
    out: Path,
    protocol: str,
    weights: Mapping[str, Path] | None = None,
) -> tuple[list[Job], list[str]]:
    """What the table is made of: the jobs, and the other tested runs of the grid in its folder.

    Args:
        grid: All its rows are looked for, with all seeds.
        base: As for ``plan``.
        jobs: What was asked for.
        out: Folder of the table.
        protocol: Of the tests.
        weights: See ``weights_by_encoder``.

    Returns:
        Jobs in the order of the grid's rows, and a line for each run that is left out because its
        settings or its encoder's weights are others.

    Raises:
        CheckpointError: If the record of one that was asked for is damaged.
    """
    found, left_out = list(jobs), list[str]()
    asked = {job.run for job in jobs}
    for row in grid.rows:
        for seed, run in _tested_runs(out / row.name):
            if run in asked:
                continue
            try:
                (job,) = plan(base, [row], [seed], out)
                other = _other_setting(job)
                if other is not None:
                    left_out.append(other)
                elif state_of(job, protocol) == "done":
                    found.append(job)
            except (ConfigError, CheckpointError) as error:
                left_out.append(f"{run}: {error}")
    names = [row.name for row in grid.rows]
    found.sort(key=lambda job: names.index(job.row.name))
    kept, others = _of_same_weights(found, asked, _given(jobs, weights or {}))
    return kept, [f"not in this table: {line}" for line in (*left_out, *others)]


def _tested_runs(folder: Path) -> list[tuple[int, Path]]:
    """Seed and folder of a row's runs that have a test of whatever kind, by seed."""
    named = [(re.fullmatch(r"seed-(0|-?[1-9]\d*)", run.name), run) for run in folder.glob("seed-*")]
    return sorted((int(m[1]), run) for m, run in named if m and (run / EVALUATION).is_file())


def _of_same_weights(
    jobs: Sequence[Job], asked: Collection[Path], given: Mapping[str, str]
) -> tuple[list[Job], list[str]]:
    """Jobs with the file's weights or, without one, those of the first asked for; and the others.

    Each encoder has its own.
    """
    wanted, left_out = dict(given), dict[Path, str]()
    for job in sorted(jobs, key=lambda job: job.run not in asked):
        encoder, weights = job.config.model.encoder, _weights_there(job)
        if not weights:
            continue
        first = wanted.setdefault(encoder, weights)
        if not same_weights(weights, first):
            left_out[job.run] = f"{job.run} has encoder weights of {weights}, not of {first}"
    return [job for job in jobs if job.run not in left_out], list(left_out.values())


def run_here(
    job: Job,
    protocol: str,
    *,
    weights: Path | None = None,
    device: str = "auto",
    observer: Observer | None = None,
) -> None:
    """Train and test a job as far as it is not done, in this process.

    Raises:
        MambaADError: Whatever training or testing raises.
        KeyboardInterrupt: Passed on; the job can be resumed.
    """
    observer, state = observer or Observer(), state_of(job, protocol)
    if state in ("to train", "to resume"):
        resume = state == "to resume"
        train(
            job.config,
            job.run,
            encoder_weights=None if resume else weights,
            resume=resume,
            device=device,
            observer=observer,
        )
    if state != "done":
        run_test(
            job.run,
            protocol=protocol,
            pro_limit=PRO_LIMIT,
            device=device,
            progress=lambda done, total: observer.progress("testing", done, total),
        )


def commands(job: Job, protocol: str, weights: Path | None = None) -> list[list[str]]:
    """What ``run_here`` does, as arguments of ``mambaad``; writes the settings of a new run."""
    state, run = state_of(job, protocol), str(job.run)
    found = [] if state == "done" else [["test", run, "--protocol", protocol]]
    if state == "to resume":
        found.insert(0, ["train", "--out", run, "--resume"])
    if state == "to train":
        checkpoint.save_config(job.run, job.config)
        file = [] if weights is None else ["--encoder-weights", str(weights)]
        settings = str(job.run / checkpoint.CONFIG)
        found.insert(0, ["train", "--config", settings, "--out", run, *file])
    return found


def results(grid: Grid, jobs: Sequence[Job], protocol: str, remarks: Sequence[str] = ()) -> Sheet:
    """The table: for each row what was found here, and what the paper prints.

    Runs that are not tested by this protocol yet, all their pictures and with the AUPRO of
    ``PRO_LIMIT``, are left out; ``seeds`` says of how many. ``remarks`` are written under it.

    Raises:
        CheckpointError: If a run folder is damaged.
    """
    rows: list[tuple[Cell, ...]] = []
    tested: list[RunResult] = []
    for row in dict.fromkeys(job.row.name for job in jobs):
        own = [job for job in jobs if job.row.name == row]
        found = [test for job in own if (test := _test_of(job, protocol)) is not None]
        tested += found
        seeds = str(len(found)) if len(found) == len(own) else f"{len(found)} of {len(own)}"
        times = [
            spread(r.training_seconds for r in found),
            spread(r.test_seconds for r in found),
        ]
        rows.append((row, "here", seeds, *_size(own[0].config), *metric_cells(found), *times))
        rows += _published(own[0].row)
    ways = notes(tested) if tested else []
    origin = (
        f"paper: arXiv 2404.06564, {grid.source}, MVTec AD, metrics near to protocol ader; its "
        "multiply-adds are without scan"
    )
    return Sheet(_COLUMNS, tuple(rows), (grid.title, *ways, *remarks, origin))


def _size(config: Config) -> list[Cell]:
    """Millions of parameters, thousand million multiply-adds without and with the scan."""
    with torch.device("meta"):
        model = build(config.model).eval()
    total = sum_counts(count_parts(model, *config.data.network_size))
    return [
        single((total.trainable + total.frozen) / 1e6),
        single(total.products / 1e9),
        single((total.products + total.scan_products) / 1e9),
    ]


def _published(row: Row) -> list[tuple[Cell, ...]]:
    printed = row.published
    if printed is None:
        return []
    metrics = printed.metrics or (None,) * (len(METRIC_COLUMNS) - 1)
    shares = [single(None if v is None else round(v / 100, 5)) for v in (*metrics, printed.mAD)]
    size = [single(printed.parameters), single(printed.products), None]
    return [(row.name, "paper", "", *size, *shares, None, None)]


def write_results(out: Path, sheet: Sheet) -> list[Path]:
    """``results.md``, ``.csv`` and ``.tex`` in the folder of the table."""
    files = [out / f"results.{suffix}" for suffix in ("md", "csv", "tex")]
    for file, write in zip(files, (to_markdown, to_csv, to_latex), strict=True):
        write_text(file, write(sheet))
    return files


def weights_by_encoder(values: Sequence[str]) -> dict[str, Path]:
    """``FILE`` for every encoder, under ``""``, and ``ENCODER=FILE`` for one.

    Raises:
        CheckpointError: If a file does not exist.
    """
    found = {}
    for value in values:
        encoder, equals, file = value.partition("=")
        name, path = (encoder, Path(file)) if equals else ("", Path(value))
        if not path.is_file():
            raise CheckpointError(f"no weights at {path}; give FILE or ENCODER=FILE")
        found[name] = path.absolute()
    return found


def weights_of(job: Job, weights: Mapping[str, Path]) -> Path | None:
    """The file of a job's encoder: its own, else the one for all."""
    return weights.get(job.config.model.encoder, weights.get(""))
