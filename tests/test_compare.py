"""Comparison tables from run folders."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from mambaad.checkpoint import save_config, save_provenance
from mambaad.compare import comparison, group_by_seed, read_result, row_names, same_weights
from mambaad.config import Config
from mambaad.errors import CheckpointError, ConfigError
from mambaad.metrics import FIELDS
from mambaad.sheets import to_text


def make_run(
    folder: Path,
    value: float | None,
    *,
    protocol: str = "exact",
    data: str = "f00d",
    weights: str | None = None,
    **settings: Any,
) -> Path:
    """A run folder whose metrics are all ``value``, a tenth higher in the category ``nut``."""
    named = {name.replace("__", "."): v for name, v in settings.items()}
    save_config(folder, Config().override({"data.root": "/data/set", **named}))
    known = {} if weights is None else {"encoder_weights": weights}
    save_provenance(folder, {"training_seconds": 12.5, **known})
    reports = {
        name: dict.fromkeys(FIELDS, None if value is None else value + more)
        for name, more in (("bolt", 0.0), ("nut", 0.1))
    }
    document = {
        "protocol": protocol,
        "pro_limit": 0.3,
        "categories": reports,
        "mean": dict.fromkeys(FIELDS, value),
        "seconds": 3,
        "about": {"data_fingerprint": data},
    }
    (folder / "evaluation.json").write_text(json.dumps(document))
    return folder


def test_a_run_is_read(tmp_path: Path) -> None:
    found = read_result(make_run(tmp_path, 0.5, train__seed=4))
    assert (found.protocol, found.pro_limit, found.data) == ("exact", 0.3, "f00d")
    assert list(found.values) == ["bolt", "nut", "mean"]
    assert found.values["nut"]["mAD"] == 0.6
    assert (found.training_seconds, found.test_seconds) == (12.5, 3.0)
    (tmp_path / "provenance.json").unlink()
    assert math.isnan(read_result(tmp_path).training_seconds)
    assert math.isnan(read_result(make_run(tmp_path / "x", None)).values["mean"]["mAD"])


def test_more_metrics_are_in_the_table_of_all(tmp_path: Path) -> None:
    """The first run was tested by a version that did not have them."""
    runs = [make_run(tmp_path / str(seed), 0.5, train__seed=seed) for seed in range(3)]
    for run, value in zip(runs[1:], (0.2, 0.4), strict=True):
        file = run / "evaluation.json"
        pixels = {"pixel_AUPIMO": value, "pixel_SegF1": None}
        more = {"pixels": {"nut": pixels, "mean": pixels}, "samples": {"nut": 1.0, "mean": 1.0}}
        file.write_text(json.dumps({**json.loads(file.read_text()), **more}))
    old, *new = [read_result(run) for run in runs]
    assert math.isnan(old.values["mean"]["pixel_AUPIMO"])
    plain = ["run", "category", "seeds", *FIELDS]
    assert [c.name for c in comparison([old], "all").columns] == plain
    assert [c.name for c in comparison(new, "category").columns] == plain
    sheet = comparison(new, "all")
    assert [c.name for c in sheet.columns] == [*plain, "pixel_AUPIMO", "sample_AUROC"]
    assert [row[1:2] + row[-2:] for row in to_text(sheet)] == [
        ["bolt", "–", "–"],
        ["nut", "30.0 ± 14.1", "100.0 ± 0.0"],
        ["mean", "30.0 ± 14.1", "100.0 ± 0.0"],
    ]
    assert to_text(comparison([old, *new], "all"))[-1][-2:] == ["–", "–"]


def test_what_is_no_tested_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a run folder"):
        read_result(tmp_path)
    run = make_run(tmp_path, 0.5)
    (run / "evaluation.json").write_text('{"protocol": "exact"}')
    with pytest.raises(CheckpointError, match=r"evaluation\.json is not what mambaad test writes"):
        read_result(run)
    (run / "evaluation.json").unlink()
    with pytest.raises(CheckpointError, match="has not been tested: mambaad test"):
        read_result(run)


def test_seeds_of_the_same_settings_are_one_row(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path / "0", 0.4, train__seed=0),
        make_run(tmp_path / "1", 0.9, train__seed=0, model__scan="zigzag"),
        make_run(tmp_path / "2", 0.6, train__seed=1, data__root="/elsewhere/set"),
        make_run(tmp_path / "3", 0.8, train__seed=2, train__preset="visa"),
    ]
    results = [read_result(run) for run in runs]
    groups = group_by_seed(results)
    assert [[r.run.name for r in group] for group in groups] == [["0", "2", "3"], ["1"]]
    assert row_names(groups) == ["scan=hilbert", "scan=zigzag"]
    sheet = comparison(results)
    assert [c.name for c in sheet.columns] == ["run", "seeds", *FIELDS]
    assert [row[:3] + row[-1:] for row in to_text(sheet)] == [
        ["scan=hilbert", "3", "60.0 ± 20.0", "60.0 ± 20.0"],
        ["scan=zigzag", "1", "90.0", "90.0"],
    ]
    assert sheet.notes == (
        "protocol exact, AUPRO to a false positive rate of 0.3; ±: sample deviation over the seeds",
    )


ONE, OTHER = "(SHA-256 0123456789ab)", "(SHA-256 ba9876543210)"
BUILTIN = "built-in encoder c598fc01, part of the package"


def test_other_weights_of_the_encoder_are_another_row(tmp_path: Path) -> None:
    weights = [f"file a.pth {ONE}", f"file a.pth {OTHER}", f"file renamed.pth {ONE}"]
    results = [
        read_result(make_run(tmp_path / str(seed), seed / 10, weights=text, train__seed=seed))
        for seed, text in enumerate(weights)
    ]
    groups = group_by_seed(results)
    assert [[r.config.train.seed for r in group] for group in groups] == [[0, 2], [1]]
    assert row_names(groups) == [f"encoder_weights={text}" for text in weights[:2]]
    # a run of before has no content in its record: here it may be either, there only the one
    old = read_result(make_run(tmp_path / "3", 0.3, weights="file a.pth", train__seed=3))
    assert [len(g) for g in group_by_seed([*results, old])] == [2, 1, 1]
    assert [len(g) for g in group_by_seed([old, results[0]])] == [2]
    assert [len(g) for g in group_by_seed([old, results[2]])] == [1, 1]
    unknown = read_result(make_run(tmp_path / "4", 0.4, train__seed=4))
    assert [len(g) for g in group_by_seed([results[0], unknown, results[2]])] == [3]


def test_weights_of_different_encoders_are_not_told(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path / "1", 0.1, weights=BUILTIN, model__encoder="builtin"),
        make_run(tmp_path / "2", 0.2, weights=f"file a.pth {ONE}", model__encoder="resnet18"),
    ]
    found = [read_result(run) for run in runs]
    assert row_names(group_by_seed(found)) == ["encoder=builtin", "encoder=resnet18"]


def test_records_of_weights_are_compared_by_content() -> None:
    assert same_weights(f"file a.pth {ONE}", f"file b.pth {ONE}")
    assert not same_weights(f"file a.pth {ONE}", f"file a.pth {OTHER}")
    assert same_weights(f"file a.pth {ONE}", "file a.pth")
    assert not same_weights(f"file a.pth {ONE}", "file b.pth")
    assert not same_weights("timm resnet34.tv_in1k", f"file a.pth {ONE}")
    assert same_weights(BUILTIN, f"{BUILTIN}, worded otherwise")
    assert not same_weights(BUILTIN, BUILTIN.replace("c598", "c599"))
    assert same_weights("", f"file a.pth {ONE}")


@pytest.mark.parametrize(
    ("record", "about", "whole"),
    [
        ({"data_fingerprint": "f00d"}, {"data_fingerprint": "f00d"}, True),
        ({"data_fingerprint": "f00d"}, {"data_fingerprint": "beef"}, False),
        ({"data_fingerprint": "f00d", "categories": ["bolt"]}, {"data": "/data/set"}, True),
        ({"categories": ["bolt", "cap", "nut"]}, {"data": "/data/set"}, False),
        ({"categories": ["bolt", "nut"]}, {"data": "/other/set"}, False),
        ({}, {"data": "/data/set"}, True),
        ({}, {}, False),
    ],
)
def test_a_test_of_all_the_runs_own_pictures_is_known(
    record: dict[str, Any], about: dict[str, str], whole: bool, tmp_path: Path
) -> None:
    run = make_run(tmp_path, 0.5)
    save_provenance(run, record)
    document = json.loads((run / "evaluation.json").read_text())
    (run / "evaluation.json").write_text(json.dumps({**document, "about": about}))
    assert read_result(run).whole is whole


def test_rows_by_category(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / str(n), n / 10, train__epochs=n) for n in (1, 2)]
    results = [read_result(run) for run in runs]
    rows = [(*row[:3], row[-1]) for row in to_text(comparison(results, "all"))]
    assert rows == [
        ("epochs=1", "bolt", "1", "10.0"),
        ("epochs=2", "bolt", "1", "20.0"),
        ("epochs=1", "nut", "1", "20.0"),
        ("epochs=2", "nut", "1", "30.0"),
        ("epochs=1", "mean", "1", "10.0"),
        ("epochs=2", "mean", "1", "20.0"),
    ]
    assert len(comparison(results, "category").rows) == 4
    assert to_text(comparison(results[:1]))[0][0] == "1"  # a single row has its folder's name


def test_undefined_metrics_stay_undefined(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / str(n), v, train__seed=n) for n, v in ((1, 0.5), (2, None))]
    row = to_text(comparison([read_result(run) for run in runs]))[0]
    assert row[1:] == ["2", *["–"] * 8]


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    one, twice = make_run(tmp_path / "1", 0.5), make_run(tmp_path / "2", 0.6)
    with pytest.raises(ConfigError, match="the same settings and seed 42; leave one out"):
        comparison([read_result(one), read_result(twice)])
    other = make_run(tmp_path / "3", 0.6, protocol="ader", train__seed=1)
    with pytest.raises(ConfigError, match=r"tested differently: .*exact.*ader.*test them anew"):
        comparison([read_result(one), read_result(other)])


def test_what_makes_a_comparison_doubtful_is_noted(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path / "1", 0.5),
        make_run(tmp_path / "2", 0.4, data__contamination=0.05, data="beef"),
    ]
    sheet = comparison([read_result(run) for run in runs])
    assert sheet.notes[1] == "the runs were not all tested on the same pictures"
    assert sheet.notes[2].startswith("training contamination 0 %, 5 %: ")
    assert to_text(sheet)[1][0] == "data=set beef, contamination=0.05"


def test_no_two_tables_of_settings_share_a_name() -> None:
    names = [name for table in Config().to_mapping().values() for name in table]
    assert len(names) == len(set(names))  # so a row's name needs no table
