"""The benchmark scripts run on the CPU at tiny sizes, and refuse to time what is wrong."""

from __future__ import annotations

import csv
import importlib
import io
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout, suppress
from pathlib import Path
from types import ModuleType

import pytest
import torch
from interpreter import interpreted_device

import mambaad.cli
from mambaad.checkpoint import load_config
from mambaad.config import ModelConfig, parse_setting
from mambaad.fused import triton_runs
from mambaad.model.builtin import BuiltinNetwork, save_builtin
from mambaad.recipes import PLUS

FOLDER = Path(__file__).parents[1] / "benchmarks"
# the scan's last, because it puts this folder first in the path
NAMES = (
    "cache",
    "compiled",
    "encoders",
    "training",
    "inference",
    "machine",
    "network",
    "scaling",
    "timing",
    "end_to_end",
    "extend",
    "variants",
    "scan",
)
TINY = ["--device", "cpu", "--encoder", "filterbank", "--depths", "1", "1", "1", "1"]
SMALL = [*TINY, "--size", "64", "--repeats", "2"]
ABOUT = {"device", "torch", "triton", "commit"}


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, ModuleType]]:
    """The scripts by name; ``training`` is also the name of a file beside this one."""
    monkeypatch.syspath_prepend(FOLDER)
    before = {name: sys.modules.pop(name) for name in NAMES if name in sys.modules}
    yield {name: importlib.import_module(name) for name in NAMES}
    for name in NAMES:
        sys.modules.pop(name, None)
    sys.modules.update(before)


Scripts = dict[str, ModuleType]
Output = pytest.CaptureFixture[str]


def rows(output: Output) -> list[dict[str, str]]:
    """What was printed, each row with the cells that every row must have."""
    found = list(csv.DictReader(output.readouterr().out.splitlines()))
    assert found
    assert all(row[name] for row in found for name in ABOUT)
    return found


def test_training(scripts: Scripts, capsys: Output) -> None:
    scripts["training"].main(
        [*SMALL, "--batch", "2", "--precision", "float32", "bf16", "--directions", "2"]
    )
    found = rows(capsys)
    keys = [(row["precision"], row["source"], row["batch"]) for row in found]
    assert keys == [(p, s, "2") for p in ("float32", "bf16") for s in ("features", "pictures")]
    for row in found:
        assert 0 < float(row["p20_ms"]) <= float(row["median_ms"]) <= float(row["p80_ms"])
        rate = 2000 / float(row["median_ms"])
        assert float(row["pictures_per_second"]) == pytest.approx(rate, rel=0.01, abs=0.1)


def test_inference(scripts: Scripts, capsys: Output) -> None:
    scripts["inference"].main([*SMALL, "--batch", "1", "3", "--directions", "2"])
    found = rows(capsys)
    keys = [(row["precision"], row["batch"]) for row in found]
    assert keys == [(p, b) for p in ("float32", "bf16") for b in ("1", "3")]
    assert all(float(row["median_ms"]) > 0 for row in found)


def test_compiled(scripts: Scripts, monkeypatch: pytest.MonkeyPatch, capsys: Output) -> None:
    """Without compiling, which takes seconds; the next test does."""
    compiled, asked = scripts["compiled"], []

    def quickly(function: Callable[..., object], **options: object) -> Callable[..., object]:
        asked.append(options)
        return function

    monkeypatch.setattr(torch, "compile", quickly)
    ways = ["--way", "plain", "compiled"]
    compiled.main([*SMALL, *ways, "--batch", "2", "--directions", "2", "--precision", "float32"])
    found = rows(capsys)
    options = {"fullgraph": True, "dynamic": False, "backend": "inductor", "mode": "default"}
    assert asked == [options] * 4  # checked and timed, inference and training
    keys = [(row["what"], row["way"], row["batch"]) for row in found]
    assert keys == [(w, y, "2") for w in compiled.KINDS for y in ("plain", "compiled")]
    assert all(float(row["median_ms"]) > 0 and row["graph"] == "" for row in found)


def test_a_step_compiles_as_one_graph(scripts: Scripts) -> None:
    compiled, network = scripts["compiled"], scripts["network"]
    model = ModelConfig("filterbank", (1, 1, 1, 1), directions=2, drop_path=0.0)
    case, device = network.Case(model, 32, 2, "float32"), torch.device("cpu")
    expected = compiled.TrainingStep(case, None, device).compute()
    step = compiled.TrainingStep(case, compiled.Compiler("eager", "default"), device)
    torch.testing.assert_close(step.compute(), expected)


def test_fused_kernels_are_off_where_they_are_not_wanted(scripts: Scripts) -> None:
    before = triton_runs()
    with scripts["compiled"].hand_fused(False):
        assert not triton_runs()
    with scripts["compiled"].hand_fused(True):
        assert triton_runs() == before


@pytest.mark.parametrize("what", ["inference", "training"])
def test_a_wrong_way_is_not_timed(
    scripts: Scripts, monkeypatch: pytest.MonkeyPatch, capsys: Output, what: str
) -> None:
    compiled = scripts["compiled"]
    right = compiled.made

    def other(*arguments: object) -> torch.nn.Module:
        network: torch.nn.Module = right(*arguments)
        for leaf, parameter in network.named_parameters():
            if leaf.endswith(("skip", "norm.weight")):
                parameter.data.neg_()
        return network

    monkeypatch.setattr(compiled, "made", other)
    way = ["--what", what, "--way", "plain", "--precision", "float32", "--directions", "2"]
    with pytest.raises(SystemExit, match=r"^plain: the .* off by .*nothing was timed$"):
        compiled.main([*SMALL, *way])
    assert capsys.readouterr().out == ""


def test_only_a_gradient_of_zero_may_be_missing(scripts: Scripts) -> None:
    """Of a bias before a norm; what is small beside others' gradients is not zero."""
    truths = {"a.bias": torch.ones(2), "b.bias": torch.full((3,), 1e-15), "c.bias": torch.ones(1)}
    truths = {name: truth.double() for name, truth in truths.items()}
    truths["c.bias"] *= 1e-6
    check, found = scripts["network"].check_gradients, {n: g.float() for n, g in truths.items()}
    del found["b.bias"]
    check(found, truths, None, "float32")
    check(found, truths, found, "bf16")
    wrong = r"^way: the gradients of bias in float32 are off by .*nothing was timed$"
    with pytest.raises(SystemExit, match=wrong):
        check(found | {"a.bias": 1.01 * found["a.bias"]}, truths, None, "float32", way="way: ")
    del found["c.bias"]
    with pytest.raises(SystemExit, match=r"^c\.bias in float32 has no gradient, where"):
        check(found, truths, None, "float32")


def test_scaling(scripts: Scripts, monkeypatch: pytest.MonkeyPatch, capsys: Output) -> None:
    scaling, result = scripts["scaling"], scripts["network"].Result
    monkeypatch.setattr(
        scaling,
        "TIMERS",
        dict.fromkeys(scaling.TIMERS, lambda *_: result([4.0, 2.0, 3.0], ["", ""])),
    )
    tiny = [*TINY, "--size", "64", "128", "--batch", "2", "1", "--directions", "2", "4"]
    scaling.main([*tiny, "--repeats", "2", "--precision", "float32"])
    found = rows(capsys)
    keys = [(row["series"], row["size"], row["batch"], row["directions"]) for row in found]
    expected = [
        ("size", "64", "2", "4"),
        ("size", "128", "2", "4"),
        ("batch", "64", "1", "4"),
        ("batch", "64", "2", "4"),
        ("directions", "64", "2", "2"),
        ("directions", "64", "2", "4"),
    ]
    assert keys == expected * 2
    assert [row["what"] for row in found] == ["training"] * 6 + ["inference"] * 6
    assert found[1]["median_ms"] == "3.000"
    assert found[1]["ms_per_megapixel"] == f"{3 / (2 * 128 * 128 / 1e6):.2f}"


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("name", ["training", "inference", "scaling"])
def test_a_wrong_network_is_not_timed(
    scripts: Scripts, monkeypatch: pytest.MonkeyPatch, capsys: Output, name: str, precision: str
) -> None:
    network = scripts["network"]
    right = network.with_backend

    def other(model: torch.nn.Module, backend: str) -> torch.nn.Module:
        twin = right(model, backend)
        for leaf, parameter in twin.named_parameters():
            if leaf.endswith(("skip", "norm.weight")):
                parameter.data.neg_()
        return twin

    monkeypatch.setattr(network, "with_backend", other)
    with pytest.raises(SystemExit) as ended:
        scripts[name].main([*SMALL, "--precision", precision, "--directions", "2"])
    assert "is off by" in str(ended.value) or "are off by" in str(ended.value)
    assert str(ended.value).endswith("nothing was timed")
    assert capsys.readouterr().out == ""


@pytest.fixture
def tiny_stage(scripts: Scripts, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script of the scan with one small stage, whose rank is one of the unfused ones."""
    scan = scripts["scan"]
    monkeypatch.setattr(scan, "STAGES", {"8x8": (4, 8, 3)})
    monkeypatch.setattr(scan, "PATHS", 2)
    # Triton's interpreter cuts 16-bit numbers off, where a GPU rounds them
    monkeypatch.setattr(scan, "BF16_LIMIT", 2**-7)
    return scan


def test_scan_on_the_cpu(tiny_stage: ModuleType, capsys: Output) -> None:
    tiny_stage.main(["--stage", "8x8", "--batch", "1", "2", "--repeats", "2"])
    found = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    keys = [(row["stage"], row["batch"]) for row in found]
    assert keys == [("8x8", "1"), ("3 blocks", "1"), ("8x8", "2"), ("3 blocks", "2")]
    assert all(float(row["backward_median_ms"]) > 0 and row["commit"] for row in found)


def test_scan_by_triton(
    tiny_stage: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    """What a GPU runs, in the interpreter if there is none."""
    device = interpreted_device()

    def once(call: Callable[[], object], *_: object) -> list[float]:
        call()
        return [0.25, 0.5]

    monkeypatch.setattr(tiny_stage, "timed", once)
    tiny_stage.gpu_rows(["8x8"], [1], ["float32", "bf16"], 2, device, 2.0)
    found = rows(capsys)
    keys = [(row["stage"], row["precision"], row["pass"]) for row in found]
    passes = tiny_stage.PASSES
    stages = ("8x8", "3 blocks")
    assert keys == [(s, p, n) for p in ("float32", "bf16") for s in stages for n in passes]
    for row in found:
        ratio = float(row["median_us"]) / float(row["limit_us"])
        assert float(row["ratio"]) == pytest.approx(ratio, rel=0.05, abs=0.01)
    assert found[2]["limit_us"] == "4.7"
    assert all(float(row["error_times"]) > 0 for row in found if row["stage"] == "8x8")


@pytest.mark.parametrize("backend", ["numba", "triton"])
def test_a_wrong_scan_is_not_timed(
    tiny_stage: ModuleType, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    device = interpreted_device() if backend == "triton" else torch.device("cpu")
    right = tiny_stage.results

    def wrong(*arguments: object) -> dict[str, torch.Tensor]:
        found: dict[str, torch.Tensor] = right(*arguments)
        if arguments[2] == backend:
            found["dt_bias"] = 1.01 * found["dt_bias"]
        return found

    tiny_stage.check("8x8", 1, device, "float32", 2, backend)
    monkeypatch.setattr(tiny_stage, "results", wrong)
    with pytest.raises(SystemExit, match=r"^8x8, .*dt_bias is off by .*nothing was timed$"):
        tiny_stage.check("8x8", 1, device, "float32", 2, backend)


def test_end_to_end(
    scripts: Scripts,
    monkeypatch: pytest.MonkeyPatch,
    tiny_data: Path,
    tmp_path: Path,
    capsys: Output,
) -> None:
    def call(arguments: Sequence[str], environment: Mapping[str, str]) -> float:
        """The command line in this process, which starts more quickly."""
        assert environment
        with redirect_stdout(io.StringIO()), suppress(SystemExit):
            mambaad.cli.main(list(arguments))
        return 2.0

    monkeypatch.setattr(scripts["end_to_end"], "call", call)
    settings = ["model.depths=[1, 1, 1, 1]", "model.directions=2", "data.image_size=64"]
    scripts["end_to_end"].main(
        [
            *(str(tiny_data), "--encoder", "filterbank", "--device", "cpu"),
            *("--epochs", "1", "--seeds", "1", "2", "--precision", "float32"),
            *("--check-size", "64", "--out", str(tmp_path)),
            *(word for setting in settings for word in ("--set", setting)),
        ]
    )
    first, _, second = capsys.readouterr().out.partition("\n\n")
    runs = list(csv.DictReader(first.splitlines()))
    keys = [(row["precision"], row["seed"], row["jumps"], row["wall_s"]) for row in runs]
    assert keys == [("float32", "1", "0", "4.0"), ("float32", "2", "0", "4.0")]
    assert all(row["mAD metal"] and row["mAD mean"] and row["device"] for row in runs)
    means = list(csv.DictReader(second.splitlines()))
    assert [row["category"] for row in means] == ["metal", "wood", "mean"]
    values = [float(row["mAD mean"]) for row in runs]
    mean, _, deviation = means[-1]["mAD"].partition(" ± ")
    assert float(mean) == pytest.approx(sum(values) / 2, abs=0.06)
    assert float(deviation) == pytest.approx(abs(values[0] - values[1]) / 2**0.5, abs=0.06)


def test_end_to_end_stops_at_a_failure(
    scripts: Scripts, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Output
) -> None:
    for name in ("check_training", "check_scoring"):
        monkeypatch.setattr(scripts["end_to_end"], name, lambda *_: None)
    with pytest.raises(SystemExit, match="mambaad train ended with status 2: error: "):
        scripts["end_to_end"].main(
            [str(tmp_path / "none"), "--device", "cpu", "--seeds", "1", "--out", str(tmp_path)]
        )
    assert capsys.readouterr().out == ""


def test_encoders(
    scripts: Scripts,
    monkeypatch: pytest.MonkeyPatch,
    tiny_data: Path,
    tmp_path: Path,
    capsys: Output,
) -> None:
    def call(arguments: Sequence[str], _: Mapping[str, str]) -> float:
        with redirect_stdout(io.StringIO()), suppress(SystemExit):
            mambaad.cli.main(list(arguments))
        return 2.0

    monkeypatch.setattr(scripts["end_to_end"], "call", call)
    save_builtin(BuiltinNetwork(), tmp_path / "builtin.safetensors")
    weights = scripts["encoders"].write_random(tmp_path / "resnet18.safetensors")
    settings = ["model.depths=[1, 1, 1, 1]", "model.directions=2", "data.image_size=64"]
    settings.append('data.categories=["metal"]')
    scripts["encoders"].main(
        [
            *(str(tiny_data), "--builtin-weights", str(tmp_path / "builtin.safetensors")),
            *("--encoder-weights", str(weights), "--device", "cpu", "--epochs", "1"),
            *("--seeds", "1", "--size", "64", "--batch", "1", "--rounds", "1", "--repeats", "2"),
            *("--out", str(tmp_path / "runs")),
            *(word for setting in settings for word in ("--set", setting)),
        ]
    )
    speed, runs, means, share = capsys.readouterr().out.split("\n\n")
    timed = list(csv.DictReader(speed.splitlines()))
    assert [row["encoder"] for row in timed] == ["builtin", "resnet18"]
    assert float(timed[0]["parameters"]) < float(timed[1]["parameters"])
    assert timed[1]["share_of_resnet18"] == "1.000"
    found = list(csv.DictReader(runs.splitlines()))
    assert [row["encoder"] for row in found] == ["builtin", "resnet18", "random"]
    assert found[1]["mAD mean"] == found[2]["mAD mean"]  # the given weights are the random ones
    assert found[0]["mAD mean"] != found[1]["mAD mean"]
    shown = [(row["encoder"], row["category"]) for row in csv.DictReader(means.splitlines())]
    assert shown[:2] == [("builtin", "metal"), ("builtin", "mean")]
    assert share == '"share of the gain kept, %",nan\n'


def test_a_wrong_encoder_is_not_timed(
    scripts: Scripts, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    encoders = scripts["encoders"]
    right = encoders.inference_copy

    def other(network: torch.nn.Module, dtype: torch.dtype) -> torch.nn.Module:
        twin: torch.nn.Module = right(network, dtype)
        next(twin.parameters()).data.mul_(1.01)
        return twin

    monkeypatch.setattr(encoders, "inference_copy", other)
    with pytest.raises(SystemExit, match=r"^map 1 of builtin in float32 is off by .*: nothing"):
        encoders.main(["--size", "64", "--batch", "1", "--device", "cpu"])
    assert "builtin" not in capsys.readouterr().out


def test_jumps(scripts: Scripts) -> None:
    count = scripts["end_to_end"].count_jumps
    assert count([5.0]) == (0, 1.0)
    assert count([1.0] * 20 + [3.0, 9.0, 1.0, 3.0]) == (2, 9.0)
    assert count([1.0] * 20 + [2.99]) == (0, 2.99)
    assert count([1.0] * 19 + [9.0]) == (0, 1.0)


def test_metrics_at_scale(monkeypatch: pytest.MonkeyPatch, capsys: Output) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    names = ("metrics", "machine", "metrics_scale")
    before = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    script = importlib.import_module("metrics_scale")
    monkeypatch.setattr(script, "apart", lambda function, *arguments: function(*arguments))
    tools = ["mambaad exact", "mambaad streaming", "scikit-learn", "adeval"]
    sizes = ["--pictures", "9", "--large", "12", "--simulate", "64", "--size", "48"]
    script.main([*sizes, "--tool", *tools])
    for name in names:
        sys.modules.pop(name, None)
    sys.modules.update(before)
    found = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert [row["pictures"] for row in found] == ["9"] * 4 + ["12", "64"]
    assert [row["tool"] for row in found[:4]] == tools
    assert float(found[1]["worst_error"]) <= 1e-4
    assert float(found[2]["worst_error"]) <= 1e-9
    assert found[3]["note"] or found[3]["pixel_AUROC"]
    assert all(float(row["seconds"]) > 0 and row["pixel_AUPIMO"] for row in found[-2:])


def test_cache(
    scripts: Scripts, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Output
) -> None:
    script = scripts["cache"]
    monkeypatch.setattr(script, "apart", script.measured)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    monkeypatch.setattr(script.os, "sched_setaffinity", lambda *_: None, raising=False)
    tiny = ["--pictures", "6", "--side", "40", "--size", "8", "--batch", "2", "--cpus", "1", "2"]
    script.main([str(tmp_path), *tiny])
    found = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    starts = [(row["what"], row["pictures"], row["note"]) for row in found[1:4]]
    assert starts == [
        ("first, killed", "2", "0 of them kept; status 9"),
        ("first, rest", "6", "0 were there"),
        ("second", "6", "6 were there"),
    ]
    keys = [(row["what"], row["cpus"], row["pictures"]) for row in found[4:]]
    assert keys == [(w, c, "6") for c in "12" for w in ("feed", "feed, unread", "load")]
    assert all(float(row["pictures_per_second"]) > 0 and row["commit"] for row in found)
    assert len({path.read_bytes() for path in script.names(tmp_path, 6)}) == 6


def test_a_wrong_cache_is_not_timed(scripts: Scripts, tmp_path: Path) -> None:
    script = scripts["cache"]
    script.make(tmp_path, 2, 40)
    script.fill(tmp_path, 2, 8)
    script.check(tmp_path, 2, 8)
    file = next((tmp_path / "cache").iterdir())
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)
    with pytest.raises(RuntimeError, match="is kept wrongly; nothing was timed"):
        script.check(tmp_path, 2, 8)


def in_this_process(arguments: Sequence[str], environment: Mapping[str, str]) -> float:
    """The command line in this process, which starts more quickly."""
    assert environment
    with redirect_stdout(io.StringIO()), pytest.raises(SystemExit) as ended:
        mambaad.cli.main(list(arguments))
    assert not ended.value.code
    return 2.0


def test_extend(
    scripts: Scripts,
    monkeypatch: pytest.MonkeyPatch,
    tiny_data: Path,
    tmp_path: Path,
    capsys: Output,
) -> None:
    monkeypatch.setattr(scripts["extend"], "call", in_this_process)
    settings = ["model.depths=[1, 1, 1, 1]", "model.directions=2", "data.image_size=64"]
    arguments = [
        *(str(tiny_data), "--encoder", "filterbank", "--device", "cpu", "--epochs", "1"),
        *("--left-out", "wood", "--replay", "2", "--alone", "--out", str(tmp_path)),
        *(word for setting in settings for word in ("--set", setting)),
    ]
    scripts["extend"].main(arguments)
    first, _, second = capsys.readouterr().out.partition("\n\n")
    found = list(csv.DictReader(first.splitlines()))
    keys = [(row["network"], row["product"], row["category"]) for row in found]
    both = ["metal", "wood", "mean"]
    assert keys == [
        *(("joint", "", name) for name in both),
        *(("without", "wood", name) for name in ("metal", "mean")),
        *(("unseen", "wood", name) for name in ("wood", "mean")),
        *(("extended", "wood", name) for name in both),
        *(("alone", name, category) for name in ("metal", "wood") for category in (name, "mean")),
    ]
    (row,) = csv.DictReader(second.splitlines())
    mad = {key: line["mAD"] for key, line in zip(keys, found, strict=True)}
    assert row["old_before"] == mad["without", "wood", "metal"]
    assert row["old_after"] == mad["extended", "wood", "metal"]
    assert row["new_before"] == mad["unseen", "wood", "wood"]
    assert row["new_joint"] == mad["joint", "", "wood"]
    assert row["new_alone"] == mad["alone", "wood", "wood"]
    assert (row["left_out"], row["extend_s"], row["joint_s"]) == ("wood", "2.0", "2.0")

    def not_again(*_: object) -> float:
        raise AssertionError("it was done already")

    monkeypatch.setattr(scripts["extend"], "call", not_again)
    scripts["extend"].main(arguments)
    assert capsys.readouterr().out == f"{first}\n\n{second}"
    with pytest.raises(SystemExit, match=r"no product \['glass'\] to leave out"):
        scripts["extend"].main([str(tiny_data), "--left-out", "glass"])


def test_variants(
    scripts: Scripts,
    monkeypatch: pytest.MonkeyPatch,
    tiny_data: Path,
    tmp_path: Path,
    capsys: Output,
) -> None:
    monkeypatch.setattr(scripts["variants"], "call", in_this_process)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    tiny = "variant:fast;model.encoder=filterbank"
    scripts["variants"].main(
        [
            *("--row", f"tiny={tiny}", f"half={tiny};model.directions=4;model.score_top=0.5"),
            *("--size", "64", "--rounds", "1", "--device", "cpu", "--data", str(tiny_data)),
            *("--epochs", "1", "--seeds", "1", "--out", str(tmp_path)),
            *("--set", "train.batch_size=6", "--set", "train.recipe=plus"),
        ]
    )
    found = rows(capsys)
    assert [(r["row"], r["directions"], r["seeds"]) for r in found] == [
        ("tiny", "2", "1"),
        ("half", "4", "1"),
    ]
    assert float(found[0]["trainable_m"]) < float(found[1]["trainable_m"])
    for row in found:
        assert row["depths"] == "1-1-1-1"
        assert 0 < float(row["cpu_fastest_ms"]) <= float(row["cpu_ms"])
        assert row["mAD"]
        assert not row["mAD_deviation"]
        assert not row["gpu_bf16_ms"]
        model = load_config(tmp_path / f"{row['row']}-1").model
        assert (model.encoder, model.depths) == ("filterbank", (1, 1, 1, 1))
        assert str(model.directions) == row["directions"]
        # the whole recipe is trained, but for what the row sets itself
        assert model.score_top == (0.5 if row["row"] == "half" else PLUS["model.score_top"])
        parts = [key for key in PLUS if key.startswith("model.") and key != "model.score_top"]
        assert parts
        assert all(getattr(model, key.removeprefix("model.")) == PLUS[key] for key in parts)


def test_a_row_of_variants_is_passed_as_it_is(scripts: Scripts) -> None:
    variants = scripts["variants"]
    assert variants.settings_of("paper") == ("paper", {})
    name, settings = variants.settings_of(
        "mine=model.encoder=builtin;model.scan={zigzag = 4, sweep = 2};train.recipe=plus"
    )
    assert name == "mine"
    args = variants.options(["--size", "64", "--epochs", "2", "--set", "train.seed=3"])
    passed = dict(parse_setting(text) for text in variants._as_options(settings, args))
    shared = {"data.image_size": 64, "train.epochs": 2, "train.seed": 3}
    assert passed == {**settings, **shared}
    assert passed["model.scan"] == {"zigzag": 4, "sweep": 2}
