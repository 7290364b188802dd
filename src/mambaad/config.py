"""The settings, as three frozen dataclasses that refuse a bad value when they are made.

``ModelConfig`` says what network to build, ``DataConfig`` which pictures it sees and how they are
prepared, ``TrainConfig`` how it learns. ``Config`` holds the three; on disk it is a TOML file with
a table for each. Defaults are as published (arXiv 2404.06564) but for epochs and precision.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

from mambaad.checks import (
    as_integers,
    as_scale_weights,
    as_size,
    check_choice,
    check_range,
    check_type,
)
from mambaad.errors import ConfigError
from mambaad.layout_names import Layout
from mambaad.recipes import fill_in, recipe_settings
from mambaad.settings_table import Table, did_you_mean
from mambaad.tiling import Tiling
from mambaad.train_config import Precision as Precision
from mambaad.train_config import PresetName as PresetName
from mambaad.train_config import TrainConfig as TrainConfig

if sys.version_info >= (3, 11):
    import tomllib
else:  # pragma: no cover - the same module under its older name
    import tomli as tomllib

ScanMethod = Literal["sweep", "scan", "zorder", "zigzag", "hilbert"]
Branches = Literal["both", "local", "global"]
Cache = Literal["auto", "features", "pictures", "disk", "none"]

TOTAL_STRIDE = 32
"""The encoder's last map has stride 16 and the bottleneck halves it once more."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
"""Mean of R, G, B on the 0..1 scale that the encoders were trained with."""

IMAGENET_STD = (0.229, 0.224, 0.225)
"""Standard deviation of R, G, B on the 0..1 scale."""


@dataclass(frozen=True)
class ModelConfig(Table):
    """What is needed to rebuild the network. Stored in every run folder."""

    encoder: str = "resnet34"
    """Frozen encoder: any timm name with feature maps at strides 4, 8 and 16, ``builtin``
    or ``filterbank``."""

    depths: tuple[int, ...] = (3, 4, 6, 3)
    """HSS blocks in each of the four decoder stages, coarsest first."""

    scan: ScanMethod | Mapping[str, int] = "hilbert"
    """Path of the scan, or a hybrid of the paper's such as ``{"zigzag": 4, "hilbert": 4}``."""

    directions: int | Literal["distinct"] = 8
    """2, 4 or 8 directions as published, or ``"distinct"``: eight paths that all differ
    (Hilbert-8 as published has only six). A hybrid scan carries its own counts."""

    hss_per_lss: int | None = None
    """HSS blocks in one LSS module (the paper's M). None: the published rule, 3 where the depth
    is a multiple of 3, else 2; a depth that is neither is made of threes, twos or a one."""

    kernels: tuple[int, ...] = (5, 7)
    """Kernel sizes of the local branches, from 1, 3, 5 and 7 (the paper's ablation of the LSS)."""

    pointwise: bool = True
    """1x1 convolutions before and after each depth-wise one (the same ablation)."""

    residual: bool = True
    """The skip connection around the whole LSS (paper, equation 7)."""

    branches: Branches = "both"
    """``local``: only the convolutions; ``global``: only the state space blocks."""

    drop_path: float = 0.2
    """Stochastic depth of the deepest LSS; falls linearly to 0."""

    neck_dropout: float = 0.0
    """Share of the values at the neck's end that training sets to 0."""

    neck_noise: float = 0.0
    """Noise on the maps that the neck gets in training: deviation in a pixel, in its feature
    vector's length divided by the number of channels. 20 is usual where it is used."""

    neck_masking: float = 0.0
    """Share of the positions at the neck's end that training hides from the decoder."""

    recentre: bool = False
    """Whether maps are compared, and rebuilt, as deviations from the training pictures' mean
    feature vector."""

    damping: float = 0.0
    """Makes distances of short vectors count less, whose direction is mostly noise: where the
    teacher's squared length is this part of the usual one, half. It needs ``recentre``."""

    fine_pooling: int = 1
    """Above 1, the maps at stride 4 are compared twice, as they are and averaged over squares of
    this side, and their distance is the geometric mean of both. Odd, 1 to 15."""

    map_weights: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """Weights of the three scales in the anomaly map: strides 4, 8 and 16."""

    score_top: float = 0.0
    """A picture's score is the mean of this share of its anomaly map's highest pixels; 0: the
    maximum, as published."""

    def __post_init__(self) -> None:
        check_type("encoder", self.encoder, str)
        if not self.encoder:
            raise ConfigError("encoder must be a name, such as 'resnet34'; got ''")
        self._set("depths", as_integers("depths", self.depths))
        self._set("kernels", as_integers("kernels", self.kernels))
        if len(self.depths) != 4 or min(self.depths) < 1:
            raise ConfigError(
                "depths must be four positive numbers, coarsest stage first; "
                f"got {list(self.depths)}"
            )
        self._check_scan()
        per_lss = self.hss_per_lss
        if per_lss is not None:
            check_type("hss_per_lss", per_lss, int)
            bad = [d for d in self.depths if per_lss < 1 or d % per_lss]
            if bad:
                raise ConfigError(
                    f"hss_per_lss must divide every depth; got {per_lss} with depths "
                    f"{list(self.depths)}"
                )
        unknown = sorted(set(self.kernels) - {1, 3, 5, 7})
        if unknown or len(set(self.kernels)) != len(self.kernels):
            raise ConfigError(
                f"kernels must be different sizes from 1, 3, 5 and 7; got {list(self.kernels)}"
            )
        check_type("pointwise", self.pointwise, bool)
        check_type("residual", self.residual, bool)
        check_choice("branches", self.branches, Branches)
        if self.branches != "global" and not self.kernels:
            raise ConfigError(f"branches={self.branches!r} needs at least one size in kernels")
        check_range("drop_path", self.drop_path, 0.0, 1.0, high_open=True)
        check_range("neck_dropout", self.neck_dropout, 0.0, 1.0, high_open=True)
        check_range("neck_noise", self.neck_noise, 0.0, 1e3)
        check_range("neck_masking", self.neck_masking, 0.0, 1.0, high_open=True)
        check_type("recentre", self.recentre, bool)
        check_range("damping", self.damping, 0.0, 1e3)
        if self.damping and not self.recentre:
            raise ConfigError(f"damping needs recentre = true; got {self.damping} without it")
        check_type("fine_pooling", self.fine_pooling, int)
        if self.fine_pooling not in range(1, 16, 2):
            raise ConfigError(f"fine_pooling must be odd, 1 to 15; got {self.fine_pooling}")
        self._set("map_weights", as_scale_weights("map_weights", self.map_weights))
        check_range("score_top", self.score_top, 0.0, 1.0)

    def _check_scan(self) -> None:
        methods = get_args(ScanMethod)
        if isinstance(self.scan, str):
            check_choice("scan", self.scan, ScanMethod)
            if self.directions not in (2, 4, 8, "distinct"):
                raise ConfigError(
                    f"directions must be 2, 4, 8 or 'distinct'; got {self.directions!r}"
                )
            return
        expected = f"a hybrid scan maps names from {list(methods)} to 2, 4 or 8, 16 in all"
        if not isinstance(self.scan, Mapping) or not self.scan:
            raise ConfigError(f"scan must be a name or a mapping: {expected}; got {self.scan!r}")
        for method, count in self.scan.items():
            if method not in methods or type(count) is not int or count not in (2, 4, 8):
                raise ConfigError(f"{expected}; got {method!r}: {count!r}")
        total = sum(self.scan.values())
        if total > 16:
            raise ConfigError(f"{expected}; got {total}")
        if self.directions not in (8, total):  # 8 is what it is when nobody sets it
            raise ConfigError(
                f"a hybrid scan has its own counts; got directions={self.directions!r}"
            )
        self._set("scan", dict(self.scan))
        self._set("directions", total)

    @property
    def direction_count(self) -> int:
        """Number of scan paths K."""
        return 8 if isinstance(self.directions, str) else self.directions


@dataclass(frozen=True)
class DataConfig(Table):
    """Which pictures, and how they are prepared."""

    root: str = ""
    """Folder of the data set, or a file that lists its pictures (CSV, ADer's JSON, TOML)."""

    layout: Layout = "auto"
    """How the folder is laid out; ``auto`` looks."""

    categories: tuple[str, ...] = ()
    """Categories to use; empty means all of them."""

    image_size: tuple[int, int] = (256, 256)
    """Height and width that pictures are resized to, multiples of 32 unless there is ``tile``. One
    number means a square."""

    tile: tuple[int, int] | None = None
    """Height and width, multiples of 32, of the overlapping tiles that a picture of ``image_size``
    is cut into. Each is a training picture; their maps are blended into the picture's. One number
    means a square. None: the network gets whole pictures."""

    tile_overlap: float = 0.25
    """Share of a tile's side that neighbouring tiles have in common."""

    cache: Cache = "auto"
    """Where prepared pictures are kept between epochs: ``features`` (the frozen encoder's maps) or
    ``pictures``, in the GPU's memory if they fit, else the host's; ``disk`` (a memory-mapped file);
    ``none`` (decode every time); ``auto``: the first of features, pictures and disk that fits."""

    holdout: float | Literal["auto"] = "auto"
    """Share of the good training pictures kept out of training to set thresholds on. ``auto``: a
    tenth for the ``folder`` layout, none for a benchmark's, whose protocol trains on all. A
    category keeps all its pictures where the share would be fewer than three."""

    contamination: float = 0.0
    """Share of each category's training pictures that are defective ones of its test, which leave
    the test; for studies, see ``mambaad.data.contamination``."""

    def __post_init__(self) -> None:
        self._set("root", str(self.root))
        check_choice("layout", self.layout, Layout)
        names = self.categories
        if isinstance(names, (str, int)):
            names = (str(names),)
        if not isinstance(names, Sequence) or not all(isinstance(n, (str, int)) for n in names):
            raise ConfigError(f"categories must be a list of names, got {names!r}")
        self._set("categories", tuple(str(n) for n in names))
        multiple = 1 if self.tile else TOTAL_STRIDE
        self._set("image_size", as_size("image_size", self.image_size, multiple))
        if self.tile is not None:
            self._set("tile", as_size("tile", self.tile, TOTAL_STRIDE))
            if any(t > s for t, s in zip(self.tile, self.image_size, strict=True)):
                raise ConfigError(
                    f"tile must not be larger than image_size, {list(self.image_size)}; got "
                    f"{list(self.tile)}"
                )
        check_range("tile_overlap", self.tile_overlap, 0.0, 0.9)
        check_choice("cache", self.cache, Cache)
        if self.holdout != "auto":
            check_range("holdout", self.holdout, 0.0, 0.9)
        check_range("contamination", self.contamination, 0.0, 0.5)

    @property
    def network_size(self) -> tuple[int, int]:
        """Height and width of what the network gets: a tile, or a whole picture."""
        return self.tile or self.image_size

    @property
    def tiling(self) -> Tiling | None:
        """How pictures are cut into tiles; None if they are not."""
        return self.tile and Tiling(self.image_size, self.tile, self.tile_overlap)


@dataclass(frozen=True)
class Config:
    """All settings of a run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], *, complete: bool = False) -> Config:
        """Build from a parsed TOML document.

        Args:
            values: Settings by table.
            complete: Whether its recipe is in it already; else what it leaves out is the recipe's.

        Raises:
            ConfigError: If a table or key is unknown, or a value does not fit.
        """
        tables = [f.name for f in fields(cls)]
        unknown = sorted(set(values) - set(tables))
        if unknown:
            hint = did_you_mean(unknown[0], tables)
            raise ConfigError(f"unknown table {unknown}; known: {tables}{hint}")
        for name, table in values.items():
            if not isinstance(table, Mapping):
                raise ConfigError(f"[{name}] must be a table of settings; got {table!r}")
        if not complete:
            values = fill_in(values)
        return cls(
            model=ModelConfig.from_mapping(values.get("model", {})),
            data=DataConfig.from_mapping(values.get("data", {})),
            train=TrainConfig.from_mapping(values.get("train", {})),
        )

    def to_mapping(self) -> dict[str, Any]:
        """The settings as a TOML document can hold them."""
        return {f.name: getattr(self, f.name).to_mapping() for f in fields(self)}

    def override(self, settings: Mapping[str, Any]) -> Config:
        """A copy with ``{"train.epochs": 30, ...}`` put in place; a recipe's settings come first.

        Raises:
            ConfigError: If a name is not ``table.setting``, is unknown, or its value does not fit.
        """
        document = self.to_mapping()
        if "train.recipe" in settings:
            settings = {**recipe_settings(settings["train.recipe"]), **settings}
        for name, value in settings.items():
            table, dot, key = name.partition(".")
            if not dot or table not in document or key not in _names_in(table):
                raise ConfigError(_unknown_setting(name, sorted(document)))
            hybrid = isinstance(value, Mapping) or isinstance(self.model.scan, Mapping)
            if name == "model.scan" and hybrid and "model.directions" not in settings:
                document[table].pop("directions", None)  # it went with the other kind of scan
            document[table][key] = value
        return type(self).from_mapping(document)

    def located(self) -> Config:
        """A copy whose data set is found from any working directory."""
        root = self.data.root and str(Path(self.data.root).expanduser().absolute())
        return self.override({"data.root": root})


def _names_in(table: str) -> list[str]:
    """The settings of a table of ``Config``."""
    return [f.name for f in fields(getattr(Config(), table))]


def _unknown_setting(name: str, tables: Sequence[str]) -> str:
    """What is wrong with the name of a setting, and which one may be meant."""
    table, dot, key = name.rpartition(".")
    full = {f"{t}.{k}": k for t in tables for k in _names_in(t)}
    same = [known for known, k in full.items() if k == key]
    hint = f"; did you mean {' or '.join(map(repr, same))}?" if same else did_you_mean(name, full)
    if dot and table in tables:
        return f"unknown setting {name!r}{hint or f'; known in {table}: {_names_in(table)}'}"
    return f"a setting is named table.setting with table one of {list(tables)}; got {name!r}{hint}"


def read_config(path: Path, base: Config | None = None, *, complete: bool = False) -> Config:
    """Read a TOML file of settings; what it does not set is as in ``base``, or as by default.

    Args:
        path: The file.
        base: What it goes on top of.
        complete: See ``Config.from_mapping``.

    Raises:
        ConfigError: If the file is missing, is not TOML, or a setting is unknown or does not fit.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
        config = Config.from_mapping(document, complete=complete)
        named = {f"{t}.{key}": v for t, table in document.items() for key, v in table.items()}
        return config if base is None else base.override(named)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the settings file {path}: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not a TOML file: {error}") from error
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def parse_setting(text: str) -> tuple[str, Any]:
    """Read ``table.setting=value`` with the value in TOML; a bare word is taken as a string.

    >>> parse_setting("model.depths=[2, 2, 2, 2]")
    ('model.depths', [2, 2, 2, 2])
    >>> parse_setting("model.scan=zigzag")
    ('model.scan', 'zigzag')

    Raises:
        ConfigError: If there is no ``=``.
    """
    name, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"a setting is given as table.setting=value; got {text!r}")
    try:
        return name.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return name.strip(), value.strip()
