"""Where the network runs, and in which precision."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from mambaad.errors import ConfigError, first_line


def pick_device(name: str) -> torch.device:
    """``auto`` takes CUDA where there is one, else the CPU.

    Args:
        name: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        ConfigError: If it is none of these, or the device is not there.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", name):
        raise ConfigError(f"device must be auto, cpu, cuda or cuda:N; got {name!r}")
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        cause = first_line(error)
        raise ConfigError(
            f"device {name!r} cannot be used: {cause}. Use auto, cpu or cuda:N."
        ) from error
    return device


def resolve_precision(precision: str, device: torch.device) -> str:
    """``float32`` or ``bf16``; ``auto`` is bf16 on a CUDA device that has it, else float32.

    Raises:
        ConfigError: If ``precision`` is none of the three.
    """
    if precision not in ("auto", "float32", "bf16"):
        raise ConfigError(f"precision must be auto, float32 or bf16, got {precision!r}")
    if precision != "auto":
        return precision
    has_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" if has_bf16 else "float32"


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """A context in which matrix products and convolutions run in the precision asked for.

    The scan's state, norms' statistics and losses stay in float32 in either.

    Args:
        precision: ``auto``, ``float32`` or ``bf16``; see ``resolve_precision``.
        device: Where the network is.
    """
    enabled = resolve_precision(precision, device) == "bf16"
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)


@contextmanager
def exact_float32(device: torch.device) -> Iterator[None]:
    """Convolutions and matrix products of float32 tensors on a CUDA device in float32, not TF32.

    cuDNN would round its inputs by default, cuBLAS where the program or its surroundings ask for
    it (``torch.set_float32_matmul_precision``; some containers set a variable). The settings are
    the whole process's: the first thread to enter sets them, the last to leave puts them back.
    """
    if device.type != "cuda":
        yield
        return
    _exact.enter()
    try:
        yield
    finally:
        _exact.leave()


class _Exact:
    """Who is in ``exact_float32``, and what was set before."""

    def __init__(self) -> None:
        self.lock, self.inside = threading.Lock(), 0
        self.before = (True, "highest")

    def enter(self) -> None:
        with self.lock:
            if self.inside == 0:
                self.before = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
                torch.backends.cudnn.allow_tf32 = False
                if self.before[1] != "highest":
                    torch.set_float32_matmul_precision("highest")
            self.inside += 1

    def leave(self) -> None:
        with self.lock:
            self.inside -= 1
            if self.inside == 0:
                torch.backends.cudnn.allow_tf32 = self.before[0]
                if self.before[1] != "highest":
                    torch.set_float32_matmul_precision(self.before[1])


_exact = _Exact()
