"""The training script from start to end, tiny, and its measures against plain formulas."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from distilling import distil_scripts
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from mambaad.model.builtin import BuiltinNetwork, load_builtin
from mambaad.model.encoder import build_encoder


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    with distil_scripts() as scripts:
        yield scripts["distil_encoder"]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A teacher with random weights and a folder of pictures, as options."""
    folder = tmp_path_factory.mktemp("distil")
    torch.manual_seed(0)
    body = build_encoder("resnet18").body
    state = {name: tensor.contiguous() for name, tensor in body.state_dict().items()}
    save_file(state, folder / "teacher.safetensors")
    (folder / "pills").mkdir()
    for number in range(4):
        picture = Image.linear_gradient("L").resize((32, 32)).rotate(90 * number)
        picture.save(folder / "pills" / f"{number}.png")
    return [
        *("--teacher", str(folder / "teacher.safetensors")),
        *("--pictures", str(folder / "pills"), "CC0"),
        *("--side", "32", "--crop", "32", "--batch", "4", "--drawn", "4", "--device", "cpu"),
        *("--every", "2", "--save-minutes", "0"),
    ]


def test_from_start_to_end(
    script: ModuleType, inputs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script.main([*inputs, "--steps", "8", "--rate", "3e-3", "--out", str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    assert "pills; CC0; 4; 3; 1" in lines
    losses = [float(line.split("loss ")[1].split()[0]) for line in lines if "  step " in line]
    assert len(losses) == 4
    assert losses[-1] < losses[0]
    assert sum("held out, pills: cosine" in line for line in lines) == 4
    about = json.loads((tmp_path / "builtin_encoder.json").read_text("utf-8"))
    assert about["finished"] is True
    assert (about["steps"], about["crops_seen"]) == (8, 32)
    assert about["pictures"][0]["licence"] == "CC0"
    assert about["bytes"] == (tmp_path / "builtin_encoder.safetensors").stat().st_size
    assert str(tmp_path) not in json.dumps(about)
    assert set(about["held_out"]["pills"]) == set(script.MEASURES)
    assert load_builtin(BuiltinNetwork(), tmp_path / "builtin_encoder.safetensors")
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "builtin_encoder.json",
        "builtin_encoder.safetensors",
        "checkpoint.safetensors",
    ]
    script.main(
        [
            *(*inputs, "--steps", "2", "--out", str(tmp_path / "more")),
            *("--start", str(tmp_path / "checkpoint.safetensors")),
        ]
    )
    assert json.loads((tmp_path / "more" / "builtin_encoder.json").read_text())["continued"]


def test_it_stops_by_the_clock(
    script: ModuleType, inputs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Setting up takes longer than this: one step, and the files are there."""
    script.main([*inputs, "--minutes", "0.001", "--out", str(tmp_path)])
    assert "step 1  100.0 %" in capsys.readouterr().out
    assert (tmp_path / "builtin_encoder.safetensors").is_file()


def test_a_spoilt_loss_ends_it(
    script: ModuleType, inputs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="the loss is not finite at step 2: try a smaller --rate"):
        script.main([*inputs, "--steps", "4", "--rate", "1e30", "--out", str(tmp_path)])
    assert "loss" in capsys.readouterr().out
    assert not (tmp_path / "builtin_encoder.safetensors").exists()


def test_a_missing_teacher_is_one_line(
    script: ModuleType, inputs: list[str], tmp_path: Path
) -> None:
    missing = ["--teacher", str(tmp_path / "none.safetensors"), "--out", str(tmp_path)]
    with pytest.raises(SystemExit, match=r"^error: cannot read weights .*none\.safet"):
        script.main([*inputs, *missing])


def test_measures(script: ModuleType) -> None:
    generator = torch.Generator().manual_seed(0)
    wanted = torch.rand(6, 5, 4, 4, generator=generator, dtype=torch.float64)
    found = wanted + 0.1 * torch.randn(6, 5, 4, 4, generator=generator, dtype=torch.float64)
    measure = script.StageQuality()
    for part in (slice(0, 4), slice(4, 6)):
        measure.add(found[part], wanted[part])

    def flat(x: Tensor) -> Tensor:
        return x.transpose(0, 1).flatten(1)

    z, t = flat(found), flat(wanted)
    cosines = (z * t).sum(0) / (z.norm(dim=0) * t.norm(dim=0))
    around = t - t.mean(1, keepdim=True)
    assert measure.result() == pytest.approx(
        {
            "cosine": float(cosines.mean()),
            "relative_error": float((z - t).norm() / t.norm()),
            "unexplained": float((z - t).square().sum() / around.square().sum()),
        }
    )
