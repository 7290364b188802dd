"""Where the time and the memory of a network go, beside what ``mambaad.counting`` finds in it.

A part's time is the median of repeated eager runs, from the end of the part before it to its own
end, on the device's clock. The anomaly maps with their resizing, smoothing and scores are the last
part. Beside them stands the whole as users get it, by ``Scorer.on_device``, which on a GPU is one
CUDA graph of a lighter copy: no part of that can be seen, and it takes less than their sum. The
time of a stage's scans cannot be seen from outside either: one block's scan is timed alone, on
random pixels, and taken as often as the stage has blocks.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from rich.markup import escape
from rich.table import Table
from torch import Tensor, nn

from mambaad.checkpoint import load_model, provenance
from mambaad.config import TOTAL_STRIDE, Config, read_config
from mambaad.counting import Count, count_parts, hss_blocks, sum_counts
from mambaad.data.cache import Progress
from mambaad.devices import autocast, pick_device, resolve_precision
from mambaad.errors import ConfigError
from mambaad.inference import Scorer
from mambaad.measure import WARM_UP, Clock, peaks, quartiles
from mambaad.model import MambaAD, build
from mambaad.model.blocks import HSSBlock
from mambaad.scan import cross_scan

REPEATS = 20
MIB = 2**20


@dataclass(frozen=True)
class Cost:
    """What one part takes for a batch: milliseconds, those of its scans, and the peak in bytes.

    ``peak`` is all that torch held on the GPU at the worst moment of the part, weights included;
    on other devices the network's own tensors, see ``mambaad.measure``.
    """

    part: str
    ms: float
    scan_ms: float
    peak: int


@dataclass(frozen=True)
class Profile:
    """What ``run_profile`` found.

    Args:
        about: Versions, commit, device and the like.
        config: The settings of the network.
        batch_size: Pictures in a batch.
        precision: ``float32`` or ``bf16``.
        counts: The network's parts, in order.
        costs: The same parts, and ``maps`` last.
        whole_ms: A batch's prediction as a whole, by ``Scorer.on_device``: lower quartile, median
            and upper quartile.
        way: How that runs it, in words.
    """

    about: Mapping[str, Any]
    config: Config
    batch_size: int
    precision: str
    counts: tuple[Count, ...]
    costs: tuple[Cost, ...]
    whole_ms: tuple[float, float, float]
    way: str

    def to_mapping(self) -> dict[str, Any]:
        """As a JSON document; ``maps`` has no multiply-adds, the published count has none either.

        A ``share`` is of the time of all parts together.
        """
        counts = {count.part: count for count in self.counts}
        total, low, median, high = sum_counts(self.counts), *self.whole_ms
        all_ms = sum(cost.ms for cost in self.costs)
        parts = {
            cost.part: {
                **_count_mapping(counts.get(cost.part)),
                "ms": cost.ms,
                "share": cost.ms / all_ms,
                "scan_ms": cost.scan_ms,
                "scan_share": cost.scan_ms / all_ms,
                "peak_bytes": cost.peak,
            }
            for cost in self.costs
        }
        whole = {"ms": median, "lower_quartile": low, "upper_quartile": high, "way": self.way}
        scan_ms = sum(cost.scan_ms for cost in self.costs)
        return {
            "about": dict(self.about),
            "model": self.config.model.to_mapping(),
            "image_size": list(self.config.data.network_size),
            "batch_size": self.batch_size,
            "precision": self.precision,
            "parts": parts,
            "all": {
                **_count_mapping(total),
                "ms": all_ms,
                "share": 1.0,
                "scan_ms": scan_ms,
                "scan_share": scan_ms / all_ms,
                "peak_bytes": peak_of(self.costs),
            },
            "prediction": {**whole, "pictures_per_second": 1000 * self.batch_size / median},
        }


def run_profile(
    run: Path | None = None,
    settings: Mapping[str, Any] | None = None,
    *,
    batch_size: int = 1,
    device: str = "auto",
    precision: str = "auto",
    repeats: int = REPEATS,
    progress: Progress | None = None,
) -> Profile:
    """Count and measure a network on random pictures.

    Args:
        run: A run folder, or a TOML file of settings; None takes the published settings. A file's
            network has random weights, which changes neither counts nor times.
        settings: ``{"model.depths": [2, 2, 2, 2], ...}`` put in place of the file's. A run has its
            own: of it only ``data.image_size`` may be another.
        batch_size: Pictures in a batch, at least 1.
        device: See ``pick_device``.
        precision: See ``resolve_precision``.
        repeats: Runs to take the medians of, at least 2.
        progress: Called with the number of runs done and in all.

    Raises:
        MambaADError: ConfigError or CheckpointError.
    """
    if batch_size < 1:
        raise ConfigError(f"the batch size must be at least 1, got {batch_size}")
    target = pick_device(device)
    chosen = resolve_precision(precision, target)
    config, model = _load(run, settings or {})
    model = model.to(target).eval()
    height, width = config.data.network_size
    counts = count_parts(model, height, width)
    on_device: AbstractContextManager[Any] = (
        torch.cuda.device(target) if target.type == "cuda" else nullcontext()
    )
    try:
        with torch.inference_mode(), on_device:
            images = torch.randn(batch_size, 3, height, width, device=target)
            rows = _measure(model, images, chosen, repeats, progress)
        with on_device:
            scorer = Scorer(model, target, precision=chosen)
            whole = quartiles(lambda: scorer.on_device(images), target, repeats)
    except torch.cuda.OutOfMemoryError:
        raise ConfigError(
            f"a batch of {batch_size} at {height}x{width} does not fit into the memory of "
            f"{target}; give a smaller --batch-size"
        ) from None
    names = [*(count.part for count in counts), "maps"]
    costs = tuple(Cost(name, *row) for name, row in zip(names, rows, strict=True))
    about = provenance(config, target, run=None if run is None else str(run), repeats=repeats)
    way = _way(target, chosen)
    return Profile(about, config, batch_size, chosen, tuple(counts), costs, whole, way)


def _way(device: torch.device, precision: str) -> str:
    """How ``Scorer`` runs a network, in words."""
    if device.type != "cuda":
        folded = precision == "float32" and device.type == "cpu"
        return "a float32 copy with folded norms" if folded else "the network as it is"
    copy = "a bf16 copy with folded norms" if precision == "bf16" else "the network"
    return f"a CUDA graph of {copy}"


def _load(run: Path | None, settings: Mapping[str, Any]) -> tuple[Config, MambaAD]:
    if run is not None and not run.is_file():
        others = sorted(set(settings) - {"data.image_size"})
        if others:
            raise ConfigError(f"{run} has its settings; {', '.join(others)} cannot be another")
        config, model = load_model(run)
        return config.override(settings), model
    config = (read_config(run) if run is not None else Config()).override(settings)
    return config, build(config.model, loss_weight=config.train.loss_weight)


def predict(model: MambaAD, images: Tensor, precision: str) -> Tensor:
    """Scores, (B,), of normalised pictures, by way of their anomaly maps."""
    # entered for each batch, as in use: while it lasts, autocast keeps the weights it has cast
    with autocast(precision, images.device):
        return model.anomaly_maps(images).amax((1, 2))


def peak_of(costs: Sequence[Cost]) -> int:
    """The highest peak."""
    return max(cost.peak for cost in costs)


def _count_mapping(count: Count | None) -> dict[str, int | None]:
    if count is None:
        return {
            "trainable": 0, "frozen": 0, "multiply_adds": None, "multiply_adds_with_scan": None
        }  # fmt: skip
    return {
        "trainable": count.trainable,
        "frozen": count.frozen,
        "multiply_adds": count.products,
        "multiply_adds_with_scan": count.products + count.scan_products,
    }


def _measure(
    model: MambaAD, images: Tensor, precision: str, repeats: int, progress: Progress | None
) -> list[tuple[float, float, int]]:
    """Milliseconds, milliseconds of the scans, and peak bytes of each part, ``maps`` last."""
    clock = Clock(images.device)
    rows = []
    for number in range(WARM_UP + repeats):
        with _ends_of_parts(model, clock.mark):
            clock.mark()
            predict(model, images, precision)
            clock.mark()
        rows.append(clock.intervals())
        if progress is not None:
            progress(number + 1, WARM_UP + repeats)
    times = [statistics.median(column) for column in zip(*rows[WARM_UP:], strict=True)]
    scans = [0.0, 0.0, *_scan_times(model, images, precision, repeats), 0.0]
    return list(zip(times, scans, _peaks(model, images, precision), strict=True))


@contextmanager
def _ends_of_parts(model: MambaAD, mark: Callable[[], None]) -> Iterator[None]:
    """While inside, ``mark`` is called when the encoder, the neck and each stage are done."""
    stages = [cast("nn.ModuleList", stage)[-1] for stage in model.decoder.stages]
    with ExitStack() as stack:
        for module in (model.encoder, model.neck, *stages):
            stack.callback(module.register_forward_hook(lambda *_: mark()).remove)
        yield


def _peaks(model: MambaAD, images: Tensor, precision: str) -> list[int]:
    """Peak bytes during each part, in a run of its own."""

    def work(mark: Callable[[], None]) -> None:
        with _ends_of_parts(model, mark):
            mark()
            predict(model, images, precision)
            mark()

    return peaks(work, [*model.parameters(), *model.buffers(), images], images.device)


def _scan_times(model: MambaAD, images: Tensor, precision: str, repeats: int) -> Iterator[float]:
    """Milliseconds of each stage's scans: one block's, alone on random pixels, times the blocks."""
    device = images.device
    height, width = (side // TOTAL_STRIDE for side in images.shape[2:])
    for stage in model.decoder.stages:
        blocks = hss_blocks(stage)
        one = 0.0
        if blocks:
            orders = model.decoder.orders(height, width, device)
            with autocast(precision, device):
                scan = _one_scan(blocks[0], orders, len(images))
                _, one, _ = quartiles(scan, device, repeats)
        yield len(blocks) * one
        height, width = 2 * height, 2 * width


def _one_scan(block: HSSBlock, orders: Tensor, batch: int) -> Callable[[], Tensor]:
    weights = (block.a_log, block.dt_weight, block.dt_bias, block.skip)
    x = torch.randn(batch, orders.shape[1], block.skip.shape[1], device=orders.device)
    projections = F.linear(x, block.scan_proj.flatten(0, 1))
    by_path = projections.unflatten(-1, block.scan_proj.shape[:2])
    x = x.to(projections.dtype)  # the block's own pixels are as narrow as autocast made them
    return lambda: cross_scan(x, by_path, *weights, orders, backend=block.backend)


def profile_table(profile: Profile) -> Table:
    """Parts as rows: millions of parameters, thousand millions of multiply-adds of a picture."""
    model, (height, width) = profile.config.model, profile.config.data.network_size
    table = Table(
        title=escape(
            f"{model.encoder}, depths {list(model.depths)}, {model.direction_count} directions, "
            f"{height}x{width}, batch {profile.batch_size}, {profile.precision}"
        )
    )
    table.add_column("part")
    for name in (
        "M trainable", "M frozen", "G without scan", "G with scan",
        "ms", "share %", "scan ms", "scan %", "peak MiB",
    ):  # fmt: skip
        table.add_column(name, justify="right")
    document = profile.to_mapping()
    for name, row in document["parts"].items():
        table.add_row(name, *_cells(row))
    table.add_section()
    table.add_row("in all", *_cells(document["all"]))
    return table


def profile_notes(profile: Profile) -> list[str]:
    """What the table does not say: prediction as a whole, and how the numbers were found."""
    low, median, high = profile.whole_ms
    eager = sum(cost.ms for cost in profile.costs)
    return [
        f"device: {profile.about['device']}",
        f"prediction as a whole: {median:.2f} ms a batch ({low:.2f} to {high:.2f}, quartiles of "
        f"{profile.about['repeats']} runs), {1000 * profile.batch_size / median:.1f} images/s",
        f"the whole ran as {profile.way}, the parts above one by one and eagerly: {eager:.2f} ms "
        f"in all, {eager / median:.1f} times as long",
        f"peak memory of the parts: {peak_of(profile.costs) / MIB:.0f} MiB, weights included",
        "G: multiply-adds of one picture as fvcore counts them; with the scan, 9 L K D N a block",
        "ms: medians of eager runs of a batch; scan ms: one block's scan alone, times the blocks",
    ]


def _cells(row: Mapping[str, Any]) -> list[str]:
    products = [row["multiply_adds"], row["multiply_adds_with_scan"]]
    scan = [f"{row['scan_ms']:.2f}", f"{100 * row['scan_share']:.1f}"]
    return [
        f"{row['trainable'] / 1e6:.3f}",
        f"{row['frozen'] / 1e6:.3f}",
        *("–" if n is None else f"{n / 1e9:.3f}" for n in products),
        f"{row['ms']:.2f}",
        f"{100 * row['share']:.1f}",
        *(scan if row["scan_ms"] else ["–", "–"]),
        f"{row['peak_bytes'] / MIB:.0f}",
    ]
