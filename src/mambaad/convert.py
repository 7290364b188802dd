"""Published checkpoints: their parameter names to ours, and the settings read off their shapes.

The published code stores ``net_t`` (encoder, timm's names), ``mff_oce`` (Half-FPN with its
bottlenecks) and ``net_s`` (decoder). One variant has a further branch ``conv1b3/conv1a3/conv33`` in
each LSS that it never uses; it is left out. Scan tables ``...scans.index_flat`` tell the method.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from mambaad import checkpoint
from mambaad.config import Config, ModelConfig
from mambaad.errors import CheckpointError, ConfigError, WeightsError
from mambaad.model import MambaAD, build
from mambaad.model.decoder import lss_sizes
from mambaad.model.encoder import read_state_dict
from mambaad.scan import METHODS, direction_orders

_DEAD_BRANCH = re.compile(r"\.conv(1b3|1a3|33)\.")
_TABLE = re.compile(r"\.scans?\.(index|inverse)\w*$|index_flat")

_NECK = {
    "conv1": "down1.0",
    "bn1": "down1.1",
    "conv21": "side1.0",
    "bn21": "side1.1",
    "conv2": "down2.0",
    "bn2": "down2.1",
    "conv31": "side2.0",
    "bn31": "side2.1",
    "convf": "join.0",
    "bnf": "join.1",
}
_BOTTLENECK = {
    "conv1": "body.0",
    "bn1": "body.1",
    "conv2": "body.3",
    "bn2": "body.4",
    "conv3": "body.6",
    "bn3": "body.7",
    "downsample.0": "shortcut.0",
    "downsample.1": "shortcut.1",
}
_HSS = {
    "ln_1.": "norm.",
    "self_attention.x_proj_weight": "scan_proj",
    "self_attention.dt_projs_weight": "dt_weight",
    "self_attention.dt_projs_bias": "dt_bias",
    "self_attention.A_logs": "a_log",
    "self_attention.Ds": "skip",
    "self_attention.in_proj.": "in_proj.",
    "self_attention.conv2d.": "conv.",
    "self_attention.out_norm.": "out_norm.",
    "self_attention.out_proj.": "out_proj.",
}
_LOCAL = {"conv1b": "0", "conv": "2", "conv1a": "4"}


def our_name(published: str) -> str | None:
    """Our name of a published parameter; None for one that is not used or not known.

    >>> our_name("net_s.layers_up.1.blocks.0.conv55.0.weight")
    'decoder.stages.1.0.local.kernel5.2.weight'
    >>> our_name("mff_oce.conv21.bias")
    'neck.side1.0.bias'
    """
    part, _, rest = published.partition(".")
    if part == "net_t":
        return f"encoder.body.{rest}"
    if part == "mff_oce":
        return _neck_name(rest)
    if part == "net_s":
        return _decoder_name(rest)
    return None


def _neck_name(rest: str) -> str | None:
    if match := re.fullmatch(r"bn_layer\.(\d+)\.(downsample\.\d|\w+)\.(\w+)", rest):
        block, layer, leaf = match.groups()
        return (
            f"neck.bottlenecks.{block}.{_BOTTLENECK[layer]}.{leaf}"
            if layer in _BOTTLENECK
            else None
        )
    layer, _, leaf = rest.partition(".")
    return f"neck.{_NECK[layer]}.{leaf}" if layer in _NECK else None


def _decoder_name(rest: str) -> str | None:
    if match := re.fullmatch(r"layers_up\.(\d+)\.upsample\.(.+)", rest):
        return f"decoder.expands.{match[1]}.{match[2]}"
    match = re.fullmatch(r"layers_up\.(\d+)\.blocks\.(\d+)\.(.+)", rest)
    if match is None:
        return None
    module, leaf = f"decoder.stages.{match[1]}.{match[2]}", match[3]
    if match := re.fullmatch(r"smm_blocks\.(\d+)\.(.+)", leaf):
        for theirs, ours in _HSS.items():
            if match[2].startswith(theirs):
                return f"{module}.blocks.{match[1]}.{ours}{match[2][len(theirs) :]}"
        return None
    if match := re.fullmatch(r"(conv1b|conv1a)(\d)\.0\.(\w+)", leaf):
        return f"{module}.local.kernel{match[2]}.{_LOCAL[match[1]]}.{match[3]}"
    if match := re.fullmatch(r"conv(\d)\1\.0\.(\w+)", leaf):
        return f"{module}.local.kernel{match[1]}.2.{match[2]}"
    if match := re.fullmatch(r"finalconv11\.(0\.)?(\w+)", leaf):
        return f"{module}.fuse.{match[2]}"
    return None


def infer_config(state: Mapping[str, Tensor], scan: str | None = None) -> ModelConfig:
    """The settings that a published checkpoint was trained with.

    Args:
        state: Its tensors by their published names.
        scan: The scan method; None reads it from the index tables, or takes Hilbert without them.

    Raises:
        CheckpointError: If the names are not those of the published network, or the encoder
            cannot be told from them.
    """
    blocks: dict[int, dict[int, int]] = {}
    for key in state:
        if match := re.match(r"net_s\.layers_up\.(\d+)\.blocks\.(\d+)\.smm_blocks\.(\d+)\.", key):
            stage, module, block = map(int, match.groups())
            modules = blocks.setdefault(stage, {})
            modules[module] = max(modules.get(module, 0), block + 1)
    if sorted(blocks) != [0, 1, 2, 3]:
        raise CheckpointError(
            "not a published MambaAD checkpoint: expected names like "
            "net_s.layers_up.0.blocks.0.smm_blocks.0..., in four stages; "
            f"got {len(state)} names such as {sorted(state)[:2]}"
        )
    depths = tuple(sum(blocks[stage].values()) for stage in range(4))
    sizes = [list(blocks[stage].values()) for stage in range(4)]
    same = {size for stage in sizes for size in stage}
    published = [lss_sizes(depth) for depth in depths]
    per_lss = same.pop() if sizes != published and len(same) == 1 else None
    prefix = "net_s.layers_up.0.blocks.0."
    scanned = f"{prefix}smm_blocks.0.self_attention.x_proj_weight"
    fuse = next((k for k in sorted(state) if k.startswith(f"{prefix}finalconv11")), None)
    if scanned not in state or fuse is None:
        raise CheckpointError(f"the checkpoint lacks {scanned} or {prefix}finalconv11.weight")
    directions = state[scanned].shape[0]
    kernels = [k for k in (1, 3, 5, 7) if f"{prefix}conv{k}{k}.0.weight" in state]
    fused = state[fuse.removesuffix("bias") + "weight" if fuse.endswith("bias") else fuse]
    unused = fused.shape[1] // fused.shape[0] - 1
    if 3 in kernels and len(kernels) > unused:
        kernels.remove(3)  # the dead branch of one published variant
    try:
        return ModelConfig(
            encoder=_infer_encoder(state),
            depths=depths,
            scan=scan or _infer_scan(state),  # type: ignore[arg-type]
            directions=directions,
            hss_per_lss=per_lss,
            kernels=tuple(kernels),
        )
    except ConfigError as error:
        raise CheckpointError(f"the checkpoint's network cannot be rebuilt: {error}") from error


def _infer_encoder(state: Mapping[str, Tensor]) -> str:
    counts: dict[int, int] = {}
    for key in state:
        if match := re.match(r"net_t\.layer(\d)\.(\d+)\.", key):
            stage, block = map(int, match.groups())
            counts[stage] = max(counts.get(stage, 0), block + 1)
    shape = (counts.get(1, 0), counts.get(2, 0), counts.get(3, 0))
    if "net_t.layer1.0.conv3.weight" in state:
        width = state["net_t.layer1.0.conv1.weight"].shape[0]
        found = {(3, 4, 6): {64: "resnet50", 128: "wide_resnet50_2"}.get(width)}.get(shape)
    else:
        found = {(2, 2, 2): "resnet18", (3, 4, 6): "resnet34"}.get(shape)
    if found is None:
        raise CheckpointError(
            f"the checkpoint's encoder is not a known ResNet: {shape} blocks in its stages; "
            "known are resnet18, resnet34, resnet50 and wide_resnet50_2"
        )
    return found


def _infer_scan(state: Mapping[str, Tensor]) -> str:
    """The method whose path is among the checkpoint's index tables; Hilbert without tables."""
    tables = [v for k, v in sorted(state.items()) if k.endswith("index_flat")]
    for table in tables:
        flat = table.flatten().long()
        side = round(flat.numel() ** 0.5)
        if side * side != flat.numel() or side < 4:
            continue
        for method in METHODS:
            order = torch.from_numpy(direction_orders(method, 2, side, side)[0]).long()
            if torch.equal(flat, order):
                return method
        raise CheckpointError(
            f"the checkpoint's scan table for a {side} x {side} map is none of {list(METHODS)}; "
            "name the method with --scan"
        )
    return "hilbert"


def convert_file(path: Path, run: Path, scan: str | None = None) -> tuple[Config, list[str]]:
    """Make a run folder of a published checkpoint file.

    Args:
        path: ``{'net': ...}`` or the bare tensors; read with ``weights_only=True``.
        run: The folder to make. It must not hold a run yet.
        scan: The scan method, if the checkpoint should not decide.

    Returns:
        The run's settings, and the names of tensors that were left out.

    Raises:
        CheckpointError: If the file cannot be read or does not fit, or ``run`` holds a run.
    """
    if (run / checkpoint.MODEL).exists() or (run / checkpoint.STATE).exists():
        raise CheckpointError(f"{run} holds a run already; choose another folder with --out")
    try:
        state = {k.removeprefix("module."): v for k, v in read_state_dict(path).items()}
    except WeightsError as error:
        raise CheckpointError(str(error)) from error
    model_config, model, left_out = convert(state, scan)
    config = Config(model=model_config)
    checkpoint.save_config(run, config)
    checkpoint.save_model(run, model)
    device = torch.device("cpu")
    origin = f"published checkpoint {path.name}"
    checkpoint.save_provenance(run, checkpoint.provenance(config, device, encoder_weights=origin))
    return config, left_out


def convert(
    state: Mapping[str, Tensor], scan: str | None = None
) -> tuple[ModelConfig, MambaAD, list[str]]:
    """Build the network of a published checkpoint and fill it.

    Args:
        state: The checkpoint's tensors by their published names.
        scan: The scan method, if the checkpoint should not decide.

    Returns:
        Settings, network, and the names of the checkpoint's tensors that were left out (without
        the scan tables and the dead branch, which are known to be unused).

    Raises:
        CheckpointError: If a parameter of the network is missing or has another shape.
    """
    config = infer_config(state, scan)
    model = build(config)
    wanted = model.state_dict()
    filled: dict[str, Tensor] = {}
    left_out, misshapen = [], []
    for key, tensor in state.items():
        dead = 3 not in config.kernels and _DEAD_BRANCH.search(key)
        if dead or key.endswith("num_batches_tracked") or _TABLE.search(key):
            continue
        name = our_name(key)
        if name is None or name not in wanted:
            left_out.append(key)
        elif tensor.numel() != wanted[name].numel():
            misshapen.append(f"{key} is {tuple(tensor.shape)}, not {tuple(wanted[name].shape)}")
        else:
            filled[name] = tensor.reshape(wanted[name].shape).to(wanted[name].dtype)
    missing = [n for n in wanted if n not in filled and not n.endswith("num_batches_tracked")]
    if missing or misshapen:
        raise CheckpointError(_misfit(missing, misshapen))
    model.load_state_dict(filled, strict=False)
    return config, model, left_out


def _misfit(missing: Sequence[str], misshapen: Sequence[str]) -> str:
    parts = []
    if missing:
        parts.append(
            f"{len(missing)} parameters are not in it, the first: {', '.join(missing[:3])}"
        )
    if misshapen:
        parts.append(f"{len(misshapen)} have another shape, the first: {'; '.join(misshapen[:2])}")
    return "the checkpoint does not fit the network: " + "; ".join(parts)
