"""The encoder that comes with the package, for machines that can download nothing.

Ten 3x3 convolutions, each with a bias and a ReLU, no batch norm left: maps of 64, 128 and 256
channels at strides 4, 8 and 16, as ResNet-18's, which it was trained to imitate map by map
(distillation, Hinton et al. 2015, arXiv:1503.02531, here of the features). ``tools/`` holds the
training script; a JSON file beside the weights says on which pictures, under which licences, and
how near it comes.

The weights lie in the package as 16-bit floats. Every one of them is a float32 number too, so
reading changes none.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from mambaad.errors import WeightsError
from mambaad.files import replacing

FILE = Path(__file__).with_name("builtin_encoder.safetensors")
"""Where an installation has the weights."""

STEM = 32
WIDTHS = ((48, 48, 64), (96, 96, 128), (192, 192, 256))
"""Channels of the convolutions of each stage; the first of a stage has stride 2."""


class BuiltinNetwork(nn.Module):
    """Three feature maps of a picture, at strides 4, 8 and 16."""

    channels = (WIDTHS[0][-1], WIDTHS[1][-1], WIDTHS[2][-1])

    def __init__(self) -> None:
        super().__init__()
        self.stem = _stage(3, (STEM,))
        inputs = (STEM, *self.channels)
        self.stages = nn.ModuleList(map(_stage, inputs, WIDTHS))

    def forward(self, images: Tensor) -> list[Tensor]:
        """Args: images (B, 3, H, W). Returns: three (B, C_i, H / stride_i, W / stride_i)."""
        x = self.stem(images)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


def _stage(inputs: int, widths: tuple[int, ...]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for number, width in enumerate(widths):
        stride = 1 if number else 2
        layers += [nn.Conv2d(inputs, width, 3, stride=stride, padding=1), nn.ReLU()]
        inputs = width
    return nn.Sequential(*layers)


def is_shipped() -> bool:
    """Whether this installation has the weights."""
    return FILE.is_file()


def save_builtin(network: BuiltinNetwork, path: Path = FILE) -> int:
    """Write the weights as the package has them: 16-bit floats, all or nothing.

    Returns:
        The size of the file in bytes.

    Raises:
        WeightsError: If a weight is not finite in 16 bits; nothing is written.
    """
    state = {
        name: tensor.detach().cpu().half().contiguous()
        for name, tensor in network.state_dict().items()
    }
    for name, tensor in state.items():
        if not tensor.isfinite().all():
            raise WeightsError(f"{name} holds numbers that 16 bits cannot; {path} was not written")
    content = save(state)
    with replacing(path) as temporary:
        temporary.write_bytes(content)
    return len(content)


def load_builtin(network: BuiltinNetwork, path: Path | None = None) -> str:
    """Fill the network from a file that ``save_builtin`` wrote.

    Args:
        network: Changed in place.
        path: None reads the package's own, ``FILE``.

    Returns:
        What the weights are, for the record and for the user to read.

    Raises:
        WeightsError: If the file is missing or damaged, or holds something else.
    """
    path = path or FILE
    if not path.is_file():
        raise WeightsError(
            f"this installation has no weights of the built-in encoder ({path.name} is missing): "
            "install a released package, or name another encoder, such as --encoder resnet18 "
            "with --encoder-weights FILE"
        )
    try:
        content = path.read_bytes()
        state = load(content)
    except (OSError, SafetensorError, ValueError) as error:
        raise WeightsError(f"cannot read the built-in encoder from {path}: {error}") from error
    wanted = {name: (tensor.shape, torch.float16) for name, tensor in network.state_dict().items()}
    if {name: (tensor.shape, tensor.dtype) for name, tensor in state.items()} != wanted:
        raise WeightsError(
            f"{path} is not this version's built-in encoder: names, shapes or types differ; "
            "install the package anew"
        )
    network.load_state_dict(state)
    version = hashlib.sha256(content).hexdigest()[:8]
    return (
        f"built-in encoder {version}, part of the package, nothing was downloaded: a small network "
        "that imitates ResNet-18; resnet18 or resnet34 with pretrained weights find more"
    )
