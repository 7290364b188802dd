"""``TrainConfig``: how the network learns, the third of the tables of ``mambaad.config``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mambaad.checks import as_scale_weights, check_choice, check_range, check_type
from mambaad.errors import ConfigError
from mambaad.recipes import RecipeName
from mambaad.settings_table import Table

Precision = Literal["auto", "float32", "bf16"]
PresetName = Literal["mvtec-ad", "visa", "real-iad", "mvtec-3d", "uni-medical", "coco-ad"]
LossName = Literal["mse", "cosine", "global-cosine"]
Mining = Literal["none", "hardest", "adaptive"]
OptimizerName = Literal["adamw", "stable-adamw"]
Schedule = Literal["step", "cosine"]


@dataclass(frozen=True)
class TrainConfig(Table):
    """How the network learns. Defaults but ``epochs`` and ``precision`` are as published."""

    recipe: RecipeName = "paper"
    """Recipe that a settings file or ``Config.override`` put in where nothing was set; see
    ``mambaad.recipes``. Here it is the name only."""

    epochs: int = 100
    """Passes over the training pictures. The paper says 500, its configuration files 1000, the
    authors' later benchmark 100 and 300; 100 match or pass the paper on most sets."""

    batch_size: int = 16
    """Pictures in a step."""

    learning_rate: float = 0.005
    """The rate for a batch of 16; it is scaled by ``batch_size / 16``."""

    optimizer: OptimizerName = "adamw"
    """``adamw``, or ``stable-adamw``, which shortens steps after a sudden gradient."""

    weight_decay: float = 1e-4
    """On tensors of two or more dimensions whose name does not end in ``.bias``, as published (so
    on ``a_log`` and ``dt_bias`` too)."""

    decay_states: bool = True
    """Whether weight decay acts on the scan's ``a_log`` and ``dt_bias``, as published."""

    loss: LossName = "mse"
    """``mse``, as published; ``cosine`` distance of each pixel; ``global-cosine``, of a picture's
    map as one vector. See ``mambaad.model.losses``."""

    loss_weight: float = 5.0
    """Factor on the sum of the three scales' losses."""

    scale_weights: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """Factor on each scale's loss: strides 4, 8 and 16."""

    mining: Mining = "none"
    """Whether badly rebuilt points pull more: ``hardest`` weakens the easy points' gradient,
    ``adaptive`` weighs each by its distance."""

    mining_share: float = 0.9
    """Share of the points that ``hardest`` calls easy."""

    mining_ramp: float = 0.1
    """Share of the steps over which ``mining_share`` is reached."""

    clip_norm: float = 5.0
    """Largest L2 norm of the gradient; 0 turns clipping off."""

    schedule: Schedule = "step"
    """``step``: the rate drops once, at ``decay_at``; ``cosine``: it falls all the time."""

    warmup: float = 0.0
    """Share of the steps, at the beginning, over which the rate rises."""

    decay_at: float = 0.8
    """Share of the epochs (at least one) after which ``decay_factor`` multiplies the rate."""

    decay_factor: float = 0.1
    """What the rate is multiplied by there, or at the cosine's end."""

    ema_decay: float = 0.0
    """Share of the running mean of the weights that a step keeps; the mean is what is tested and
    saved. 0: the last weights are."""

    seed: int = 42
    """Seed of the weights, the data order and drop path."""

    precision: Precision = "auto"
    """``bf16`` runs matrix products and convolutions under autocast, the scan in float32;
    ``float32`` everything, without TF32; ``auto`` is bf16 on a GPU that has it, else float32."""

    checkpoint_minutes: float = 10.0
    """Time between two states to resume from; the first is saved after a minute at the latest."""

    preset: PresetName | None = None
    """Benchmark whose recipe ``mambaad train`` put in; see ``mambaad.presets.configure``."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            check_type(name, getattr(self, name), int)
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1; got {getattr(self, name)}")
        check_type("seed", self.seed, int)
        check_range("seed", self.seed, 0, 2**63 - 1)
        self._check_numbers()
        choices = {
            "recipe": RecipeName,
            "loss": LossName,
            "mining": Mining,
            "optimizer": OptimizerName,
            "schedule": Schedule,
            "precision": Precision,
        }
        for name, known in choices.items():
            check_choice(name, getattr(self, name), known)
        check_type("decay_states", self.decay_states, bool)
        if self.preset is not None:
            check_choice("preset", self.preset, PresetName)

    def _check_numbers(self) -> None:
        check_range("learning_rate", self.learning_rate, 0.0, 10.0, low_open=True)
        check_range("weight_decay", self.weight_decay, 0.0, 10.0)
        check_range("loss_weight", self.loss_weight, 0.0, 1e6, low_open=True)
        check_range("clip_norm", self.clip_norm, 0.0, 1e9)
        check_range("decay_at", self.decay_at, 0.0, 1.0)
        check_range("decay_factor", self.decay_factor, 0.0, 1.0)
        check_range("warmup", self.warmup, 0.0, 1.0)
        check_range("mining_share", self.mining_share, 0.0, 1.0)
        check_range("mining_ramp", self.mining_ramp, 0.0, 1.0)
        check_range("ema_decay", self.ema_decay, 0.0, 1.0, high_open=True)
        check_range("checkpoint_minutes", self.checkpoint_minutes, 0.0, 1e6)
        self._set("scale_weights", as_scale_weights("scale_weights", self.scale_weights))
