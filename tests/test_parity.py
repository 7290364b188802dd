"""The network and its training step are the published ones, number for number.

The expected values were computed once with the published code from weights made by ``helpers.fill``
(scan in float64, the rest float32; the trajectory in float32). ``benchmarks/parity.py`` prints all
ten steps of the trajectory.
"""

from __future__ import annotations

import json
import zlib

import numpy as np
import pytest
import torch
from helpers import (
    DATA,
    deviation,
    published_names,
    published_state,
    published_trajectory,
    trajectory,
)
from torch import Tensor

from mambaad.config import ModelConfig
from mambaad.convert import convert

FIXTURES = {
    "base": (ModelConfig(), 512, 2178276202),
    "zz8": (ModelConfig("resnet18", (2, 2, 2, 2), "zigzag"), 314, 2774015890),
}


@pytest.mark.parametrize("name", FIXTURES)
def test_published_names(name: str) -> None:
    """The helpers' list is that of the checkpoint which the fixture was made with."""
    config, count, checksum = FIXTURES[name]
    rows = sorted([key, list(shape)] for key, shape in published_names(config).items())
    assert len(rows) == count
    assert zlib.crc32(json.dumps(rows).encode()) == checksum


@pytest.mark.parametrize("name", FIXTURES)
def test_outputs(name: str) -> None:
    expected = np.load(DATA / f"parity_{name}.npz")
    config = FIXTURES[name][0]
    found, model, left_out = convert(published_state(config), str(config.scan))
    assert (found, left_out) == (config, [])
    model.eval()
    picture = np.random.default_rng(7).standard_normal((1, 3, 256, 256)).astype(np.float32)
    images = torch.from_numpy(picture)
    with torch.no_grad():
        teacher, student = model(images)
        outputs: dict[str, Tensor] = {
            "teacher64": teacher[0][0, ::8, ::8, ::8],
            "student64": student[0][0, ::8, ::4, ::4],
            "student32": student[1][0, ::8, ::2, ::2],
            "student16": student[2][0, ::8],
            "loss": model.loss(images),
            "anomaly_map": model.anomaly_maps(images)[0],
        }
    assert set(outputs) == set(expected.files)
    for key, output in outputs.items():
        assert deviation(output, expected[key]) <= 1e-4, key


EXACT_LOSSES = (81.46804388022497, 60.936850843568145, 43.6254693138185)
EXACT_NORMS = (24.831904770417317, 33.67968854881767, 38.513861686102786)
"""The same three steps of this package computed in float64 throughout (minutes, so not here)."""


def test_trajectory() -> None:
    """Three steps, against the published run and against float64.

    Adam's first steps have one size for small and large gradients, so rounding in the small ones
    is amplified: the published float32 run is 1.2e-5 away from float64 at the second step and
    1.3e-4 at the third. This package's float32 has to stay closer to float64 than that.
    """
    published = published_trajectory()
    steps, _, _ = trajectory(3)
    for number, (step, loose, tight) in enumerate(
        zip(steps, (1e-5, 1e-4, 3e-4), (1e-6, 5e-6, 5e-5), strict=True)
    ):
        assert step.loss == pytest.approx(published["loss"][number], rel=loose)
        assert step.parts == pytest.approx(published["loss_parts"][number], rel=loose)
        assert step.grad_norm == pytest.approx(published["grad_norm"][number], rel=loose)
        assert step.loss == pytest.approx(EXACT_LOSSES[number], rel=tight)
        # torch adds up the squares in float32, which alone costs 5e-6
        assert step.grad_norm == pytest.approx(EXACT_NORMS[number], rel=max(tight, 2e-5))
