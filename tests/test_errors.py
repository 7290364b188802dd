"""What is said when memory is used up."""

from __future__ import annotations

import pytest
import torch

from mambaad.cli import app, main
from mambaad.errors import first_line, memory_note


def exhausted() -> BaseException:
    """Torch's own error, on the CPU."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    return caught.value


def test_a_cpu_and_a_gpu_are_told_apart() -> None:
    for error in (exhausted(), MemoryError()):
        assert (memory_note(error) or "").startswith(
            "the memory is used up; a smaller --batch-size"
        )
    gpu = torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nGPU 0 has")
    note = memory_note(gpu) or ""
    assert note.startswith("the GPU's memory is used up")
    assert note.endswith("(CUDA out of memory. Tried to allocate 2 GiB.)")
    triton = memory_note(RuntimeError("Triton Error [CUDA]: out of memory")) or ""
    assert triton.startswith("the GPU's memory is used up; a smaller --batch-size")


def test_other_errors_are_none_of_it() -> None:
    assert memory_note(RuntimeError("shapes cannot be multiplied")) is None
    assert memory_note(ValueError("memory")) is None


def test_the_command_line_says_it_in_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def use_up(*_: object, **__: object) -> None:
        raise exhausted()

    monkeypatch.setattr(type(app), "__call__", use_up)
    with pytest.raises(SystemExit, match="2"):
        main([])
    shown = capsys.readouterr().err
    assert shown.startswith("error: the memory is used up")
    assert shown.count("\n") == 1


def test_an_error_in_a_line() -> None:
    assert first_line(ValueError("\nno such file\nat a place")) == "no such file"
    assert first_line(RuntimeError()) == "RuntimeError"
