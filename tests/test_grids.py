"""The grids: every row can be built, and costs what the paper says where it says it."""

from __future__ import annotations

import pytest
import torch

from mambaad.config import Config
from mambaad.counting import count_parts, sum_counts
from mambaad.errors import ConfigError
from mambaad.grids import GRIDS, Row, grid
from mambaad.model import build

ROWS = [(name, row) for name, table in GRIDS.items() for row in table.rows]
SIZED = [(name, row) for name, row in ROWS if row.published and row.published.parameters]


@pytest.mark.parametrize("name", GRIDS)
def test_rows_are_valid_and_distinct(name: str) -> None:
    rows = grid(name).rows
    configs = [Config().override(row.settings) for row in rows]
    assert len({row.name for row in rows}) == len(rows)
    assert all(a != b for i, a in enumerate(configs) for b in configs[:i])
    assert all(set(row.name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-_") for row in rows)
    assert Config() in configs  # the published network is a row of every table


@pytest.mark.parametrize(("name", "row"), SIZED, ids=[f"{n}-{r.name}" for n, r in SIZED])
def test_sizes_are_the_published_ones(name: str, row: Row) -> None:
    assert row.published is not None
    assert row.published.parameters is not None
    with torch.device("meta"):
        model = build(Config().override(row.settings).model).eval()
    found = sum_counts(count_parts(model, 256, 256))
    parameters = (found.trainable + found.frozen) / 1e6
    # the paper's global branch is without the convolution that closes an LSS, see the docstring
    margin = 0.45 if (name, row.name) == ("branches", "global") else 0.1
    tolerance = max(margin, 0.002 * row.published.parameters)
    assert parameters == pytest.approx(row.published.parameters, abs=tolerance)
    assert found.products / 1e9 == pytest.approx(row.published.products, abs=0.15)


@pytest.mark.parametrize(
    ("name", "row", "mad"),
    [
        ("incremental", "mamba", 82.1),
        ("backbone", "resnet34-2222", 85.46),
        ("depth", "3463", 86.04),
        ("scan", "hilbert-2", 85.83),
        ("scan", "hilbert-4", 85.90),
        ("scan", "scan-8", 85.89),
        ("scan", "zorder-8", 85.87),
        ("scan", "sweep-8", 85.81),
        ("lss", "m23-conv-k57", 86.04),
    ],
)
def test_published_means(name: str, row: str, mad: float) -> None:
    (found,) = grid(name).select([row])
    assert found.published is not None
    assert found.published.mAD == pytest.approx(mad, abs=0.006)


def test_metrics_are_seven_percentages() -> None:
    printed = [row.published.metrics for _, row in ROWS if row.published and row.published.metrics]
    assert len(printed) == 7 + 3 + 12 + 21
    assert all(len(values) == 7 and all(40 < v < 100 for v in values) for values in printed)


def test_rows_are_chosen_in_the_tables_order() -> None:
    rows = grid("scan").select(["zorder-8", "sweep-8"])
    assert [row.name for row in rows] == ["sweep-8", "zorder-8"]
    assert grid("lss").select([]) == grid("lss").rows
    with pytest.raises(ConfigError, match=r"no row \['spiral'\].*it has \['sweep-8'"):
        grid("scan").select(["spiral"])
    with pytest.raises(ConfigError, match="the table must be one of"):
        grid("loss")
