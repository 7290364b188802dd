"""Comparison tables from run folders: what ``mambaad table`` does.

A row is all runs whose settings differ in the seed only, with the same weights of the encoder: mean
and sample deviation over its seeds.
Numbers come from each run's ``evaluation.json``, never from anywhere else.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

from mambaad.checkpoint import load_config, load_provenance
from mambaad.config import Config
from mambaad.errors import CheckpointError, ConfigError
from mambaad.metrics import EXTRA_FIELDS, FIELDS, MORE_PIXEL_METRICS
from mambaad.metrics.tables import MEAN
from mambaad.sheets import Cell, Column, Sheet, spread

EVALUATION = "evaluation.json"

By = Literal["mean", "category", "all"]
"""Rows of a table: the mean over categories, each category, or both, then with more columns."""

SEEDS = Column("seeds", seeds=False)
METRIC_COLUMNS = tuple(Column(name, scale=100) for name in FIELDS)
"""The seven metrics and mAD, in percent where they are read."""

EXTRA_COLUMNS = tuple(Column(name, scale=100) for name in EXTRA_FIELDS)
"""What is measured beside them."""

_NO_DIFFERENCE = (
    "train.seed",
    "train.checkpoint_minutes",
    "train.preset",
    "train.recipe",
    "data.root",
)
"""Settings that runs of one row may differ in: the names of a preset and of a recipe say nothing
beside their settings."""

_WEIGHTS = "encoder_weights"
"""Where a run's record, and a row's name, says which weights the encoder had."""

_CONTENT = re.compile(r" \(SHA-256 ([0-9a-f]+)\)$")
"""What a record of a file of weights ends in; those of earlier versions do not."""

_OWN_WEIGHTS = re.compile(r"built-in encoder \w+|filterbank(?=:)")
"""What identifies the package's own weights in their record; an explanation follows."""

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
        whole: Whether it was tested on the test pictures of its own data set, all of them.
        weights: Of its encoder, as its record has them; empty if unknown.
        values: Metrics 0 to 1 by category, ``mean`` last, ``FIELDS`` and ``EXTRA_FIELDS``; NaN if
            undefined, or if the version that tested the run did not have it.
        training_seconds: NaN if unknown.
        test_seconds: NaN if unknown.
    """

    run: Path
    config: Config
    protocol: str
    pro_limit: float
    data: str
    whole: bool
    weights: str
    values: Mapping[str, Mapping[str, float]]
    training_seconds: float
    test_seconds: float


def read_result(run: Path) -> RunResult:
    """Read a run folder that ``mambaad test`` has been through.

    Raises:
        CheckpointError: If it is no run folder, has no evaluation, or a file is damaged.
    """
    config, record = load_config(run), load_provenance(run)
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
            whole=_is_whole(found, config, record),
            weights=weights_of_run(record),
            values={
                name: {f: _number(report[f]) for f in FIELDS} | _extras(found, name)
                for name, report in reports.items()
            },
            training_seconds=_number(record.get("training_seconds")),
            test_seconds=_number(found.get("seconds")),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path} is not what mambaad test writes ({type(error).__name__}: {error}); test again"
        ) from error


def _extras(found: Mapping[str, Any], category: str) -> dict[str, float]:
    """``EXTRA_FIELDS`` of a category, or of the mean."""
    pixels = found.get("pixels", {}).get(category, {})
    samples = found.get("samples", {}).get(category)
    return {
        **{field: _number(pixels.get(field)) for field in MORE_PIXEL_METRICS},
        "sample_AUROC": _number(samples),
    }


def _is_whole(found: Mapping[str, Any], config: Config, record: Mapping[str, Any]) -> bool:
    """Whether a test is of all the run's own test pictures.

    They are known by their fingerprint. Where the data set has changed since the training, a test
    of what now lies there, with all the run's categories, is as good as another one would be.
    """
    about, own = found["about"], record.get("data_fingerprint")
    if own and about.get("data_fingerprint") == own:
        return True
    categories = record.get("categories") or config.data.categories
    places = [str(place or "") for place in (config.data.root, about.get("data"))]
    return (
        all(places)
        and len({Path(place).expanduser().resolve() for place in places}) == 1
        and set(categories) <= set(found["categories"])
    )


def weights_of_run(record: Mapping[str, Any]) -> str:
    """Which weights the encoder of a run had, by its record; empty if that does not say."""
    return str(record.get(_WEIGHTS, ""))


def same_weights(one: str, other: str) -> bool:
    """Whether two records of an encoder's weights may mean the same ones.

    Two files are compared by their content. If a run of an earlier version has recorded a file's
    name alone, that is compared; what is unknown may be anything.
    """
    if not one or not other:
        return True
    contents = [_CONTENT.search(text) for text in (one, other)]
    if contents[0] and contents[1]:
        return contents[0][1] == contents[1][1]
    return _brief(one, content=False) == _brief(other, content=False)


def _brief(weights: str, *, content: bool = True) -> str:
    """A record of weights for a row's name; without ``content``, a file by its name alone."""
    own = _OWN_WEIGHTS.match(weights)
    if own is not None:
        return own.group()
    return weights if content else _CONTENT.sub("", weights)


def _number(value: object) -> float:
    return math.nan if value is None else float(value)  # type: ignore[arg-type]


def group_by_seed(results: Sequence[RunResult]) -> list[list[RunResult]]:
    """Runs that differ in nothing but the seed, together, in the order of the first of each.

    Where the data set lies is no difference, if it is the same one. Other weights of the encoder
    are one, as ``same_weights`` says.

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
    settings = [json.dumps(_differences(result), sort_keys=True) for result in results]
    records: dict[str, list[str]] = {}
    for key, result in zip(settings, results, strict=True):
        records.setdefault(key, []).append(result.weights)
    names = {key: _names_of_weights(found) for key, found in records.items()}
    groups: dict[tuple[str, str], dict[int, RunResult]] = {}
    for key, result in zip(settings, results, strict=True):
        same = groups.setdefault((key, names[key][result.weights]), {})
        seed = result.config.train.seed
        if seed in same:
            raise ConfigError(
                f"{result.run} and {same[seed].run} have the same settings and seed {seed}; "
                "leave one out"
            )
        same[seed] = result
    return [list(group.values()) for group in groups.values()]


def _names_of_weights(records: Iterable[str]) -> dict[str, str]:
    """One name for all records of the same weights.

    A record that fits several of those that say more, or none, is of weights of its own.
    """
    names: dict[str, str] = {}
    for record in sorted(set(records), key=lambda r: (not _CONTENT.search(r), not r, r)):
        fitting = {name for other, name in names.items() if same_weights(record, other)}
        names[record] = fitting.pop() if len(fitting) == 1 else record
    return names


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
    if _differ_in_weights([group[0] for group in groups]):
        for values, group in zip(settings, groups, strict=True):
            values[_WEIGHTS] = _brief(group[0].weights) or "unknown"
    names = sorted({name for values in settings for name in values})
    telling = [n for n in names if len({json.dumps(v.get(n)) for v in settings}) > 1]
    # a setting's short name will do, since no two tables share one
    return [
        ", ".join(f"{n.rpartition('.')[2]}={_plain(v.get(n))}" for n in telling) for v in settings
    ]


def _differ_in_weights(results: Sequence[RunResult]) -> bool:
    """Whether runs of one encoder had different weights; those of another encoder always are."""
    return any(
        one.config.model.encoder == other.config.model.encoder
        and not same_weights(one.weights, other.weights)
        for one, other in combinations(results, 2)
    )


def _plain(value: object) -> str:
    if value is None:
        return "none"
    return value if isinstance(value, str) else json.dumps(value)


def comparison(results: Sequence[RunResult], by: By = "mean") -> Sheet:
    """The runs as a table: a row for each group of ``group_by_seed`` and each category asked for.

    Args:
        results: At least one.
        by: ``mean`` over the categories, each ``category`` (side by side for all groups), or
            ``all``, which is both, and has those of ``EXTRA_FIELDS`` that a run has.

    Raises:
        ConfigError: As ``group_by_seed``.
    """
    groups = group_by_seed(results)
    names = row_names(groups)
    found = dict.fromkeys(c for r in results for c in r.values if c != MEAN)
    categories = [*(found if by != "mean" else ()), *((MEAN,) if by != "category" else ())]
    extras = [
        column
        for column in EXTRA_COLUMNS
        if by == "all"
        and any(not math.isnan(v[column.name]) for r in results for v in r.values.values())
    ]
    rows: list[tuple[Cell, ...]] = []
    for category in categories:
        for name, group in zip(names, groups, strict=True):
            if all(category in r.values for r in group):
                place = [] if by == "mean" else [category]
                more = [spread(r.values[category][c.name] for r in group) for c in extras]
                cells = (*metric_cells(group, category), *more)
                rows.append((name, *place, str(len(group)), *cells))
    places = [] if by == "mean" else [Column("category", text=True)]
    columns = (Column("run", text=True), *places, SEEDS, *METRIC_COLUMNS, *extras)
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
