from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mambaad.config import IMAGENET_MEAN, IMAGENET_STD
from mambaad.errors import ConfigError, WeightsError
from mambaad.model import encoder as module
from mambaad.model.encoder import (
    FilterBank,
    FrozenEncoder,
    build_encoder,
    import_timm,
    load_pretrained,
    load_weights,
    read_state_dict,
)


@pytest.fixture(scope="module")
def resnet() -> FrozenEncoder:
    return build_encoder("resnet18")


def full_state(encoder: FrozenEncoder, seed: int = 0) -> dict[str, Tensor]:
    """Made-up values for every tensor of the trunk, and a classifier that is not wanted."""
    generator = torch.Generator().manual_seed(seed)
    state = {
        key: torch.randn(value.shape, generator=generator).to(value.dtype)
        for key, value in encoder.body.state_dict().items()
    }
    return state | {"fc.weight": torch.zeros(1000, 512), "layer4.0.bn1.weight": torch.zeros(512)}


def same_weights(encoder: FrozenEncoder, state: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, state[key]) for key, value in encoder.body.state_dict().items())


def test_filterbank_shapes() -> None:
    encoder = build_encoder("filterbank")
    assert encoder.channels == (32, 64, 128)
    maps = encoder(torch.rand(2, 3, 64, 96))
    assert [tuple(m.shape) for m in maps] == [
        (2, 32, 16, 24),
        (2, 64, 8, 12),
        (2, 128, 4, 6),
    ]
    assert list(encoder.parameters()) == []


def test_filterbank_never_changes() -> None:
    """A run trained with it must find the same filters tomorrow, so they are pinned."""
    bank, again = FilterBank(), FilterBank()
    for name, value in bank.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
    sums = {name: value.double().abs().sum().item() for name, value in bank.state_dict().items()}
    expected = {"first": 318.397268, "second": 865.222945, "third": 2453.842747}
    assert sums == pytest.approx(expected, rel=1e-4)
    noise = np.random.default_rng(0).standard_normal((1, 3, 64, 64)).astype(np.float32)
    means = [m.double().mean().item() for m in bank(torch.from_numpy(noise))]
    assert means == pytest.approx([0.40952, 0.183558, 0.127829], rel=1e-4)


def test_filterbank_filters() -> None:
    bank = FilterBank()
    first, second = bank.get_buffer("first"), bank.get_buffer("second")
    norms = first.flatten(1).norm(dim=1)
    torch.testing.assert_close(norms, torch.ones(32))
    # brightness filters are blind to flat light
    assert first[:24].flatten(1).sum(1).abs().max() < 1e-5
    gram = second.flatten(1) @ second.flatten(1).T
    torch.testing.assert_close(gram, gram[0, 0] * torch.eye(64), atol=1e-5, rtol=1e-5)


def test_filterbank_keeps_the_size_of_its_responses() -> None:
    """Rectified noise neither dies out nor grows through the stages."""
    maps = FilterBank()(torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(0)))
    spreads = [m.std().item() for m in maps]
    assert all(0.05 < spread < 2 for spread in spreads), spreads


def test_frozen(resnet: FrozenEncoder) -> None:
    parent = nn.Sequential(resnet, nn.Conv2d(1, 1, 1)).train()
    assert parent.training
    assert not any(m.training for m in resnet.modules())
    assert not any(p.requires_grad for p in resnet.parameters())
    before = {k: v.clone() for k, v in resnet.state_dict().items()}
    maps = resnet(torch.rand(2, 3, 64, 64, requires_grad=True))
    assert not any(m.requires_grad for m in maps)
    for key, value in resnet.state_dict().items():
        assert torch.equal(value, before[key]), key


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("resnet18", (64, 128, 256)),
        ("mobilenetv3_small_050", (8, 16, 24)),
        ("regnetx_002", (24, 56, 152)),
    ],
)
def test_timm_encoders(name: str, channels: tuple[int, int, int]) -> None:
    encoder = build_encoder(name)
    assert encoder.channels == channels
    with torch.no_grad():
        maps = encoder(torch.rand(1, 3, 64, 64))
    assert [tuple(m.shape) for m in maps] == [
        (1, width, 64 // stride, 64 // stride)
        for width, stride in zip(channels, (4, 8, 16), strict=True)
    ]


def test_only_three_stages_are_built(resnet: FrozenEncoder) -> None:
    assert not [name for name, _ in resnet.named_parameters() if "layer4" in name or "fc" in name]


def test_unknown_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "is_shipped", lambda: False)
    for name, message in {
        "resnet19": "did you mean 'resnet18' or ",
        "resnet3.tv": r"did you mean 'resnet34'.*\?$",
        "filterbnk": r"nor filterbank; did you mean 'filterbank'\?$",
        "buildin": "nor filterbank; the published one is resnet34$",
    }.items():
        with pytest.raises(ConfigError, match=f"encoder '{name}' is neither .*{message}"):
            build_encoder(name)
    monkeypatch.setattr(module, "is_shipped", lambda: True)
    with pytest.raises(ConfigError, match=r"nor builtin nor filterbank; did you mean 'builtin'\?$"):
        build_encoder("buildin")


def test_encoder_without_the_strides() -> None:
    with pytest.raises(ConfigError, match=r"'mixer_s32_224' cannot be used: .*dynamic_img_size"):
        build_encoder("mixer_s32_224")
    with pytest.raises(ConfigError, match="'dla34' has no feature maps at strides"):
        build_encoder("dla34")  # says so of itself, but a picture shows otherwise


def test_channels_last_maps_are_turned() -> None:
    maps = build_encoder("mambaout_femto")(torch.rand(1, 3, 64, 96))
    assert [tuple(m.shape) for m in maps] == [(1, 48, 16, 24), (1, 96, 8, 12), (1, 192, 4, 6)]


def test_pictures_are_normalised_as_the_encoder_was_trained() -> None:
    """Pictures come with ImageNet's mean and deviation; some encoders want others."""

    class Echo(nn.Module):
        def forward(self, images: Tensor) -> list[Tensor]:
            return [images] * 3

    picture = torch.rand(1, 3, 8, 8)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    half = FrozenEncoder(Echo(), (3, 3, 3), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    torch.testing.assert_close(half((picture - mean) / std)[0], (picture - 0.5) / 0.5)
    same = (picture - mean) / std
    assert torch.equal(FrozenEncoder(Echo(), (3, 3, 3))(same)[0], same)
    assert build_encoder("resnetv2_50").rescale  # trained with 0.5
    assert not build_encoder("resnet18").rescale


def test_import_timm_twice() -> None:
    assert import_timm() is import_timm()
    assert hasattr(torch.ops.torchvision, "nms")


def test_load_weights(resnet: FrozenEncoder) -> None:
    state = full_state(resnet, seed=1)
    load_weights(resnet, state, "made up")
    assert same_weights(resnet, state)


@pytest.mark.parametrize("prefix", ["module.", "encoder.body.", "backbone.", "net_t."])
def test_load_weights_of_a_wrapper(resnet: FrozenEncoder, prefix: str) -> None:
    state = full_state(resnet, seed=2)
    load_weights(resnet, {prefix + key: value for key, value in state.items()}, "made up")
    assert same_weights(resnet, state)


def test_load_weights_of_the_trunk_alone(resnet: FrozenEncoder) -> None:
    """What the three stages need and nothing else, without the counters of old torch files."""
    state = {k: v for k, v in full_state(resnet, seed=3).items() if k in resnet.body.state_dict()}
    state = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    load_weights(resnet, state, "made up")
    for key, value in state.items():
        assert torch.equal(resnet.body.state_dict()[key], value), key


def test_load_weights_of_a_full_timm_model() -> None:
    """Their stages_0 in a feature extractor is stages.0 in the classifier."""
    encoder = build_encoder("mobilenetv3_small_050")
    full = import_timm().create_model("mobilenetv3_small_050")
    load_weights(encoder, full.state_dict(), "timm")
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        expected = full.eval().forward_intermediates(images, intermediates_only=True)
        found = encoder(images)
    for maps in found:
        assert any(m.shape == maps.shape and torch.allclose(m, maps) for m in expected)


def test_a_missing_tensor_is_named(resnet: FrozenEncoder) -> None:
    state = full_state(resnet)
    del state["layer2.1.conv1.weight"]
    before = {k: v.clone() for k, v in resnet.state_dict().items()}
    with pytest.raises(WeightsError) as error:
        load_weights(resnet, state, "file.pth")
    count = len(resnet.body.state_dict())
    assert str(error.value) == (
        f"file.pth does not fit this encoder: 1 of {count} tensors are missing: "
        "['layer2.1.conv1.weight']"
    )
    for key, value in resnet.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_a_deeper_resnets_weights_are_refused(resnet: FrozenEncoder) -> None:
    """ResNet-34's first blocks have the names and shapes of ResNet-18's."""
    state = full_state(resnet)
    for key in [k for k in state if k.startswith("layer1.1.")]:
        state[key.replace("layer1.1.", "layer1.2.")] = state[key]
    with pytest.raises(WeightsError, match=r"it has 1 more blocks, such as layer1.2; .*deeper"):
        load_weights(resnet, state, "resnet34.pth")
    load_weights(resnet, {**full_state(resnet), "layer4.0.conv1.weight": torch.zeros(1)}, "r18")


def test_weights_of_another_encoder_are_said_to_be(resnet: FrozenEncoder) -> None:
    state = full_state(resnet)
    del state["layer3.1.conv1.weight"]
    with pytest.raises(WeightsError) as error:
        load_weights(resnet, state, "file.pth")
    assert "another encoder" not in str(error.value)
    with pytest.raises(
        WeightsError, match=r"'conv1.*; they look like another encoder's: --encoder"
    ):
        load_weights(resnet, build_encoder("filterbank").state_dict(), "file.pth")


def test_a_wrong_shape_is_named(resnet: FrozenEncoder) -> None:
    state = full_state(resnet)
    state["conv1.weight"] = torch.zeros(64, 1, 7, 7)
    message = r"conv1\.weight is \(64, 1, 7, 7\), not \(64, 3, 7, 7\)"
    with pytest.raises(WeightsError, match=message):
        load_weights(resnet, state, "file.pth")


STATE = {"conv1.weight": torch.arange(6.0).reshape(2, 3), "bn1.bias": torch.ones(2)}


@pytest.mark.parametrize("wrap", [None, "state_dict", "model", "net"])
def test_read_torch_file(tmp_path: Path, wrap: str | None) -> None:
    file = tmp_path / "weights.pth"
    torch.save(STATE if wrap is None else {wrap: STATE, "epoch": 3}, file)
    found = read_state_dict(file)
    assert found.keys() == STATE.keys()
    assert all(torch.equal(found[key], value) for key, value in STATE.items())


def test_read_safetensors(tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    save_file(STATE, file)
    found = read_state_dict(file)
    assert found.keys() == STATE.keys()
    assert all(torch.equal(found[key], value) for key, value in STATE.items())


class Harmful:
    """What a pickle can do when it is read: anything."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("this must not run",))


@pytest.mark.parametrize("name", ["garbage.pth", "garbage.safetensors"])
def test_read_garbage(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.write_bytes(b"not weights at all, not even nearly")
    with pytest.raises(WeightsError, match=f"cannot read weights from .*{name}: ") as error:
        read_state_dict(file)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["list", "empty", "module", "cut", "safetensors"])
def test_what_is_no_file_of_weights_is_told_in_our_words(tmp_path: Path, kind: str) -> None:
    """Torch's own name its options, and propose to read the file with less care."""
    file = tmp_path / ("list.safetensors" if kind == "safetensors" else "list.txt")
    file.write_text("" if kind == "empty" else "good/000.png\ngood/001.png\n")
    if kind == "module":
        torch.save(torch.nn.Linear(2, 2), file)
    elif kind == "cut":
        torch.save(STATE, file)
        file.write_bytes(file.read_bytes()[:500])
    message = "it is neither a .safetensors nor a torch file of weights, or it is damaged"
    with pytest.raises(WeightsError) as error:
        read_state_dict(file)
    assert str(error.value) == f"cannot read weights from {file}: {message}"


def test_memory_that_is_used_up_is_not_the_files_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: not enough memory")

    monkeypatch.setattr(torch, "load", full)
    with pytest.raises(RuntimeError, match="DefaultCPUAllocator"):
        read_state_dict(tmp_path / "large.pth")


def test_read_missing_file(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"cannot read weights from .*nothing.pth: "):
        read_state_dict(tmp_path / "nothing.pth")


def test_read_runs_no_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "harmful.pth"
    torch.save({"net": Harmful()}, file)
    with pytest.raises(WeightsError, match=r"cannot read weights from .*harmful.pth: "):
        read_state_dict(file)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("content", [[torch.ones(2)], {"epoch": 3}, torch.ones(2)], ids=str)
def test_read_a_file_without_named_tensors(tmp_path: Path, content: object) -> None:
    file = tmp_path / "other.pth"
    torch.save(content, file)
    with pytest.raises(WeightsError, match=r"other\.pth holds no tensors by name"):
        read_state_dict(file)


def test_load_pretrained_from_a_file(tmp_path: Path, resnet: FrozenEncoder) -> None:
    state = full_state(resnet, seed=5)
    file = tmp_path / "resnet.safetensors"
    save_file(state, file)
    source = load_pretrained(resnet, "resnet18", file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert source == f"file resnet.safetensors (SHA-256 {digest[:12]})"
    assert same_weights(resnet, state)
    save_file(full_state(resnet, seed=6), file)
    assert load_pretrained(resnet, "resnet18", file) != source


class Hub:
    """Stands for the network, the hub's cache of files, and timm's loading."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, state: dict[str, Tensor]) -> None:
        self.state = state
        self.kept: dict[str, str] = {}
        self.error: Exception | None = None
        self.requests = 0
        self.made: list[tuple[str, object]] = []
        self.levels: list[int] = []
        monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", self.look)
        monkeypatch.setattr(huggingface_hub.utils, "get_session", lambda: self)
        monkeypatch.setattr(import_timm(), "create_model", self.create_model)

    def look(self, place: str, file: str) -> str | None:
        return self.kept.get(f"{place}/{file}")

    def head(self, _: str, *, timeout: float) -> None:
        assert 0 < timeout <= 10
        self.requests += 1
        self.levels.append(logging.getLogger("huggingface_hub").getEffectiveLevel())
        if self.error is not None:
            raise self.error

    def create_model(
        self, name: str, *, pretrained: bool, pretrained_cfg_overlay: object = None
    ) -> nn.Module:
        assert pretrained
        self.made.append((name, pretrained_cfg_overlay))
        full = nn.Module()
        full.state_dict = lambda: self.state  # type: ignore[method-assign,assignment]
        return full


def test_load_pretrained_from_the_hub(
    monkeypatch: pytest.MonkeyPatch, resnet: FrozenEncoder
) -> None:
    """The tag is pinned: a bare name would take whatever timm prefers today."""
    hub = Hub(monkeypatch, full_state(resnet, seed=6))
    assert load_pretrained(resnet, "resnet18") == "timm resnet18.tv_in1k"
    assert hub.made == [("resnet18.tv_in1k", None)]
    assert same_weights(resnet, full_state(resnet, seed=6))
    assert module.PUBLISHED_TAGS["resnet34"] == "resnet34.bt_in1k"


def test_a_file_downloaded_before_needs_no_network(
    monkeypatch: pytest.MonkeyPatch, resnet: FrozenEncoder
) -> None:
    hub = Hub(monkeypatch, full_state(resnet, seed=7))
    hub.kept = {"timm/resnet18.tv_in1k/pytorch_model.bin": "old", "timm/x/model.safetensors": "no"}
    load_pretrained(resnet, "resnet18")
    assert hub.made == [("resnet18.tv_in1k", {"file": "old"})]
    hub.kept["timm/resnet18.tv_in1k/model.safetensors"] = "new"
    load_pretrained(resnet, "resnet18")
    assert hub.made[1] == ("resnet18.tv_in1k", {"file": "new"})
    assert hub.requests == 0


def test_timm_reads_the_file_that_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resnet: FrozenEncoder
) -> None:
    full = import_timm().create_model("resnet18")
    file = tmp_path / "model.safetensors"
    save_file(full.state_dict(), file)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: str(file))
    load_pretrained(resnet, "resnet18")
    assert torch.equal(resnet.body.state_dict()["conv1.weight"], full.conv1.weight)


def test_load_pretrained_without_a_network(
    monkeypatch: pytest.MonkeyPatch, resnet: FrozenEncoder
) -> None:
    hub = Hub(monkeypatch, {})
    hub.error = OSError("no route to host")
    before = logging.getLogger("huggingface_hub").level
    with pytest.raises(WeightsError, match="--encoder-weights FILE") as error:
        load_pretrained(resnet, "resnet18")
    assert "the download of resnet18.tv_in1k failed (OSError)" in str(error.value)
    assert (hub.requests, hub.made) == (1, [])
    assert hub.levels == [logging.ERROR]
    assert logging.getLogger("huggingface_hub").level == before


def test_load_pretrained_filterbank(tmp_path: Path) -> None:
    encoder = build_encoder("filterbank")
    assert load_pretrained(encoder, "filterbank").startswith("filterbank: fixed filters")
    with pytest.raises(WeightsError, match="leave out the file"):
        load_pretrained(encoder, "filterbank", tmp_path / "weights.pth")
