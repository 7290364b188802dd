"""Stopping where it does no harm: Ctrl-C, or a request to end, is remembered until it suits."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
"""Ctrl-C, and what service managers and containers send before they kill."""


@contextmanager
def ending_as_ctrl_c() -> Iterator[None]:
    """A request to end (SIGTERM) is Ctrl-C: what is under way is stopped, and what is done is kept.

    Signals reach the main thread only; in another one this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


class DeferredInterrupt:
    """While it is open, the first signal sets ``asked`` and says so; a second interrupts at once.

    Signals reach the main thread only; in another one this does nothing.

    Args:
        meaning: What happens next, said on the error output at the first signal.
    """

    def __init__(self, meaning: str) -> None:
        self.asked = False
        self._meaning = meaning
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> DeferredInterrupt:
        if threading.current_thread() is threading.main_thread():
            self._before = {name: signal.signal(name, self._ask) for name in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for name, before in self._before.items():
            signal.signal(name, before)

    def _ask(self, *_: object) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        print(f"\n{self._meaning}", file=sys.stderr, flush=True)
