"""What every table of settings does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pytest

from mambaad.errors import ConfigError
from mambaad.settings_table import Table


@dataclass(frozen=True)
class Sample(Table):
    sides: tuple[int, ...] = (1, 2)
    names: Mapping[str, int] | None = None


def test_there_and_back() -> None:
    assert Sample().to_mapping() == {"sides": [1, 2]}
    sample = Sample.from_mapping({"names": {"a": 1}, "sides": (3,)})
    assert sample.to_mapping() == {"sides": [3], "names": {"a": 1}}


def test_an_unknown_setting() -> None:
    with pytest.raises(ConfigError, match=r"unknown Sample setting \['side'\]; known: \['sides'"):
        Sample.from_mapping({"side": 1})
