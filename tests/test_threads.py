"""Numba's threads leave torch's alone; in fresh processes, since threads start only once."""

from __future__ import annotations

import subprocess
import sys

import pytest

TOLD = "import torch; torch.set_num_threads(1)\n"
USES = {
    "asked": "from mambaad.threads import numba_threads; assert numba_threads() >= 1",
    "scan": (
        "from mambaad.scan import cross_scan; t = torch.ones\n"
        "cross_scan(t(1, 4, 2), t(1, 4, 1, 5), t(1, 2, 2), t(1, 2, 1), t(1, 2), None, "
        "torch.arange(4)[None].int(), backend='numba')"
    ),
    "bins": (
        "import numpy as np; from mambaad.metrics.streaming import PixelBins\n"
        "PixelBins().update(np.ones((1, 4, 4), np.float32), np.zeros((1, 4, 4), bool))"
    ),
}


@pytest.mark.parametrize("use", USES)
def test_torch_keeps_the_threads_it_was_told(use: str) -> None:
    program = f"{TOLD}{USES[use]}\nprint(torch.get_num_threads())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "1"), done.stderr


def test_torch_is_not_imported_for_it() -> None:
    program = (
        "import sys; from mambaad.threads import numba_threads; numba_threads()\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "False"), done.stderr
