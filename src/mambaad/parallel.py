"""Doing pieces of work one after another, or side by side in processes with a GPU each.

A process sees one GPU (``CUDA_VISIBLE_DEVICES``). One of our errors in a piece of work, or memory
that is used up, does not keep the others from being done.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path
from queue import SimpleQueue
from typing import TypeVar

import torch

from mambaad.errors import ConfigError, MambaADError, TrainingError, memory_note

Tell = Callable[[str], None]
"""Told when a piece of work begins, is done, or fails."""

_Work = TypeVar("_Work")


def in_turn(work: Sequence[_Work], do: Callable[[_Work], None], tell: Tell) -> dict[str, str]:
    """Do one piece after another.

    Args:
        work: What is to do; ``str`` names a piece.
        do: Does a piece.
        tell: Told how it goes.

    Returns:
        Messages of the pieces that failed with one of our errors or for want of memory, by name.
    """
    failed: dict[str, str] = {}
    for piece in work:
        tell(f"{piece}: begins")
        _try(piece, do, failed, tell)
    return failed


def side_by_side(
    work: Sequence[_Work],
    gpus: Sequence[str],
    do: Callable[[_Work, str], None],
    stop: Callable[[], None],
    tell: Tell,
) -> dict[str, str]:
    """Do pieces at the same time, one on each GPU.

    Args:
        work: What is to do, in the order of beginning; ``str`` names a piece.
        gpus: By the names that ``do`` takes.
        do: Does a piece on a GPU.
        stop: Called on Ctrl-C to end the pieces under way, which are then waited for.
        tell: Told how it goes.

    Returns:
        Messages of the pieces that failed with one of our errors or for want of memory, by name.
    """
    failed: dict[str, str] = {}
    free: SimpleQueue[str] = SimpleQueue()
    for gpu in gpus:
        free.put(gpu)

    def one(piece: _Work) -> None:
        gpu = free.get()
        try:
            tell(f"{piece}: begins on GPU {gpu}")
            _try(piece, lambda piece: do(piece, gpu), failed, tell)
        finally:
            free.put(gpu)

    with ThreadPoolExecutor(len(gpus)) as pool:
        futures: list[Future[None]] = []
        try:
            for piece in work:
                futures.append(pool.submit(one, piece))
            for future in as_completed(futures):
                future.result()
        except BaseException:
            for future in futures:
                future.cancel()
            stop()
            raise
    return failed


def _try(piece: _Work, do: Callable[[_Work], None], failed: dict[str, str], tell: Tell) -> None:
    try:
        do(piece)
        tell(f"{piece}: done")
    except (MambaADError, MemoryError, RuntimeError) as error:
        why = str(error) if isinstance(error, MambaADError) else memory_note(error)
        if why is None:
            raise
        failed[str(piece)] = why
        tell(f"{piece}: failed: {why}")


class Processes:
    """Runs verbs of the command line as processes; ``stop`` interrupts those under way."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self._stopped = False

    def run(self, verbs: Sequence[Sequence[str]], gpu: str, log: Path) -> None:
        """Run verbs one after another and wait for them.

        Args:
            verbs: The arguments of ``mambaad`` for each.
            gpu: The one that they see.
            log: File that what they print is added to.

        Raises:
            TrainingError: If one fails, with the last line that it printed.
        """
        log.parent.mkdir(parents=True, exist_ok=True)
        for arguments in verbs:
            status = self._run([sys.executable, "-m", "mambaad", *arguments], gpu, log)
            if status:
                lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
                last = next(
                    (line for line in reversed(lines) if line.strip()), "it printed nothing"
                )
                raise TrainingError(f"{last.strip()} (status {status}; see {log})")

    def _run(self, command: list[str], gpu: str, log: Path) -> int:
        with log.open("ab") as output:
            with self._lock:
                if self._stopped:
                    raise TrainingError("stopped before it began")
                process = subprocess.Popen(
                    command,
                    env={**os.environ, "CUDA_VISIBLE_DEVICES": gpu},
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    # else Ctrl-C would reach it twice, and a second one stops without saving
                    start_new_session=True,
                )
                self._running.add(process)
            status = process.wait()
        with self._lock:
            self._running.discard(process)
        return status

    def stop(self) -> None:
        """Interrupt what runs, as Ctrl-C would: a training saves its state. No more begins."""
        with self._lock:
            self._stopped = True
            for process in self._running:
                process.send_signal(signal.SIGINT)


def visible_gpus(text: str) -> list[str]:
    """``all``, or numbers such as ``0,2``, as names for ``CUDA_VISIBLE_DEVICES``.

    Raises:
        ConfigError: If it is neither, or there is no such GPU.
    """
    names = [name.strip() for name in text.split(",")]
    if text != "all" and (
        not all(name.isdecimal() for name in names) or len(set(names)) != len(names)
    ):
        raise ConfigError(f"--gpus is all, or different numbers such as 0,1; got {text!r}")
    count = torch.cuda.device_count()
    if count == 0:
        raise ConfigError(f"--gpus {text}: torch sees no GPU here; leave --gpus out")
    given = [n for n in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if n]
    there = (given or [str(i) for i in range(count)])[:count]
    if text != "all" and not set(names) <= set(there):
        raise ConfigError(f"--gpus {text}: torch sees {', '.join(there)} here")
    return there if text == "all" else names
