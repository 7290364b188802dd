"""Tables with spread: what each form writes."""

from __future__ import annotations

import csv
import io
import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mambaad.sheets import Column, Sheet, single, spread, to_csv, to_latex, to_markdown, to_text

SHEET = Sheet(
    (Column("run", text=True), Column("seeds", seeds=False), Column("mAD", scale=100)),
    (
        ("a|b_1", "2", spread([0.5, 0.75])),
        ("c & 5 %", "1", single(1 / 3)),
        ("none", single(None), None),
    ),
    ("in percent",),
)


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=9))
def test_spread_is_mean_and_sample_deviation(values: list[float]) -> None:
    found = spread(values)
    assert found.mean == pytest.approx(statistics.fmean(values), abs=1e-9)
    assert found.deviation == pytest.approx(statistics.stdev(values), abs=1e-9)
    assert found.count == len(values)


def test_an_undefined_number_makes_the_mean_undefined() -> None:
    assert math.isnan(spread([1.0, math.nan]).mean)
    assert math.isnan(spread([]).mean)
    assert math.isnan(single(2.0).deviation)


def test_text_is_rounded() -> None:
    assert to_text(SHEET) == [
        ["a|b_1", "2", "62.5 ± 17.7"],
        ["c & 5 %", "1", "33.3"],
        ["none", "–", "–"],
    ]


def test_markdown() -> None:
    assert to_markdown(SHEET).splitlines() == [
        "| run | seeds | mAD |",
        "| --- | ---: | ---: |",
        "| a\\|b_1 | 2 | 62.5 ± 17.7 |",
        "| c & 5 % | 1 | 33.3 |",
        "| none | – | – |",
        "",
        "- in percent",
    ]


def test_csv_keeps_every_digit() -> None:
    rows = list(csv.reader(io.StringIO(to_csv(SHEET))))
    assert rows[0] == ["run", "seeds", "mAD", "mAD ±"]
    assert rows[1][:3] == ["a|b_1", "2", "0.625"]
    assert float(rows[1][3]) == statistics.stdev([0.5, 0.75])
    assert rows[2] == ["c & 5 %", "1", repr(1 / 3), ""]
    assert rows[3] == ["none", "", "", ""]


def test_latex_escapes_what_it_must() -> None:
    text = to_latex(SHEET)
    assert text.startswith(
        "% in percent\n\\begin{tabular}{lrr}\n\\toprule\nrun & seeds & mAD \\\\\n"
    )
    assert r"a|b\_1 & 2 & 62.5 $\pm$ 17.7 \\" in text
    assert r"c \& 5 \% & 1 & 33.3 \\" in text
    assert r"none & -- & -- \\" in text
    assert text.endswith("\\bottomrule\n\\end{tabular}\n")
    tricky = Sheet((Column("a", text=True),), (("x^2 {y} \\z",),))
    assert r"x\textasciicircum 2 \{y\} \textbackslash z \\" in to_latex(tricky)
