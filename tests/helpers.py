"""What several test files and ``benchmarks/parity.py`` share.

Random inputs of the cross scan, and the published network as its checkpoints name it: every
parameter's name and shape, values by a rule instead of weights, and its training steps.
"""

from __future__ import annotations

import dataclasses
import json
import math
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mambaad.config import ModelConfig, TrainConfig
from mambaad.convert import convert, our_name
from mambaad.model import MambaAD, build
from mambaad.model.decoder import lss_sizes
from mambaad.model.encoder import build_encoder
from mambaad.scan import Backend, cross_scan, direction_orders, tuning

DATA = Path(__file__).parent / "data"

SMALL = ModelConfig(encoder="filterbank", depths=(1, 1, 1, 1), directions=2)
"""The smallest network of one HSS block a stage; needs no timm."""


class Brightness:
    """A method whose anomaly is the red channel: pictures can be drawn to have known scores."""

    def anomaly_maps(self, images: Tensor) -> Tensor:
        return images[:, 0] * 0.229 + 0.485  # undoes the normalisation: 0..1


def forget_tilings() -> None:
    """Be a new process, as far as the GPU scan's tilings go."""
    tuning.find.cache_clear()
    tuning.saved.cache_clear()


STAGES = {
    "8x8": (8, 1024, 32),
    "16x16": (16, 512, 16),
    "32x32": (32, 256, 8),
    "64x64": (64, 128, 4),
}
"""Side of the map, channels D and rank R of the scan in the decoder's stages (256 x 256 pixels)."""


class ScanInputs(NamedTuple):
    """The arguments of ``cross_scan``, in its order."""

    x: Tensor
    projections: Tensor
    a_log: Tensor
    dt_weight: Tensor
    dt_bias: Tensor
    skip: Tensor | None
    orders: Tensor

    def to(self, dtype: torch.dtype) -> ScanInputs:
        """Leaves that ask for gradients, in another dtype."""
        return self.map(lambda v: v.detach().to(dtype).requires_grad_())

    def map(self, change: Callable[[Tensor], Tensor]) -> ScanInputs:
        """The same with every tensor but the orders changed."""
        return ScanInputs(
            change(self.x),
            change(self.projections),
            change(self.a_log),
            change(self.dt_weight),
            change(self.dt_bias),
            None if self.skip is None else change(self.skip),
            self.orders,
        )

    def leaves(self) -> dict[str, Tensor]:
        """The differentiable inputs by name."""
        named = self._asdict().items()
        return {k: v for k, v in named if v is not None and k != "orders"}


def scan_inputs(
    batch: int,
    height: int,
    width: int,
    channels: int,
    size: int,
    rank: int,
    paths: int,
    *,
    dtype: torch.dtype = torch.float32,
    skip: bool = True,
    seed: int = 0,
) -> ScanInputs:
    """Values as in a trained network: A near 1..N, steps of mostly 0.001 to 0.3."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    length = height * width
    rows = torch.log(torch.arange(1, size + 1.0, dtype=torch.float64))
    return ScanInputs(
        x=draw(batch, length, channels),
        projections=draw(batch, length, paths, rank + 2 * size),
        a_log=rows + 0.1 * draw(paths, channels, size),
        dt_weight=draw(paths, channels, rank) / rank**0.5,
        dt_bias=-4 + 0.5 * draw(paths, channels),
        skip=1 + 0.1 * draw(paths, channels) if skip else None,
        orders=torch.from_numpy(direction_orders("hilbert", paths, height, width)),
    ).to(dtype)


def run_scan(inputs: ScanInputs, backend: Backend) -> dict[str, Tensor]:
    """The output and every gradient, for the same made-up gradient of the output."""
    y = cross_scan(*inputs, backend=backend)
    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    leaves = inputs.leaves()
    gradients = torch.autograd.grad(y, list(leaves.values()), upstream.to(y.dtype))
    return {"y": y.detach()} | dict(zip(leaves, gradients, strict=True))


def deviation(found: Tensor | np.ndarray[Any, Any], truth: Tensor | np.ndarray[Any, Any]) -> float:
    """L2 norm of the difference over that of ``truth``; of a scalar, the relative difference."""
    a, b = torch.as_tensor(found).double(), torch.as_tensor(truth).double()
    if a.shape != b.shape:
        raise ValueError(f"found must have shape {tuple(b.shape)}, got {tuple(a.shape)}")
    return float((a - b).norm() / b.norm())


def published_names(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every parameter in a published checkpoint, index tables left out."""
    encoder = build_encoder(config.encoder)
    body = encoder.body.state_dict()
    names = {
        f"net_t.{k}": tuple(v.shape)
        for k, v in body.items()
        if not k.endswith("num_batches_tracked")
    }
    names |= {f"mff_oce.{k}": shape for k, shape in _published_neck(*encoder.channels)}
    widths = [2 * encoder.channels[2], *reversed(encoder.channels)]
    for stage, (depth, width) in enumerate(zip(config.depths, widths, strict=True)):
        prefix = f"net_s.layers_up.{stage}"
        if stage:
            names[f"{prefix}.upsample.expand.weight"] = (4 * width, widths[stage - 1])
            names[f"{prefix}.upsample.norm.weight"] = (width,)
            names[f"{prefix}.upsample.norm.bias"] = (width,)
        for i, blocks in enumerate(lss_sizes(depth, config.hss_per_lss)):
            module = _published_lss(width, blocks, config.direction_count, config.kernels)
            names |= {f"{prefix}.blocks.{i}.{k}": shape for k, shape in module}
    return names


def _published_neck(fine: int, middle: int, coarse: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    def norm(name: str, width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            yield f"{name}.{leaf}", (width,)

    for number, shape in (("1", (middle, fine, 3, 3)), ("2", (coarse, middle, 3, 3))):
        yield f"conv{number}.weight", shape
        yield from norm(f"bn{number}", shape[0])
    for number, width in (("21", middle), ("31", coarse), ("f", coarse)):
        yield f"conv{number}.weight", (width, width, 1, 1)
        yield f"conv{number}.bias", (width,)
        yield from norm(f"bn{number}", width)
    narrow, wide = coarse // 2, 2 * coarse
    for block, inputs in enumerate((coarse, wide, wide)):
        name = f"bn_layer.{block}"
        shapes = ((narrow, inputs, 1, 1), (narrow, narrow, 3, 3), (wide, narrow, 1, 1))
        for layer, shape in enumerate(shapes, start=1):
            yield f"{name}.conv{layer}.weight", shape
            yield from norm(f"{name}.bn{layer}", shape[0])
        if inputs != wide:
            yield f"{name}.downsample.0.weight", (wide, inputs, 1, 1)
            yield from norm(f"{name}.downsample.1", wide)


def _published_lss(
    width: int, blocks: int, paths: int, kernels: tuple[int, ...]
) -> Iterator[tuple[str, tuple[int, ...]]]:
    inner, rank = 2 * width, math.ceil(width / 16)
    for block in range(blocks):
        name = f"smm_blocks.{block}"
        yield f"{name}.ln_1.weight", (width,)
        yield f"{name}.ln_1.bias", (width,)
        name += ".self_attention"
        yield f"{name}.x_proj_weight", (paths, rank + 32, inner)
        yield f"{name}.dt_projs_weight", (paths, inner, rank)
        yield f"{name}.dt_projs_bias", (paths, inner)
        yield f"{name}.A_logs", (paths * inner, 16)
        yield f"{name}.Ds", (paths * inner,)
        yield f"{name}.in_proj.weight", (2 * inner, width)
        yield f"{name}.conv2d.weight", (inner, 1, 3, 3)
        yield f"{name}.conv2d.bias", (inner,)
        yield f"{name}.out_norm.weight", (inner,)
        yield f"{name}.out_norm.bias", (inner,)
        yield f"{name}.out_proj.weight", (width, inner)
    for size in kernels:
        for name in (f"conv1b{size}", f"conv1a{size}"):
            yield f"{name}.0.weight", (width, width, 1, 1)
            yield f"{name}.0.bias", (width,)
        yield f"conv{size}{size}.0.weight", (width, 1, size, size)
    yield "finalconv11.weight", (width, width * (1 + len(kernels)), 1, 1)
    yield "finalconv11.bias", (width,)


def published_state(config: ModelConfig) -> dict[str, Tensor]:
    """A published checkpoint whose values follow the fill rule instead of training."""
    return {k: torch.from_numpy(fill(k, shape)) for k, shape in published_names(config).items()}


def fill(key: str, shape: tuple[int, ...]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The value of one parameter: random, seeded by its name, of a size that suits its role."""
    z = np.random.default_rng(zlib.crc32(key.encode())).standard_normal(shape)
    leaf = key.rpartition(".")[2]
    if leaf == "running_var":
        z = 1 + 0.1 * np.abs(z)
    elif leaf in ("running_mean", "bias"):
        z = 0.1 * z
    elif leaf == "A_logs":
        z = np.log(np.arange(1, 17)) + 0.1 * z
    elif leaf == "dt_projs_bias":
        z = -4 + 0.5 * z
    elif len(shape) == 1:
        z = 1 + 0.1 * z
    elif leaf in ("x_proj_weight", "dt_projs_weight"):
        z = z / math.sqrt(shape[2])
    else:
        z = z / math.sqrt(math.prod(shape[1:]))
    return z.astype(np.float32)


FIXTURES = {
    "base": (ModelConfig(), 512, 2178276202),
    "zz8": (ModelConfig("resnet18", (2, 2, 2, 2), "zigzag"), 314, 2774015890),
}
"""Settings of the published outputs, and how many names a checkpoint has, with their checksum."""


def published_outputs(name: str, device: str = "cpu") -> dict[str, float]:
    """How far this package's outputs are from the published ones, each by ``deviation``."""
    expected = np.load(DATA / f"parity_{name}.npz")
    config = FIXTURES[name][0]
    found, model, left_out = convert(published_state(config), str(config.scan))
    if found != config or left_out:
        raise AssertionError(f"{name} was converted to {found}, leaving out {left_out}")
    model.to(device).eval()
    picture = np.random.default_rng(7).standard_normal((1, 3, 256, 256)).astype(np.float32)
    images = torch.from_numpy(picture).to(device)
    with torch.no_grad():
        teacher, student = model(images)
        outputs = {
            "teacher64": teacher[0][0, ::8, ::8, ::8],
            "student64": student[0][0, ::8, ::4, ::4],
            "student32": student[1][0, ::8, ::2, ::2],
            "student16": student[2][0, ::8],
            "loss": model.loss(images),
            "anomaly_map": model.anomaly_maps(images)[0],
        }
    return {key: deviation(outputs[key].cpu(), expected[key]) for key in expected.files}


@dataclass(frozen=True)
class Step:
    """What one training step reports, before its update."""

    loss: float
    parts: list[float]
    """The three mean squared errors, not weighted, finest map first."""

    grad_norm: float
    """Before clipping."""


def published_trajectory() -> dict[str, Any]:
    """Ten steps of the published code from the fill rule's weights, run twice.

    The published scan adds up in no fixed order, so the two runs (``loss`` and ``loss_repeat``,
    ``grad_norm`` and ``grad_norm_repeat``) drift apart: 1e-6 at step 2, 2e-4 by step 9.
    """
    content: dict[str, Any] = json.loads((DATA / "parity_trajectory.json").read_text())
    return content


def trajectory(
    steps: int, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> tuple[list[Step], MambaAD, dict[str, str]]:
    """The same steps by this package, on any device, in float32 or float64.

    Returns:
        The steps, the network after them, and our name of each published parameter.
    """
    from mambaad.fit import build_optimizer

    published = ModelConfig(encoder="resnet18", depths=(2, 2, 2, 2))
    state = published_state(published)
    config, converted, _ = convert(state, "hilbert")
    model = build(dataclasses.replace(config, drop_path=0.0))
    model.load_state_dict(converted.state_dict())
    model.to(device, dtype).train()
    optimizer = build_optimizer(model, TrainConfig(batch_size=16))
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    done = []
    for step in range(steps):
        pictures = np.random.default_rng(100 + step).standard_normal((4, 3, 256, 256))
        images = torch.from_numpy(pictures.astype(np.float32)).to(device, dtype)
        parts = model.loss_parts(images)
        loss = torch.stack(list(parts.values())).sum()
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, 5.0)
        optimizer.step()
        done.append(Step(loss.item(), [p.item() / 5 for p in parts.values()], norm.item()))
    return done, model, {k: name for k in state if (name := our_name(k)) is not None}
