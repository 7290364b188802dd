"""The scripts in ``tools`` as modules, for the tests of each."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

FOLDER = str(Path(__file__).parents[1] / "tools")
NAMES = ("distil_augment", "distil_network", "distil_pictures", "distil_encoder")


@contextmanager
def distil_scripts() -> Iterator[dict[str, ModuleType]]:
    """The scripts by name; nothing of them stays importable."""
    sys.path.insert(0, FOLDER)
    try:
        yield {name: importlib.import_module(name) for name in NAMES}
    finally:
        sys.path.remove(FOLDER)
        for name in NAMES:
            sys.modules.pop(name, None)
