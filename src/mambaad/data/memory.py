"""How much memory there is, and so where prepared data is kept between epochs and runs."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from mambaad.config import Cache
from mambaad.data.cache import PictureStore, StoreMode
from mambaad.data.kept import look_at
from mambaad.errors import DatasetError, ImageError

ResolvedCache = Literal["features", "pictures", "disk", "none"]

FEATURE_SHARE = 0.25
"""Share of the free memory that cached features may take under ``auto``."""

PICTURE_SHARE = 0.5
"""Share of the free memory that cached pictures may take under ``auto``."""

DEVICE_SHARE = 0.4
"""Share of a GPU's free memory that features or pictures may take; training needs the rest."""


DISK_FROM = 4_000_000_000
"""Bytes of pictures' files from which ``auto`` keeps what is decoded on disk, for later runs: as
JPEGs about 4 000 of 2 000 x 2 000 pixels, two minutes of decoding on one core."""


def choose_cache(
    requested: Cache, picture_bytes: int, feature_bytes: int, memory: int
) -> ResolvedCache:
    """Resolve ``DataConfig.cache``; anything but ``auto`` is taken as it is.

    Args:
        requested: The setting.
        picture_bytes: What all prepared pictures take.
        feature_bytes: What all of the encoder's feature maps take.
        memory: Free memory in bytes, as :func:`available_memory` gives it.

    Returns:
        ``features`` up to ``FEATURE_SHARE`` of the memory, else ``pictures`` up to
        ``PICTURE_SHARE``, else ``disk``.
    """
    if requested != "auto":
        return requested
    if feature_bytes <= FEATURE_SHARE * memory:
        return "features"
    return "pictures" if picture_bytes <= PICTURE_SHARE * memory else "disk"


def choose_place(
    requested: Cache,
    picture_bytes: int,
    feature_bytes: int,
    memory: int,
    device_memory: int | None,
) -> tuple[ResolvedCache, bool]:
    """Resolve ``DataConfig.cache`` where a GPU has memory of its own.

    Args:
        requested: The setting.
        picture_bytes: What all prepared pictures take.
        feature_bytes: What all of the encoder's feature maps take.
        memory: Free memory of the host in bytes.
        device_memory: Free memory of the GPU in bytes; None if the host computes.

    Returns:
        What is kept, and whether on the GPU: features, else pictures, up to ``DEVICE_SHARE`` of
        its memory. What was asked for by name, or fits in neither way, is kept by the host.
    """
    if device_memory is not None:
        room = DEVICE_SHARE * device_memory
        if requested in ("auto", "features") and feature_bytes <= room:
            return "features", True
        if requested in ("auto", "pictures") and picture_bytes <= room:
            return "pictures", True
    return choose_cache(requested, picture_bytes, feature_bytes, memory), False


def open_pictures(
    paths: Sequence[Path],
    size: tuple[int, int],
    requested: Cache,
    place: tuple[ResolvedCache, bool],
    memory: int,
    *,
    among: Sequence[Path] | None = None,
) -> PictureStore:
    """The store of a training's pictures, empty or as an earlier run has left it.

    Args:
        paths: The pictures' files.
        size: Height and width that every picture is resized to.
        requested: ``DataConfig.cache``.
        place: What :func:`choose_place` made of it.
        memory: Free memory of the host in bytes.
        among: Pictures that share a file on disk, as :class:`PictureStore` takes them.

    Returns:
        A store in the mode that ``place`` says. What is kept on a GPU is also kept by the host if
        it takes up to ``PICTURE_SHARE`` of the memory, because calibration reads it once more.
        Under ``auto``, from ``DISK_FROM`` bytes of files, it is on disk instead if that has room.

    Raises:
        ImageError: If a picture does not exist.
        DatasetError: If the store has to be on disk, and its file cannot be made.
    """
    cache, on_device = place
    mode: StoreMode = "none" if cache == "features" else cache
    if on_device:
        fits = len(paths) * math.prod(size) * 3 <= PICTURE_SHARE * memory
        mode = "pictures" if fits else "none"
    if requested == "auto" and mode != "disk":
        files = sum(look_at(path).st_size for path in paths)
        if files >= DISK_FROM:
            try:
                return PictureStore(paths, size, "disk", among=among)
            except ImageError:
                raise
            except DatasetError:  # no room, or a home that cannot be written: do without
                return PictureStore(paths, size, mode)
    return PictureStore(paths, size, mode, among=among)


def available_memory(root: Path = Path("/")) -> int:
    """Bytes that can be allocated without swapping.

    On Linux ``MemAvailable``, or what a container's limit (cgroup 1 or 2) leaves if that is less;
    elsewhere the free pages if the system counts them, or half of the memory there is.

    Args:
        root: Where ``proc`` and ``sys`` are.
    """
    limits = _cgroup_memory(root)
    for line in _read_text(root / "proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            limits.append(int(line.split()[1]) * 1024)
            return max(0, min(limits))
    names = getattr(os, "sysconf_names", {})
    if "SC_PAGE_SIZE" in names and "SC_AVPHYS_PAGES" in names:
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES"))
    elif "SC_PAGE_SIZE" in names and "SC_PHYS_PAGES" in names:
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2)
    else:
        limits.append(2 * 1024**3)  # Windows tells neither: a small machine
    return max(0, min(limits))


def _cgroup_memory(root: Path) -> list[int]:
    """What each memory limit above this process leaves, without files that can be dropped."""
    left: list[int] = []
    for line in _read_text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top = root / ("sys/fs/cgroup/memory" if controllers else "sys/fs/cgroup")
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        if not controllers:
            names = ("memory.max", "memory.current", "inactive_file")
        folder = top / path.strip("/")
        for place in (folder, *folder.parents):
            limit, used = (_read_text(place / name).strip() for name in names[:2])
            if limit.isdigit() and used.isdigit():
                stat = dict(r.split() for r in _read_text(place / "memory.stat").splitlines())
                left.append(int(limit) - int(used) + int(stat.get(names[2], 0)))
            if place == top:
                break
    return left


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""  # not Linux, or not in a container
