"""The first signal waits, the second does not."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from mambaad.interrupt import SIGNALS, DeferredInterrupt


@pytest.mark.parametrize("name", SIGNALS)
def test_the_first_is_remembered_and_the_second_interrupts(
    name: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    before = [signal.getsignal(s) for s in SIGNALS]
    with DeferredInterrupt("finishing the step") as interrupt:
        assert not interrupt.asked
        os.kill(os.getpid(), name)
        assert interrupt.asked
        assert capsys.readouterr().err == "\nfinishing the step\n"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), name)
    assert [signal.getsignal(s) for s in SIGNALS] == before


def test_in_another_thread_nothing_changes() -> None:
    found = []

    def look() -> None:
        before = signal.getsignal(signal.SIGINT)
        with DeferredInterrupt("never said") as interrupt:
            found.append((interrupt.asked, signal.getsignal(signal.SIGINT) is before))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert found == [(False, True)]
