"""What a table of settings is: a frozen dataclass that TOML can hold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import Any, TypeVar

from mambaad.errors import ConfigError

_T = TypeVar("_T", bound="Table")


@dataclass(frozen=True)
class Table:
    """What the tables share: building from a mapping, and refusing unknown keys."""

    @classmethod
    def from_mapping(cls: type[_T], values: Mapping[str, Any]) -> _T:
        """Build from a parsed TOML table.

        Raises:
            ConfigError: If a key is unknown, or a value does not fit.
        """
        known = [f.name for f in fields(cls)]
        unknown = sorted(set(values) - set(known))
        if unknown:
            hint = did_you_mean(unknown[0], known) or f"; known: {known}"
            raise ConfigError(f"unknown {cls.__name__} setting {unknown}{hint}")
        return cls(**values)

    def to_mapping(self) -> dict[str, Any]:
        """The settings as TOML can hold them: tuples as lists, settings that are None left out."""
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        return {k: _plain(v) for k, v in plain.items() if v is not None}

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a message on an unknown name: what is spelled nearly so, the nearest first.

    >>> did_you_mean("epoch", ["epochs", "seed"])
    "; did you mean 'epochs'?"

    Args:
        name: What came.
        known: What there is.

    Returns:
        A text that begins with ``;``, empty if nothing is near.
    """
    near = get_close_matches(name, list(dict.fromkeys(known)), cutoff=0.75)
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else ""


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    return list(value) if isinstance(value, tuple) else value
