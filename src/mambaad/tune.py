"""Measures how a network's scans are best cut up on this GPU, and saves it for later processes.

For each size of a scan: first all chunks and segments, then, for the fastest of these, how many
steps are written out and how many pieces a segment has. A candidate is timed, forward and backward
in one CUDA graph, only if output and gradients are those of the rule's tiling up to rounding. It
takes the place of the present tiling if it is faster by ``LEAST_GAIN`` at least, so that noise
changes nothing. What is saved, and when it is used: ``mambaad.scan.tuning``.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from mambaad.checkpoint import load_config
from mambaad.config import TOTAL_STRIDE, Config, read_config
from mambaad.counting import hss_blocks
from mambaad.data.cache import Progress, worker_count
from mambaad.devices import pick_device, resolve_precision
from mambaad.errors import BackendError, ConfigError
from mambaad.model import build
from mambaad.replay import capture
from mambaad.scan import direction_orders, resolve_backend, tuning
from mambaad.scan.operator import cross_scan_backward, cross_scan_forward
from mambaad.scan.tuning import Found, Size, Tiling

CHUNKS = (16, 32, 64)
SEGMENTS = (1, 2, 4, 8, 16, 32)
UNROLLS = (2, 4)
PIECES = (1, 2, 4)
WARPS = (8, 12, 16)

MOST_WARPS = 4096
"""Paths are not cut further: four times what keeps an H200 busy, and each cut costs work."""

LEAST_GAIN = 0.02
"""Part of the present tiling's time that another one must save to take its place."""

NAMES = ("y", "x", "projections", "a_log", "dt_weight", "dt_bias", "skip")
ALWAYS_WIDE = ("a_log", "dt_bias", "skip")
"""Gradients whose sums are never rounded to 16 bits; but for the last, saved states may be."""

ROUNDING = {torch.float32: 1e-4, torch.bfloat16: 2**-7}
"""Largest relative L2 distance between two tilings' results: wrong states make far larger ones."""

WARM_UP, REPEATS = 3, 20

Call = Callable[[], object]
Timer = Callable[[Call], float]
"""Milliseconds of a call."""


@dataclass(frozen=True)
class Scan:
    """A scan to tune: its size, what else its inputs are made of, and its paths."""

    size: Size
    states: int
    rank: int
    orders: Tensor
    """int32, (K, L), on the CPU."""


@dataclass(frozen=True)
class Tuned:
    """What was found for one size: the tiling before and after, and milliseconds of each."""

    size: Size
    old: Found
    old_ms: float
    new: Tiling
    new_ms: float

    @property
    def changed(self) -> bool:
        """Whether the tiling is another one."""
        return self.new != self.old.tiling

    def to_mapping(self) -> dict[str, Any]:
        """As a JSON document."""
        return {
            **self.size._asdict(),
            "old": str(self.old.tiling),
            "source": self.old.source,
            "old_ms": self.old_ms,
            "new": str(self.new),
            "new_ms": self.new_ms,
        }


def run_tune(
    run: Path | None = None,
    settings: Mapping[str, Any] | None = None,
    *,
    batch_sizes: Sequence[int] = (),
    device: str = "auto",
    precision: str = "auto",
    timer: Timer | None = None,
    progress: Progress | None = None,
) -> list[Tuned]:
    """Tune every size of scan of a network, and save what is faster than before.

    Args:
        run: A run folder, or a TOML file of settings; None takes the published settings. Weights
            are not needed.
        settings: ``{"data.image_size": 512, ...}`` put in place of the file's.
        batch_sizes: Each is tuned for itself; empty takes 1 and that of the training.
        device: See ``pick_device``; a CUDA device.
        precision: See ``resolve_precision``. What is saved is used for either.
        timer: Measures a call; None takes ``graph_timer``.
        progress: Called with the number of sizes done and in all.

    Returns:
        One for each size; those that ``changed`` have been saved.

    Raises:
        MambaADError: BackendError if the kernels cannot run on the device, or a tiling's results
            are wrong; ConfigError or CheckpointError.
        OSError: If the file cannot be written.
    """
    if any(batch < 1 for batch in batch_sizes):
        raise ConfigError(f"the batch size must be at least 1, got {min(batch_sizes)}")
    target = pick_device(device)
    if target.type != "cuda" and timer is None:
        raise BackendError(f"tuning needs a CUDA GPU, got device {target}")
    resolve_backend("triton", target, torch.float32)
    if tuning.gpu_class() is None:
        kinds = ", ".join(map(str, tuning.gpus())) or "none"
        raise BackendError(
            f"tuning needs one kind of GPU, got {kinds}; show one with CUDA_VISIBLE_DEVICES"
        )
    dtype = torch.bfloat16 if resolve_precision(precision, target) == "bf16" else torch.float32
    config = _load(run).override(settings or {})
    scans = scans_of(config, batch_sizes or sorted({1, config.train.batch_size}))
    rows = []
    for done, scan in enumerate(scans):
        if progress is not None:
            progress(done, len(scans))
        rows.append(_tuned(scan, target, dtype, timer or graph_timer(target)))
    if progress is not None:
        progress(len(scans), len(scans))
    changed = {row.size: row for row in rows if row.changed}
    if changed:
        tuning.save(
            {size: row.new for size, row in changed.items()},
            {size: {"ms": row.new_ms, "dtype": str(dtype)} for size, row in changed.items()},
        )
    return rows


def _load(run: Path | None) -> Config:
    if run is None:
        return Config()
    return read_config(run) if run.is_file() else load_config(run)


def scans_of(config: Config, batch_sizes: Sequence[int]) -> list[Scan]:
    """The scans of a network with pictures of ``data.network_size``, each size once."""
    with torch.device("meta"):
        stages = build(config.model).decoder.stages
    height, width = (side // TOTAL_STRIDE for side in config.data.network_size)
    found: dict[Size, Scan] = {}
    for stage in stages:
        for block in hss_blocks(stage)[:1]:  # all blocks of a stage are alike
            table = direction_orders(config.model.scan, config.model.directions, height, width)
            orders = torch.from_numpy(table)
            _, channels, states = block.a_log.shape
            for batch in batch_sizes:
                size = Size(batch, orders.shape[0], orders.shape[1], channels)
                found[size] = Scan(size, states, block.dt_weight.shape[2], orders)
        height, width = 2 * height, 2 * width
    return list(found.values())


def _tuned(scan: Scan, device: torch.device, dtype: torch.dtype, timer: Timer) -> Tuned:
    try:
        return tune_scan(scan, device, dtype, timer)
    except torch.cuda.OutOfMemoryError:
        raise ConfigError(
            f"a scan of {scan.size} does not fit into the memory of {device}; "
            "give a smaller --batch-size"
        ) from None


def tune_scan(scan: Scan, device: torch.device, dtype: torch.dtype, timer: Timer) -> Tuned:
    """Find the fastest tiling of one scan; see ``run_tune`` for the errors.

    Args:
        scan: Its size and paths.
        device: Where the kernels run.
        dtype: Of pixels and projections.
        timer: Measures a call.
    """
    size, old = scan.size, tuning.find(scan.size)
    plain = tuning.rule(size)
    first = [plain, *cuts(size)]
    _compile(scan, [old.tiling, *first], device, dtype)
    call = _call_of(_inputs(scan, device, dtype))
    with tuning.forced(plain):
        truth = call()
    times: dict[Tiling, float] = {}

    def measure(tilings: Sequence[Tiling]) -> Tiling:
        for tiling in tilings:
            if tiling not in times:
                times[tiling] = _measure(call, tiling, truth, timer, size, dtype)
        return min(times, key=lambda tiling: times[tiling])

    measure([old.tiling])
    if math.isinf(times[old.tiling]):
        raise torch.cuda.OutOfMemoryError
    second = variants(measure(first), size)
    _compile(scan, second, device, dtype)
    best = measure(second)
    if times[best] > (1 - LEAST_GAIN) * times[old.tiling]:
        best = old.tiling
    return Tuned(size, old, times[old.tiling], best, times[best])


def cuts(size: Size) -> list[Tiling]:
    """The candidates of the first round: every chunk with every sensible number of segments."""
    plain = replace(tuning.rule(size), pieces=1)
    found = [
        replace(plain, chunk=chunk, segments=segments)
        for chunk in CHUNKS
        if chunk <= max(CHUNKS[0], size.length)
        for segments in SEGMENTS
        if segments == 1 or segments * size.warps <= MOST_WARPS
    ]
    return [tiling for tiling in found if tiling.fits(size.length)]


def variants(tiling: Tiling, size: Size) -> list[Tiling]:
    """The candidates of the second round: other unrolled steps, warps and pieces."""
    found = [replace(tiling, unroll=unroll) for unroll in UNROLLS]
    if tuning.short_states():  # float32 ones leave no choice
        found += [replace(tiling, warps=warps) for warps in WARPS]
    if tiling.segments > 1:
        found += [replace(tiling, pieces=pieces) for pieces in PIECES]
    return [other for other in found if other.fits(size.length)]


def _measure(
    call: Callable[[], tuple[Tensor, ...]],
    tiling: Tiling,
    truth: tuple[Tensor, ...],
    timer: Timer,
    size: Size,
    dtype: torch.dtype,
) -> float:
    """Milliseconds; infinite if the GPU has too little memory for it."""
    try:
        with tuning.forced(tiling):
            wide = ALWAYS_WIDE[-1:] if tuning.short_states() else ALWAYS_WIDE
            for name, value, true in zip(NAMES, call(), truth, strict=True):
                off = deviation(value, true)
                limit = ROUNDING[torch.float32 if name in wide else dtype]
                if not off <= limit:
                    raise BackendError(
                        f"the scan of {size} cut up as {tiling} is wrong: {name} is off by "
                        f"{off:.1e}, at most {limit:.1e} is rounding; nothing was saved"
                    )
            return timer(call)
    except torch.cuda.OutOfMemoryError:
        return math.inf


def deviation(found: Tensor, truth: Tensor) -> float:
    """L2 norm of the difference over that of ``truth``; 0 if both are 0."""
    wide = truth.double()
    off, norm = float((found.double() - wide).norm()), float(wide.norm())
    return off / norm if norm else off


def _inputs(scan: Scan, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """dy, x, projections, a_log, dt_weight, dt_bias, skip and orders, as in a trained network.

    The skip term is zero: around 1 it would be most of the output and hide errors of the states.
    """
    batch, paths, length, channels = scan.size
    generator = torch.Generator(device).manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device)

    decays = torch.arange(1, scan.states + 1.0, device=device).log()
    return (
        draw(batch, length, channels).to(dtype),
        draw(batch, length, channels).to(dtype),
        draw(batch, length, paths, scan.rank + 2 * scan.states).to(dtype),
        decays.expand(paths, channels, scan.states).contiguous(),
        draw(paths, channels, scan.rank) / scan.rank**0.5,
        0.5 * draw(paths, channels) - 4,  # mostly steps of 0.001 to 0.3
        torch.zeros(paths, channels, device=device),
        scan.orders.to(device),
    )


def _call_of(inputs: tuple[Tensor, ...]) -> Callable[[], tuple[Tensor, ...]]:
    """The scan, forward and backward; returns ``NAMES``."""
    dy, *tensors = inputs

    def call() -> tuple[Tensor, ...]:
        y, states = cross_scan_forward(*tensors, "triton", True)
        return (y, *cross_scan_backward(dy, *tensors, states, "triton"))

    return call


def _compile(
    scan: Scan, tilings: Sequence[Tiling], device: torch.device, dtype: torch.dtype
) -> None:
    """Compile the candidates' kernels side by side on a GPU: seconds each. On one picture, as they
    do not depend on the batch; the first alone, as Triton's modules want to be imported once."""
    if device.type != "cuda":
        return
    single = replace(scan, size=scan.size._replace(batch=1))
    call = _call_of(_inputs(single, device, dtype))

    def run(tiling: Tiling) -> None:
        with tuning.forced(tiling):
            call()

    first, *others = dict.fromkeys(tilings)
    run(first)
    with ThreadPoolExecutor(worker_count(), "mambaad-tune") as pool:
        list(pool.map(run, others))


def graph_timer(device: torch.device) -> Timer:
    """Medians of a CUDA graph's replays, so that the host's launching is not part of it.

    Args:
        device: CUDA.
    """

    def measure(call: Call) -> float:
        with torch.cuda.device(device):
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                call()
            replay, _ = capture(call, device, stream, torch.cuda.graph_pool_handle())
            with torch.cuda.stream(stream):
                times = list(_intervals(replay))
            stream.synchronize()
        return statistics.median(times)

    return measure


def _intervals(replay: Callable[[], None]) -> Iterator[float]:
    """Milliseconds of each of ``REPEATS`` calls, one behind the other on the current stream."""
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(REPEATS + 1)]
    for _ in range(WARM_UP):
        replay()
    marks[0].record()
    for mark in marks[1:]:
        replay()
        mark.record()
    marks[-1].synchronize()
    yield from (first.elapsed_time(second) for first, second in pairwise(marks))


def tune_table(rows: Sequence[Tuned]) -> Table:
    """Sizes as rows: how each was cut up and is now, and milliseconds, forward and backward."""
    table = Table(title="scans, forward and backward")
    for name in ("batch", "paths", "pixels", "channels"):
        table.add_column(name, justify="right")
    for name in ("old", "from", "ms", "new", "ms", "less %"):
        table.add_column(name, justify="right" if name in ("ms", "less %") else "left")
    for row in rows:
        gain = 100 * (1 - row.new_ms / row.old_ms)
        new = (str(row.new), f"{row.new_ms:.3f}", f"{gain:.1f}") if row.changed else ("–",) * 3
        old = (str(row.old.tiling), row.old.source, f"{row.old_ms:.3f}")
        table.add_row(*map(str, row.size), *old, *new)
    return table


def tune_notes(rows: Sequence[Tuned]) -> list[str]:
    """What the columns mean, and what was saved."""
    notes = ["a tiling: chunk/unrolled/inner steps, segments x pieces"]
    if not any(row.changed for row in rows):
        return [*notes, "nothing is faster than what was in use; nothing was saved"]
    return [
        *notes,
        f"wrote {tuning.saved_file()}",
        "other tilings add up in another order: results differ from earlier ones by rounding, and "
        "are the same from run to run; remove the file to go back",
    ]
