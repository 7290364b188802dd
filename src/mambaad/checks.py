"""Checks of single settings: each refuses a bad value with a line that says what would fit."""

from __future__ import annotations

from typing import get_args

from mambaad.errors import ConfigError


def check_type(name: str, value: object, kind: type) -> None:
    """Refuse a value that is not exactly of a type (``True`` is no int).

    Raises:
        ConfigError: With the setting's name, the type and the value.
    """
    if type(value) is not kind:
        raise ConfigError(f"{name} must be {kind.__name__}, got {value!r}")


def check_choice(name: str, value: object, choices: object) -> None:
    """Refuse a value that is none of a ``Literal``'s.

    Raises:
        ConfigError: With the setting's name, the choices and the value.
    """
    if value not in get_args(choices):
        raise ConfigError(f"{name} must be one of {list(get_args(choices))}, got {value!r}")


def check_range(
    name: str,
    value: object,
    low: float,
    high: float,
    *,
    low_open: bool = False,
    high_open: bool = False,
) -> None:
    """Refuse a value that is no number from ``low`` to ``high``; an open end is itself refused.

    Raises:
        ConfigError: With the setting's name, the range and the value.
    """
    inside = (
        isinstance(value, (int, float))
        and not isinstance(value, bool)
        and low <= value <= high
        and not (low_open and value == low)
        and not (high_open and value == high)
    )
    if not inside:
        left, right = "(" if low_open else "[", ")" if high_open else "]"
        raise ConfigError(f"{name} must be a number in {left}{low}, {high}{right}, got {value!r}")


def as_integers(name: str, value: object) -> tuple[int, ...]:
    """A list of whole numbers as a tuple.

    Raises:
        ConfigError: With the setting's name and the value, if it is anything else.
    """
    if not isinstance(value, (list, tuple)) or any(type(v) is not int for v in value):
        raise ConfigError(f"{name} must be a list of whole numbers, got {value!r}")
    return tuple(value)


def as_size(name: str, value: object, multiple: int) -> tuple[int, int]:
    """One number, for a square, or a height and a width, as a pair.

    Raises:
        ConfigError: If it is neither, or a number is no positive multiple of ``multiple``.
    """
    pair = (value, value) if isinstance(value, int) else as_integers(name, value)
    if len(pair) != 2 or min(pair) < multiple or any(side % multiple for side in pair):
        near = max(multiple, round(pair[0] / multiple) * multiple) if pair else 256
        kind = "positive numbers"
        if multiple > 1:
            kind = f"multiples of {multiple} (the encoder's stride with the bottleneck's)"
        shown = list(value) if isinstance(value, tuple) else value
        raise ConfigError(f"{name} must be one or two {kind}; got {shown}, {near} is near")
    return pair[0], pair[1]


def as_scale_weights(name: str, value: object) -> tuple[float, float, float]:
    """Three weights of the scales, not all 0.

    Raises:
        ConfigError: If they are something else.
    """
    if not isinstance(value, (list, tuple)) or len(value) != 3:
        raise ConfigError(f"{name} must be three numbers, of strides 4, 8 and 16; got {value!r}")
    for weight in value:
        check_range(name, weight, 0.0, 1e3)
    if not any(value):
        raise ConfigError(f"{name} must not all be 0; got {list(value)}")
    fine, middle, coarse = map(float, value)
    return fine, middle, coarse
