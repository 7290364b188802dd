"""A transformer's tokens as three maps: shapes for any patch, what they are, weights, use."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from mambaad.checkpoint import load_model
from mambaad.cli import main
from mambaad.config import Config, ModelConfig
from mambaad.counting import count_parts
from mambaad.errors import ConfigError, WeightsError
from mambaad.fit import build_optimizer
from mambaad.model import build
from mambaad.model.encoder import build_encoder, import_timm, load_pretrained
from mambaad.model.fold import inference_copy
from mambaad.model.tokens import TokenMaps, build_tokens, layer_groups
from mambaad.presets import VARIANTS

TINY = ModelConfig("test_vit", (1, 1, 1, 1), directions=2)


@pytest.mark.parametrize(
    ("name", "patch"), [("test_vit", 16), ("vit_small_patch14_reg4_dinov2", 14)]
)
def test_maps_have_strides_4_8_and_16(name: str, patch: int) -> None:
    encoder = build_encoder(name)
    assert isinstance(encoder.body, TokenMaps)
    assert encoder.body.patch == patch
    width = encoder.channels[2]
    assert encoder.channels == (width // 4, width // 2, width)
    for height, channels in ((32, 64), (96, 64)):
        maps = encoder(torch.randn(2, 3, height, channels))
        found = [tuple(m.shape) for m in maps]
        sizes = [(height // s, channels // s) for s in (4, 8, 16)]
        assert found == [(2, c, *size) for c, size in zip(encoder.channels, sizes, strict=True)]
        assert all(m.isfinite().all() for m in maps)


def test_maps_are_means_of_normalised_tokens() -> None:
    torch.manual_seed(0)
    body = build_tokens(import_timm(), "test_vit").double()
    network = body.backbone
    images = torch.randn(1, 3, 32, 48, dtype=torch.float64)
    with torch.no_grad():
        fine, middle, coarse = body(images)
        larger = F.interpolate(images, (64, 96), mode="bilinear", align_corners=False)
        layers = [F.layer_norm(t, (64,)) for t in network.get_intermediate_layers(larger, n=6)]  # type: ignore[operator]
        means = [sum(layers[i] for i in group) / len(group) for group in body.groups]
        rows = [m.transpose(1, 2).reshape(1, 64, 4, 6) for m in means]
        projected = [F.conv2d(rows[0], body.fine), F.conv2d(rows[1], body.middle)]
    torch.testing.assert_close(middle, projected[1])
    torch.testing.assert_close(coarse, F.avg_pool2d(rows[2], 2))
    torch.testing.assert_close(fine.mean((2, 3)), projected[0].mean((2, 3)), rtol=0, atol=0.2)
    upsampled = F.interpolate(projected[0], (8, 12), mode="bilinear", align_corners=False)
    torch.testing.assert_close(fine, upsampled)
    for projection in (body.fine, body.middle):
        flat = projection.flatten(1)
        torch.testing.assert_close(flat @ flat.T, torch.eye(len(flat), dtype=torch.float64),
                                   rtol=0, atol=1e-6)  # fmt: skip


@pytest.mark.parametrize("depth", range(4, 41))
def test_groups_are_in_order_and_leave_the_last_block_out(depth: int) -> None:
    groups = layer_groups(depth)
    layers = [layer for group in groups for layer in group]
    assert len(groups) == 3
    assert all(groups)
    assert layers == list(range(depth // 6, depth - 1))


def test_a_shallow_transformer_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least 4 blocks as an encoder, it has 3"):
        layer_groups(3)


def test_weights_come_from_a_file_with_timms_names(tmp_path: Path) -> None:
    full = import_timm().create_model("test_vit").eval()
    file, encoder = tmp_path / "weights.safetensors", build_encoder("test_vit")
    save_file(full.state_dict(), file)
    source = load_pretrained(encoder, "test_vit", file)
    assert source.startswith("file weights.safetensors (SHA-256 ")
    for name, value in full.state_dict().items():
        if not name.startswith("head"):
            assert torch.equal(encoder.body.state_dict()[f"backbone.{name}"], value)
    save_file({"blocks.0.norm1.weight": torch.ones(64)}, file)
    with pytest.raises(WeightsError, match="tensors are missing"):
        load_pretrained(encoder, "test_vit", file)


def test_a_step_of_training_and_a_copy_for_inference() -> None:
    torch.manual_seed(0)
    model = build(TINY)
    images = torch.randn(2, 3, 64, 32)
    before = [p.clone() for p in model.encoder.parameters()]
    optimizer = build_optimizer(model.train(), Config().train, 2)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = model.loss(images)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]
    assert all(torch.equal(a, b) for a, b in zip(before, model.encoder.parameters(), strict=True))
    model.eval()
    with torch.no_grad():
        maps = model.anomaly_maps(images)
        twin = inference_copy(model, torch.float32).anomaly_maps(images)
        with torch.autocast("cpu", torch.bfloat16):
            half = inference_copy(model, torch.bfloat16).anomaly_maps(images)
    assert maps.shape == (2, 64, 32)
    torch.testing.assert_close(twin, maps, rtol=0, atol=1e-5)
    torch.testing.assert_close(half, maps, rtol=0, atol=0.05)


def test_the_strong_variant_costs_what_is_said() -> None:
    with torch.device("meta"):
        model = build(Config().override(VARIANTS["strong"]).model).eval()
        counts = count_parts(model, 256, 256)
    assert sum(c.trainable + c.frozen for c in counts) / 1e6 == pytest.approx(59, abs=0.5)
    assert sum(c.products for c in counts) / 1e9 == pytest.approx(38.3, abs=0.2)
    assert sum(c.scan_products for c in counts) / 1e9 == pytest.approx(6.7, abs=0.1)


def test_the_strong_variant_is_trained_by_the_command_line(
    tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = tmp_path / "weights.safetensors", tmp_path / "run"
    save_file(import_timm().create_model("test_vit").state_dict(), file)
    train = ["train", str(tiny_data), "--out", str(out), "--variant", "strong"]
    train += ["--encoder", "test_vit", "--encoder-weights", str(file), "--image-size", "32x64"]
    train += ["--epochs", "1", "--batch-size", "6", "--set", "model.depths=[1,1,1,1]"]
    for verb, status in (
        (["train", str(tiny_data), "--variant", "slow"], 2),
        (train, 0),
        (["test", str(out), "--device", "cpu"], 0),
        (["train", "--out", str(out), "--resume", "--variant", "fast"], 2),
    ):
        with pytest.raises(SystemExit) as ended:
            main(verb)
        assert int(ended.value.code or 0) == status
    errors = capsys.readouterr().err
    assert "variant must be one of ['fast', 'distinct', 'strong'], got 'slow'" in errors
    assert "give only --out and DATA" in errors
    config, model = load_model(out)
    assert (config.model.encoder, config.model.directions) == ("test_vit", 8)
    assert isinstance(model.encoder.body, TokenMaps)
    assert (out / "report.html").is_file()
