"""The first signal waits, the second does not."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from mambaad.interrupt import SIGNALS, DeferredInterrupt, ending_as_ctrl_c


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


def test_a_request_to_end_is_ctrl_c() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), ending_as_ctrl_c():
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == before


def test_in_another_thread_nothing_changes() -> None:
    found = []

    def look() -> None:
        before = signal.getsignal(signal.SIGINT)
        with ending_as_ctrl_c(), DeferredInterrupt("never said") as interrupt:
            found.append((interrupt.asked, signal.getsignal(signal.SIGINT) is before))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert found == [(False, True)]
