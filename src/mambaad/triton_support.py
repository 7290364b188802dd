"""Whether Triton kernels can run on this machine, and if not, why."""

from __future__ import annotations

import os
import re
import shutil
from functools import lru_cache
from importlib.util import find_spec

OLDEST_TRITON = (3, 4)
"""The oldest whose compiler takes all kernels; it comes with torch 2.8."""


@lru_cache(maxsize=1)
def missing_for_triton() -> str | None:
    """What is missing, and what to do, in one line; None if nothing is."""
    if find_spec("triton") is None:
        return "Triton is not installed (pip install triton)"
    found = _version()
    if tuple(map(int, re.findall(r"\d+", found)[:2])) < OLDEST_TRITON:
        oldest = ".".join(map(str, OLDEST_TRITON))
        return f"it needs Triton {oldest} or newer, got {found} (torch 2.8 comes with {oldest})"
    # Triton builds a small launcher with the system's C compiler at the first use of a kernel.
    if not any(map(shutil.which, filter(None, (os.environ.get("CC"), "gcc", "clang", "cc")))):
        return "Triton needs a C compiler (gcc or clang) at the first use of a kernel"
    return None


def _version() -> str:
    import triton  # quick to find, slow to import

    return str(triton.__version__)
