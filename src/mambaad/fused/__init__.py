"""What surrounds the scan in a block, in as few GPU kernels as reason allows.

Each file is one operation with two homes: plain torch, which is its definition, and one or two
Triton kernels for CUDA tensors. Feature maps are channels last, (B, H, W, C).
"""

from __future__ import annotations

from mambaad.constants import constant_result
from mambaad.triton_support import missing_for_triton


@constant_result
def triton_runs() -> bool:
    """See ``missing_for_triton``."""
    return _triton_runs()


def _triton_runs() -> bool:
    return missing_for_triton() is None
