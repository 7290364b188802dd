"""Single settings: what is taken and what is refused."""

from __future__ import annotations

import math
from typing import Any, Literal

import pytest

from mambaad.checks import as_integers, as_size, check_choice, check_range, check_type
from mambaad.errors import ConfigError


def test_what_fits_is_taken() -> None:
    check_type("x", 3, int)
    check_choice("x", "a", Literal["a", "b"])
    check_range("x", 0, 0, 1)
    check_range("x", 0.5, 0, 1, low_open=True, high_open=True)
    assert as_integers("x", [1, 2]) == (1, 2)
    assert as_size("x", 64, 32) == (64, 64)
    assert as_size("x", [64, 96], 32) == (64, 96)
    assert as_size("x", (5, 7), 1) == (5, 7)


@pytest.mark.parametrize(
    ("check", "value", "message"),
    [
        (lambda v: check_type("x", v, int), True, "x must be int, got True"),
        (lambda v: check_choice("x", v, Literal["a"]), "b", r"x must be one of \['a'\], got 'b'"),
        (lambda v: check_range("x", v, 0, 1), 2, r"x must be a number in \[0, 1\], got 2"),
        (lambda v: check_range("x", v, 0, 1), math.nan, "got nan"),
        (lambda v: check_range("x", v, 0, 1), False, "got False"),
        (lambda v: check_range("x", v, 0, 1, low_open=True), 0, r"in \(0, 1\]"),
        (lambda v: check_range("x", v, 0, 1, high_open=True), 1, r"in \[0, 1\)"),
        (lambda v: as_integers("x", v), [1.0], "x must be a list of whole numbers"),
        (lambda v: as_size("x", v, 32), 50, r"multiples of 32 .*; got 50, 64 is near"),
        (lambda v: as_size("x", v, 32), (64, 65), r"got \[64, 65\], 64 is near"),
        (lambda v: as_size("x", v, 1), [3], "one or two positive numbers"),
        (lambda v: as_size("x", v, 1), [], "got \\[\\]"),
        (lambda v: as_size("x", v, 1), 0, "positive numbers; got 0, 1 is near"),
    ],
)
def test_what_does_not_is_refused(check: Any, value: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check(value)
