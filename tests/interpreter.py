"""Where Triton kernels run in the tests: on the GPU, else in Triton's interpreter on the CPU."""

from __future__ import annotations

import os

import torch


def interpreted_device() -> torch.device:
    """``cuda`` if there is one, else ``cpu`` with the interpreter switched on.

    Triton reads the variable when a kernel is defined, so call this before the module which holds
    the kernels is imported.
    """
    if torch.cuda.is_available():
        return torch.device("cuda")
    os.environ.setdefault("TRITON_INTERPRET", "1")
    return torch.device("cpu")
