"""What surrounds the scan in a block, in as few GPU kernels as reason allows.

Each file is one operation with two homes: plain torch, which is its definition, and one or two
Triton kernels for CUDA tensors. Feature maps are channels last, (B, H, W, C).
"""

from __future__ import annotations

import os
import shutil
from functools import lru_cache
from importlib.util import find_spec

from mambaad.constants import constant_result


@constant_result
def triton_runs() -> bool:
    """Whether Triton is there, and the C compiler that it builds its launchers with."""
    return _triton_runs()


@lru_cache(maxsize=1)
def _triton_runs() -> bool:
    names = filter(None, (os.environ.get("CC"), "gcc", "clang", "cc"))
    return find_spec("triton") is not None and any(map(shutil.which, names))
