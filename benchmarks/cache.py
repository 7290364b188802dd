"""The cache of decoded pictures at the size of large data sets.

    python benchmarks/cache.py FOLDER >> benchmarks/cache.csv

Makes JPEGs in FOLDER (those that are there already are taken as they are), decodes them into a
cache in FOLDER, and reads random batches from it as training on a GPU does, up to the copy to the
device. One CSV row per measurement:

    make            pictures drawn and written
    first, killed   decoding until the process is killed, at a third of the pictures
    first, rest     a new process does what is missing; with the row before, a first start
    second          another start: every file looked at, the cache opened, nothing decoded
    feed            one epoch of batches through Feed, a row for each number of processors
    feed, unread    the same after the system was asked to drop the cache from its memory
    load            one epoch of normalised float32 batches on the CPU, as training there takes them

Each row is a fresh process, whose processors are limited to ``--cpus`` for reading; its own start
counts only in "first, killed". ``peak_rss_mb`` counts pages of the mapped file that lie in memory
too; ``private_mb`` is the rest at the end.
Before anything is read, pictures of the cache are compared with a decoding of their own.
"""

from __future__ import annotations

import argparse
import csv
import io
import multiprocessing
import os
import resource
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from machine import commit, processor
from PIL import Image

from mambaad.data.cache import PictureStore, map_in_threads, worker_count
from mambaad.data.images import load_picture

HEADER = (
    *("what", "pictures", "side", "size", "cpus", "seconds", "pictures_per_second", "note"),
    *("peak_rss_mb", "private_mb", "processor", "commit"),
)
Row = tuple[int, float, str]
"""Pictures, seconds and a note."""


def canvas(side: int) -> Image.Image:
    """A coloured surface with waves and grain, larger by a quarter than the pictures cut of it."""
    wide = side + side // 4
    row, column = np.mgrid[:wide, :wide].astype(np.float32)
    waves = 128 + 50 * np.sin(column / 37) * np.cos(row / 53) + 20 * np.sin((row + column) / 7)
    grain = np.random.default_rng(0).normal(0, 6, (wide, wide)).astype(np.float32)
    channels = [waves * gain + grain + shift for gain, shift in ((1, 0), (0.8, 20), (0.5, 60))]
    return Image.fromarray(np.stack(channels, axis=2).clip(0, 255).astype(np.uint8))


def names(folder: Path, count: int) -> list[Path]:
    """The files of the pictures, a thousand to a folder."""
    return [folder / f"{i // 1000:03}" / f"{i:06}.jpg" for i in range(count)]


def make(folder: Path, count: int, side: int) -> Row:
    """Write the JPEGs that are missing: crops of one canvas at places of their own."""
    surface = canvas(side)
    places = np.random.default_rng(1).integers(0, side // 4 + 1, (count, 2)).tolist()

    def write(task: tuple[Path, list[int]]) -> None:
        path, (y, x) = task
        buffer = io.BytesIO()
        surface.crop((x, y, x + side, y + side)).save(buffer, "JPEG", quality=90)
        path.write_bytes(buffer.getvalue())

    begin = time.perf_counter()
    tasks = [t for t in zip(names(folder, count), places, strict=True) if not t[0].exists()]
    for parent in {path.parent for path, _ in tasks}:
        parent.mkdir(parents=True, exist_ok=True)
    map_in_threads(write, tasks, workers=worker_count())
    seconds = time.perf_counter() - begin
    total = sum(path.stat().st_size for path in names(folder, count))
    return len(tasks), seconds, f"{total / 1e9:.2f} GB"


def start(folder: Path, count: int, size: int) -> PictureStore:
    """What a training does first."""
    return PictureStore(names(folder, count), (size, size), "disk", folder=folder / "cache")


def fill(folder: Path, count: int, size: int, stop_at: int | None = None) -> Row:
    """Decode what is missing, or end the process in the midst of it as ``kill -9`` does."""
    begin = time.perf_counter()
    store = start(folder, count, size)
    missing = store.missing

    def progress(done: int, _: int) -> None:
        if done == stop_at:
            os._exit(9)

    store.fill(progress)
    seconds = time.perf_counter() - begin
    return count if missing == 0 else missing, seconds, f"{count - missing} were there"


def check(folder: Path, count: int, size: int) -> None:
    """Compare some pictures of the cache with what decoding gives.

    Raises:
        RuntimeError: If one is another.
    """
    store = start(folder, count, size)
    chosen = np.random.default_rng(2).permutation(count)[:32]
    for index, picture in zip(chosen.tolist(), store[chosen], strict=True):
        if not np.array_equal(picture, load_picture(store.path(index), (size, size))):
            raise RuntimeError(f"{store.path(index)} is kept wrongly; nothing was timed")


def read(
    folder: Path, count: int, size: int, cpus: int, batch: int, *, unread: bool, feed: bool
) -> Row:
    """One epoch of batches, after a few that make the threads and buffers."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cpus])
    import torch

    from mambaad.batches import AHEAD, READERS, Batches, Feed

    torch.set_num_threads(cpus)
    if unread:
        drop(folder / "cache")
    data = Batches(start(folder, count, size), batch, 0, torch.device("cpu"))
    warm = 4
    note = f"batch {batch}" + (f"; {READERS} threads, {AHEAD} batches ahead" if feed else "")
    ahead = Feed(data)
    call: Callable[[int], object] = ahead.fill if feed else data.load
    for step in range(warm):
        call(step)
    begin = time.perf_counter()
    for step in range(warm, warm + data.per_epoch):
        call(step)
    seconds = time.perf_counter() - begin
    ahead.close()
    return data.per_epoch * batch, seconds, note


def drop(folder: Path) -> None:
    """Ask the system to forget what it holds of the files."""
    for path in folder.glob("*.bin"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def private_mb() -> float:
    """Memory of this process alone, without the pages of mapped files, in MB."""
    status = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return sum(int(s.split()[1]) for s in status if s.startswith(("RssAnon:", "VmSwap:"))) / 1e3


def measured(function: Callable[..., Row], *arguments: Any) -> tuple[Row, float, float]:
    """A call, the peak of this process's memory and what it holds alone, in MB."""
    row = function(*arguments)
    return row, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3, private_mb()


def apart(function: Callable[..., Row], *arguments: Any) -> tuple[Row, float, float]:
    """Call in a fresh process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measured, (function, *arguments))


def killed(folder: Path, count: int, size: int) -> tuple[Row, float, float] | None:
    """Time a process that does not come to its end; None if the cache is complete already."""
    missing = start(folder, count, size).missing
    if missing < count:
        return None
    process = multiprocessing.get_context("spawn").Process(
        target=fill, args=(folder, count, size, max(1, count // 3))
    )
    begin = time.perf_counter()
    process.start()
    process.join()
    seconds = time.perf_counter() - begin
    kept = missing - start(folder, count, size).missing
    row = (max(1, count // 3), seconds, f"{kept} of them kept; status {process.exitcode}")
    return row, float("nan"), float("nan")


def main(arguments: list[str] | None = None) -> None:
    """Print the rows."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="for the pictures and the cache; is left there")
    parser.add_argument("--pictures", type=int, default=5000)
    parser.add_argument("--side", type=int, default=2000, help="of a picture's file, in pixels")
    parser.add_argument("--size", type=int, default=256, help="of a picture as prepared")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--cpus", type=int, nargs="+", default=sorted({1, worker_count()}))
    args = parser.parse_args(arguments)
    place = (args.folder, args.pictures, args.size)
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(HEADER)

    def row(what: str, found: tuple[Row, float, float], cpus: int) -> None:
        (pictures, seconds, note), *memory = found
        rate = f"{pictures / seconds:.0f}" if pictures else ""
        cells = ["" if np.isnan(n) else f"{n:.0f}" for n in memory]
        about = [what, pictures, args.side, args.size, cpus, f"{seconds:.3f}", rate, note]
        writer.writerow([*about, *cells, processor(), commit()])
        sys.stdout.flush()

    everyone = worker_count()
    row("make", apart(make, args.folder, args.pictures, args.side), everyone)
    broken = killed(*place)
    if broken is not None:
        row("first, killed", broken, everyone)
        row("first, rest", apart(fill, *place), everyone)
    row("second", apart(fill, *place), everyone)
    check(*place)
    for cpus in args.cpus:
        tasks = {"feed": (False, True), "feed, unread": (True, True), "load": (False, False)}
        for what, (unread, feed) in tasks.items():
            call = partial(read, unread=unread, feed=feed)
            row(what, apart(call, *place, cpus, args.batch), cpus)


if __name__ == "__main__":
    main()
