"""The training loop: the recipe's constants, the order of pictures, a loss that is no number."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from training import Marks, StopAt

from mambaad import fit as module
from mambaad.average import WeightAverage, average_of
from mambaad.batches import Batches, Feed
from mambaad.checkpoint import load_model
from mambaad.config import Config, TrainConfig
from mambaad.data import read_dataset
from mambaad.errors import TrainingError
from mambaad.fit import build_optimizer, computing, fit, parameter_groups
from mambaad.fused.optimiser import Group, takes
from mambaad.graphs import GraphedStep
from mambaad.model import MambaAD, build
from mambaad.model.encoder import load_pretrained
from mambaad.model.layers import DepthwiseConv
from mambaad.model.losses import rebuilding_loss
from mambaad.optimisers import StableAdamW
from mambaad.state import load_state, make_note, save_state
from mambaad.steps import Ring, Step
from mambaad.train import Observer, prepare_batches, train

CPU = torch.device("cpu")


def test_the_published_parameter_groups(tiny_config: Config) -> None:
    model = build(tiny_config.model)
    decayed, plain = parameter_groups(model, 0.1)
    names = {id(p): n for n, p in model.named_parameters()}
    kept = {names[id(p)].rsplit(".", 1)[1] for p in plain["params"]}
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    assert kept == {"bias", "weight", "skip"}
    assert {"a_log", "dt_bias", "dt_weight", "scan_proj", "weight"} == {
        names[id(p)].rsplit(".", 1)[1] for p in decayed["params"]
    }
    assert all(p.dim() == 1 for p in plain["params"] if names[id(p)].endswith("weight"))
    assert not any(names[id(p)].startswith("encoder") for p in decayed["params"] + plain["params"])


def test_the_rate_is_scaled_by_the_batch(tiny_config: Config) -> None:
    model = build(tiny_config.model)
    optimizer = build_optimizer(model, tiny_config.train, batch_size=4)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.005 * 4 / 16)
    assert optimizer.defaults["betas"] == (0.9, 0.999)


def test_the_rate_drops_once_and_batches_follow_the_seed(
    tiny_config: Config, tmp_path: Path
) -> None:
    config = tiny_config.override({"train.epochs": 5, "train.decay_at": 0.8})
    seen = StopAt()
    train(config, tmp_path / "run", device="cpu", observer=seen)
    rates = [s.learning_rate for s in seen.steps]
    assert len(rates) == 15  # 12 pictures, batch 4
    assert rates[:12] == [pytest.approx(0.00125)] * 12
    assert rates[12:] == [pytest.approx(0.000125)] * 3
    assert all(s.loss == pytest.approx(sum(s.parts.values()), rel=1e-5) for s in seen.steps)
    assert seen.steps[-1].loss < seen.steps[0].loss


def test_a_loss_that_is_not_finite_stops_and_names_the_batch(
    tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = MambaAD.loss_parts
    calls = []

    def broken(self: MambaAD, *arguments: object) -> dict[str, torch.Tensor]:
        calls.append(1)
        parts = original(self, *arguments)  # type: ignore[arg-type]
        return {k: v * (float("nan") if len(calls) == 2 else 1) for k, v in parts.items()}

    monkeypatch.setattr(MambaAD, "loss_parts", broken)
    with pytest.raises(TrainingError, match=r"nan .* at step 2; .*: metal/train/good/0"):
        train(tiny_config, tmp_path, device="cpu")
    assert not (tmp_path / "model.safetensors").exists()


def test_a_small_set_makes_one_small_batch(tiny_config: Config, tmp_path: Path) -> None:
    seen = StopAt()
    config = tiny_config.override({"train.batch_size": 64, "train.epochs": 2})
    train(config, tmp_path, device="cpu", observer=seen)
    assert [s.epoch for s in seen.steps] == [1, 2]
    assert seen.steps[0].learning_rate == pytest.approx(0.005 * 12 / 16)


def made(config: Config) -> tuple[MambaAD, Batches, torch.optim.Optimizer]:
    torch.manual_seed(5)
    model = build(config.model)
    model.objective = rebuilding_loss(config.train)
    load_pretrained(model.encoder, "filterbank")
    samples = list(read_dataset(config.data.root).select(split="train"))
    data = prepare_batches(samples, config, model, 4, CPU, Observer())
    torch.manual_seed(6)
    return model, data, build_optimizer(model, config.train, 4)


def ahead(
    model: MambaAD,
    data: Batches,
    optimizer: torch.optim.Optimizer,
    config: Config,
    marks: Marks,
    start: int = 0,
    average: WeightAverage | None = None,
) -> Iterator[Step]:
    """What a GPU does, on the CPU: with marks for its queue, and a replay that does the work."""

    learner = module._Learner(model, optimizer, config.train, CPU, average)
    feed = Feed(data)
    step = GraphedStep(lambda: learner.learn(feed), lambda work: work, lambda _: None)
    ring = Ring(lambda n, found: module._not_finite(data, n, found), make_event=marks.make)
    moments = module._schedule(config.train, optimizer.defaults["lr"], data.per_epoch, start)
    model.train()
    return module._fit_ahead(learner, feed, step, ring, nullcontext, moments)


@pytest.mark.parametrize("cache", ["features", "pictures"])
def test_a_gpus_way_gives_the_same_bits(tiny_config: Config, tmp_path: Path, cache: str) -> None:
    # drop path is on, the rate drops on the way, and it is stopped and resumed in between
    config = tiny_config.override(
        {"train.epochs": 3, "train.decay_at": 0.5, "model.drop_path": 0.5, "data.cache": cache}
    )
    model, data, optimizer = made(config)
    direct = list(fit(model, data, optimizer, config.train))

    other, data, optimizer = made(config)
    begun, marks = [], Marks()
    for step in ahead(other, data, optimizer, config, marks):
        begun.append(step)
        if step.number == 4:
            step.wait()
            save_state(tmp_path, other, optimizer, make_note(config, "id", 4, 1.0))
            break
    torch.manual_seed(999)
    other, data, optimizer = made(config)
    assert load_state(tmp_path, other, optimizer, config, "id") == (4, 1.0)
    rest = list(ahead(other, data, optimizer, config, marks, start=4))
    found = begun + rest
    assert [s.number for s in found] == list(range(1, 10))
    for a, b in zip(direct, found, strict=True):
        assert (a.loss, a.parts, a.gradient_norm) == (b.loss, b.parts, b.gradient_norm)
        assert (a.epoch, a.learning_rate) == (b.epoch, b.learning_rate)
    state = other.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_the_plus_recipe_on_a_gpus_way_gives_the_same_bits(
    tiny_config: Config, tmp_path: Path, precision: str
) -> None:
    """With all that differs from step to step: rate, mining, the mean's weight; resumed too."""
    settings = {"train.recipe": "plus", "train.epochs": 3, "train.warmup": 0.3}
    noise = {"model.neck_noise": 5.0, "train.mining_ramp": 0.9, "train.precision": precision}
    config = tiny_config.override({**settings, **noise})
    model, data, optimizer = made(config)
    assert isinstance(optimizer, StableAdamW)
    average = average_of(model, config.train)
    direct = list(fit(model, data, optimizer, config.train, average=average))
    rates = [step.learning_rate for step in direct]
    assert rates[0] < rates[1] == rates[2] > rates[3] > rates[-1] > 0

    other, data, optimizer = made(config)
    mean, marks = average_of(other, config.train), Marks()
    for step in ahead(other, data, optimizer, config, marks, average=mean):
        if step.number == 4:
            step.wait()
            save_state(tmp_path, other, optimizer, make_note(config, "id", 4, 1.0), mean)
            break
    torch.manual_seed(999)
    other, data, optimizer = made(config)
    mean = average_of(other, config.train)
    assert mean is not None
    assert average is not None
    assert load_state(tmp_path, other, optimizer, config, "id", mean) == (4, 1.0)
    rest = list(ahead(other, data, optimizer, config, marks, start=4, average=mean))
    assert [s.loss for s in rest] == [s.loss for s in direct[4:]]
    state = other.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    found, expected = mean.state_dict(), average.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
    assert not torch.equal(state["neck.join.0.weight"], found["neck.join.0.weight"])


def test_the_mean_of_the_weights_is_saved(
    tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    last: list[torch.Tensor] = []
    give = WeightAverage.give

    def remember(self: WeightAverage) -> None:
        last.append(self._live["neck.join.0.weight"].clone())
        give(self)

    monkeypatch.setattr(WeightAverage, "give", remember)
    config = tiny_config.override({"train.ema_decay": 0.9, "model.recentre": True})
    model = train(config, tmp_path / "run", device="cpu")
    weight = model.state_dict()["neck.join.0.weight"]
    assert not torch.equal(weight, last[0])
    saved = load_model(tmp_path / "run")[1]
    assert torch.equal(saved.state_dict()["neck.join.0.weight"], weight)
    assert saved.recentring is not None  # measured on the training pictures, and saved
    assert not torch.equal(saved.recentring.get_buffer("gain0"), torch.ones(()).expand(1, 1, 1))


def test_states_can_be_kept_from_decay(tiny_config: Config) -> None:
    model = build(tiny_config.model)
    decayed, plain = parameter_groups(model, 0.1, decay_states=False)
    names = {id(p): n.rsplit(".", 1)[1] for n, p in model.named_parameters()}
    assert {names[id(p)] for p in decayed["params"]} == {"dt_weight", "scan_proj", "weight"}
    assert {"a_log", "dt_bias"} < {names[id(p)] for p in plain["params"]}


def test_no_step_of_a_gpu_is_waited_for_while_training(tiny_config: Config) -> None:
    config = tiny_config.override({"train.epochs": 3})
    marks = Marks()
    steps = ahead(*made(config), config, marks)
    taken = [next(steps) for _ in range(9)]
    assert (marks.recorded, marks.waits) == (9, [])
    assert not any(step.ready for step in taken)
    assert list(steps) == []  # the end waits for all
    assert all(step.ready for step in taken)


def test_a_gpus_bad_loss_is_found_later_and_names_its_batch(
    tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config.override({"train.epochs": 3})
    model, data, optimizer = made(config)
    original, calls = MambaAD.loss_parts, []

    def broken(self: MambaAD, *arguments: object) -> dict[str, torch.Tensor]:
        calls.append(1)
        parts = original(self, *arguments)  # type: ignore[arg-type]
        return {k: v * (float("nan") if len(calls) == 2 else 1) for k, v in parts.items()}

    monkeypatch.setattr(MambaAD, "loss_parts", broken)
    steps = ahead(model, data, optimizer, config, Marks())
    first, _, third = (next(steps) for _ in range(3))
    assert first.loss > 0
    with pytest.raises(TrainingError, match=r"nan .* at step 2; .*: metal/train/good/0"):
        third.wait()
    with pytest.raises(TrainingError, match="at step 2"):
        next(steps)


def test_float32_convolutions_are_float32() -> None:
    before = torch.backends.cudnn.allow_tf32
    with computing("float32", CPU):
        assert not torch.backends.cudnn.allow_tf32
        assert not torch.backends.cudnn.benchmark
        assert torch.backends.cudnn.enabled
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
    assert torch.backends.cudnn.allow_tf32 == before
    assert not torch.backends.cudnn.deterministic
    with computing("float32", CPU):
        assert torch.backends.cudnn.deterministic
    with computing("bf16", CPU):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16


def test_the_rate_of_a_tensor_changes_in_place(tiny_config: Config) -> None:
    optimizer = build_optimizer(build(tiny_config.model), tiny_config.train)
    rates = [torch.tensor(1.0), torch.tensor(1.0)]
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    model = torch.nn.Linear(2, 2)
    module._Learner(model, optimizer, tiny_config.train, CPU).set_rate(0.25)
    assert [float(rate) for rate in rates] == [0.25, 0.25]
    assert optimizer.defaults["lr"] == pytest.approx(0.005 * 4 / 16)


def test_loaded_moments_lie_as_their_parameters_do() -> None:
    """A file keeps no strides, and fused AdamW wants them all alike."""

    def optimizer_of(weight: torch.Tensor) -> torch.optim.AdamW:
        layer = torch.nn.Linear(1, 1)
        layer.weight = torch.nn.Parameter(weight)
        return build_optimizer(layer, TrainConfig())

    weight = torch.arange(24.0).view(4, 3, 2).permute(2, 1, 0)
    optimizer = optimizer_of(weight)
    values = torch.arange(24.0).view(2, 3, 4)
    state = optimizer.state_dict()
    zero = torch.tensor(0.0)
    state["state"] = {0: {"step": zero, "exp_avg": values, "exp_avg_sq": values + 1}}
    optimizer.load_state_dict(state)
    (found,) = optimizer.state.values()
    assert found["exp_avg"].stride() == found["exp_avg_sq"].stride() == weight.stride()
    assert torch.equal(found["exp_avg"], values)
    assert torch.equal(found["exp_avg_sq"], values + 1)


def test_trained_filters_lie_channels_last_and_keep_their_values() -> None:
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3),
        torch.nn.Conv2d(4, 5, 3).requires_grad_(False),
        DepthwiseConv(5, 3),
    )
    before = [value.clone() for value in model.state_dict().values()]
    strides = [model[1].weight.stride(), model[2].weight.stride()]
    filters = model[0].weight
    module._lay_out_filters(model)
    assert model[0].weight is filters
    assert filters.is_contiguous(memory_format=torch.channels_last)
    assert [model[1].weight.stride(), model[2].weight.stride()] == strides
    assert all(torch.equal(a, b) for a, b in zip(before, model.state_dict().values(), strict=True))


def test_the_kernels_update_every_weight(
    tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As filters lie on a GPU; what they do not take is a hundred launches more."""
    config = tiny_config.override({"train.recipe": "plus"})
    model = build(config.model)
    module._lay_out_filters(model)
    optimizer = build_optimizer(model, config.train)
    seen: list[Group] = []
    monkeypatch.setattr("mambaad.optimisers._plain", lambda group, **_: seen.append(group))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert [takes(group) for group in seen] == [True, True]
    trained = [p for p in model.parameters() if p.requires_grad]
    assert sum(len(group.parameters) for group in seen) == len(trained)
