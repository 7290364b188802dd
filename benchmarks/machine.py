"""What a benchmark's rows say of where they come from; shared by the scripts beside it."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

ABOUT = ("device", "torch", "triton", "commit")
"""The columns of ``about``."""


def commit() -> str:
    """The short commit of this checkout, with ``+`` if files differ from it.

    In a copy without its repository: what the environment's ``COMMIT`` says, or ``unknown``.
    """
    command = ["git", "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        done = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("COMMIT", "unknown")
    return done.stdout.strip()


def processor() -> str:
    """The model name that Linux knows, or the architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def about(device: torch.device) -> list[str]:
    """The cells of ``ABOUT``; Triton's is empty where it is not installed."""
    import torch

    try:
        import triton
    except ImportError:
        version = ""
    else:
        version = str(triton.__version__)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    return [name, torch.__version__, version, commit()]


def use_device(name: str) -> torch.device:
    """The device of that name (``auto``: CUDA where there is one), made torch's current one.

    Raises:
        SystemExit: If there is no such device.
    """
    import torch

    from mambaad.devices import pick_device
    from mambaad.errors import ConfigError

    try:
        device = pick_device(name)
    except ConfigError as error:
        sys.exit(str(error))
    if device.type == "cuda":
        torch.cuda.set_device(device.index or 0)
        torch.set_float32_matmul_precision("highest")  # some containers ask for TF32
        device = torch.device("cuda", torch.cuda.current_device())
    return device
