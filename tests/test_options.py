"""Values that a person types: sizes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mambaad.errors import ConfigError
from mambaad.options import parse_size


@given(st.integers(0, 10_000), st.integers(0, 10_000))
def test_sizes_are_height_by_width(height: int, width: int) -> None:
    assert parse_size(f"{height}x{width}") == [height, width]
    assert parse_size(f" {height} X{width}") == [height, width]
    assert parse_size(str(height)) == [height, height]


@pytest.mark.parametrize("text", ["", "x", "256x", "1x2x3", "-32", "2.5", "big"])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="a size is a number or HEIGHTxWIDTH") as error_info:
        parse_size(text)
    assert repr(text) in str(error_info.value)
