"""Numba's threads leave torch's alone; in fresh processes, since threads start only once."""

from __future__ import annotations

import os
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

AT_ONCE = """
import threading, numba, numpy as np, torch
from mambaad.metrics.streaming import PixelBins
from mambaad.scan import cpu
t = torch.rand
order = torch.arange(1024, dtype=torch.int32).expand(2, -1).contiguous()
rows, low = t(1, 1024, 2, 40), t(2, 128)
inputs = t(1, 1024, 128), rows, t(2, 128, 16), t(2, 128, 8), low, low, order
bins, maps = PixelBins(), np.random.default_rng(0).random((32, 256, 256), np.float32)
masks, done = maps > 0.999, threading.Event()
def scan():
    while not done.is_set():
        cpu.forward(*inputs, save=False)
thread = threading.Thread(target=scan)
bins.update(maps, masks)
thread.start()
for _ in range(8):
    bins.update(maps, masks)
done.set()
thread.join()
print(numba.threading_layer())
"""


@pytest.mark.parametrize("use", USES)
def test_torch_keeps_the_threads_it_was_told(use: str) -> None:
    program = f"{TOLD}{USES[use]}\nprint(torch.get_num_threads())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "1"), done.stderr


def test_the_simplest_threads_serve_scan_and_metrics_at_once() -> None:
    """Entered twice at the same time, they end the process."""
    done = subprocess.run(
        [sys.executable, "-c", AT_ONCE],
        capture_output=True,
        text=True,
        env={**os.environ, "NUMBA_THREADING_LAYER": "workqueue"},
    )
    assert (done.returncode, done.stdout.strip()) == (0, "workqueue"), done.stderr


def test_torch_is_not_imported_for_it() -> None:
    program = (
        "import sys; from mambaad.threads import numba_threads; numba_threads()\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "False"), done.stderr
