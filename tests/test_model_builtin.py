"""The built-in encoder: its shapes, its file to the bit, and what is said where there is none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mambaad.errors import WeightsError
from mambaad.model import builtin
from mambaad.model.builtin import BuiltinNetwork, load_builtin, save_builtin
from mambaad.model.encoder import build_encoder, import_timm, load_pretrained
from mambaad.model.fold import ConvReLU, inference_copy

LIMIT = 3_000_000


def random_network(seed: int) -> BuiltinNetwork:
    torch.manual_seed(seed)
    return BuiltinNetwork()


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installation with made-up weights."""
    path = tmp_path / "package" / "builtin_encoder.safetensors"
    save_builtin(random_network(3), path)
    monkeypatch.setattr(builtin, "FILE", path)
    return path


def test_shapes() -> None:
    encoder = build_encoder("builtin")
    assert encoder.channels == (64, 128, 256)
    maps = encoder(torch.rand(2, 3, 64, 96))
    assert [tuple(m.shape) for m in maps] == [(2, 64, 16, 24), (2, 128, 8, 12), (2, 256, 4, 6)]
    assert all((m >= 0).all() and m.any() for m in maps)
    assert not any(p.requires_grad for p in encoder.parameters())


def test_the_file_is_small_and_exact(tmp_path: Path) -> None:
    network, again = random_network(0), random_network(1)
    path, copy = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    size = save_builtin(network, path)
    assert size == path.stat().st_size <= LIMIT
    load_builtin(again, path)
    for name, tensor in again.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, network.state_dict()[name].half().float()), name
    save_builtin(again, copy)
    assert copy.read_bytes() == path.read_bytes()


def test_what_16_bits_cannot_hold_is_not_written(tmp_path: Path) -> None:
    network = random_network(0)
    network.stem[0].bias.data[3] = 1e5
    with pytest.raises(WeightsError, match=r"stem\.0\.bias holds numbers that 16 bits cannot"):
        save_builtin(network, tmp_path / "a.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_load_pretrained_says_what_it_is(shipped: Path) -> None:
    encoder = build_encoder("builtin")
    said = load_pretrained(encoder, "builtin")
    assert said.startswith("built-in encoder ")
    assert "nothing was downloaded" in said
    assert "imitates ResNet-18" in said
    assert "\n" not in said
    for name, tensor in load_file(shipped).items():
        assert torch.equal(encoder.body.state_dict()[name], tensor.float()), name


def test_another_file_has_another_name(shipped: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    save_builtin(random_network(4), other)
    assert load_builtin(BuiltinNetwork()) == load_builtin(BuiltinNetwork(), shipped)
    assert load_builtin(BuiltinNetwork()) != load_builtin(BuiltinNetwork(), other)


def test_weights_of_the_user(shipped: Path, tmp_path: Path) -> None:
    file = tmp_path / "own.safetensors"
    save_builtin(random_network(5), file)
    encoder = build_encoder("builtin")
    source = load_pretrained(encoder, "builtin", file)
    assert source.startswith("file own.safetensors (SHA-256 ")
    expected = random_network(5).stem[0].weight.half().float()
    assert torch.equal(encoder.body.stem[0].weight, expected)
    assert shipped.is_file()


def test_a_missing_file_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builtin, "FILE", tmp_path / "builtin_encoder.safetensors")
    with pytest.raises(WeightsError, match="no weights of the built-in encoder") as error:
        load_pretrained(build_encoder("builtin"), "builtin")
    assert "builtin_encoder.safetensors is missing" in str(error.value)
    assert "--encoder resnet18" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_damaged_file(shipped: Path) -> None:
    shipped.write_bytes(shipped.read_bytes()[:1000])
    with pytest.raises(WeightsError, match="cannot read the built-in encoder from") as error:
        load_builtin(BuiltinNetwork())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("what", ["name", "shape", "type"])
def test_the_file_of_another_version(shipped: Path, what: str) -> None:
    state = load_file(shipped)
    first = state.pop("stem.0.bias")
    changed = {"name": first, "shape": first[1:].clone(), "type": first.float()}[what]
    save_file(state | {"stem.0.other" if what == "name" else "stem.0.bias": changed}, shipped)
    with pytest.raises(WeightsError, match="is not this version's built-in encoder"):
        load_builtin(BuiltinNetwork())


def picture() -> Tensor:
    """Rings, stripes and a box, one a colour; the encoder has not learned from it."""
    y, x = torch.meshgrid(torch.arange(128.0), torch.arange(192.0), indexing="ij")
    rings = torch.cos(0.002 * ((x - 60).square() + (y - 50).square()))
    stripes = torch.sin(0.3 * x + 0.1 * y)
    box = ((x > 120) & (x < 150) & (y > 30) & (y < 90)).float()
    return torch.stack([rings, stripes, 2 * box - 1])[None]


def test_the_package_has_the_weights() -> None:
    assert builtin.is_shipped()
    assert builtin.FILE.stat().st_size <= LIMIT
    encoder = build_encoder("builtin")
    assert load_pretrained(encoder, "builtin").startswith("built-in encoder 5346bdce, ")
    state = load_file(builtin.FILE)
    assert set(state) == set(encoder.body.state_dict())
    for name, tensor in encoder.body.state_dict().items():
        assert tensor.isfinite().all(), name
        assert torch.equal(tensor, state[name].float()), name


def test_the_weights_in_the_package_find_what_they_found() -> None:
    encoder = build_encoder("builtin")
    load_pretrained(encoder, "builtin")
    norms = [float(m.norm()) for m in encoder(picture())]
    assert norms == pytest.approx([237.0306, 81.6910, 34.4276], rel=1e-3)
    # ResNet-18's own maps, which these imitate: torchvision's weights, the same picture
    assert norms == pytest.approx([247.148, 86.009, 37.214], rel=0.1)


def test_what_the_weights_in_the_package_learned_from_is_said() -> None:
    about = json.loads(builtin.FILE.with_suffix(".json").read_text("utf-8"))
    assert about["finished"]
    assert about["bytes"] == builtin.FILE.stat().st_size
    assert "BSD-3-Clause" in about["teacher"]["weights"]
    assert len(about["teacher"]["sha256"]) == 64
    licences = {source["name"]: source.get("licence") for source in about["pictures"]}
    notice = (Path(__file__).parents[1] / "NOTICE").read_text("utf-8")
    for name, licence in licences.items():
        # clouds and leaves are made by the script, of nothing
        assert licence or name.endswith("tools/distil_augment.py"), name
        assert not licence or name in notice or name == "mambaad's drawings", name
    assert {name for name, licence in licences.items() if licence == "CC BY-SA 4.0"} == {
        "aws_aliens",
        "aws_circuitboard",
    }
    assert set(about["held_out"]) == {name for name, licence in licences.items() if licence}
    for name, quality in about["held_out"].items():
        assert all(0.87 < cosine < 1 for cosine in quality["cosine"]), name


@pytest.mark.parametrize("there", [True, False])
def test_the_fall_back_is_named_where_nothing_can_be_downloaded(
    shipped: Path, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    def create_model(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    if not there:
        shipped.unlink()
    encoder = build_encoder("resnet18")
    monkeypatch.setattr(import_timm(), "create_model", create_model)
    with pytest.raises(WeightsError) as error:
        load_pretrained(encoder, "resnet18")
    ways = str(error.value).partition("). ")[2]
    first = "Use --encoder builtin, which is part of the package and needs no download; or connect"
    assert ways.startswith(f"{first} to the network, or " if there else "Connect to the network, ")
    assert "--encoder-weights FILE" in ways
    assert "\n" not in str(error.value)


def test_every_convolution_takes_its_relu_along() -> None:
    """On a GPU they are one call each; nothing of the network is left beside them."""
    encoder = build_encoder("builtin")
    twin = inference_copy(encoder, torch.float32)
    assert sum(isinstance(m, ConvReLU) for m in twin.modules()) == 10
    assert not any(isinstance(m, nn.ReLU) for m in twin.modules())
    images = torch.rand(1, 3, 64, 64)
    for found, expected in zip(twin(images), encoder(images), strict=True):
        torch.testing.assert_close(found, expected)
