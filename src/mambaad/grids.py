"""The paper's ablations as data: named rows, the settings of each, and the published numbers.

Source: He et al., MambaAD, NeurIPS 2024, arXiv 2404.06564, Tables 2 to 5 and 7: MVTec AD, all 15
categories in one model, 256 x 256, ResNet-34 where the table does not say. Its metrics are in
percent, in the order of ``mambaad.metrics.METRICS``. Multiply-adds there leave the scan out.
Versions of the paper number their tables differently.

Where a table leaves something open: Tables 2 and 3 print the same 82.1 for a decoder without local
branches, once with a two-way sweep and once with the parameters of eight directions; the latter has
0.43 million fewer than ours, as many as the convolutions that close an LSS have. M = 1 in Table 7
is read as one HSS block in each LSS at the same depths. The table ``depth`` is Table 4's ResNet-34
part for any encoder; the published numbers beside it stay ResNet-34's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from mambaad.errors import ConfigError


@dataclass(frozen=True)
class Published:
    """What the paper prints for a row, None where it prints nothing.

    Args:
        metrics: The seven, in percent; or None.
        mAD: Their mean in percent.
        parameters: Millions.
        products: Thousand million multiply-adds of a picture.
    """

    metrics: tuple[float, ...] | None
    mAD: float | None
    parameters: float | None = None
    products: float | None = None


@dataclass(frozen=True)
class Row:
    """One configuration.

    Args:
        name: Without spaces; the name of its folder.
        settings: ``{"model.scan": "zigzag", ...}``, put upon those that the rows share.
        published: The paper's numbers; None if it has no such row.
    """

    name: str
    settings: Mapping[str, Any]
    published: Published | None = None


@dataclass(frozen=True)
class Grid:
    """A table: what it shows, where it is from, its rows."""

    title: str
    source: str
    rows: tuple[Row, ...]

    def select(self, names: list[str] | tuple[str, ...]) -> tuple[Row, ...]:
        """The rows of these names in the table's order; all if there are none.

        Raises:
            ConfigError: If a name is none of the table's.
        """
        known = [row.name for row in self.rows]
        unknown = sorted(set(names) - set(known))
        if unknown:
            raise ConfigError(f"no row {unknown} in this table; it has {known}")
        return tuple(row for row in self.rows if not names or row.name in names)


def grid(name: str) -> Grid:
    """A table by its name.

    Raises:
        ConfigError: If there is none of that name.
    """
    if name not in GRIDS:
        raise ConfigError(f"the table must be one of {list(GRIDS)}, got {name!r}")
    return GRIDS[name]


def _published(
    numbers: str, parameters: float | None = None, products: float | None = None
) -> Published:
    """From ``98.6 99.6 97.8 97.7 56.3 59.2 93.1``, or mAD alone."""
    values = tuple(float(number) for number in numbers.split())
    if len(values) == 1:
        return Published(None, values[0], parameters, products)
    return Published(values, sum(values) / len(values), parameters, products)


def _scan(name: str, scan: str | Mapping[str, int], directions: Any, numbers: str) -> Row:
    settings = {"model.scan": scan}
    if isinstance(scan, str):  # a hybrid brings its own
        settings["model.directions"] = directions
    return Row(name, settings, _published(numbers) if numbers else None)


def _backbone(encoder: str, depths: str, numbers: str, parameters: float, products: float) -> Row:
    settings = {"model.encoder": encoder, "model.depths": [int(d) for d in depths]}
    return Row(f"{encoder}-{depths}", settings, _published(numbers, parameters, products))


def _lss_rows() -> tuple[Row, ...]:
    rows = []
    for design, per_lss, residual, parts in _LSS:
        for conv, pointwise, lines in parts:
            for kernels, numbers in lines:
                settings = {
                    "model.residual": residual,
                    "model.pointwise": pointwise,
                    "model.kernels": [int(k) for k in kernels],
                }
                if per_lss is not None:
                    settings["model.hss_per_lss"] = per_lss
                rows.append(Row(f"{design}-{conv}-k{kernels}", settings, _published(numbers)))
    return tuple(rows)


_FULL = "98.6 99.6 97.8 97.7 56.3 59.2 93.1"

_DW, _CONV = ("dw", False), ("conv", True)

_LSS: tuple[Any, ...] = (
    ("m1", 1, True, (
        (*_DW, (
            ("13", "94.6 98.0 96.2 96.7 49.5 52.4 91.3"),
            ("35", "94.6 98.0 96.4 96.6 50.1 53.5 91.3"),
            ("57", "96.5 98.9 96.7 96.6 51.0 53.8 91.4"),
            ("135", "94.8 98.2 96.1 95.9 47.7 51.6 89.8"),
            ("357", "96.5 98.8 96.5 97.2 51.6 55.2 92.2"),
            ("1357", "95.2 98.3 96.5 96.5 49.1 52.6 90.8"),
        )),
        (*_CONV, (
            ("35", "96.1 98.7 96.7 97.2 52.2 55.6 92.5"),
            ("57", "95.8 98.6 96.3 97.3 51.7 54.5 92.0"),
            ("357", "96.0 98.6 96.7 97.3 52.4 55.4 92.2"),
        )),
    )),
    ("m1-noskip", 1, False, (
        (*_DW, (
            ("35", "97.3 99.1 97.0 96.9 53.4 55.9 91.5"),
            ("57", "95.0 98.2 96.0 96.8 48.6 52.8 91.5"),
            ("357", "94.6 98.2 95.9 97.1 52.3 55.4 92.3"),
        )),
        (*_CONV, (
            ("35", "95.4 98.4 96.6 97.0 51.6 54.4 91.7"),
            ("57", "95.0 98.3 96.3 97.1 50.1 53.9 91.8"),
            ("357", "96.0 98.7 96.3 97.2 52.3 55.4 92.2"),
        )),
    )),
    ("m23", None, True, (
        (*_DW, (
            ("35", "98.2 99.2 97.0 97.4 55.7 58.2 92.8"),
            ("57", "98.2 99.4 97.4 97.7 56.1 59.0 92.9"),
            ("357", "98.2 99.3 97.3 97.5 53.9 57.5 92.9"),
        )),
        (*_CONV, (
            ("35", "98.6 99.5 97.6 97.5 55.3 58.3 92.7"),
            ("57", _FULL),
            ("357", "98.1 99.3 97.4 97.5 55.1 57.6 92.8"),
        )),
    )),
)  # fmt: skip
"""Table 7: the paper's M (None: its rule, 2 or 3), the skip connection, and by kind of local branch
the kernel sizes."""

_RESNET34 = (
    _backbone("resnet34", "2222", "98.0 99.3 97.0 97.6 55.4 58.2 92.7", 20.0, 6.5),
    _backbone("resnet34", "2922", "97.6 99.3 97.3 97.7 56.4 59.0 93.2", 26.1, 7.9),
    _backbone("resnet34", "3463", _FULL, 25.7, 8.3),
)

GRIDS: Mapping[str, Grid] = MappingProxyType(
    {
        "incremental": Grid(
            "what each part adds",
            "Table 2",
            (
                Row(
                    "mamba",
                    {"model.branches": "global", "model.scan": "sweep", "model.directions": 2},
                    _published("82.1"),
                ),
                Row("lss", {"model.scan": "sweep", "model.directions": 2}, _published("84.9")),
                Row("hss", {"model.scan": "hilbert", "model.directions": 8}, _published("86.0")),
            ),
        ),
        "branches": Grid(
            "local and global branches of the LSS",
            "Table 3",
            (
                Row("local", {"model.branches": "local"}, _published("81.7", 13.0, 5.0)),
                Row("global", {"model.branches": "global"}, _published("82.1", 22.5, 7.5)),
                Row("both", {"model.branches": "both"}, _published("86.0", 25.7, 8.3)),
            ),
        ),
        "backbone": Grid(
            "encoders and depths of the decoder",
            "Table 4",
            (
                _backbone("resnet18", "2222", "96.7 98.6 95.8 95.7 47.9 52.4 89.1", 14.6, 4.3),
                _backbone("resnet18", "3463", "96.6 98.8 96.4 96.8 53.2 56.2 91.8", 20.3, 6.2),
                *_RESNET34,
                _backbone("resnet50", "3463", "98.4 99.4 97.7 97.7 54.2 57.0 92.3", 251.0, 60.3),
                _backbone(
                    "wide_resnet50_2", "3463", "98.6 99.5 98.0 98.0 57.9 60.3 93.8", 268.0, 68.1
                ),
            ),
        ),
        "depth": Grid(
            "depths of the decoder; the paper's rows have ResNet-34",
            "Table 4",
            tuple(
                Row(
                    row.name.removeprefix("resnet34-"),
                    {"model.depths": row.settings["model.depths"]},
                    row.published,
                )
                for row in _RESNET34
            ),
        ),
        "scan": Grid(
            "scan methods and directions",
            "Table 5",
            (
                _scan("sweep-8", "sweep", 8, "98.1 99.4 97.2 97.5 56.8 58.8 92.9"),
                _scan("scan-8", "scan", 8, "98.0 99.4 97.2 97.6 56.6 59.0 93.4"),
                _scan("zorder-8", "zorder", 8, "98.1 99.4 97.4 97.6 56.6 59.0 93.0"),
                _scan("zigzag-8", "zigzag", 8, "98.2 99.4 97.6 97.6 56.3 58.8 93.1"),
                _scan("hilbert-2", "hilbert", 2, "97.9 99.3 97.1 97.7 56.5 59.2 93.1"),
                _scan("hilbert-4", "hilbert", 4, "98.0 99.4 97.0 97.7 56.9 59.1 93.2"),
                _scan("hilbert-8", "hilbert", 8, _FULL),
                _scan("hilbert-distinct", "hilbert", "distinct", ""),
                *(
                    _scan(f"{method}-4-hilbert-4", {method: 4, "hilbert": 4}, None, numbers)
                    for method, numbers in (
                        ("zigzag", "96.8 99.0 97.0 97.4 54.4 57.0 92.8"),
                        ("zorder", "97.5 99.2 97.4 97.5 55.0 57.4 93.1"),
                        ("scan", "97.4 99.1 96.8 97.5 55.5 57.9 93.3"),
                        ("sweep", "98.0 99.3 97.4 97.6 56.2 58.5 93.3"),
                    )
                ),
                _scan(
                    "four-methods-2",
                    {"scan": 2, "zorder": 2, "zigzag": 2, "hilbert": 2},
                    None,
                    "97.5 99.2 97.1 97.5 55.4 57.9 92.9",
                ),
            ),
        ),
        "lss": Grid("designs of the LSS: blocks, skip, local branches", "Table 7", _lss_rows()),
    }
)
"""By the names that ``mambaad ablate`` takes."""
