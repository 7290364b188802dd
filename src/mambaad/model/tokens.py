"""A vision transformer as the teacher: three maps of one token grid, for the ``strong`` variant.

A transformer (timm's VisionTransformer and Eva: DINOv2, DINOv3) has tokens at one stride only, its
patch size. MambaAD's neck and decoder want three maps of strides 4, 8 and 16. So

    the picture is enlarged by patch / 8, so that a token is 8 of its pixels: 256 x 256 gives
    32 x 32 tokens, from 448 x 448 for patches of 14, 512 x 512 for patches of 16;
    the blocks from a sixth of the depth to the last but one are cut into three groups, and the
    tokens of a group, each normalised over its channels, are averaged;
    the first group is brought to stride 4 (bilinear), the second stays, the third is brought to
    stride 16 (means of 2 x 2 tokens);
    the first two are projected to a quarter and a half of the channels.

Any picture whose sides are multiples of 32 fits, whatever the patch. The projections have
orthonormal rows drawn from a fixed seed; such a projection keeps angles, which the anomaly map is
made of, up to noise of about 1 / √channels (Johnson and Lindenstrauss 1984), and spares the decoder
15/16 of its products at stride 4. Groups of middle blocks are what Dinomaly (Guo et al., CVPR 2025,
arXiv 2405.14325) compares; normalising tokens keeps one block from outweighing the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mambaad.errors import ConfigError

TOKEN_STRIDE = 8
"""Pixels of the picture, before it is enlarged, from one token to the next."""

SHARES = (4, 2, 1)
"""What the channels are divided by, finest map first."""


class TokenMaps(nn.Module):
    """Three maps of a transformer's tokens, strides 4, 8 and 16.

    Args:
        backbone: A timm model with ``patch_embed``, ``blocks`` and ``forward_intermediates`` that
            takes pictures of any size in whole patches.
    """

    fine: Tensor
    middle: Tensor

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        network: Any = backbone
        width = int(network.embed_dim)
        self.patch = int(network.patch_embed.patch_size[0])
        self.groups = layer_groups(len(network.blocks))
        fine, middle, coarse = (width // share for share in SHARES)
        self.channels = (fine, middle, coarse)
        rng = np.random.default_rng(20240406)
        self.register_buffer("fine", _projection(rng, fine, width), persistent=False)
        self.register_buffer("middle", _projection(rng, middle, width), persistent=False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Args: images (B, 3, H, W), sides multiples of 16. Returns: three maps, finest first."""
        fine, middle, coarse = self.groups_of_tokens(images)
        height, width = images.shape[2] // 4, images.shape[3] // 4
        # a projection is linear, as resizing is: the other way round it would take four times as
        # many products
        fine = F.conv2d(fine, self.fine.to(fine.dtype))
        fine = F.interpolate(fine, (height, width), mode="bilinear", align_corners=False)
        return [fine, F.conv2d(middle, self.middle.to(middle.dtype)), F.avg_pool2d(coarse, 2)]

    def groups_of_tokens(self, images: Tensor) -> list[Tensor]:
        """The means of each group's normalised tokens, three (B, C, H / 8, W / 8)."""
        grid = images.shape[2] // TOKEN_STRIDE, images.shape[3] // TOKEN_STRIDE
        sides = grid[0] * self.patch, grid[1] * self.patch
        if sides != tuple(images.shape[2:]):
            images = F.interpolate(images, sides, mode="bilinear", align_corners=False)
        network: Any = self.backbone
        wanted = [layer for group in self.groups for layer in group]
        tokens = network.forward_intermediates(
            images, indices=wanted, output_fmt="NLC", intermediates_only=True, stop_early=True
        )
        width = tokens[0].shape[-1]
        normal = iter([F.layer_norm(t, (width,)) for t in tokens])
        return [
            torch.stack([next(normal) for _ in group]).mean(0).mT.unflatten(-1, grid)
            for group in self.groups
        ]


def layer_groups(depth: int) -> list[list[int]]:
    """The blocks, counted from 0, whose tokens each map is made of, finest map first.

    >>> layer_groups(12)
    [[2, 3, 4], [5, 6, 7], [8, 9, 10]]

    Raises:
        ConfigError: If there are fewer than four blocks.
    """
    if depth < 4:
        raise ConfigError(f"a transformer needs at least 4 blocks as an encoder, it has {depth}")
    groups = np.array_split(np.arange(depth // 6, depth - 1), len(SHARES))
    return [group.tolist() for group in groups]


def has_one_stride(strides: Sequence[int]) -> bool:
    """Whether timm's strides of a model's maps are those of a plain transformer.

    >>> has_one_stride([14, 14, 14]), has_one_stride([4, 8, 16, 32])
    (True, False)
    """
    return len(strides) > 1 and len(set(strides)) == 1


def build_tokens(timm: Any, name: str) -> TokenMaps:
    """The transformer of that name with random weights, for pictures of any size.

    Raises:
        ConfigError: If it is none that gives its blocks' tokens, or is too shallow.
    """
    network = timm.create_model(name, num_classes=0, dynamic_img_size=True).eval()
    if not all(hasattr(network, part) for part in ("blocks", "patch_embed", "embed_dim")):
        raise ConfigError(f"encoder {name!r} is not a plain vision transformer")
    return TokenMaps(network)


def _projection(rng: np.random.Generator, outputs: int, inputs: int) -> Tensor:
    """(outputs, inputs, 1, 1) with orthonormal rows: a channel varies as much as before."""
    q, _ = np.linalg.qr(rng.standard_normal((inputs, outputs)))
    return torch.from_numpy(q.T[..., None, None].copy()).float()
