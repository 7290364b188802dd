"""Work in turn and side by side, with a small program in the place of ``python -m mambaad``."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch

from mambaad import parallel
from mambaad.errors import ConfigError, TrainingError
from mambaad.parallel import Processes, in_turn, side_by_side, visible_gpus

pytestmark = pytest.mark.usefixtures("interruptible")


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prints its GPU and arguments; ``fail`` fails, ``wait`` waits to be interrupted."""
    file = tmp_path / "python"
    file.write_text(
        "#!/bin/sh\n"
        "shift 2\n"  # -m mambaad
        'echo "gpu $CUDA_VISIBLE_DEVICES: $*"\n'
        'case "$1" in\n'
        "fail) echo 'error: no luck'; echo; exit 2;;\n"
        "wait) trap 'echo saved; exit 130' INT; while :; do sleep 0.02; done;;\n"
        "esac\n"
    )
    file.chmod(0o755)
    monkeypatch.setattr(parallel.sys, "executable", str(file))


@pytest.mark.usefixtures("program")
def test_verbs_run_one_after_another_on_one_gpu(tmp_path: Path) -> None:
    log = tmp_path / "run" / "log.txt"
    Processes().run([["train", "--out", "x"], ["test", "x"]], "3", log)
    assert log.read_text() == "gpu 3: train --out x\ngpu 3: test x\n"
    with pytest.raises(TrainingError, match=r"error: no luck \(status 2; see .*log\.txt\)"):
        Processes().run([["fail"], ["test", "x"]], "3", log)
    assert log.read_text().splitlines()[2:] == ["gpu 3: fail", "error: no luck", ""]


@pytest.mark.usefixtures("program")
def test_stop_interrupts_and_lets_nothing_begin(tmp_path: Path) -> None:
    processes, log = Processes(), tmp_path / "log.txt"
    errors: list[str] = []

    def run() -> None:
        try:
            processes.run([["wait"], ["test"]], "0", log)
        except TrainingError as error:
            errors.append(str(error))

    thread = threading.Thread(target=run)
    thread.start()
    while not log.is_file() or "wait" not in log.read_text():
        time.sleep(0.01)
    processes.stop()
    thread.join(20)
    assert log.read_text() == "gpu 0: wait\nsaved\n"
    assert errors[0].startswith("saved (status 130;")
    with pytest.raises(TrainingError, match="stopped before it began"):
        processes.run([["test"]], "0", log)


def test_a_failure_does_not_keep_the_others() -> None:
    done, told = [], []

    def do(piece: int) -> None:
        if piece == 2:
            raise ConfigError("no two")
        done.append(piece)

    assert in_turn([1, 2, 3], do, told.append) == {"2": "no two"}
    assert done == [1, 3]
    assert told == [
        "1: begins",
        "1: done",
        "2: begins",
        "2: failed: no two",
        "3: begins",
        "3: done",
    ]


def test_each_gpu_has_one_piece_at_a_time() -> None:
    busy: set[str] = set()
    seen: list[tuple[int, str]] = []
    both = threading.Barrier(2, timeout=20)

    def do(piece: int, gpu: str) -> None:
        assert gpu not in busy
        busy.add(gpu)
        if piece < 2:
            both.wait()  # the first two are there at the same time
        seen.append((piece, gpu))
        busy.remove(gpu)
        if piece == 4:
            raise TrainingError("out of luck")

    failed = side_by_side(range(6), ["0", "5"], do, lambda: None, lambda _: None)
    assert failed == {"4": "out of luck"}
    assert sorted(piece for piece, _ in seen) == list(range(6))
    assert {gpu for _, gpu in seen} == {"0", "5"}


def test_ctrl_c_stops_what_runs_and_begins_nothing_more() -> None:
    stopped, begun = threading.Event(), []

    def do(piece: int, _: str) -> None:
        begun.append(piece)
        os.kill(os.getpid(), signal.SIGINT)  # to the process, as Ctrl-C does
        assert stopped.wait(20)

    with pytest.raises(KeyboardInterrupt):
        side_by_side([1, 2, 3], ["0"], do, stopped.set, lambda _: None)
    assert begun == [1]


@pytest.mark.usefixtures("program")
def test_ctrl_c_at_a_terminal_does_not_reach_what_runs(tmp_path: Path) -> None:
    """It goes to all of a session, and a second one would stop a training without saving."""
    processes, log = Processes(), tmp_path / "log.txt"

    def run() -> None:
        with pytest.raises(TrainingError):
            processes.run([["wait"]], "0", log)

    thread = threading.Thread(target=run)
    thread.start()
    while not log.is_file() or "wait" not in log.read_text():
        time.sleep(0.01)
    sessions = {os.getsid(process.pid) for process in processes._running}
    processes.stop()
    thread.join(20)
    assert len(sessions) == 1
    assert os.getsid(0) not in sessions


def test_want_of_memory_does_not_end_the_others() -> None:
    def do(piece: int) -> None:
        if piece == 1:
            torch.empty(1 << 60, dtype=torch.uint8)

    said: list[str] = []
    failed = in_turn([1, 2], do, said.append)
    assert list(failed) == ["1"]
    assert failed["1"].startswith("the memory is used up")
    assert said[-1] == "2: done"


def test_a_bug_is_not_hidden() -> None:
    def do(piece: int) -> None:
        raise ZeroDivisionError(piece)

    with pytest.raises(ZeroDivisionError):
        in_turn([1], do, lambda _: None)
    with pytest.raises(ZeroDivisionError):
        side_by_side([1], ["0"], lambda piece, _: do(piece), lambda: None, lambda _: None)


def test_gpus_by_number_or_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert visible_gpus("0, 2") == ["0", "2"]
    with pytest.raises(ConfigError, match="--gpus 0,7: torch sees 0, 1, 2 here"):
        visible_gpus("0,7")
    for text in ("", "0,0", "cuda:1", "1.5"):
        with pytest.raises(ConfigError, match="--gpus is all, or different numbers"):
            visible_gpus(text)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ConfigError, match="torch sees no GPU"):
        visible_gpus("all")
    with pytest.raises(ConfigError, match="--gpus 0: torch sees no GPU"):
        visible_gpus("0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible_gpus("all") == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    assert visible_gpus("all") == ["4", "7"]
