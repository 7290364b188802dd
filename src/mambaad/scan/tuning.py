"""How the GPU's scan is cut up: what ``mambaad tune`` saved, what is shipped, or a rule.

Looked for in this order, by the scan's size and the kind of GPU:

    saved      by ``mambaad tune`` on this machine, in ``saved_file()``
    shipped    ``SHIPPED``: what was measured for this package
    rule       ``rule``: as many warps as a GPU of this many multiprocessors needs

A process looks once for a size and stays with what it found, so the forward and the backward pass
agree. Another tiling adds up in another order and so rounds otherwise: the same bits come again
with the same file (or without it), the same GPU and the same versions.

Saved tilings hold for one kind of GPU, one version of torch and Triton and one text of the kernels.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, astuple, dataclass
from functools import cache, lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import torch

from mambaad.errors import ConfigError
from mambaad.files import write_json

LANES = 32
"""Channels that a warp holds."""

LARGEST_CHUNK = 256
"""Longest chunk that is taken from a file; the kernels' scratch memory grows with it."""

WARPS = 8
"""Warps on each multiprocessor: fewer would wait for their loads, two on each scheduler, and more
of the backward kernel's do not fit, of 255 registers a lane with float32 states."""

MOST_WARPS = 16
"""Of the backward kernel with bfloat16 states, of 128 registers a lane."""

MOST_SHORT = 2**16
"""Steps of all pictures together up to which a path's chunks are short, if the states are."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tiling:
    """How a scan is cut up."""

    chunk: int
    """Steps between two saved states."""

    unroll: int
    """Steps of the forward kernel written out one after the other; divides ``chunk``."""

    inner: int
    """Steps whose states the backward kernel holds in registers at once with float32 states;
    divides ``chunk``. With bfloat16 ones it takes them singly."""

    segments: int
    """Parts of a path that are taken side by side."""

    pieces: int = 1
    """Parts of a segment that are summarised side by side before that."""

    warps: int = WARPS
    """Warps of the backward kernel on each multiprocessor with bfloat16 states; of 168 registers a
    lane up to 12, of 128 beyond. With float32 states there are ``WARPS``."""

    def __str__(self) -> str:
        """``chunk/unroll/inner segments x pieces``, and ``warps`` if it is not the usual number."""
        more = "" if self.warps == WARPS else f" {self.warps} warps"
        return f"{self.chunk}/{self.unroll}/{self.inner} {self.segments}x{self.pieces}{more}"

    def fits(self, length: int) -> bool:
        """Whether the kernels can take a path of ``length`` steps so."""
        values = astuple(self)
        if any(type(value) is not int or value < 1 for value in values):
            return False
        steps = (self.chunk, self.unroll, self.inner)
        return (
            all(value & (value - 1) == 0 for value in steps)
            and max(self.unroll, self.inner) <= self.chunk <= LARGEST_CHUNK
            and self.warps <= MOST_WARPS
            and (self.segments == 1 or self.segments * self.pieces <= -(-length // self.chunk))
        )


class Size(NamedTuple):
    """The size of a scan: pictures B, paths K, steps L and channels D."""

    batch: int
    paths: int
    length: int
    channels: int

    def __str__(self) -> str:
        """``BxKxLxD``."""
        return "x".join(map(str, self))

    @property
    def warps(self) -> int:
        """Warps at work at the same time if paths are not cut."""
        return self.batch * self.paths * -(-self.channels // LANES)


class GpuClass(NamedTuple):
    """A kind of GPU: compute capability and number of multiprocessors."""

    major: int
    minor: int
    multiprocessors: int

    def __str__(self) -> str:
        """Such as ``sm90x132``."""
        return f"sm{self.major}{self.minor}x{self.multiprocessors}"


H200 = GpuClass(9, 0, 132)

SHIPPED: Mapping[GpuClass, Mapping[Size, Tiling]] = {
    H200: {
        Size(1, 8, 64, 1024): Tiling(16, 4, 2, 1),
        Size(1, 8, 256, 512): Tiling(32, 4, 2, 8),
        Size(1, 8, 1024, 256): Tiling(32, 4, 2, 16),
        Size(1, 8, 4096, 128): Tiling(64, 4, 2, 32),
        Size(16, 8, 64, 1024): Tiling(32, 4, 2, 1),
        Size(16, 8, 256, 512): Tiling(32, 4, 2, 1),
        Size(16, 8, 1024, 256): Tiling(32, 4, 2, 1),
        Size(16, 8, 4096, 128): Tiling(64, 4, 2, 2, 2),
        Size(64, 8, 64, 1024): Tiling(16, 4, 2, 1),
        Size(64, 8, 256, 512): Tiling(32, 4, 2, 1),
        Size(64, 8, 1024, 256): Tiling(32, 4, 2, 1),
        Size(64, 8, 4096, 128): Tiling(64, 4, 2, 1),
    },
}
"""The published decoder's four stages at 256 x 256; see LOG.md for the measurements."""

SHIPPED_SHORT: Mapping[GpuClass, Mapping[Size, Tiling]] = {
    H200: {
        Size(1, 8, 64, 1024): Tiling(16, 4, 2, 1),
        Size(1, 8, 256, 512): Tiling(16, 4, 2, 8),
        Size(1, 8, 1024, 256): Tiling(16, 4, 2, 16),
        Size(1, 8, 4096, 128): Tiling(16, 4, 2, 32),
        Size(16, 8, 64, 1024): Tiling(16, 4, 2, 1),
        Size(16, 8, 256, 512): Tiling(16, 4, 2, 1),
        Size(16, 8, 1024, 256): Tiling(16, 4, 2, 1),
        Size(16, 8, 4096, 128): Tiling(16, 4, 2, 2, 2),
        Size(64, 8, 64, 1024): Tiling(16, 4, 2, 1),
        Size(64, 8, 256, 512): Tiling(16, 4, 2, 1),
        Size(64, 8, 1024, 256): Tiling(16, 4, 2, 1),
        Size(64, 8, 4096, 128): Tiling(32, 4, 2, 1),
    },
}
"""The same where ``short_states``: twice as many of them fit."""

STATES_VARIABLE = "MAMBAAD_SCAN_STATES"


@lru_cache(maxsize=1)
def short_states() -> bool:
    """Whether the environment asks for bfloat16 states with bfloat16 inputs.

    ``MAMBAAD_SCAN_STATES=bfloat16`` makes training quicker (LOG.md) and moves the gradients of
    a_log, dt_bias and dt_weight by some 1e-3 of them; ``float32`` is the default. A process asks
    once, so that all its threads agree.

    Raises:
        ConfigError: If the variable says something else.
    """
    value = os.environ.get(STATES_VARIABLE, "float32")
    if value not in ("float32", "bfloat16"):
        raise ConfigError(f"{STATES_VARIABLE} must be float32 or bfloat16, got {value!r}")
    return value == "bfloat16"


class Found(NamedTuple):
    """A tiling and where it comes from: ``saved``, ``shipped`` or ``rule``."""

    tiling: Tiling
    source: str


_forced: ContextVar[Tiling | None] = ContextVar("mambaad_tiling", default=None)


@contextmanager
def forced(tiling: Tiling) -> Iterator[None]:
    """Inside, every scan that this thread starts is cut up so."""
    token = _forced.set(tiling)
    try:
        yield
    finally:
        _forced.reset(token)


def current(size: Size) -> Tiling:
    """The tiling to use."""
    return _forced.get() or find(size).tiling


@cache
def find(size: Size) -> Found:
    """The tiling for a size, and where it comes from; a process always finds the same."""
    gpu = gpu_class()
    if gpu is not None:
        if size in saved():
            return Found(saved()[size], "saved")
        shipped = (SHIPPED_SHORT if short_states() else SHIPPED).get(gpu, {})
        if size in shipped:
            return Found(shipped[size], "shipped")
    return Found(rule(size), "rule")


def rule(size: Size, multiprocessors: int | None = None) -> Tiling:
    """A tiling for any size, measured on one H200 and scaled to other GPUs.

    A GPU with fewer than two warps on each scheduler waits, so long paths of few channels are cut
    into segments, which costs a second pass over all but one of them. Twice as many as that, where
    it means four segments at most, also let fewer pictures be at work at once, whose rows then stay
    in the cache. Short chunks keep the backward kernel's scratch memory there, and need memory for
    more states between the passes: 2^16 steps of 128 channels, 8 paths and 16 states take 128 MiB
    in bfloat16 with chunks of 16, and twice that in float32. See LOG.md for measurements.

    Args:
        size: Of the scan.
        multiprocessors: Of the GPU; None takes the smallest of this process's, or the H200's.
    """
    if multiprocessors is None:
        multiprocessors = min((g.multiprocessors for g in gpus()), default=H200.multiprocessors)
    # a power of two, as most sizes are: the segments then share out the chunks evenly
    wanted = 1 << round(math.log2(WARPS * multiprocessors))
    if short_states():
        chunk = 16 if size.batch * size.length <= MOST_SHORT else 32
    else:
        chunk = 16 if size.length <= 64 else 32 if size.length <= 1024 else 64
    segments = 1
    if size.warps < wanted and size.length > 64:
        wanted *= 2 if 4 * size.warps >= wanted else 1
        segments = max(1, min(-(-size.length // chunk), wanted // size.warps, 32))
    return Tiling(chunk, 4, 2, segments)


@lru_cache(maxsize=1)
def gpus() -> tuple[GpuClass, ...]:
    """The kinds of GPUs that this process sees."""
    if not torch.cuda.is_available():
        return ()
    found = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
    return tuple(sorted({GpuClass(p.major, p.minor, p.multi_processor_count) for p in found}))


def warps_at_once(warps: int = WARPS) -> int:
    """Warps that the largest of this process's GPUs runs at one time, of ``warps`` on each
    multiprocessor."""
    return warps * max((g.multiprocessors for g in gpus()), default=H200.multiprocessors)


def gpu_class() -> GpuClass | None:
    """The kind of this process's GPUs; None without one, or if there are several kinds.

    What ``torch.compile`` knows of a tensor comes from elsewhere than the scan itself, and must
    not depend on which of the GPUs is the current one there.
    """
    return gpus()[0] if len(gpus()) == 1 else None


def saved_file() -> Path:
    """``mambaad/scan.json`` in the user's cache folder, ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "mambaad" / "scan.json"


def environment() -> str:
    """What a saved tiling holds for: the kind of GPU, versions, and a hash of the kernels."""
    try:
        triton = metadata.version("triton")
    except metadata.PackageNotFoundError:
        triton = "unknown"
    states = ", bfloat16 states" if short_states() else ""
    versions = f"torch {torch.__version__}, triton {triton}"
    return f"{gpu_class()}, {versions}, kernels {kernel_hash()}{states}"


@lru_cache(maxsize=1)
def kernel_hash() -> str:
    """The first 12 digits of the SHA-256 of the kernels' files."""
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parent.glob("cuda*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


@lru_cache(maxsize=1)
def saved() -> Mapping[Size, Tiling]:
    """What ``mambaad tune`` saved for this GPU, these versions and these kernels."""
    rows = _read(saved_file()).get(environment(), {})
    good, bad = {}, []
    for name, row in rows.items():
        try:
            size = Size(*map(int, name.split("x")))
            tiling = Tiling(**row["tiling"])
        except (TypeError, KeyError, ValueError):
            bad.append(name)
            continue
        if tiling.fits(size.length):
            good[size] = tiling
        else:
            bad.append(name)
    if bad:
        _logger.warning("%s: no valid tiling for %s; run mambaad tune", saved_file(), bad)
    return good


def save(tilings: Mapping[Size, Tiling], notes: Mapping[Size, Mapping[str, Any]]) -> Path:
    """Add tilings to the file, in place of older ones of the same size; for later processes.

    Args:
        tilings: By size.
        notes: What to write beside them for people to read, such as ``{"ms": 1.5}``.

    Returns:
        The file.

    Raises:
        ValueError: If a tiling does not fit its size.
        OSError: If the file cannot be written.
    """
    for size, tiling in tilings.items():
        if not tiling.fits(size.length):
            raise ValueError(f"tilings must fit their size, got {tiling} for {size}")
    content = _read(saved_file())
    rows = content.setdefault(environment(), {})
    for size, tiling in tilings.items():
        rows[str(size)] = {"tiling": asdict(tiling), **notes.get(size, {})}
    write_json(saved_file(), content)
    return saved_file()


def _read(path: Path) -> dict[str, dict[str, Any]]:
    """The file's content; nothing, with a warning, if it cannot be read: scans do without."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        _logger.warning("%s cannot be read and is left out: %s", path, error)
        return {}
    if isinstance(content, dict) and all(isinstance(rows, dict) for rows in content.values()):
        return content
    _logger.warning("%s is not a file of mambaad tune and is left out", path)
    return {}
