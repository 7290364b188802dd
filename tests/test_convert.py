from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import published_names, published_state
from torch import Tensor

from mambaad.config import ModelConfig
from mambaad.convert import convert, infer_config, our_name
from mambaad.errors import CheckpointError
from mambaad.scan import direction_orders

State = dict[str, Tensor]
SMALL = ModelConfig("resnet18", (1, 1, 1, 1), directions=2)


@pytest.fixture(scope="module")
def filled() -> State:
    return published_state(SMALL)


@pytest.fixture
def state(filled: State) -> State:
    return dict(filled)


def meta_state(config: ModelConfig) -> State:
    """Names and shapes alone."""
    with torch.device("meta"):
        return {name: torch.empty(shape) for name, shape in published_names(config).items()}


def test_every_tensor_arrives(state: State) -> None:
    config, model, left_out = convert(state)
    assert config == SMALL
    assert left_out == []
    ours = model.state_dict()
    reached = set()
    for key, tensor in state.items():
        name = our_name(key)
        assert name is not None, key
        assert torch.equal(ours[name].flatten(), tensor.flatten()), key
        reached.add(name)
    assert {n for n in ours if not n.endswith("num_batches_tracked")} == reached


def test_directions_keep_their_weights(state: State) -> None:
    """The published tables are flat over directions and channels, directions first."""
    prefix = "net_s.layers_up.3.blocks.0.smm_blocks.0"
    _, model, _ = convert(state)
    block: Any = model.decoder.stages[3][0].blocks[0]  # type: ignore[index]
    assert block.a_log.shape == (2, 128, 16)
    assert torch.equal(block.a_log[1, 5], state[f"{prefix}.self_attention.A_logs"][128 + 5])
    assert block.skip[1, 5] == state[f"{prefix}.self_attention.Ds"][128 + 5]


@pytest.mark.parametrize(
    "config",
    [
        ModelConfig(),
        ModelConfig("resnet18", (2, 2, 2, 2), directions=4),
        ModelConfig("resnet34", (2, 9, 2, 2)),
        ModelConfig("resnet18", (3, 2, 1, 2), hss_per_lss=1, directions=2),
        ModelConfig("resnet18", (1, 1, 1, 1), kernels=(1, 3)),
        ModelConfig("resnet18", (1, 1, 1, 1), kernels=(3, 7)),
        ModelConfig("resnet50", (1, 1, 1, 1)),
        ModelConfig("wide_resnet50_2", (1, 1, 1, 1)),
    ],
    ids=str,
)
def test_settings_are_read_off_the_shapes(config: ModelConfig) -> None:
    assert infer_config(meta_state(config)) == config


def test_dead_branch_is_left_out(state: State) -> None:
    """One published variant has a 3 x 3 branch that its forward pass never uses."""
    for stage, width in enumerate((512, 256, 128, 64)):
        prefix = f"net_s.layers_up.{stage}.blocks.0"
        for name in ("conv1b3", "conv1a3"):
            state[f"{prefix}.{name}.0.weight"] = torch.ones(width, width, 1, 1)
            state[f"{prefix}.{name}.0.bias"] = torch.ones(width)
        state[f"{prefix}.conv33.0.weight"] = torch.ones(width, 1, 3, 3)
    config, model, left_out = convert(state)
    assert config == SMALL
    assert left_out == []
    assert not [name for name in model.state_dict() if "kernel3" in name]


def test_counters_are_not_reported(state: State) -> None:
    state["net_t.bn1.num_batches_tracked"] = torch.tensor(7)
    assert convert(state)[2] == []


def with_tables(state: State, method: str, shape: tuple[int, ...]) -> State:
    for stage, side in enumerate((8, 16, 32, 64)):
        table = torch.from_numpy(direction_orders(method, 2, side, side)[0]).long()
        prefix = f"net_s.layers_up.{stage}.blocks.0.smm_blocks.0.self_attention.scans"
        state[f"{prefix}.index_flat"] = table.reshape(*shape, -1)
        state[f"{prefix}.index_flat_inv"] = table.argsort().reshape(*shape, -1)
    return state


@pytest.mark.parametrize("method", ["sweep", "scan", "zorder", "zigzag", "hilbert"])
@pytest.mark.parametrize("shape", [(1, 1), ()], ids=["1x1xL", "L"])
def test_tables_tell_the_method(method: str, shape: tuple[int, ...]) -> None:
    state = with_tables(meta_state(SMALL), method, shape)
    assert infer_config(state).scan == method
    assert infer_config(state, "zorder").scan == "zorder"  # unless the caller says otherwise


def test_tables_are_not_reported(state: State) -> None:
    config, _, left_out = convert(with_tables(state, "zigzag", (1, 1)))
    assert config.scan == "zigzag"
    assert left_out == []


def test_unknown_table(state: State) -> None:
    name = "net_s.layers_up.0.blocks.0.smm_blocks.0.self_attention.scans.index_flat"
    state[name] = torch.randperm(64, generator=torch.Generator().manual_seed(0)).reshape(1, 1, 64)
    with pytest.raises(CheckpointError, match=r"scan table for a 8 x 8 map is none of .*--scan"):
        convert(state)
    assert convert(state, "sweep")[0].scan == "sweep"


def test_unknown_names_are_listed(state: State) -> None:
    extra = ["net_s.norm.weight", "optimizer.lr", "net_t.layer4.0.conv1.weight"]
    extra += ["mff_oce.bn_layer.0.extra.weight", "net_s.layers_up.0.blocks.0.smm_blocks.0.nothing"]
    state |= {name: torch.zeros(1) for name in extra}
    assert sorted(convert(state)[2]) == sorted(extra)


def test_a_missing_parameter_is_named(state: State) -> None:
    del state["mff_oce.conv21.bias"]
    with pytest.raises(CheckpointError) as error:
        convert(state)
    assert str(error.value) == (
        "the checkpoint does not fit the network: 1 parameters are not in it, the first: "
        "neck.side1.0.bias"
    )


def test_a_wrong_shape_is_named(state: State) -> None:
    state["mff_oce.conv21.weight"] = torch.zeros(128, 64, 1, 1)
    message = r"1 have another shape, the first: mff_oce\.conv21\.weight is \(128, 64, 1, 1\), not"
    with pytest.raises(CheckpointError, match=message):
        convert(state)


def test_unknown_encoder() -> None:
    state = meta_state(SMALL)
    state["net_t.layer3.5.conv1.weight"] = torch.empty(0)
    message = r"encoder is not a known ResNet: \(2, 2, 6\) blocks in its stages; known are resnet18"
    with pytest.raises(CheckpointError, match=message):
        infer_config(state)


@pytest.mark.parametrize(
    "names",
    [
        [],
        ["conv1.weight", "bn1.weight"],
        ["net_s.layers_up.0.blocks.0.smm_blocks.0.ln_1.weight"],
    ],
    ids=["empty", "classifier", "one stage"],
)
def test_another_kind_of_checkpoint(names: list[str]) -> None:
    state = {name: torch.zeros(1) for name in names}
    with pytest.raises(CheckpointError, match="not a published MambaAD checkpoint: expected names"):
        convert(state)


def test_bad_scan_method(state: State) -> None:
    with pytest.raises(CheckpointError, match=r"cannot be rebuilt: scan must be one of .*'peano'"):
        convert(state, "peano")


def test_bad_direction_count() -> None:
    state = meta_state(SMALL)
    key = "net_s.layers_up.0.blocks.0.smm_blocks.0.self_attention.x_proj_weight"
    state[key] = torch.empty(3, *state[key].shape[1:])
    with pytest.raises(CheckpointError, match="directions must be 2, 4, 8 or 'distinct'; got 3"):
        infer_config(state)


@pytest.mark.parametrize(
    ("published", "ours"),
    [
        ("net_t.layer1.0.conv1.weight", "encoder.body.layer1.0.conv1.weight"),
        ("mff_oce.bn21.running_mean", "neck.side1.1.running_mean"),
        ("mff_oce.bn_layer.0.downsample.1.weight", "neck.bottlenecks.0.shortcut.1.weight"),
        ("net_s.layers_up.2.upsample.norm.bias", "decoder.expands.2.norm.bias"),
        (
            "net_s.layers_up.1.blocks.1.smm_blocks.2.self_attention.conv2d.bias",
            "decoder.stages.1.1.blocks.2.conv.bias",
        ),
        ("net_s.layers_up.0.blocks.0.conv1a7.0.bias", "decoder.stages.0.0.local.kernel7.4.bias"),
        ("net_s.layers_up.0.blocks.0.finalconv11.0.weight", "decoder.stages.0.0.fuse.weight"),
        ("net_s.layers_up.0.blocks.0.conv57.0.weight", None),
        ("net_s.layers_up.0.other", None),
        ("mff_oce.conv9.weight", None),
        ("optimizer.state", None),
    ],
)
def test_our_name(published: str, ours: str | None) -> None:
    assert our_name(published) == ours
