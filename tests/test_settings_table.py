"""What every table of settings does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pytest

from mambaad.errors import ConfigError
from mambaad.settings_table import Table, did_you_mean


@dataclass(frozen=True)
class Sample(Table):
    sides: tuple[int, ...] = (1, 2)
    names: Mapping[str, int] | None = None


def test_there_and_back() -> None:
    assert Sample().to_mapping() == {"sides": [1, 2]}
    sample = Sample.from_mapping({"names": {"a": 1}, "sides": (3,)})
    assert sample.to_mapping() == {"sides": [3], "names": {"a": 1}}


def test_an_unknown_setting() -> None:
    with pytest.raises(ConfigError, match=r"unknown Sample setting \['q'\]; known: \['sides', 'na"):
        Sample.from_mapping({"q": 1})
    with pytest.raises(ConfigError, match=r"Sample setting \['side'\]; did you mean 'sides'\?$"):
        Sample.from_mapping({"side": 1})


def test_near_names_are_said_once_the_nearest_first() -> None:
    assert did_you_mean("epoch", ["epoch2", "epochs", "seed", "epochs"]) in (
        "; did you mean 'epochs' or 'epoch2'?",
        "; did you mean 'epoch2' or 'epochs'?",
    )
    assert did_you_mean("sedes", ["seeds", "sedes2"]).startswith("; did you mean 'sedes2'")
    assert did_you_mean("x", ["epochs"]) == did_you_mean("x", []) == ""
