"""Prepared pictures by index, each decoded and resized once.

A ``PictureStore`` holds H·W·3 bytes per picture, 196 608 at 256 x 256: in memory (``pictures``), in
a file that later runs find again (``disk``), or not at all (``none``). How they are kept, and how
processes share the file, is in ``mambaad.data.kept``.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from mambaad.data.images import load_picture
from mambaad.data.kept import InMemory, OnDisk, file_name, look_at
from mambaad.data.samples import Dataset
from mambaad.errors import ImageError

StoreMode = Literal["pictures", "disk", "none"]
Progress = Callable[[int, int], None]
"""Called with the number done so far and the number in all."""

_CHUNK = 64  # pictures between two waits for the disk
_PORTION = 1024  # items handed to the threads at once

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class Store(Protocol):
    """Pictures of one size by index."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of every picture."""
        ...

    def path(self, index: int) -> Path:
        """The file that a picture comes from."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, indices: Sequence[int] | NDArray[np.integer]) -> NDArray[np.uint8]:
        """Pictures by index in the order asked for, uint8 (n, H, W, 3), the caller's own."""
        ...


class PictureStore:
    """Pictures as uint8 arrays by index, each decoded at most once.

    Reading from several threads at once is safe.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        size: tuple[int, int],
        mode: StoreMode = "pictures",
        *,
        folder: Path | None = None,
        among: Sequence[Path] | None = None,
        workers: int | None = None,
    ) -> None:
        """Make an empty store, or open what is left on disk of an earlier one.

        Args:
            paths: The pictures' files.
            size: Height and width that every picture is resized to.
            mode: Where decoded pictures are kept.
            folder: Where ``disk`` puts its file; None: :func:`cache_folder`.
            among: Pictures that ``disk`` has one file for, ``paths`` being some of them; None:
                ``paths``. Stores of other parts of them share the file. Their order is of no
                matter.
            workers: Threads that decode; None: one per processor.

        Raises:
            ImageError: If ``disk`` and a picture does not exist.
            DatasetError: If the file on disk cannot be made, or what is missing has no room.
            ValueError: If ``size`` is not two positive numbers, or a path is not in ``among``.
        """
        if len(size) != 2 or min(size) < 1:
            raise ValueError(f"size must be (height, width), both positive, got {size}")
        self.paths = tuple(paths)
        self.size = size
        self.workers = workers or worker_count()
        self._kept: InMemory | OnDisk | None = None
        if mode == "pictures":
            self._kept = InMemory((len(self.paths), *size, 3))
        elif mode == "disk":
            self._kept = _on_disk(self.paths, size, folder or cache_folder(), among)
        elif mode != "none":
            raise ValueError(f"mode must be 'pictures', 'disk' or 'none', got {mode!r}")

    def __len__(self) -> int:
        return len(self.paths)

    def path(self, index: int) -> Path:
        """The file of a picture."""
        return self.paths[index]

    @property
    def missing(self) -> int:
        """How many pictures have not been decoded yet; all of them, always, for ``none``."""
        return len(self) if self._kept is None else len(self._kept.absent(np.arange(len(self))))

    def fill(self, progress: Progress | None = None) -> None:
        """Decode every picture that is missing. Does nothing for ``none``.

        Stopped at any point, also by the end of the process, it goes on from there the next time.
        Processes that fill the same file at once divide the work between them.

        Args:
            progress: Called in this thread after each picture.

        Raises:
            ImageError: If a picture cannot be read.
            DatasetError: If the disk is full.
        """
        if self._kept is not None:
            absent = self._kept.absent(np.arange(len(self)))
            if isinstance(self._kept, OnDisk):
                absent = _chunks_in_own_order(absent)
            self._keep(self._kept, absent.tolist(), progress)

    def __getitem__(self, indices: Sequence[int] | NDArray[np.integer]) -> NDArray[np.uint8]:
        """Pictures by index, in the order asked for.

        Args:
            indices: (n,), whole numbers in 0..len-1; may repeat.

        Returns:
            uint8, (n, H, W, 3), the caller's own.

        Raises:
            ImageError: If a picture cannot be read.
            DatasetError: If the disk is full.
            IndexError: If there is no such picture.
        """
        wanted = np.asarray(indices, dtype=np.intp)
        if wanted.ndim != 1:
            raise ValueError(f"indices must have shape (n,), got {wanted.shape}")
        if wanted.size and not 0 <= wanted.min() <= wanted.max() < len(self):
            raise IndexError(
                f"indices must lie in 0..{len(self) - 1}, got {wanted.min()}..{wanted.max()}"
            )
        if self._kept is None:
            pictures = map_in_threads(self._load, wanted.tolist(), workers=self.workers)
            return np.stack(pictures) if pictures else np.empty((0, *self.size, 3), np.uint8)
        self._keep(self._kept, np.unique(self._kept.absent(wanted)).tolist())
        return self._kept.take(wanted)

    def windows(
        self, indices: Sequence[int], corners: Sequence[tuple[int, int]], size: tuple[int, int]
    ) -> NDArray[np.uint8]:
        """Parts of pictures, without a copy of the rest of those that are kept.

        Args:
            indices: (n,), whole numbers in 0..len-1; may repeat. A picture that is not kept is
                decoded once a call.
            corners: (n,), first row and column of each part.
            size: Height and width of every part.

        Returns:
            uint8, (n, *size, 3), the caller's own.

        Raises:
            ImageError: If a picture cannot be read.
            DatasetError: If the disk is full.
        """
        distinct = np.unique(np.asarray(indices, dtype=np.intp))
        names = distinct.tolist()
        if self._kept is None:
            found = map_in_threads(self._load, names, workers=self.workers)
        else:
            self._keep(self._kept, self._kept.absent(distinct).tolist())
            found = [self._kept.picture(i) for i in names]
        pictures = dict(zip(names, found, strict=True))
        parts = np.empty((len(indices), *size, 3), np.uint8)
        for part, index, (y, x) in zip(parts, indices, corners, strict=True):
            part[...] = pictures[int(index)][y : y + size[0], x : x + size[1]]
        return parts

    def _keep(
        self, kept: InMemory | OnDisk, indices: list[int], progress: Progress | None = None
    ) -> None:
        begun = 0

        def finish(done: int, total: int) -> None:
            nonlocal begun
            if done - begun == _CHUNK or done == total:
                kept.commit(indices[begun:done])
                begun = done
            if progress is not None:
                progress(done, total)

        def put(index: int) -> None:
            if kept.absent(np.array([index])).size:  # else another process was quicker
                kept.put(index, self._load(index))

        map_in_threads(put, indices, workers=self.workers, progress=finish)

    def _load(self, index: int) -> NDArray[np.uint8]:
        try:
            return load_picture(self.paths[index], self.size)
        except ImageError as error:
            raise ImageError(
                f"{error}. Remove it, or run 'mambaad check DATA' to list every such file"
            ) from error


def cache_folder() -> Path:
    """``mambaad`` in the user's cache folder: ``$XDG_CACHE_HOME``, else ``~/.cache``."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "mambaad"


def fingerprint(dataset: Dataset) -> str:
    """A name for the data: changes when a file is added, removed, renamed, relabelled or resized.

    Returns:
        SHA-256 in hexadecimal over each sample's path inside the root, file size, category, split
        and defect, and its mask's path and file size. Modification times and the place of the
        root do not enter, nor do the pixels: equal sizes under equal names pass for equal.

    Raises:
        ImageError: If a file has disappeared.
    """
    digest = hashlib.sha256()
    inside = dataset.root.as_posix().rstrip("/") + "/"
    for sample in dataset:
        files = [
            None if path is None else (path.as_posix().removeprefix(inside), _size_of(path))
            for path in (sample.image, sample.mask)
        ]
        row = [*files, sample.category, sample.split, sample.defect]
        digest.update(json.dumps(row).encode() + b"\n")
    return digest.hexdigest()


def _size_of(path: Path) -> int | list[tuple[str, int]]:
    """A file's size; of a folder of masks, every file's name and size."""
    status = look_at(path)
    if not stat.S_ISDIR(status.st_mode):
        return status.st_size
    return [(file.name, look_at(file).st_size) for file in sorted(path.iterdir())]


def worker_count() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def map_in_threads(
    function: Callable[[_Item], _Result],
    items: Sequence[_Item],
    *,
    workers: int,
    progress: Progress | None = None,
) -> list[_Result]:
    """``[function(item) for item in items]`` on several threads.

    The threads live for one call only, so the caller may fork. The first exception, in the order
    of the items, is raised and the items not yet begun are given up.
    """
    if not items:
        return []
    results: list[_Result] = []
    with ThreadPoolExecutor(min(workers, len(items)), "mambaad-data") as pool:
        # in portions: a set may have 150 000 pictures, and each item waiting takes a kilobyte
        try:
            for start in range(0, len(items), _PORTION):
                for result in pool.map(function, items[start : start + _PORTION]):
                    results.append(result)
                    if progress is not None:
                        progress(len(results), len(items))
        except (
            BaseException
        ):  # Ctrl-C too, wherever it strikes, must not wait for the whole portion
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return results


def _on_disk(
    paths: Sequence[Path], size: tuple[int, int], folder: Path, among: Sequence[Path] | None
) -> OnDisk:
    if among is None:
        file = folder / file_name(paths, size)
        return OnDisk(file, (len(paths), *size, 3), np.arange(len(paths)))
    places = {path: row for row, path in enumerate(sorted(set(among)))}
    try:
        rows = np.array([places[path] for path in paths], dtype=np.intp)
    except KeyError as error:
        raise ValueError(f"paths must be in among, which has no {error.args[0]}") from None
    return OnDisk(folder / file_name(list(places), size), (len(places), *size, 3), rows)


def _chunks_in_own_order(indices: NDArray[np.intp]) -> NDArray[np.intp]:
    """Chunks in an order that is drawn anew: two processes seldom decode the same ones at once.

    Pictures and their places do not depend on it.
    """
    chunks = [indices[start : start + _CHUNK] for start in range(0, len(indices), _CHUNK)]
    drawn = np.random.default_rng().permutation(len(chunks)).tolist()
    return np.concatenate([indices[:0], *(chunks[i] for i in drawn)])
