"""Functions whose results ``torch.compile`` takes for constants."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

_Function = TypeVar("_Function", bound=Callable[..., Any])


def constant_result(function: _Function) -> _Function:
    """Mark a function: while it traces, the compiler calls it and keeps what it returns.

    ``torch.compiler.assume_constant_result`` does the same, but imports the compiler for it, which
    takes longer than importing torch.

    Args:
        function: Of plain values, not of tensors.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function
