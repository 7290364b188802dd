"""Numba's threads beside torch's."""

from __future__ import annotations

import sys
import threading
from functools import cache

NUMBA_LOCK = threading.Lock()
"""Held by whoever runs a parallel kernel: numba's simplest threading layer ends the process when it
is entered twice at once."""


@cache
def numba_threads() -> int:
    """Start numba's threads; how many there are at most.

    Where they are OpenMP's, which are torch's too, their start makes torch forget what
    ``torch.set_num_threads`` was told: it is told again here. Torch is not imported for that.
    """
    import numba

    torch = sys.modules.get("torch")
    wanted = None if torch is None else torch.get_num_threads()
    most = int(numba.get_num_threads())
    if torch is not None:
        torch.set_num_threads(wanted)
    return most
