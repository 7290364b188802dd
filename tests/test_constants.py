"""Results that torch.compile takes for constants."""

from __future__ import annotations

import subprocess
import sys

import torch
from torch import Tensor

from mambaad.constants import constant_result


def test_the_compiler_keeps_the_result() -> None:
    calls = []

    @constant_result
    def size(n: int) -> int:
        calls.append(n)
        return len(str(n)) + sum(map(int, str(n)))

    def double(x: Tensor) -> Tensor:
        return x * size(12)

    compiled = torch.compile(double, backend="eager", fullgraph=True)
    assert compiled(torch.tensor(2.0)) == compiled(torch.tensor(1.0)) * 2 == 10
    assert calls == [12]


def test_the_compiler_is_not_imported() -> None:
    code = "import sys, mambaad.train, mambaad.testing; print('torch._dynamo' in sys.modules)"
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert output.stdout.strip() == "False"
