"""numba's kernels against the reference in float64, on the same inputs rounded to float32."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import STAGES, ScanInputs, deviation, run_scan, scan_inputs
from numba import njit
from numpy.typing import NDArray

from mambaad.scan import cpu, cross_scan
from mambaad.scan.cpu_kernels import LOG2E, exp2, log1p

FORWARD, GRADIENT = 1e-6, 1e-5


def check(inputs: ScanInputs) -> None:
    truth = run_scan(inputs.to(torch.float64), "reference")
    found = run_scan(inputs, "numba")
    assert found.keys() == truth.keys()
    for name, value in truth.items():
        error = deviation(found[name], value)
        assert error <= (FORWARD if name == "y" else GRADIENT), f"{name}: {error:.1e}"


@pytest.mark.parametrize("stage", STAGES)
def test_stages_of_the_decoder(stage: str) -> None:
    side, channels, rank = STAGES[stage]
    paths = 8 if side < 32 else 2  # the float64 reference takes 10 s for 8 paths at 64 x 64
    check(scan_inputs(1, side, side, channels, 16, rank, paths))


@pytest.mark.parametrize("skip", [True, False], ids=["skip", "no skip"])
@pytest.mark.parametrize(
    ("batch", "height", "width", "channels", "size", "rank", "paths"),
    [
        (2, 1, 2, 64, 16, 4, 8),
        (2, 5, 13, 10, 16, 2, 4),
        (1, 10, 10, 70, 16, 5, 2),
        (3, 7, 9, 64, 4, 1, 8),
        (2, 8, 16, 130, 3, 3, 4),
        (9, 2, 3, 1, 1, 1, 2),
    ],
)
def test_odd_shapes(
    batch: int,
    height: int,
    width: int,
    channels: int,
    size: int,
    rank: int,
    paths: int,
    skip: bool,
) -> None:
    check(scan_inputs(batch, height, width, channels, size, rank, paths, skip=skip))


def test_one_pixel() -> None:
    """There is no state before it, so A has no gradient (and no relative error)."""
    inputs = scan_inputs(2, 1, 1, 70, 16, 4, 8)
    truth = run_scan(inputs.to(torch.float64), "reference")
    found = run_scan(inputs, "numba")
    assert not truth.pop("a_log").any()
    assert found["a_log"].abs().max() < 1e-6
    for name, value in truth.items():
        assert deviation(found[name], value) <= 1e-6, name


def test_the_state_space_part_alone() -> None:
    """Skip taken away from both: its large share of y must not hide an error in the states."""
    inputs = scan_inputs(1, 16, 16, 128, 16, 8, 8)
    assert inputs.skip is not None
    inputs = inputs._replace(skip=torch.zeros_like(inputs.skip).requires_grad_())
    check(inputs)


def test_fast_and_slow_steps() -> None:
    """Steps from 1e-4 to 2: decays from almost 1, a thousand times over, to e^-32."""
    inputs = scan_inputs(1, 32, 32, 64, 16, 2, 2)
    with torch.no_grad():
        inputs.dt_bias.copy_(torch.linspace(-9, 2, 128).reshape(2, 64))
    check(inputs)


def test_states_forgotten_at_once() -> None:
    """Steps of 30 and more: nothing of a state is left after a pixel; the output must not care."""
    inputs = scan_inputs(1, 8, 8, 64, 16, 2, 2)
    with torch.no_grad():
        inputs.dt_bias.fill_(30.0)
    with torch.no_grad():
        y = cross_scan(*inputs, backend="numba")
        truth = cross_scan(*inputs.to(torch.float64))
    assert deviation(y, truth) <= FORWARD


def test_not_contiguous_inputs() -> None:
    inputs = scan_inputs(2, 4, 6, 12, 4, 2, 2)
    strided = inputs.map(lambda v: v.detach().mT.contiguous().mT.requires_grad_())
    strided = strided._replace(orders=inputs.orders.T.contiguous().T)
    assert not strided.x.is_contiguous()
    a, b = run_scan(inputs, "numba"), run_scan(strided, "numba")
    for name, value in a.items():
        assert torch.equal(value, b[name]), name


@pytest.fixture
def _restored_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_restored_threads")
def test_the_same_bits_every_time() -> None:
    inputs = scan_inputs(2, 12, 12, 130, 16, 4, 8)
    first = run_scan(inputs, "numba")
    for threads in (2, 1):
        torch.set_num_threads(threads)
        again = run_scan(inputs, "numba")
        for name, value in first.items():
            assert torch.equal(value, again[name]), f"{name} with {threads} threads"


def test_without_gradients_the_result_is_the_same() -> None:
    inputs = scan_inputs(1, 9, 9, 20, 16, 2, 4)
    with torch.no_grad():
        y = cross_scan(*inputs, backend="numba")
    assert torch.equal(y, run_scan(inputs, "numba")["y"])


def test_forward_saves_states_only_on_request() -> None:
    inputs = scan_inputs(2, 10, 13, 70, 4, 2, 4)
    detached = [None if v is None else v.detach() for v in inputs]
    _, none = cpu.forward(*detached, save=False)  # type: ignore[arg-type]
    _, saved = cpu.forward(*detached, save=True)  # type: ignore[arg-type]
    assert none.numel() == 0
    assert saved.shape == (2, 4, 3, 4, 128)  # 130 steps are 3 chunks, 70 channels 2 blocks
    assert not saved[:, :, 0].any()  # every path starts from 0


@pytest.mark.parametrize(
    ("batch", "padded", "paths", "forward", "backward"),
    [(1, 64, 8, 8, 4), (1, 128, 8, 4, 2), (1, 1024, 8, 1, 1), (2, 64, 6, 6, 2), (1, 64, 2, 2, 2)],
)
def test_groups(batch: int, padded: int, paths: int, forward: int, backward: int) -> None:
    """The fewest groups of equal size that make enough tasks."""
    assert cpu._groups(cpu.FORWARD_TASKS, batch, padded, paths) == forward
    assert cpu._groups(cpu.BACKWARD_TASKS, batch, padded, paths) == backward


@njit
def _map_exp2(x: Any, out: Any) -> None:
    for i in range(x.size):
        out[i] = exp2(x[i])


@njit
def _map_softplus(z: Any, out: Any) -> None:
    for i in range(z.size):
        e = exp2(-abs(z[i]) * LOG2E)
        out[i] = max(z[i], np.float32(0)) + log1p(e)


def values(function: Any, points: NDArray[np.float32]) -> NDArray[np.float64]:
    out = np.empty_like(points)
    function(points, out)
    return out.astype(np.float64)


def test_exp2() -> None:
    exact = np.array([0.0, -1.0, -2.0, -20.0, -60.0], np.float32)
    assert values(_map_exp2, exact).tolist() == [1.0, 0.5, 0.25, 2.0**-20, 2.0**-60]
    points = np.linspace(-59, 0, 100_001, dtype=np.float32)
    truth = np.exp2(points.astype(np.float64))
    assert np.abs(values(_map_exp2, points) / truth - 1).max() < 3e-7
    far = values(_map_exp2, np.array([-61.0, -1000.0, -math.inf], np.float32))
    assert (far >= 0).all()
    assert (far <= 2.0**-60).all()


def test_slow_decays_do_not_drift() -> None:
    """Multiplied thousands of times, a decay near 1 must carry no bias, only rounding."""
    points = -np.logspace(-7, -2, 20_001).astype(np.float32)
    errors = values(_map_exp2, points) - np.exp2(points.astype(np.float64))
    assert np.abs(errors).max() < 1e-7
    assert abs(errors.mean()) < 1e-8


def test_softplus_of_small_steps() -> None:
    """log(1 + e) computed as such would lose 3 digits here, where a fresh network's steps are."""
    points = np.linspace(-9, -5, 40_001, dtype=np.float32)
    truth = np.log1p(np.exp(points.astype(np.float64)))
    assert np.abs(values(_map_softplus, points) / truth - 1).max() < 1e-6


def test_softplus_everywhere() -> None:
    points = np.linspace(-40, 40, 80_001, dtype=np.float32)
    wide = points.astype(np.float64)
    truth = np.maximum(wide, 0) + np.log1p(np.exp(-np.abs(wide)))
    assert np.abs(values(_map_softplus, points) / truth - 1).max() < 3e-6


def test_memory_of_the_largest_stage() -> None:
    """64 x 64, 128 channels, 8 paths, no gradients: at most 20 MB beside the inputs.

    The system tells a process's peak only, which imports have raised; so memory is first filled up
    to it, and what the scan takes goes beyond.
    """
    code = """
import resource, sys
import numpy as np
import torch
from helpers import scan_inputs
from mambaad.scan import cross_scan

def peak():
    found = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return found // 1024 if sys.platform == "darwin" else found  # bytes there, kilobytes elsewhere

with torch.no_grad():
    for side in (8, 64):
        inputs = scan_inputs(1, side, side, 128, 16, 4, 8)
        ballast, imports = [], peak()
        while peak() == imports:
            ballast.append(np.ones(2**16))  # half a megabyte
        before = peak()
        y = cross_scan(*inputs, backend="numba")
        print(peak() - before, y.numel() * 4 // 1024)
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=True,
    )
    peak, output = map(int, done.stdout.split()[2:])
    assert output == 2048
    assert output < peak < 20_000
