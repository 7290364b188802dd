"""The frozen encoder: three feature maps at strides 4, 8 and 16, and where its weights come from.

Any timm model with feature maps at these strides serves (the paper: ResNet-18, 34, 50 and wide
ResNet-50), and a vision transformer, whose tokens become three maps (``mambaad.model.tokens``).
``builtin`` comes with the package, trained to imitate ResNet-18: what to use where nothing can be
downloaded. ``filterbank`` has fixed filters, computed by a formula. It is weak, and meant for
demonstrations and tests only.

timm is imported when an encoder is built, not before: it is slow to import.
"""

from __future__ import annotations

import hashlib
import logging
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mambaad.config import IMAGENET_MEAN, IMAGENET_STD
from mambaad.errors import ConfigError, WeightsError, first_line, memory_note
from mambaad.model.builtin import BuiltinNetwork, is_shipped, load_builtin
from mambaad.model.tokens import build_tokens, has_one_stride
from mambaad.settings_table import did_you_mean

STRIDES = (4, 8, 16)
FEW = 3
"""Tensors that a damaged file of the right encoder may lack; where more do, it is another's."""

CONNECT_SECONDS = 5.0
"""How long the hub of the weights may take to answer at all."""

HUB_FILES = ("model.safetensors", "pytorch_model.bin")
"""What timm calls a model's weights on the hub, in the order in which it looks."""

PROBE = (64, 96)
"""Height and width of the picture that an encoder is tried with when it is built."""

PUBLISHED_TAGS = {
    "resnet18": "resnet18.tv_in1k",
    "resnet34": "resnet34.bt_in1k",
    "resnet50": "resnet50.tv_in1k",
    "wide_resnet50_2": "wide_resnet50_2.tv_in1k",
}
"""Which of timm's weights to download for a bare name: resnet34's is the file that the published
code names (its resnet34-43635321.pth), the others are torchvision's first."""


class FrozenEncoder(nn.Module):
    """A network whose weights never change: no gradients, evaluation mode always.

    Args:
        body: Module that returns three maps, strides 4, 8 and 16.
        channels: Their channels, finest first.
        mean: What the body was trained to have subtracted from pictures in 0..1, by colour.
        std: What it was trained to have them divided by.
        channels_last: Whether the body returns (B, H, W, C).
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        body: nn.Module,
        channels: tuple[int, int, int],
        *,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        self.body = body.requires_grad_(False).eval()
        self.channels = channels
        self.channels_last = channels_last
        # pictures come normalised as ImageNet's; this takes them to the body's own normalisation
        ours_mean, ours_std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
        own_std = torch.tensor(tuple(std))
        shift = (ours_mean - torch.tensor(tuple(mean))) / own_std
        self.rescale = tuple(mean) != IMAGENET_MEAN or tuple(std) != IMAGENET_STD
        self.register_buffer("scale", (ours_std / own_std).view(3, 1, 1), persistent=False)
        self.register_buffer("shift", shift.view(3, 1, 1), persistent=False)

    def train(self, mode: bool = True) -> FrozenEncoder:  # noqa: ARG002 - torch's signature
        """Stays in evaluation mode, so that BatchNorm keeps the statistics it came with."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> list[Tensor]:
        """Args: images (B, 3, H, W). Returns: three (B, C_i, H / stride_i, W / stride_i)."""
        maps = self.body(images * self.scale + self.shift if self.rescale else images)
        return [m.permute(0, 3, 1, 2) for m in maps] if self.channels_last else list(maps)


def build_encoder(name: str) -> FrozenEncoder:
    """The encoder called ``name``. ``filterbank`` is complete; others have random weights yet.

    Raises:
        ConfigError: If timm has no such model, or it lacks maps at strides 4, 8 and 16.
    """
    if name == "filterbank":
        bank = FilterBank()
        return FrozenEncoder(bank, bank.channels)
    if name == "builtin":
        return FrozenEncoder(BuiltinNetwork(), BuiltinNetwork.channels)
    timm = import_timm()
    if not timm.is_model(name):
        own = ["builtin", "filterbank"] if is_shipped() else ["filterbank"]
        hint = did_you_mean(name.split(".")[0], [*own, *PUBLISHED_TAGS, *timm.list_models()])
        raise ConfigError(
            f"encoder {name!r} is neither a timm model nor {' nor '.join(own)}"
            f"{hint or '; the published one is resnet34'}"
        )
    try:
        strides = timm.create_model(name, features_only=True).feature_info.reduction()
        if has_one_stride(strides):
            body: Any = build_tokens(timm, name)
            channels = body.channels
        else:
            indices = [strides.index(stride) for stride in STRIDES if stride in strides]
            body = timm.create_model(name, features_only=True, out_indices=indices).eval()
            channels = tuple(body.feature_info.channels())
        with torch.inference_mode():
            shapes = [tuple(m.shape[1:]) for m in body(torch.zeros(1, 3, *PROBE))]
    except (RuntimeError, ValueError, AttributeError, AssertionError, TypeError) as error:
        cause = first_line(error)
        raise ConfigError(f"encoder {name!r} cannot be used: {cause}") from error
    sizes = [(PROBE[0] // stride, PROBE[1] // stride) for stride in STRIDES]
    first = [(c, *size) for c, size in zip(channels, sizes, strict=False)]
    last = [(*size, c) for c, size in zip(channels, sizes, strict=False)]
    if len(shapes) != len(STRIDES) or shapes not in (first, last):
        raise ConfigError(
            f"encoder {name!r} has no feature maps at strides {list(STRIDES)}: it has them at "
            f"{strides}, and a picture of {PROBE} gives {shapes}"
        )
    trained = timm.get_pretrained_cfg(PUBLISHED_TAGS.get(name, name), allow_unregistered=True)
    return FrozenEncoder(
        body,
        channels,
        mean=IMAGENET_MEAN if trained is None else trained.mean,
        std=IMAGENET_STD if trained is None else trained.std,
        channels_last=shapes == last and shapes != first,
    )


def import_timm() -> Any:
    """timm, also beside a CPU build of torch whose torchvision is PyPI's CUDA build.

    That torchvision registers fake versions of two operators at import and fails if its compiled
    library, which a CPU build cannot load, has not defined them. Defining their schemas first is
    all it needs: no encoder calls them. Once the real ones exist, nothing is done.
    """
    schemas = {
        "nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
        "qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    }
    try:
        import torchvision  # noqa: F401
    except (RuntimeError, ImportError):
        for name, schema in schemas.items():
            if not hasattr(torch.ops.torchvision, name):
                torch.library.define(f"torchvision::{name}", schema)
    import timm

    return timm


def load_pretrained(encoder: FrozenEncoder, name: str, weights: Path | None = None) -> str:
    """Fill the encoder's weights, from a file or, without one, the package's or timm's hub's.

    Args:
        encoder: From ``build_encoder(name)``; changed in place.
        name: The encoder's name.
        weights: safetensors or torch file with torchvision's or timm's names. Extra entries (a
            classifier, later stages) are ignored; every parameter in use must be there.

    Returns:
        Where the weights came from, for the record.

    Raises:
        WeightsError: If a file does not fit, or nothing can be downloaded.
    """
    if name == "filterbank":
        if weights is not None:
            raise WeightsError("the filterbank encoder computes its weights; leave out the file")
        return "filterbank: fixed filters computed by a formula"
    if weights is not None:
        load_weights(encoder, read_state_dict(weights), str(weights))
        return file_source(weights)
    if isinstance(encoder.body, BuiltinNetwork):
        return load_builtin(encoder.body)
    tag = PUBLISHED_TAGS.get(name, name)
    try:
        with _quiet_hub():
            state = _pretrained_state(tag)
    except Exception as error:
        raise WeightsError(
            f"no pretrained weights for encoder {name!r}: the download of {tag} failed "
            f"({type(error).__name__}). {_fall_back()} to the network, or give a file with "
            "--encoder-weights FILE (safetensors or torch, timm or torchvision names)."
        ) from error
    load_weights(encoder, state, tag)
    return f"timm {tag}"


def file_source(path: Path) -> str:
    """What a run's record says of a file of weights: its name and what tells its content."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return f"file {path.name} (SHA-256 {digest[:12]})"


def _pretrained_state(tag: str) -> dict[str, Tensor]:
    """All tensors of a timm model: of a file downloaded before, else downloaded now.

    Without a network the hub's client tries again for most of a minute, so one request that waits
    ``CONNECT_SECONDS`` goes first.
    """
    timm = import_timm()
    from huggingface_hub import constants, try_to_load_from_cache
    from huggingface_hub.utils import get_session  # type: ignore[attr-defined]

    trained = timm.get_pretrained_cfg(tag, allow_unregistered=True)
    place = None if trained is None else trained.hf_hub_id
    overlay = None
    if place:
        names = (trained.hf_hub_filename,) if trained.hf_hub_filename else HUB_FILES
        kept = (try_to_load_from_cache(place, file) for file in names)
        overlay = next(({"file": path} for path in kept if isinstance(path, str)), None)
        if overlay is None:
            get_session().head(constants.ENDPOINT, timeout=CONNECT_SECONDS)
    full = timm.create_model(tag, pretrained=True, pretrained_cfg_overlay=overlay)
    state: dict[str, Tensor] = full.state_dict()
    return state


@contextmanager
def _quiet_hub() -> Iterator[None]:
    """Without the hub client's warnings: what goes wrong is said in one line here."""
    log = logging.getLogger("huggingface_hub")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def _fall_back() -> str:
    """What to do without a network, the built-in encoder first if it is there; half a sentence."""
    if not is_shipped():
        return "Connect"
    return "Use --encoder builtin, which is part of the package and needs no download; or connect"


def load_weights(encoder: FrozenEncoder, state: Mapping[str, Tensor], source: str) -> None:
    """Copy the tensors that the encoder uses out of ``state``.

    Raises:
        WeightsError: If one is missing or has another shape; names the first few.
    """
    given = {_canonical(key): tensor for key, tensor in state.items()}
    wanted = encoder.body.state_dict()
    chosen = {}
    missing, misshapen = [], []
    for key, tensor in wanted.items():
        found = given.get(_canonical(key))
        if found is None:
            if not key.endswith("num_batches_tracked"):
                missing.append(key)
        elif found.shape != tensor.shape:
            misshapen.append(f"{key} is {tuple(found.shape)}, not {tuple(tensor.shape)}")
        else:
            chosen[key] = found
    if missing or misshapen:
        what = misshapen[:3]
        if missing:
            what.insert(0, f"{len(missing)} of {len(wanted)} tensors are missing: {missing[:3]}")
        if len(missing) + len(misshapen) > FEW:
            what.append("they look like another encoder's: --encoder says which one to build")
        raise WeightsError(f"{source} does not fit this encoder: {'; '.join(what)}")
    over = sorted({b for b in map(_resnet_block, given) if b} - set(map(_resnet_block, wanted)))
    if over:
        raise WeightsError(
            f"{source} does not fit this encoder: it has {len(over)} more blocks, such as "
            f"{over[0]}; they look like a deeper encoder's: --encoder says which one to build"
        )
    encoder.body.load_state_dict(chosen, strict=False)


def _resnet_block(key: str) -> str:
    """``layer1.2`` of a tensor in a ResNet's first three stages; empty for any other.

    ResNet-34's stages begin with tensors of ResNet-18's names and shapes.
    """
    found = re.match(r"layer[123]\.\d+(?=\.)", _canonical(key))
    return found.group() if found else ""


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, or of a torch file (read with ``weights_only=True``).

    Raises:
        WeightsError: If the file is missing, is neither, or holds no tensors.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's own text proposes to read the file with less care
        if memory_note(error) is not None:
            raise
        unlike = "it is neither a .safetensors nor a torch file of weights, or it is damaged"
        cause = (error.strerror or error) if isinstance(error, OSError) else unlike
        raise WeightsError(f"cannot read weights from {path}: {cause}") from error
    for key in ("state_dict", "model", "net"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    given = content if isinstance(content, dict) else {}
    tensors = {k: v for k, v in given.items() if isinstance(v, Tensor)}
    if not tensors:
        raise WeightsError(f"{path} holds no tensors by name")
    return tensors


def _canonical(key: str) -> str:
    """A name without what wrappers change: prefixes, and timm's stages_0 for stages.0."""
    for prefix in ("module.", "encoder.", "body.", "backbone.", "net_t."):
        key = key.removeprefix(prefix)
    return key.replace("_", ".")


class FilterBank(nn.Module):
    """Fixed filters in three stages, computed by a formula: an encoder that needs no weights.

    Stage 1 filters brightness with Gabor pairs (even and odd) in six directions at two scales,
    and two colour contrasts with small blobs and edges. Stages 2 and 3 mix the rectified responses
    with random orthonormal 3x3 filters from a fixed seed. Nothing was learned.
    """

    channels = (32, 64, 128)
    first: Tensor
    second: Tensor
    third: Tensor

    def __init__(self) -> None:
        super().__init__()
        rng = np.random.default_rng(20240406)
        self.register_buffer("first", _gabor_filters())
        self.register_buffer("second", _orthonormal(rng, self.channels[1], self.channels[0]))
        self.register_buffer("third", _orthonormal(rng, self.channels[2], self.channels[1]))

    def forward(self, images: Tensor) -> list[Tensor]:
        maps = []
        x = F.conv2d(F.pad(images, (4, 4, 4, 4), mode="replicate"), self.first, stride=2)
        for filters in (self.second, self.third, None):
            x = F.avg_pool2d(F.relu(x), 2)
            maps.append(x)
            if filters is not None:
                x = F.conv2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), filters)
        return maps


def _gabor_filters() -> Tensor:
    """(32, 3, 9, 9): 24 Gabor filters on brightness, 8 filters on colour, each of unit norm."""
    y, x = np.mgrid[-4:5, -4:5].astype(np.float64)
    filters = []
    brightness = np.ones(3) / math.sqrt(3)
    for wavelength, spread in ((3.5, 1.4), (7.0, 2.6)):
        envelope = np.exp(-(x**2 + y**2) / (2 * spread**2))
        for turn in range(6):
            angle = math.pi * turn / 6
            phase = 2 * math.pi * (x * math.cos(angle) + y * math.sin(angle)) / wavelength
            for wave in (np.cos(phase), np.sin(phase)):
                kernel = envelope * wave
                kernel -= envelope * kernel.sum() / envelope.sum()  # blind to flat light
                filters.append(np.multiply.outer(brightness, kernel))
    blob = np.exp(-(x**2 + y**2) / (2 * 1.8**2))
    for contrast in (np.array([1.0, -1.0, 0.0]), np.array([0.5, 0.5, -1.0])):
        for kernel in (blob, -blob, blob * x, blob * y):
            filters.append(np.multiply.outer(contrast, kernel))
    bank = np.stack([f / np.linalg.norm(f) for f in filters])
    return torch.from_numpy(bank).float()


def _orthonormal(rng: np.random.Generator, outputs: int, inputs: int) -> Tensor:
    """(outputs, inputs, 3, 3) with orthogonal rows, scaled to keep the variance through a ReLU."""
    q, _ = np.linalg.qr(rng.standard_normal((inputs * 9, outputs)))
    scale = math.sqrt(2 * inputs * 9 / outputs)
    return torch.from_numpy((q.T * scale / 3).reshape(outputs, inputs, 3, 3)).float()
