"""Comparison tables from run folders: what ``mambaad table`` does.

A row is all runs whose settings differ in the seed only: mean and sample deviation over its seeds.
Numbers come from each run's ``evaluation.json``, never from anywhere else.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mambaad.checkpoint import PROVENANCE, load_config
from mambaad.config import Config
from mambaad.errors import CheckpointError, ConfigError
from mambaad.metrics import FIELDS
from mambaad.metrics.tables import MEAN
from mambaad.sheets import Cell, Column, Sheet, spread

EVALUATION = "evaluation.json"

By = Literal["mean", "category", "all"]
"""Rows of a table: the mean over categories, each category, or both."""

SEEDS = Column("seeds", seeds=False)
METRIC_COLUMNS = tuple(Column(name, scale=100) for name in FIELDS)
"""The seven metrics and mAD, in percent where they are read."""

_NO_DIFFERENCE = (
    "train.seed",
    "train.checkpoint_minutes",
    "train.preset",
    "train.recipe",
    "data.root",
)
"""Settings that runs of one row may differ in: the names of a preset and of a recipe say nothing
beside their settings."""

DEVIATION = "±: sample deviation over the seeds"


@dataclass(frozen=True)
class RunResult:
    """What a tested run is and what came out.

    Args:
        run: Its folder.
        config: Its settings.
        protocol: Of its test.
        pro_limit: Of its test's AUPRO.
        data: Fingerprint of the data set it was tested on; empty if unknown.
        values: Metrics 0 to 1 by category, ``mean`` last; NaN if undefined.
        training_seconds: NaN if unknown.
        test_seconds: NaN if unknown.
    """

    run: Path
    config: Config
    protocol: str
    pro_limit: float
    data: str
    values: Mapping[str, Mapping[str, float]]
    training_seconds: float
    test_seconds: float


def read_result(run: Path) -> RunResult:
    """Read a run folder that ``mambaad test`` has been through.

    Raises:
        CheckpointError: If it is no run folder, has no evaluation, or a file is damaged.
    """
    config = load_config(run)
    path = run / EVALUATION
    if not path.is_file():
        raise CheckpointError(f"{run} has not been tested: mambaad test {run}")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        reports = {**found["categories"], MEAN: found[MEAN]}
        return RunResult(
            run=run,
            config=config,
            protocol=str(found["protocol"]),
            pro_limit=float(found["pro_limit"]),
            data=str(found["about"].get("data_fingerprint", "")),
            values={
                name: {field: _number(report[field]) for field in FIELDS}
                for name, report in reports.items()
            },
            training_seconds=_training_seconds(run / PROVENANCE),
            test_seconds=_number(found.get("seconds")),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path} is not what mambaad test writes ({type(error).__name__}: {error}); test again"
        ) from error


def _training_seconds(path: Path) -> float:
    if not path.is_file():
        return math.nan
    return _number(json.loads(path.read_text(encoding="utf-8")).get("training_seconds"))


def _number(value: object) -> float:
    return math.nan if value is None else float(value)  # type: ignore[arg-type]


def group_by_seed(results: Sequence[RunResult]) -> list[list[RunResult]]:
    """Runs that differ in nothing but the seed, together, in the order of the first of each.

    Where the data set lies is no difference, if it is the same one.

    Raises:
        ConfigError: If the same settings and seed come twice, or two runs were tested differently.
    """
    ways = {(r.protocol, r.pro_limit): r.run for r in results}
    if len(ways) > 1:
        (one, first), (other, second) = list(ways.items())[:2]
        raise ConfigError(
            f"the runs were tested differently: {first} with {one[0]}, AUPRO to {one[1]:g}, "
            f"{second} with {other[0]}, AUPRO to {other[1]:g}; test them anew in one way"
        )
    groups: dict[str, dict[int, RunResult]] = {}
    for result in results:
        same = groups.setdefault(json.dumps(_differences(result), sort_keys=True), {})
        seed = result.config.train.seed
        if seed in same:
            raise ConfigError(
                f"{result.run} and {same[seed].run} have the same settings and seed {seed}; "
                "leave one out"
            )
        same[seed] = result
    return [list(group.values()) for group in groups.values()]


def _differences(result: RunResult) -> dict[str, Any]:
    """The settings that make a row of their own, by name."""
    flat = {
        f"{table}.{key}": value
        for table, values in result.config.to_mapping().items()
        for key, value in values.items()
        if f"{table}.{key}" not in _NO_DIFFERENCE
    }
    return {**flat, "data": f"{Path(result.config.data.root).name} {result.data[:8]}".strip()}


def row_names(groups: Sequence[Sequence[RunResult]]) -> list[str]:
    """What each row differs in from the others, such as ``scan=zigzag, epochs=30``.

    A single row is named after its first run's folder.
    """
    if len(groups) == 1:
        return [groups[0][0].run.resolve().name]
    settings = [_differences(group[0]) for group in groups]
    names = sorted({name for values in settings for name in values})
    telling = [n for n in names if len({json.dumps(v.get(n)) for v in settings}) > 1]
    # a setting's short name will do, since no two tables share one
    return [
        ", ".join(f"{n.rpartition('.')[2]}={_plain(v.get(n))}" for n in telling) for v in settings
    ]


def _plain(value: object) -> str:
    if value is None:
        return "none"
    return value if isinstance(value, str) else json.dumps(value)


def comparison(results: Sequence[RunResult], by: By = "mean") -> Sheet:
    """The runs as a table: a row for each group of ``group_by_seed`` and each category asked for.

    Args:
        results: At least one.
        by: ``mean`` over the categories, each ``category`` (side by side for all groups), or
            ``all``, which is both.

    Raises:
        ConfigError: As ``group_by_seed``.
    """
    groups = group_by_seed(results)
    names = row_names(groups)
    found = dict.fromkeys(c for r in results for c in r.values if c != MEAN)
    categories = [*(found if by != "mean" else ()), *((MEAN,) if by != "category" else ())]
    rows: list[tuple[Cell, ...]] = []
    for category in categories:
        for name, group in zip(names, groups, strict=True):
            if all(category in r.values for r in group):
                place = [] if by == "mean" else [category]
                rows.append((name, *place, str(len(group)), *metric_cells(group, category)))
    places = [] if by == "mean" else [Column("category", text=True)]
    columns = (Column("run", text=True), *places, SEEDS, *METRIC_COLUMNS)
    return Sheet(columns, tuple(rows), tuple(notes(results)))


def metric_cells(group: Sequence[RunResult], category: str = MEAN) -> list[Cell]:
    """The seven metrics and mAD of a category over the seeds of a group."""
    return [spread(r.values[category][field] for r in group) for field in FIELDS]


def notes(results: Sequence[RunResult]) -> list[str]:
    """How the numbers of some runs, all tested in one way, were found."""
    way = f"protocol {results[0].protocol}, AUPRO to a false positive rate of "
    found = [f"{way}{results[0].pro_limit:g}; {DEVIATION}"]
    if len({r.data for r in results}) > 1:
        found.append("the runs were not all tested on the same pictures")
    moved = sorted({r.config.data.contamination for r in results})
    if moved[-1] > 0:
        shares = ", ".join(f"{100 * share:g} %" for share in moved)
        found.append(
            f"training contamination {shares}: the defective pictures that were trained on left "
            "the test, so tests of different shares differ by them"
        )
    return found
