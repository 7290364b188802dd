"""What a benchmark's rows say of where they come from; shared by the scripts beside it."""

from __future__ import annotations

import subprocess
from pathlib import Path


def commit() -> str:
    """The short commit of this checkout, or ``unknown``."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    try:
        done = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()
